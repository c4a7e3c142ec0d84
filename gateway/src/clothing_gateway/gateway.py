"""The gateway process: wiring, the two ports, signals, graceful shutdown.

SIGTERM: not ready at once, still accepting for GATEWAY_DRAIN_DELAY_SECONDS (until every load balancer has removed the
pod), then the port closes, accepted requests finish within GATEWAY_DRAIN_TIMEOUT_SECONDS, and the process exits with 0.
SIGINT, Ctrl-C, skips the delay. A second signal exits at once. The process has handlers of its own, so it behaves the
same as PID 1 of a container.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType

from clothing_gateway import __version__, fetch
from clothing_gateway.image.decode import jpeg_decoder
from clothing_gateway.image.pool import DecoderPool
from clothing_gateway.limits import cgroup
from clothing_gateway.limits.admission import ByteBudget, DecodeGate, Slots, slots_in_all
from clothing_gateway.model.certificates import ServedCertificates
from clothing_gateway.model.channels import target_of
from clothing_gateway.model.channelz import AttemptCounter
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.pipeline import Classifier, fetching_limit
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry import tracing
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import TracingError
from clothing_gateway.web.admin import create_admin
from clothing_gateway.web.app import PHOTO_ROUTES, create_app
from clothing_gateway.web.auth import KeysError
from clothing_gateway.web.cors import Origins
from clothing_gateway.web.hosts import Hosts
from clothing_gateway.web.limits import PortLimits
from clothing_gateway.web.rate_limit import Clients
from clothing_gateway.web.requests import Lifecycle
from clothing_gateway.web.server import Listener

logger = logging.getLogger(__name__)

# Beyond the in-flight slots: for refusals, /ping, and other requests that block on nothing.
_SPARE_THREADS = 4
# The admin port: enough that no client of it keeps the kubelet out, which opens a connection for each probe.
_ADMIN_THREADS = 4
_ADMIN_CONNECTIONS = 256
_ADMIN_CONNECTIONS_PER_CLIENT = 64
_ADMIN_BODY_BYTES = 64 * 1024
_ADMIN_IDLE_SECONDS = 10
# Not alive after this many request timeouts without a finished request while others wait, and not before a minute.
_STUCK_TIMEOUTS = 3
_STUCK_SECONDS = 60
# JSON bodies: URLs of 4 kB, and as much again for what surrounds them.
_JSON_BYTES = 64 * 1024
_JSON_BYTES_PER_PHOTO = 8 * 1024
# Files beside clients' connections: the admin port's, photo servers', model servers', and the process's own.
_OTHER_FILES = _ADMIN_CONNECTIONS + 256


class StartError(Exception):
    """The process can't start; the text says why, and what to do."""


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bind a socket to an address; raises StartError.

    ``::`` is IPv6 and IPv4, or the one that exists.
    """
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # a node that was started with ipv6.disable=1
    sock: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # :: accepts IPv4 as well
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise StartError(
            f"can't listen on {host} port {port}: {error.strerror}. Choose another address with GATEWAY_LISTEN_HOST, "
            f"another port with {setting}."
        ) from None
    return sock


def _connections(wanted: int) -> int:
    """Raise the open files limit to its hard limit; return the client connections.

    That is the number of connections that fit in the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fit = wanted if hard == resource.RLIM_INFINITY else min(wanted, max(hard - _OTHER_FILES, 1))
    if fit < wanted:
        logger.warning("GATEWAY_MAX_CONNECTIONS=%d: %d fit in the limit of %d open files", wanted, fit, hard)
    return fit


