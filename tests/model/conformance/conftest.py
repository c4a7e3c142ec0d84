"""The server under test: TF_SERVING_ADDRESS, or TF_SERVING_IMAGE run by Docker, or the portable server.

A server of our own is started without batching and with it: its clients must not be able to tell. A third one, with
few threads, is for limits, versions and labels. TF_SERVING_REPORT names a file for the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance_report import Report
from conformance_target import Target, given, started, started_narrow

ADDRESS = os.environ.get("TF_SERVING_ADDRESS", "")
MODEL = os.environ.get("TF_SERVING_MODEL_NAME") or "clothing-model"


@pytest.fixture(scope="session", params=["as it is"] if ADDRESS else ["one by one", "batching"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    if ADDRESS:
        with given(ADDRESS, MODEL) as found:
            yield found
    else:
        with started(tmp_path_factory.mktemp("conformance"), MODEL, request.param == "batching") as found:
            yield found


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    if ADDRESS:
        pytest.skip("a server that others use is neither filled up nor given another configuration")
    with started_narrow(tmp_path_factory.mktemp("narrow"), MODEL) as found:
        yield found


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.get("TF_SERVING_REPORT", ""):
        config.pluginmanager.register(Report(Path(path)), "conformance-report")
