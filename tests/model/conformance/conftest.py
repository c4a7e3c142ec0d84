"""The server under test: TF_SERVING_ADDRESS, or TF_SERVING_IMAGE run by Docker, or the portable server.

A server of our own is started twice, without batching and with it: its clients must not be able to tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from conformance_target import Target, given, started

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
