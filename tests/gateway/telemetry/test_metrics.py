"""Series that are there before their first event."""

from __future__ import annotations

from clothing_gateway.errors import all_errors
from clothing_gateway.telemetry.metrics import Metrics


def test_server_errors_start_at_zero():
    """rate() of a series that begins with 1 is 0: the first model-out-of-memory would raise no alert."""
    registry = Metrics("Pillow").registry
    for error in all_errors():
        expected = 0 if error.status >= 500 else None
        assert registry.get_sample_value("gateway_errors_total", {"code": error.code}) == expected, error.code
