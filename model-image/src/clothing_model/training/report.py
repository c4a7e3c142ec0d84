"""Files of a trained model: the model, its report, its learning curves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clothing_model.evaluation import dataset
from clothing_model.evaluation.metrics import confusion

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray


def logits_of(model: keras.Model, pixels: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """Logits float32 ``(n, classes)`` for uint8 photos ``(n, size, size, 3)``."""
    parts = [
        np.asarray(model(dataset.scale(pixels[start : start + batch]), training=False))
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts)


def measured(model: keras.Model, pixels: NDArray[np.uint8], data: dataset.Dataset) -> dict[str, Any]:
    """Accuracy, accuracy per class and confusion matrix, for the report.

    ``pixels`` are the photos of ``data``: uint8 ``(n, size, size, 3)``.
    """
    found = logits_of(model, pixels).argmax(axis=1)
    table = confusion(data.targets, found, len(data.labels))
    return {
        "validation_photos": len(data.paths),
        "validation_photos_sha256": data.sha256(),
        "validation_accuracy": float((found == data.targets).mean()),
        "accuracy_per_class": {
            label: float(table[index, index] / table[index].sum()) for index, label in enumerate(data.labels)
        },
        "confusion": table.tolist(),
    }


def report_file(model: Path) -> Path:
    """Path of the report on ``model``: ``pants.keras`` → ``pants.training.json``."""
    return model.with_suffix(".training.json")


def curves_file(model: Path) -> Path:
    """Path of ``model``'s learning curves: ``pants.keras`` → ``pants.training.png``."""
    return model.with_suffix(".training.png")


def save_keras(model: keras.Model, file: Path) -> None:
    """Save the model atomically: a killed training leaves the old file intact."""
    half = file.with_name(f".{file.stem}.{os.getpid()}.keras")
    model.save(half)
    half.replace(file)
