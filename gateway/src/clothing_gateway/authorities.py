"""Verification of servers' TLS certificates, the same in each Python version."""

from __future__ import annotations

import ssl


def tls_context(cafile: str | None = None) -> ssl.SSLContext:
    """Return a client's TLS context that trusts a PEM file's authorities.

    Without a file, it trusts the system's.

    ``SSL_CERT_FILE`` names others for the system's. Since 3.13 Python sets two flags, of which one is kept:

    - VERIFY_X509_STRICT, cleared: authorities of companies whose basic constraints are not marked critical would be
      refused (cpython#133564), which each browser, curl, gRPC and Python 3.12 take. The chain, the dates and the name
      are checked as before.
    - VERIFY_X509_PARTIAL_CHAIN, set: an intermediate authority in the file is trusted without its root, as by curl
      and gRPC.
    """
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
