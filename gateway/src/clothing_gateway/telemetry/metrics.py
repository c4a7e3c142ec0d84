"""Prometheus metrics of the admin port.

README.md lists the same names; a test compares them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from clothing_gateway import __version__
from clothing_gateway.errors import all_errors
from clothing_gateway.image.pool import EXITS

# Without the time at which each series was created: as many lines again, and no query uses them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

STAGES = ("fetch", "wait", "decode", "predict")

# From a photo of 20 kB with a fast model (5 ms) to the default deadline (20 s).
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
_PIXELS = (1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
_BYTES = (1e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7)


class Attempts(Protocol):
    """RPC attempts that have ended."""

    @property
    def succeeded(self) -> int:
        """Answered with OK."""

    @property
    def failed(self) -> int:
        """All others."""


class _AttemptCollector:
    """Reads the attempts at each scrape."""

    read: Callable[[], Attempts] | None = None

    def collect(self) -> Iterator[CounterMetricFamily]:
        attempts = None if self.read is None else self.read()
        family = CounterMetricFamily(
            "gateway_rpc_attempts",
            "Attempts of these calls, by result: one that fails may be made again on another server.",
            labels=("result",),
        )
        family.add_metric(("succeeded",), attempts.succeeded if attempts else 0)
        family.add_metric(("failed",), attempts.failed if attempts else 0)
        yield family


class Certificate(Protocol):
    """A certificate's validity, in seconds of Unix time."""

    @property
    def not_before(self) -> float:
        """Its start."""

    @property
    def not_after(self) -> float:
        """Its end."""


class _CertificateCollector:
    """Reads the certificate at each scrape.

    There is no sample before one is known: 0 would be a certificate that ended in 1970.
    """

    read: Callable[[], Certificate | None] | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        certificate = None if self.read is None else self.read()
        which = "of the certificate that the model servers serve and that ends first, in Unix time; absent without TLS."
        for name in ("not_before", "not_after"):
            family = GaugeMetricFamily(
                f"gateway_server_certificate_{name}_timestamp_seconds",
                f"{'Start' if name == 'not_before' else 'End'} {which}",
            )
            if certificate is not None:
                family.add_metric((), getattr(certificate, name))
            yield family


