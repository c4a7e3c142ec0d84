"""A full model server is not an absent one: gateways stay ready, and clients that wait get their answers."""

from __future__ import annotations

import full_server
import programs
import pytest


@pytest.fixture(scope="module", autouse=True)
def built():
    programs.build()


@pytest.mark.parametrize("threads", [4, 8, 64])
def test_gateway_stays_ready_before_a_full_server(threads):
    result = full_server.measure(threads, seconds=8)
    print(result.row())
    assert result.not_ready == [], result.row()
    assert "model-not-ready" not in result.errors, result.row()
    assert set(result.answers) <= {"200", "503"}, result.row()
    assert result.without_retry_after == 0
    assert result.answers["200"] > 0
    if threads == 64:  # more than the gateway's photos in flight: there is nothing to refuse
        assert set(result.answers) == {"200"}, result.row()
