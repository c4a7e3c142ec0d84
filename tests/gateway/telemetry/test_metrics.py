"""Series that are there before their first event, and one text for scrapes that arrive together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace

from clothing_gateway.errors import all_errors
from clothing_gateway.telemetry.metrics import Metrics


def test_server_errors_start_at_zero():
    """rate() of a series that begins with 1 is 0: the first model-out-of-memory would raise no alert."""
    registry = Metrics("Pillow").registry
    for error in all_errors():
        expected = 0 if error.status >= 500 else None
        assert registry.get_sample_value("gateway_errors_total", {"code": error.code}) == expected, error.code


@dataclass(frozen=True)
class Validity:
    not_before: float
    not_after: float


def test_certificate_has_no_sample_before_it_is_known():
    """0 would be a certificate that ended in 1970."""
    found: list[Validity] = []
    metrics = Metrics("Pillow")
    watch(metrics, certificate=lambda: found[-1] if found else None)
    start, end = (f"gateway_server_certificate_{name}_timestamp_seconds" for name in ("not_before", "not_after"))
    assert metrics.registry.get_sample_value(start) is metrics.registry.get_sample_value(end) is None
    found.append(Validity(1e9, 2e9))
    assert metrics.registry.get_sample_value(start) == 1e9
    assert metrics.registry.get_sample_value(end) == 2e9


def watch(metrics, certificate):
    def nothing() -> float:
        return 0

    metrics.watch(
        in_flight=nothing,
        fetching=nothing,
        waiting=nothing,
        buffered=nothing,
        attempts=lambda: SimpleNamespace(succeeded=0, failed=0),
        calls_waiting=nothing,
        call_limit=nothing,
        certificate=certificate,
    )


def test_scrapes_that_arrive_together_share_one_text():
    metrics = Metrics("Pillow")
    since = time.monotonic()
    text = metrics.render(since)
    assert metrics.render(since) is text
    assert metrics.render(time.monotonic()) is not text
