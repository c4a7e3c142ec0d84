"""Models of the shapes that people bring, of both Keras, through `convert` and `verify`; what Keras itself scores.

    model-image/.venv/bin/python tests/architectures.py FOLDER PHOTO…

writes FOLDER/models/NAME/1 for Xception, EfficientNetV2B0 and MobileNetV3Small with random weights and a head of ten
classes, and prints {"NAME": {"size": …, "preprocessing": …, "scores": {"PHOTO": [score, …]}}}. The networks are the
true ones; their inputs are small, which leaves the weights as many and the time short.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from clothing_model.commands.cli import main
from clothing_model.evaluation import dataset

LABELS = "dress,hat,longsleeve,outwear,pants,shirt,shoes,shorts,skirt,t-shirt"
# The application, its input's size, and the preprocessing outside it: the two latter have theirs in their layers.
ARCHITECTURES = {
    "xception": ("Xception", 71, "tf"),
    "efficientnetv2": ("EfficientNetV2B0", 64, "none"),
    "mobilenetv3": ("MobileNetV3Small", 64, "none"),
}
LIBRARIES = {"keras2": ("tf_keras", ".h5"), "keras3": ("keras", ".keras")}


def build(keras: Any, application: str, size: int) -> Any:
    """The application with a head, as transfer learning makes it; logits."""
    keras.utils.set_random_seed(1)
    base = getattr(keras.applications, application)(
        include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3)
    )
    return keras.Model(base.input, keras.layers.Dense(10)(base.output))


def make(folder: Path, name: str, paths: list[str]) -> dict[str, Any]:
    """One model: saved, converted, verified; its size, preprocessing, and Keras's scores."""
    library, architecture = name.split("-")
    module, suffix = LIBRARIES[library]
    application, size, preprocessing = ARCHITECTURES[architecture]
    model = build(importlib.import_module(module), application, size)
    scores = {}
    for path in paths:
        pixels = dataset.read_pixels(Path(path), size)
        numbers = dataset.scale(pixels) if preprocessing == "tf" else pixels.astype(np.float32)
        scores[path] = [float(score) for score in np.asarray(model(numbers[None], training=False))[0]]
    source = folder / f"{name}{suffix}"
    with warnings.catch_warnings(action="ignore"):  # that .h5 is old: just so
        model.save(source)
    options = ["--output", str(folder / "models"), "--labels", LABELS, "--preprocessing", preprocessing]
    for command in (
        ["convert", str(source), "--name", name, *options],
        ["verify", "--strict", str(folder / "models" / name)],
    ):
        if code := main(command):
            sys.exit(code)
    return {"size": size, "preprocessing": preprocessing, "scores": scores}


if __name__ == "__main__":
    into, *photo_paths = sys.argv[1:]
    names = [f"{library}-{architecture}" for library in LIBRARIES for architecture in ARCHITECTURES]
    sys.stdout, out = sys.stderr, sys.stdout  # what the commands say goes to the log
    json.dump({name: make(Path(into), name, photo_paths) for name in names}, out)
