"""A model of one sigmoid or one logit for two labels: convert, verify, values, and what `evaluate` asks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.errors import ModelError
from clothing_model.evaluation.classifiers import Options, SavedModelClassifier


def photo(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, value, value)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_one_number_for_two_labels(activation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores are Keras's own: class 1's probability, and what is left for class 0."""
    import keras

    inputs = keras.Input((16, 20, 3), name="photo")
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    dense = keras.layers.Dense(1, activation, kernel_initializer=keras.initializers.Constant(2.0), name="bees")
    model = keras.Model(inputs, dense(pooled))
    model.save(tmp_path / "bees.keras")
    options = ["--name", "bees", "--output", str(tmp_path), "--preprocessing", "rescale", "--labels", "bee,wasp"]
    assert main(["convert", str(tmp_path / "bees.keras"), *options]) == 0
    version = tmp_path / "bees/1"
    capsys.readouterr()
    assert main(["verify", str(version), "--labels", "bee,wasp"]) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert main(["values", str(version), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["model"]
    assert (values["labels"], values["preprocessing"]) == (["bee", "wasp"], "rescale")
    assert values["scores"] == {"sigmoid": "sigmoid", "linear": "logits"}[activation]

    classifier = SavedModelClassifier(version, Options(), ())
    levels = (0, 90, 255)
    found = np.stack([classifier.classify(photo(level)).probabilities for level in levels])
    numbers = np.stack([np.full((16, 20, 3), level, np.float32) / 255 for level in levels])
    raw = model.predict(numbers, verbose=0)[:, 0]
    expected = raw if activation == "sigmoid" else 1 / (1 + np.exp(-raw))
    assert np.allclose(found, np.stack([1 - expected, expected], axis=1), atol=1e-5)

    noted = savedmodel.read(version).description  # a linear network: far from a photo the numbers tell
    (version / savedmodel.DESCRIPTION).write_text(json.dumps({**noted, "scores": "auto"}))
    again = SavedModelClassifier(version, Options(), ())
    assert np.allclose(np.stack([again.classify(photo(level)).probabilities for level in levels]), found, atol=1e-5)


def test_one_number_that_may_be_either_is_not_guessed(tmp_path: Path) -> None:
    """ReLU6 keeps its features, and so a small logit, in their range."""
    import keras

    inputs = keras.Input((16, 20, 3), name="photo")
    features = keras.layers.ReLU(6.0)(keras.layers.GlobalAveragePooling2D()(inputs))
    dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(0.01), name="bees")
    keras.Model(inputs, dense(features)).export(tmp_path / "bees/1", verbose=False)
    with pytest.raises(ModelError, match="whether it is a sigmoid or of logits is not noted"):
        SavedModelClassifier(tmp_path / "bees/1", Options(("bee", "wasp")), ())
