"""What the tests of the model's client have in common."""

from __future__ import annotations

import time

import numpy as np

from clothing_gateway.deadline import Deadline


def photo(seed=0, size=8, dtype=np.float32):
    """A prepared photo."""
    return np.random.default_rng(seed).uniform(0, 200, (size, size, 3)).astype(dtype)


def wait_until(condition, seconds=10):
    """Wait for a condition, which must become true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def ask(predictor, photos=None, seconds=5.0, metadata=()):
    """Predict with the stable version."""
    return predictor.predict(
        predictor.versions.route(), [photo()] if photos is None else photos, Deadline.after(seconds), metadata
    )
