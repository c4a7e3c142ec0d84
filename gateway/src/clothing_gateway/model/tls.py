"""TLS and mTLS to the model server: certificate files, reloaded on change.

They are validated before gRPC gets them.

gRPC accepts anything as a certificate and then fails each connection with an error about handshakes; OpenSSL, through
Python's ``ssl``, names the file and the fault at once.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from clothing_gateway.authorities import tls_context
from clothing_gateway.settings import Settings


class TlsError(Exception):
    """A file can't be used; the text names it, its setting and the reason."""


@dataclass(frozen=True, slots=True, repr=False)
class TlsFiles:
    """The files' contents, None for an unset file; equal while unchanged."""

    authorities: bytes | None
    certificate: bytes | None
    key: bytes | None

    def credentials(self) -> grpc.ChannelCredentials:
        """GRPC's channel credentials."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


def read(settings: Settings) -> TlsFiles | None:
    """Read the files; None where TLS is off, TlsError where one can't be used."""
    if not settings.model_tls:
        return None
    files = TlsFiles(
        authorities=_bytes("GATEWAY_MODEL_TLS_CA_FILE", settings.model_tls_ca_file),
        certificate=_bytes("GATEWAY_MODEL_TLS_CERTIFICATE_FILE", settings.model_tls_certificate_file),
        key=_bytes("GATEWAY_MODEL_TLS_KEY_FILE", settings.model_tls_key_file),
    )
    _check(settings, files)
    return files


def client_context(settings: Settings) -> ssl.SSLContext:
    """Return a context for handshakes with a model server as gRPC makes them.

    OSError (SSLError, too) where a file can't be used; ``read`` names it.
    """
    context = tls_context(settings.model_tls_ca_file or None)
    context.set_alpn_protocols(["h2"])
    if settings.model_tls_certificate_file:
        context.load_cert_chain(settings.model_tls_certificate_file, settings.model_tls_key_file, password=lambda: b"")
    return context


def _bytes(variable: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"{variable}={path} can't be read: {error.strerror}") from None


def _check(settings: Settings, files: TlsFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if files.authorities is not None:
        try:
            context.load_verify_locations(cadata=files.authorities.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise TlsError(
                f"GATEWAY_MODEL_TLS_CA_FILE={settings.model_tls_ca_file} holds no certificates in PEM form"
            ) from None
    if files.certificate is not None:
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(
                settings.model_tls_certificate_file, settings.model_tls_key_file, password=lambda: b""
            )
        except (OSError, ValueError):  # SSLError is an OSError
            raise TlsError(
                f"GATEWAY_MODEL_TLS_CERTIFICATE_FILE={settings.model_tls_certificate_file} and "
                f"GATEWAY_MODEL_TLS_KEY_FILE={settings.model_tls_key_file} are no certificate and its key, in PEM form "
                "and without a password"
            ) from None
