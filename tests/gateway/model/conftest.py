"""Fixtures of the model's client."""

from __future__ import annotations

import pytest

from clothing_gateway.model.predictor import Predictor
from clothing_gateway.settings import Settings


@pytest.fixture
def make(stack):
    """Make predictors that are closed with the test; ``counted`` has their calls."""

    def make(address, **settings):
        counted = []
        predictor = Predictor(
            Settings(**{"tf_serving_host": address, "model_check_seconds": 0.1, **settings}),
            count=lambda method, code: counted.append((method, code)),
        )
        predictor.counted = counted
        stack.callback(predictor.close)
        return predictor

    return make
