"""`clothing-model average`, and `convert --weights float16` of what it writes, each beside what Keras computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.training.report import report_file
from model_factory import make_model, photos

LABELS = ["green", "red"]


def model(folder: Path, seed: int, size: int = 32, classes: int = 2, **report: Any) -> Path:
    """With weights that are large enough to be halved, and a report."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3), name="photo")
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(64, 3, strides=2)(inputs))
    x = keras.layers.Flatten()(keras.layers.Activation("relu")(x))
    path = folder / f"{seed}.keras"
    keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x)).save(path)
    report_file(path).write_text(json.dumps({"labels": LABELS, "preprocessing": "tf", "photos": 64, **report}))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [model(folder, 1), model(folder, 2)]


def scores(path: Path, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import keras

    return np.asarray(keras.saving.load_model(path)(pixels, training=False))


def test_the_mean_of_all_and_half_the_bytes(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf

    for label, colour in (("green", (20, 200, 40)), ("red", (210, 30, 20))):
        (tmp_path / "validation" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), colour).save(tmp_path / "validation" / label / "1.png")
    output = tmp_path / "mean.keras"
    options = ["--output", str(output), "--mirrored", "--validation", str(tmp_path / "validation")]
    assert main(["average", *map(str, two), *options]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    pixels = photos(32, 3)
    expected = np.mean([scores(path, view) for path in two for view in (pixels, pixels[:, :, ::-1])], axis=0)
    assert np.abs(expected - scores(two[0], pixels)).max() > 0.1
    assert np.abs(scores(output, pixels) - expected).max() < 1e-5
    report = json.loads(report_file(output).read_text())
    assert report["labels"] == LABELS
    assert [each["file"] for each in report["average_of"]] == ["1.keras", "2.keras"]
    assert report["mirrored"] is True
    assert report["validation_photos"] == 2
    assert report["validation_accuracy"] in (0, 0.5, 1)

    sizes = {}
    for weights in ("float32", "float16"):
        assert main(["convert", str(output), "--name", weights, "--output", str(tmp_path), "--weights", weights]) == 0
        version = tmp_path / weights / "1"
        assert main(["verify", str(version), "--strict", "--labels", ",".join(LABELS)]) == 0
        found = savedmodel.read(version)
        assert (found.has_variables, found.problems, found.description["weights"]) == (True, (), weights)
        signature = tf.saved_model.load(str(version)).signatures["serving_default"]
        got = signature(photo=tf.constant(pixels))["logits"].numpy()
        assert np.abs(got - expected).max() < (1e-3 if weights == "float16" else 1e-5) * np.abs(expected).max()
        sizes[weights] = sum(file.stat().st_size for file in (version / "variables").iterdir())
    assert sizes["float16"] < 0.55 * sizes["float32"]


def test_weights_beyond_float16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    inputs = keras.Input((16, 16, 3), name="photo")
    x = keras.layers.Conv2D(64, 3, kernel_initializer=keras.initializers.Constant(1e6))(inputs)
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "large.keras")
    command = ["convert", str(tmp_path / "large.keras"), "--name", "m", "--output", str(tmp_path)]
    assert main([*command, "--weights", "float16"]) == 1
    assert "its weights are beyond what float16 tells apart; leave --weights out" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_refusals(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    text = tmp_path / "text.keras"
    text.write_text("<html>")
    cases: list[tuple[list[Path], str, str]] = [
        ([two[0]], "m.keras", "one model has no mean with itself: give several, or --mirrored"),
        (two, "m.h5", "must end in .keras"),
        ([two[0], tmp_path / "absent.keras"], "m.keras", "absent.keras does not exist"),
        ([two[0], text], "m.keras", "is text, not a model"),
        ([two[0], make_model(tmp_path / "h5", "keras3-h5", size=32)], "m.keras", "give a .keras file"),
        ([two[0], model(tmp_path, 3, labels=["red", "green"])], "m.keras", "only models alike have a mean"),
        ([two[0], model(tmp_path, 4, preprocessing="caffe")], "m.keras", "has the preprocessing caffe"),
        ([two[0], model(tmp_path, 5, size=48)], "m.keras", "has the input (None, 48, 48, 3)"),
        ([two[0], model(tmp_path, 6, classes=3)], "m.keras", "has the output (None, 3)"),
    ]
    for models, output, message in cases:
        assert main(["average", *map(str, models), "--output", str(tmp_path / output)]) == 1, message
        assert message in capsys.readouterr().err
        assert not (tmp_path / output).exists()
    broken = model(tmp_path, 7)
    report_file(broken).write_text("[")
    assert main(["average", str(broken), "--mirrored", "--output", str(tmp_path / "m.keras")]) == 1
    assert "7.training.json can't be read" in capsys.readouterr().err
