"""A model's contract: noted by `convert`, kept by a second `convert`, printed by `values`, with options first."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clothing_contract import Input
from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.evaluation.classifiers import Options, PhotoError, SavedModelClassifier
from clothing_model.keras import config as keras_config

TORCHVISION = {
    "preprocessing": "rescale", "mean": [0.5, 0.4, 0.3], "std": [0.25], "channels": "bgr", "fit": "crop",
    "shorterSide": 20, "resampling": "bilinear", "exifOrientation": False,
}  # fmt: skip
OPTIONS = [
    "--preprocessing=rescale", "--mean=0.5,0.4,0.3", "--std=0.25", "--channels=bgr", "--fit=crop", "--shorter-side=20",
    "--resampling=bilinear", "--exif-orientation=off",
]  # fmt: skip


def keras_model(*last: Any, channels: int = 3) -> Any:
    import keras

    photo = keras.Input((16, 16, channels), name="photo")
    found = keras.layers.GlobalAveragePooling2D()(photo)
    for layer in last:
        found = layer(found)
    return keras.Model(photo, found)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras

    path = tmp_path_factory.mktemp("source") / "bees.keras"
    keras_model(keras.layers.Dense(3, "sigmoid")).save(path)
    return path


def values(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["values", str(path), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["model"]
    return found


def convert(source: Path, output: Path, *options: str) -> Path:
    command = ["convert", str(source), "--name=m", f"--output={output}", "--labels=a,b,c", "--warmup=none", *options]
    assert main(command) == 0
    return output / "m/1"


def test_noted_kept_and_printed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = convert(source, tmp_path, *OPTIONS)
    expected = {"name": "m", "labels": ["a", "b", "c"], "scores": "independent", **TORCHVISION}
    assert values(version, capsys) == expected
    assert Input.read(values(version, capsys)) == Input.read(TORCHVISION)
    assert values(convert(version, tmp_path / "again"), capsys) == expected
    other = values(convert(version, tmp_path / "other", "--preprocessing=tf", "--fit=pad", "--scores=logits"), capsys)
    del expected["mean"], expected["std"], expected["shorterSide"]
    assert other == {**expected, "preprocessing": "tf", "fit": "pad", "scores": "logits"}
    assert values(version, capsys, "--scores=softmax", "--mean=1")["mean"] == [1]
    assert values(version, capsys, "--scores=softmax")["scores"] == "softmax"


def test_what_the_graph_computes_is_no_value(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = convert(source, tmp_path, "--input=uint8", *OPTIONS)
    fitting = {key: TORCHVISION[key] for key in ("fit", "shorterSide", "resampling", "exifOrientation")}
    assert values(version, capsys) == {"name": "m", "labels": ["a", "b", "c"], "scores": "independent", **fitting}
    noted = savedmodel.read(version).description
    assert {key: noted[key] for key in TORCHVISION} == TORCHVISION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preprocessing=tf", "--mean=1"], "mean and std belong to preprocessing none"),
        (["--preprocessing=rescale", "--std=a"], "must be numbers with commas"),
        (["--shorter-side=0"], "shorterSide is 0, and must be pixels"),
        (["--input=encoded", "--preprocessing=tf", "--fit=crop"], "such a model stretches photos by nearest"),
        (["--input=uint8", "--mean=1"], "mean and std belong to"),
        (["--input=uint8", "--fit=pad"], "give --preprocessing"),
    ],
)
def test_contradictions_are_refused_before_tensorflow_loads(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["convert", str(source), "--name=m", f"--output={tmp_path}", *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_threshold_is_noted_printed_and_used(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = convert(source, tmp_path, "--threshold=0.3")
    assert savedmodel.read(version).description["threshold"] == 0.3
    found = values(version, capsys)
    assert (found["scores"], found["threshold"]) == ("independent", 0.3)
    assert values(version, capsys, "--threshold=0.6")["threshold"] == 0.6
    assert "threshold" not in values(version, capsys, "--scores=softmax")
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    answer = SavedModelClassifier(version, Options(), ()).classify(file.getvalue())
    assert np.array_equal(answer.held, answer.probabilities > 0.3)
    for options in (["--scores=softmax"], ["--scores=logits"]):
        command = ["convert", str(source), "--name=m", f"--output={tmp_path}", *options, "--threshold=0.3"]
        assert main(command) == 1
        assert "leave it out" in capsys.readouterr().err
    noted = {**savedmodel.read(version).description, "threshold": 3}
    (version / savedmodel.DESCRIPTION).write_text(json.dumps(noted))
    assert main(["verify", str(version)]) == 1
    assert "threshold is 3, and must be above 0 and below 1: convert it again" in capsys.readouterr().out


def test_scores_by_the_last_activation() -> None:
    import keras

    layers = keras.layers
    found = {
        "softmax": [[layers.Dense(3, "softmax")], [layers.Dense(3), layers.Softmax()],
                    [layers.Dense(3), layers.Activation("softmax")]],
        "logits": [[layers.Dense(3)], [layers.Dense(1)]],
        "sigmoid": [[layers.Dense(1, "sigmoid")], [layers.Dense(1), layers.Activation("sigmoid")]],
        "independent": [[layers.Dense(3, "sigmoid")]],
        None: [[layers.Dense(3, "relu")], [layers.Dense(3), layers.Dropout(0.5)], [layers.Dense(3), layers.ReLU()]],
    }  # fmt: skip
    for kind, models in found.items():
        for last in models:
            model = keras_model(*last)
            assert keras_config.scores(json.loads(model.to_json())) == kind, [layer.name for layer in last]
    stack = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(2, "softmax")])
    assert keras_config.scores(json.loads(stack.to_json())) == "softmax"
    assert keras_config.scores(json.loads(keras.Sequential([keras.Input((4, 4, 3)), stack]).to_json())) == "softmax"
    assert keras_config.scores({}) is None


def test_grey_pixels_are_scaled_in_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    path = tmp_path / "grey.keras"
    keras_model(keras.layers.Dense(3, "softmax"), channels=1).save(path)
    version = convert(path, tmp_path, "--input=uint8", "--preprocessing=rescale")  # which compares with Keras
    assert values(version, capsys)["scores"] == "softmax"


def test_evaluate_prepares_and_reads_as_noted(tmp_path: Path) -> None:
    """BGR, mean and deviation, a filter and EXIF as in the contract; small logits that look like probabilities."""
    import keras

    model = keras_model(keras.layers.Dense(3))
    model.save(tmp_path / "bees.keras")
    options = [option for option in OPTIONS if not option.startswith(("--fit", "--shorter"))]
    version = convert(tmp_path / "bees.keras", tmp_path, *options)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG", exif=turned)
    answer = SavedModelClassifier(version, Options(), ()).classify(file.getvalue())
    pixels = np.asarray(noise.resize((16, 16), Image.Resampling.BILINEAR), np.float32)[..., ::-1]
    numbers = (pixels / 255 - np.array([0.5, 0.4, 0.3], np.float32)) / np.float32(0.25)
    [raw] = model.predict(numbers[None], verbose=0)
    assert np.allclose(answer.scores, raw, atol=1e-5)
    assert answer.probabilities is not None
    assert np.allclose(answer.probabilities, np.exp(raw) / np.exp(raw).sum(), atol=1e-5)


def noise(height: int, width: int) -> tuple[bytes, np.ndarray]:
    """A photo's file, and its pixels."""
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def cropped(pixels: np.ndarray) -> np.ndarray:
    """torchvision's Resize(20) and CenterCrop(16) of 40 x 30 pixels, that is 26 x 20."""
    return np.asarray(Image.fromarray(pixels).resize((26, 20), Image.Resampling.BILINEAR).crop((5, 2, 21, 18)))


