"""TensorFlow's start-up messages (instructions, devices, deprecations) silenced."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_tensorflow() -> None:
    """Silence TensorFlow's start-up messages; call before its import.

    Settings that the user made stay as they are.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] >= "2":
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"(tf_keras|keras|tensorflow|google)\b")