class Metrics:
    """All metrics, in a registry of their own.

    Two gateways in one process don't share series.

    ``jpeg_decoder`` names the decoder of JPEGs, for ``gateway_build_info``.
    """

    def __init__(self, jpeg_decoder: str) -> None:
        self.registry = CollectorRegistry()
        self._rendering = threading.Lock()
        self._rendered_at = 0.0
        self._rendered = b""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Histogram(
            "gateway_request_duration_seconds",
            "Time from a request's first byte to its answer, by route and status.",
            ("route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Each child is looked up once: a lookup by labels costs as much as the observation.
        self._request = functools.cache(self.requests.labels)
        self.processing = Histogram(
            "gateway_processing_duration_seconds",
            "Time from the last byte of a request's photos, uploaded or fetched, to their scores.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "gateway_stage_duration_seconds",
            "Time of a photo in a stage: fetch, wait (for a decoder), decode (with preprocessing), predict (a call).",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage = {stage: self._stages.labels(stage) for stage in STAGES}
        self.errors = Counter(
            "gateway_errors_total",
            "Requests, and photos of a request with several, that ended in an error, by the error's code.",
            ("code",),
            registry=self.registry,
        )
        for error in all_errors():
            if error.status >= 500:
                # At 0 from the start: rate() does not see a series that begins with its first error.
                self.errors.labels(error.code)
        self._decode_exits = Counter(
            "gateway_decode_process_exits_total",
            "Decode processes that ended, by reason: their photo's deadline, its client left, a crash, or killed.",
            ("reason",),
            registry=self.registry,
        )
        for reason in EXITS:
            self._decode_exits.labels(reason)
        self.fetches = Counter(
            "gateway_fetches_total", "Fetched photos, by result.", ("result",), registry=self.registry
        )
        self._fetch = functools.cache(self.fetches.labels)
        self.rpcs = Counter(
            "gateway_rpcs_total",
            "Calls to the model server, by method and gRPC status code; Probe: pictures of the gateway's own.",
            ("method", "code"),
            registry=self.registry,
        )
        self._rpc = functools.cache(self.rpcs.labels)
        self._attempts = _AttemptCollector()
        self.registry.register(self._attempts)
        self.predictions = Counter(
            "gateway_predictions_total",
            "Photos that the model answered for, by track (stable, canary, selected …) and version.",
            ("track", "version"),
            registry=self.registry,
        )
        self._prediction = functools.cache(self.predictions.labels)
        self.photo_pixels = Histogram(
            "gateway_photo_pixels", "Width times height of the photos.", buckets=_PIXELS, registry=self.registry
        )
        self.photo_bytes = Histogram(
            "gateway_photo_bytes", "File sizes of the photos.", buckets=_BYTES, registry=self.registry
        )
        self._in_flight = Gauge(
            "gateway_in_flight_photos",
            "Photos being worked on (at most GATEWAY_MAX_IN_FLIGHT).",
            registry=self.registry,
        )
        self._fetching = Gauge(
            "gateway_fetching_photos",
            "Photos being fetched (at most twice GATEWAY_MAX_IN_FLIGHT).",
            registry=self.registry,
        )
        self._waiting = Gauge(
            "gateway_decode_waiting_photos", "Photos that wait for a decoder.", registry=self.registry
        )
        self._calls_waiting = Gauge(
            "gateway_model_waiting_calls",
            "Calls that wait for a slot, as the model servers accept no more.",
            registry=self.registry,
        )
        self._call_limit = Gauge(
            "gateway_model_call_limit",
            "Concurrent calls that the model servers accept of this gateway, as far as it knows "
            "(at most GATEWAY_MAX_IN_FLIGHT).",
            registry=self.registry,
        )
        self._buffered = Gauge(
            "gateway_buffered_bytes",
            "Uploads and downloads in memory (at most GATEWAY_MAX_BUFFERED_BYTES).",
            registry=self.registry,
        )
        self._certificate = _CertificateCollector()
        self.registry.register(self._certificate)
        self.ready = Gauge("gateway_ready", "1 while the gateway is ready, else 0.", registry=self.registry)
        build = Gauge(
            "gateway_build_info",
            "1, with the gateway's version and what decodes its JPEGs.",
            ("version", "jpeg_decoder"),
            registry=self.registry,
        )
        build.labels(__version__, jpeg_decoder).set(1)

    def watch(
        self,
        *,
        in_flight: Callable[[], float],
        fetching: Callable[[], float],
        waiting: Callable[[], float],
        buffered: Callable[[], float],
        attempts: Callable[[], Attempts],
        calls_waiting: Callable[[], float],
        call_limit: Callable[[], float],
        certificate: Callable[[], Certificate | None],
    ) -> None:
        """Read the gauges from the limits, and attempts from gRPC, at each scrape."""
        self._certificate.read = certificate
        self._in_flight.set_function(in_flight)
        self._fetching.set_function(fetching)
        self._waiting.set_function(waiting)
        self._attempts.read = attempts
        self._buffered.set_function(buffered)
        self._calls_waiting.set_function(calls_waiting)
        self._call_limit.set_function(call_limit)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Observe a request's duration, by route and status."""
        self._request(route, status).observe(seconds)

    def count_error(self, code: str) -> None:
        """Count an error of a request or of one of its photos."""
        self.errors.labels(code).inc()

    def count_decode_exit(self, reason: str) -> None:
        """Count a decode process that ended, by reason."""
        self._decode_exits.labels(reason).inc()

    def count_fetch(self, result: str) -> None:
        """Count a fetch, by result."""
        self._fetch(result).inc()

    def count_rpc(self, method: str, code: str) -> None:
        """Count a call to the model server."""
        self._rpc(method, code).inc()

    def count_predictions(self, track: str, version: int, photos: int) -> None:
        """Count classified photos, by track and version."""
        self._prediction(track, version).inc(photos)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Observe one photo's time in a stage."""
        self._stage[stage].observe(seconds)

    def render(self, since: float) -> bytes:
        """The text exposition format, as of ``since`` (``time.monotonic``) or later.

        Requests that arrive together share one text, which takes 7 ms: hundreds of them would keep probes waiting.
        """
        with self._rendering:
            if self._rendered_at < since:
                self._rendered_at = time.monotonic()
                self._rendered = prometheus_client.generate_latest(self.registry)
            return self._rendered
