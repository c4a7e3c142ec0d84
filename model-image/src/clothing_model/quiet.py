"""Silences TensorFlow's start-up messages on instructions, devices, deprecations."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_tensorflow() -> None:
    """Call before TensorFlow is imported. Both settings stay whatever the user has set them to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] >= "2":
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"(tf_keras|keras|tensorflow|google)\b")