class Gateway:
    """One gateway, made from settings and run once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        fetch.limit_system_lookups()
        try:
            known = Clients(settings)
            self._tracer = tracing.from_environment(os.environ, __version__)
        except (KeysError, TracingError) as error:
            raise StartError(str(error)) from None
        clients = bind(settings.listen_host, settings.listen_port, "GATEWAY_LISTEN_PORT")
        try:
            operators = bind(settings.listen_host, settings.admin_listen_port, "GATEWAY_ADMIN_LISTEN_PORT")
        except StartError:
            clients.close()
            raise
        self.metrics = Metrics(jpeg_decoder())
        # A client has half of it at most, and room for two photos.
        share = max(settings.max_buffered_bytes // 2, 2 * max(settings.max_body_bytes, settings.fetch_max_bytes))
        budget = ByteBudget(settings.max_buffered_bytes, share)
        slots = Slots(slots_in_all(settings.max_in_flight), settings.max_in_flight)
        fetching = Slots(fetching_limit(settings), settings.max_in_flight)
        processes = settings.decode_processes
        # Of the decode processes one is left to light photos.
        gate = DecodeGate(
            settings.decode_slots, settings.decode_memory_bytes, max(processes - 1, 1) if processes else None
        )
        self._decoders = DecoderPool(processes, gate.largest, self.metrics.count_decode_exit) if processes else None
        attempts = AttemptCounter(target_of(settings.tf_serving_host))
        self.predictor = Predictor(settings, count=self.metrics.count_rpc)
        calls = self.predictor.slots
        self.certificates = ServedCertificates(settings)
        self.metrics.watch(
            in_flight=lambda: slots.taken,
            fetching=lambda: fetching.taken,
            waiting=lambda: gate.waiting,
            buffered=lambda: budget.reserved,
            attempts=attempts.read,
            calls_waiting=lambda: calls.waiting,
            call_limit=lambda: calls.limit,
            certificate=lambda: self.certificates.validity,
        )
        fetcher = fetch.by_settings(settings, budget, count=self.metrics.count_fetch)
        classifier = Classifier(
            settings,
            self.predictor,
            fetcher,
            gate=gate,
            slots=slots,
            metrics=self.metrics,
            decoders=self._decoders,
            count_megapixels=known.megapixels.take if known.megapixels else None,
        )
        connections = _connections(settings.max_connections)
        lifecycle = Lifecycle(
            settings.request_timeout_seconds,
            self.metrics,
            self._tracer,
            Origins(settings.allowed_origins),
            Hosts(settings.allowed_hosts),
        )
        self.listener = Listener(
            create_app(settings, classifier, slots, known, lifecycle),
            clients,
            PortLimits(
                max_body_bytes=settings.max_body_bytes,
                budget=budget,
                max_connections=connections,
                max_connections_per_client=min(settings.max_connections_per_client, connections),
                max_json_bytes=max(_JSON_BYTES, _JSON_BYTES_PER_PHOTO * settings.max_photos),
                clients=known,
                slots=slots,
                fetching=fetching,
                slotted=PHOTO_ROUTES,
            ),
            lifecycle,
            threads=slots_in_all(settings.max_in_flight) + fetching_limit(settings) + _SPARE_THREADS,
            concurrency=cgroup.available_cores() + 1,
        )
        self.admin = Listener(
            create_admin(self.not_ready, self.not_alive, self.metrics),
            operators,
            PortLimits(
                max_body_bytes=_ADMIN_BODY_BYTES,
                budget=ByteBudget(_ADMIN_CONNECTIONS * _ADMIN_BODY_BYTES),
                max_connections=_ADMIN_CONNECTIONS,
                max_connections_per_client=_ADMIN_CONNECTIONS_PER_CLIENT,
                idle_seconds=_ADMIN_IDLE_SECONDS,
                max_pipelined=2,
            ),
            Lifecycle(settings.request_timeout_seconds, self.metrics),
            threads=_ADMIN_THREADS,
            concurrency=_ADMIN_THREADS,
        )
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._ended = threading.Event()
        self._delay = True

    def not_ready(self) -> str | None:
        """Why the gateway is not ready, in words; None when it is ready."""
        return "the gateway is shutting down" if self._stop.is_set() else self.predictor.versions.not_ready

    def not_alive(self) -> str | None:
        """Why the process should be restarted, in words; None while requests finish."""
        seconds = 0.0 if self._stop.is_set() else self.listener.stuck_seconds()
        if seconds < max(_STUCK_SECONDS, _STUCK_TIMEOUTS * self.settings.request_timeout_seconds):
            return None
        return f"requests wait, and none has finished for {seconds:.0f} s"

    def stop(self, *, delay: bool = True) -> None:
        """Start the shutdown; a second call ends it at once."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._delay = delay
            self._stop.set()
        self.listener.wake()

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT start the shutdown."""

        def begin(number: int, frame: FrameType | None) -> None:
            del frame
            self.stop(delay=number == signal.SIGTERM)

        signal.signal(signal.SIGTERM, begin)
        signal.signal(signal.SIGINT, begin)

    def run(self) -> bool:
        """Serve until stopped; whether every accepted request was finished."""
        settings = self.settings
        self.predictor.watcher.start()
        self.certificates.start()
        admin = threading.Thread(target=self.admin.serve, args=(self._ended,), name="admin", daemon=True)
        admin.start()
        logger.info(
            "listening",
            extra={
                "version": __version__,
                "jpeg_decoder": jpeg_decoder(),
                "host": settings.listen_host,
                "port": self.listener.port,
                "admin_port": self.admin.port,
                "tf_serving_host": settings.tf_serving_host,
            },
        )
        self.listener.serve(self._stop)
        delay = settings.drain_delay_seconds if self._delay else 0.0
        logger.info("shutting down", extra={"drain_delay_seconds": delay})
        self.listener.draining = True
        self.listener.serve(self._hurry, until=time.monotonic() + delay)
        self.listener.stop_accepting()
        cut = self.listener.drain(self._hurry, until=time.monotonic() + settings.drain_timeout_seconds)
        if cut:
            logger.error("drain timed out, connections cut", extra={"connections": cut})
        else:
            logger.info("shutdown complete, no request lost")
        self._ended.set()
        self.admin.wake()
        admin.join(2)
        self.admin.stop_accepting()
        self.admin.drain(self._ended, until=time.monotonic())
        if self._decoders is not None:
            self._decoders.close()
        if self._tracer is not None:
            self._tracer.close()
        # Connections to servers, and threads that still wait for one, end with the process: a model server that hangs
        # holds a check for five seconds, and no request waits for its answer any more.
        return not cut
