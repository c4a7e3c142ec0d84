"""Models whose every answer is known: a photo's mean red, green and blue are its scores for those three classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = ("red", "green", "blue")
SIZE = 16


def write(
    version: Path,
    *,
    gain: float = 4.0,
    dtype: str = "float32",
    bias: tuple[float, float, float] = (0, 0, 0),
    labels: tuple[str, ...] | None = LABELS,
    preprocessing: str | None = None,
    size: int | None = SIZE,
) -> Path:
    """A SavedModel; ``gain`` makes it surer of itself, ``bias`` prefers a class."""
    import tensorflow as tf

    spec = {
        "float32": tf.TensorSpec((None, size, size, 3), tf.float32, name="photo"),
        "uint8": tf.TensorSpec((None, size, size, 3), tf.uint8, name="photo"),
        "encoded": tf.TensorSpec((None,), tf.string, name="photo"),
    }[dtype]
    module = tf.Module()
    module.bias = tf.Variable(bias, dtype=tf.float32)

    def decode(file: Any) -> Any:
        return tf.cast(tf.io.decode_image(file, channels=3, expand_animations=False), tf.float32)

    def classify(photo: Any) -> dict[str, Any]:
        if dtype == "encoded":
            means = tf.map_fn(lambda file: tf.reduce_mean(decode(file), (0, 1)), photo, fn_output_signature=tf.float32)
            means = means / 127.5 - 1
        else:
            means = tf.reduce_mean(tf.cast(photo, tf.float32), (1, 2))
            means = means / 127.5 - 1 if dtype == "uint8" or preprocessing == "none" else means
        return {"scores": gain * means + module.bias}

    module.classify = tf.function(classify, input_signature=[spec])
    tf.saved_model.save(module, str(version), signatures={"serving_default": module.classify})
    description: dict[str, Any] = {}
    if labels:
        description["labels"] = list(labels)
    if preprocessing:
        description["preprocessing"] = preprocessing
    (version / "assets.extra").mkdir()
    (version / "assets.extra/model.json").write_text(json.dumps(description))
    return version


def photo(path: Path, red: int, green: int, blue: int) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((20, 30, 3), (red, green, blue), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def dataset(root: Path) -> Path:
    """Twelve photos, four a class; two lie in the wrong folder: a red one in green, a green one in blue."""
    for number in range(4):
        photo(root / "red" / f"{number}.png", 200 + 10 * number, 20, 20)
    for number in range(3):
        photo(root / "green" / f"{number}.png", 20, 180 + 10 * number, 20)
        photo(root / "blue" / f"{number}.png", 20, 20, 180 + 10 * number)
    photo(root / "green" / "red.png", 220, 30, 30)
    photo(root / "blue" / "green.png", 30, 220, 30)
    return root