def padded(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.pad(Image.fromarray(pixels), (16, 16), Image.Resampling.BICUBIC))


def cropped_by_keras(pixels: np.ndarray) -> np.ndarray:
    """load_img(keep_aspect_ratio=True): the largest square."""
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=(5, 0, 35, 30)))


def padded_by_tensorflow(pixels: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    return np.asarray(tf.image.resize_with_pad(pixels, 16, 16))


def resized_by_tensorflow(pixels: np.ndarray, **options: Any) -> np.ndarray:
    import tensorflow as tf

    return np.asarray(tf.image.resize(pixels, (16, 16), **options))


def cropped_by_tensorflow(pixels: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    return np.asarray(tf.image.resize(pixels, (20, 26)))[2:18, 5:21]


@pytest.mark.parametrize(
    ("options", "prepared"),
    [
        (("--fit=crop", "--shorter-side=20", "--resampling=bilinear"), cropped),
        (("--fit=pad", "--resampling=bicubic"), padded),
        (("--fit=keras-crop", "--resampling=bilinear"), cropped_by_keras),
        (("--fit=keras-pad", "--resampling=tf-bilinear"), padded_by_tensorflow),
        (("--resampling=tf-bilinear",), resized_by_tensorflow),
        (("--resampling=tf-bilinear-antialias",), functools.partial(resized_by_tensorflow, antialias=True)),
        (("--fit=crop", "--shorter-side=20", "--resampling=tf-bilinear"), cropped_by_tensorflow),
    ],
)
@pytest.mark.parametrize("type_", ["float32", "uint8"])
def test_evaluate_fits_photos_as_noted(
    tmp_path: Path, options: tuple[str, ...], prepared: Callable[[np.ndarray], np.ndarray], type_: str
) -> None:
    import keras

    photo = keras.Input((16, 16, 3), name="photo")
    model = keras.Model(photo, keras.layers.Dense(3)(keras.layers.Flatten()(photo)))
    model.save(tmp_path / "bees.keras")
    version = convert(tmp_path / "bees.keras", tmp_path, "--preprocessing=rescale", f"--input={type_}", *options)
    file, pixels = noise(30, 40)
    wanted = prepared(pixels)
    if type_ == "uint8":
        wanted = np.rint(wanted)
    expected = model(wanted[None].astype(np.float32) / np.float32(255), training=False)[0]
    answer = SavedModelClassifier(version, Options(), ()).classify(file)
    assert np.allclose(answer.scores, expected, atol=1e-5)


def test_evaluate_crops_no_narrow_photo(source: Path, tmp_path: Path) -> None:
    """The gateway's limit: a row of 1,000 x 1 would be resized to 20,000 x 20."""
    classifier = SavedModelClassifier(convert(source, tmp_path, *OPTIONS), Options(), ())
    assert classifier.classify(noise(1, 800)[0]).scores.shape == (3,)
    with pytest.raises(PhotoError, match="too narrow; send one whose sides differ less"):
        classifier.classify(noise(1, 1000)[0])


@pytest.mark.parametrize("type_", ["float32", "uint8"])
def test_evaluate_of_grey_photos(tmp_path: Path, type_: str) -> None:
    import keras

    model = keras_model(keras.layers.Dense(3, "softmax"), channels=1)
    model.save(tmp_path / "digits.keras")
    version = convert(tmp_path / "digits.keras", tmp_path, "--preprocessing=rescale", f"--input={type_}")
    file, pixels = noise(16, 16)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)[None, ..., None] / 255
    [expected] = model.predict(grey, verbose=0)
    answer = SavedModelClassifier(version, Options(), ()).classify(file)
    assert np.allclose(answer.scores, expected, atol=1e-5)


def test_evaluate_of_channels_first(tmp_path: Path) -> None:
    """As PyTorch's models are: (batch, 3, height, width)."""
    import tensorflow as tf

    module = tf.Module()
    weights = tf.constant(np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32))
    module.serve = tf.function(
        lambda photo: {"scores": tf.reduce_mean(photo[:, :, :4], axis=(2, 3)) @ weights},
        input_signature=[tf.TensorSpec((None, 3, 16, 12), tf.float32, name="photo")],
    )
    tf.saved_model.save(module, str(tmp_path / "torch"), signatures={"serving_default": module.serve})
    version = convert(tmp_path / "torch", tmp_path, "--preprocessing=torch", "--scores=logits")
    file, pixels = noise(16, 12)
    normalised = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = normalised[:4].mean(axis=(0, 1)) @ weights.numpy()
    answer = SavedModelClassifier(version, Options(), ()).classify(file)
    assert np.allclose(answer.scores, expected, atol=1e-5)


def test_verify_refuses_a_contract_that_contradicts_itself(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(convert(source, tmp_path / "right", *OPTIONS))]) == 0
    sigmoid = convert(source, tmp_path / "sigmoid", "--scores=sigmoid")
    capsys.readouterr()
    assert main(["verify", str(sigmoid)]) == 1
    assert "there are 3 labels: change --scores of clothing-model convert to independent" in capsys.readouterr().out
    noted = savedmodel.read(sigmoid).description
    for key, value, message in (("scores", "odds", "scores is 'odds'"), ("preprocessing", "tf2", "preprocessing is")):
        (sigmoid / savedmodel.DESCRIPTION).write_text(json.dumps({**noted, key: value}))
        assert main(["verify", str(sigmoid)]) == 1
        assert message in capsys.readouterr().out
