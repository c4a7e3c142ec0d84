"""Validity of the certificates that the model servers serve, for metrics.

A server reads its certificate at its start: one that cert-manager has renewed is served after a restart only, and until
then nothing but a handshake shows which one ends.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from clothing_gateway.model import tls
from clothing_gateway.model.channels import host_and_port
from clothing_gateway.settings import Settings

# Days matter; short enough that an alert ends soon after the restart that it asks for.
_EVERY_SECONDS = 300.0
# Until the first certificate is known: a server listens once it has loaded its model.
_FIRST_SECONDS = 15.0
# A server answers at once; one that hangs must not keep the others from being asked.
_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Validity:
    """A certificate's start and end, in seconds of Unix time."""

    not_before: float
    not_after: float


class ServedCertificates:
    """A thread that reads the servers' certificates, one handshake each."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._target = host_and_port(settings.tf_serving_host)
        # Of the certificate that ends first; None until a server has served one, and without TLS.
        self.validity: Validity | None = None

    def start(self) -> None:
        """Start the thread, where TLS is on; it ends with the process."""
        if self._settings.model_tls:
            threading.Thread(target=self._run, name="certificate-check", daemon=True).start()

    def check(self) -> None:
        """Read the certificates once; where no server serves one, the last is kept."""
        found = [validity for address in self._addresses() if (validity := self._served(address))]
        if found:
            self.validity = min(found, key=lambda validity: validity.not_after)

    def _run(self) -> None:
        while True:
            self.check()
            time.sleep(_FIRST_SECONDS if self.validity is None else _EVERY_SECONDS)

    def _addresses(self) -> set[tuple[str, int]]:
        """Addresses and ports of the servers; none of a target that is no name."""
        if self._target is None:
            return set()
        host, port = self._target
        with suppress(OSError, ValueError):  # ValueError: a port that is no number
            return {(str(one[4][0]), int(port)) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return set()

    def _served(self, address: tuple[str, int]) -> Validity | None:
        """The validity of one server's certificate; None where none can be verified.

        With no such server the gateway is not ready, and its log has the reason.
        """
        name = self._settings.model_tls_server_name or (self._target[0] if self._target else "")
        with suppress(OSError, ValueError):  # SSLError is an OSError
            context = tls.client_context(self._settings)
            with (
                socket.create_connection(address, _TIMEOUT_SECONDS) as connection,
                context.wrap_socket(connection, server_hostname=name) as secured,
            ):
                certificate = secured.getpeercert() or {}
                return Validity(
                    ssl.cert_time_to_seconds(str(certificate["notBefore"])),
                    ssl.cert_time_to_seconds(str(certificate["notAfter"])),
                )
        return None
