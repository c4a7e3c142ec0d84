"""Checks of the network to the model servers: DNS, TCP and TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from clothing_gateway.commands.doctor.chart import values_for
from clothing_gateway.commands.doctor.report import FAIL, OK, WARNING, Finding
from clothing_gateway.model import tls
from clothing_gateway.settings import Settings

# A DNS server answers within milliseconds; an absent one blocks getaddrinfo for half a minute.
_DNS_SECONDS = 6.0
# Dropped packets never get an answer; all else is answered at once.
_CONNECT_SECONDS = 3.0
_CERTIFICATE_DAYS = 14
_TLS_VALUE = "gateway.serverTls.secretName"

_NO_SERVER = (
    "server.startup.maxSeconds where a server is still loading, server.resources or server.gpu.nodeSelector where it "
    "is Pending, model.source or server.resources.limits.memory where it restarts again and again (kubectl get "
    "pods, kubectl logs)"
)


@dataclass(frozen=True, slots=True)
class Server:
    """Address and port of one model server."""

    address: str
    port: int

    @property
    def name(self) -> str:
        """HOST:PORT, as in a URL."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def look_up(host: str, addresses: list[str], *, in_pod: bool) -> Finding:
    """Resolve a host, and append what it finds to the addresses."""
    with suppress(ValueError):
        addresses.append(str(ip_address(host)))
        return Finding("dns", OK, f"{host} is an address: one model server, or a load balancer")
    found = _within(_DNS_SECONDS, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    if found is None or (isinstance(found, socket.gaierror) and found.errno == socket.EAI_AGAIN):
        return Finding(
            "dns",
            FAIL,
            f"no DNS server answered for {host}",
            "networkPolicy.dns.to, networkPolicy.dns.port, where networkPolicy.enabled; else it is the cluster's DNS",
        )
    if isinstance(found, Exception) or not found:
        return Finding(
            "dns",
            FAIL,
            f"{host} has no address: no model server is ready (a headless Service lists ready pods only), or this "
            "namespace has no such Service",
            f"{_NO_SERVER}; TF_SERVING_HOST in gateway.extraEnv, where it names another Service",
        )
    addresses.extend(dict.fromkeys(str(entry[4][0]) for entry in found))
    listed = ", ".join(addresses)
    if len(addresses) > 1:
        return Finding("dns", OK, f"{host} has {len(addresses)} addresses: {listed}")
    if in_pod and _is_the_services_own(host, addresses[0]):
        return Finding(
            "dns",
            WARNING,
            f"{host} has the address {listed}, the Service's cluster IP: a gateway keeps one connection through it, "
            "and so uses one model server only",
            "TF_SERVING_HOST in gateway.extraEnv: leave it out, the chart names its headless Service",
        )
    alone = ": one model server is ready" if in_pod else ""
    return Finding("dns", OK, f"{host} has one address, {listed}{alone}")


def _is_the_services_own(host: str, address: str) -> bool:
    """Tell a Service's cluster IP from a pod's by reverse DNS.

    The cluster's reverse DNS names the Service.
    """
    found = _within(_DNS_SECONDS, lambda: socket.gethostbyaddr(address))
    return isinstance(found, tuple) and found[0].partition(".")[0] == host.partition(".")[0]


def _within(seconds: float, call: Any) -> Any:  # noqa: ANN401 - whatever the call gives
    """Run a call; its result, the OSError that it raised, or None after a timeout."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def connect(server: Server, host: str, settings: Settings) -> Iterator[Finding]:
    """Check TCP, and TLS where it is on."""
    start = time.monotonic()
    try:
        socket.create_connection((server.address, server.port), _CONNECT_SECONDS).close()
    except TimeoutError:
        yield Finding(
            "connection",
            FAIL,
            f"{server.name}: no connection within {_CONNECT_SECONDS:g} s: packets are dropped",
            "networkPolicy.enabled, where the chart's policies are the only ones; else a policy of the namespace or a "
            "security group of the nodes must let gateways reach this port",
        )
        return
    except OSError as error:
        yield Finding(
            "connection",
            FAIL,
            f"{server.name}: {error.strerror}. A model server listens only once it has loaded a model",
            _NO_SERVER,
        )
        return
    milliseconds = (time.monotonic() - start) * 1000
    if not settings.model_tls:
        yield Finding("connection", OK, f"{server.name} accepts connections, in {milliseconds:.1f} ms")
        return
    try:
        tls.read(settings)
    except tls.TlsError as error:
        yield Finding("tls", FAIL, str(error), values_for(str(error)))
        return
    yield _shake_hands(server, settings.model_tls_server_name or host, settings)


# OpenSSL's verdict on a certificate (X509_V_ERR_…), its meaning here, and the values.
_VERIFY = {
    9: ("is not valid yet: a clock is wrong, here or where it was made", ""),
    10: ("has expired", "server.tls.certManager.enabled, or renew the Secret of server.tls.secretName"),
    18: ("is self-signed, and not the one in ca.crt", _TLS_VALUE),
    19: ("is signed by a CA that is not in ca.crt", _TLS_VALUE),
    20: ("is signed by a CA that is not in ca.crt", _TLS_VALUE),
    21: ("is signed by a CA that is not in ca.crt", _TLS_VALUE),
    62: ("is for other names", "gateway.serverTls.serverName"),
    64: ("is for other names", "gateway.serverTls.serverName"),
}


def _shake_hands(server: Server, name: str, settings: Settings) -> Finding:
    context = tls.client_context(settings)
    try:
        with (
            socket.create_connection((server.address, server.port), _CONNECT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=name) as secured,
        ):
            certificate = secured.getpeercert() or {}
            goes_on = _goes_on(secured)
    except ssl.SSLCertVerificationError as error:
        words, change = _VERIFY.get(error.verify_code, (f"is rejected: {error.verify_message}", _TLS_VALUE))
        return Finding("tls", FAIL, f"{server.name}: the certificate, verified for {name!r}, {words}", change)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "certificate" in reason:  # a server with TLS 1.2
            return _refused(server, settings)
        return Finding(
            "tls",
            FAIL,
            f"{server.name} speaks no TLS, and the gateway does ({reason})",
            "server.tls.secretName, or leave gateway.serverTls.secretName empty",
        )
    except OSError as error:
        return Finding("tls", FAIL, f"{server.name}: no TLS: {error.strerror or error}", "server.tls.secretName")
    if not goes_on:
        return _refused(server, settings)
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    text = f"{server.name}: the certificate is for {name!r}, valid for {days:.0f} more days"
    if days < _CERTIFICATE_DAYS:
        return Finding("tls", WARNING, text, "server.tls.certManager.renewBefore, or renew server.tls.secretName")
    return Finding("tls", OK, text)


def _goes_on(secured: ssl.SSLSocket) -> bool:
    """Tell whether a server answers after the handshake.

    With TLS 1.3 it verifies the client's certificate after it.

    HTTP/2 begins with these words and an empty SETTINGS frame; a server answers with its own.
    """
    try:
        secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        return bool(secured.recv(1))
    except OSError:  # SSLError is one
        return False


def _refused(server: Server, settings: Settings) -> Finding:
    shown = "rejects this one" if settings.model_tls_certificate_file else "gets none"
    return Finding(
        "tls",
        FAIL,
        f"{server.name} requires a client certificate (mTLS), and {shown}",
        "gateway.serverTls.mutual, and tls.crt and tls.key in the Secret of gateway.serverTls.secretName, from the CA "
        "in ca.crt of server.tls.secretName",
    )


def speaks_tls(server: Server) -> bool:
    """Tell whether a port speaks TLS, with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((server.address, server.port), _CONNECT_SECONDS) as connection,
            context.wrap_socket(connection) as secured,
        ):
            return secured.version() is not None
    except OSError:
        return False
