"""`clothing-model convert --input uint8|encoded`: preprocessing in the model, with the scores that it has outside."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from served import Made, Server, Starter

from clothing_contract import PREPROCESSINGS
from clothing_contract.scaling import Scaling
from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.keras import graph_preprocessing
from clothing_model.savedmodel import warmup
from model_factory import make_model

SCALINGS = (
    *map(Scaling, PREPROCESSINGS),
    Scaling("rescale", (0.1307,), (0.3081,)),
    Scaling("none", (1, 2, 3), (4, 5, 6), "bgr"),
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model-image/demo-model/clothing-model"
DATASET = Path(os.environ.get("CLOTHING_DATASET", ROOT.parent / "shared/dataset"))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient: neighbouring rows and columns differ, and JPEG has something to do."""
    random = np.random.default_rng(width * 10000 + height)
    ramp = (
        np.linspace(0, 200, width)[np.newaxis, :, np.newaxis] * np.linspace(0.2, 1, height)[:, np.newaxis, np.newaxis]
    )
    pixels = (ramp + random.integers(0, 55, (height, width, 4))).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def pillow(file: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """The gateway's pixels: keras-image-helper's steps."""
    with Image.open(io.BytesIO(file)) as image:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb.resize((width, height), Image.Resampling.NEAREST))


def test_the_table_has_the_gateways_numbers() -> None:
    """Each value of a pixel in each channel, bit for bit, as a server computes it: saved, loaded, and optimized."""
    import tensorflow as tf

    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 77)], axis=-1).reshape(1, 16, 16, 3)
    for scaling in SCALINGS:
        compute = tf.function(lambda x, scaling=scaling: graph_preprocessing.numbers(x, scaling))
        ours = compute(tf.constant(pixels)).numpy()
        assert ours.dtype == np.float32
        assert np.array_equal(ours.view(np.uint32), scaling.numbers(pixels).view(np.uint32)), scaling


@pytest.mark.parametrize("size", [(96, 96), (299, 299), (160, 120)])
def test_pixels_of_files_are_pillows(size: tuple[int, int]) -> None:
    """JPEG of every sampling, grey and progressive; PNG of every mode; GIF, also animated; BMP: bit for bit."""
    import tensorflow as tf

    width, height = size
    files = {
        f"jpeg-{sampling}-{quality}": encoded(picture(331, 253), format="JPEG", quality=quality, subsampling=sampling)
        for sampling in (0, 1, 2)
        for quality in (30, 75, 95)
    }
    files["progressive"] = encoded(picture(1023, 767), format="JPEG", progressive=True)
    files["grey"] = encoded(picture(200, 301, "L"), format="JPEG")
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        files[f"png-{mode}"] = encoded(picture(301, 200, mode), format="PNG")
    frames = [picture(150, 111, "P"), picture(150, 111, "P").transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    files["gif"] = encoded(frames[0], format="GIF")
    files["animated"] = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    files["bmp"] = encoded(picture(97, 53), format="BMP")
    files["one-pixel"] = encoded(picture(1, 1), format="PNG")
    compute = tf.function(lambda given: graph_preprocessing.pixels_of_files(given, height, width))
    found = compute(tf.constant(list(files.values()))).numpy()
    for name, pixels in zip(files, found, strict=True):
        assert np.array_equal(pixels, pillow(files[name], width, height)), name


def test_rows_and_columns_are_pillows_for_any_size() -> None:
    """As a graph, which the optimizer has been at: it takes a multiplication for a division where it can."""
    import tensorflow as tf

    inexact = 0
    for target in (96, 160, 224, 299, 380):
        nearest = tf.function(
            lambda source, target=target: graph_preprocessing._nearest(source, target),
            input_signature=[tf.TensorSpec((), tf.int32)],
        )
        for source in range(1, 4200, 17):
            line = Image.fromarray(np.arange(source, dtype=np.int32).reshape(1, source), "I")
            want = np.asarray(line.resize((target, 1), Image.Resampling.NEAREST))[0]
            assert np.array_equal(nearest(source).numpy(), want), (source, target)
            inexact += not np.array_equal((2 * np.arange(target) + 1) * source // (2 * target), want)
    assert inexact > 10  # which the exact places would miss


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with each input: a folder of models."""
    folder = tmp_path_factory.mktemp("inputs")
    for kind in ("float32", "uint8", "encoded"):
        options = ["--input", kind, "--name", kind, "--output", str(folder), "--warmup", "1,3"]
        assert main(["convert", str(DEMO), *options]) == 0  # labels and preprocessing as noted in it
    return folder


def test_signatures(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, dtype, shape in (
        ("float32", "DT_FLOAT", (-1, 160, 160, 3)),
        ("uint8", "DT_UINT8", (-1, 160, 160, 3)),
        ("encoded", "DT_STRING", (-1,)),
    ):
        found = savedmodel.read(demo / kind)
        ((name, photo),) = found.signatures["serving_default"].inputs.items()
        assert (name, photo.dtype, photo.shape) == ("photo", dtype, shape)
        assert list(found.signatures["serving_default"].outputs) == ["logits"]
        assert found.description["labels"][0] == "dress"
        assert len(list(warmup.read(demo / kind / "1" / savedmodel.WARMUP))) == 2
        assert found.description["signature"]["input"]["dtype"] == dtype
    capsys.readouterr()
    assert main(["verify", str(demo), "--strict"]) == 0  # the warm-up requests match, too
    assert capsys.readouterr().out.count("\nok ") == 2
    assert main(["values", str(demo / "uint8"), "--json"]) == 0  # the gateway sends pixels, and scales nothing
    assert "preprocessing" not in json.loads(capsys.readouterr().out)["model"]


def test_scores_are_the_same(demo: Path) -> None:
    """On photos as they come: what a float32 model gets from the gateway, against what the others compute."""
    import tensorflow as tf

    photos = sorted(DATASET.glob("validation/*/*.jpg"))[::4]
    if not photos:
        pytest.skip(f"no photos at {DATASET}; set CLOTHING_DATASET")
    assert len(photos) > 50
    files = [photo.read_bytes() for photo in photos]
    pixels = np.stack([pillow(file, 160, 160) for file in files])
    inputs = {"float32": Scaling("tf").numbers(pixels), "uint8": pixels, "encoded": np.array(files, object)}
    scores = {}
    for kind, given in inputs.items():
        signature = tf.saved_model.load(str(demo / kind / "1")).signatures["serving_default"]
        scores[kind] = signature(photo=tf.constant(given))["logits"].numpy()
    assert np.abs(scores["uint8"] - scores["float32"]).max() < 1e-5
    assert np.abs(scores["encoded"] - scores["float32"]).max() < 1e-5
    sizes = {kind: given.nbytes if kind != "encoded" else sum(map(len, files)) for kind, given in inputs.items()}
    assert sizes["uint8"] * 4 == sizes["float32"]
    assert sizes["encoded"] < sizes["float32"] / 4


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_from_keras(models: dict[str, Made], tmp_path: Path, preprocessing: str) -> None:
    """A .h5 as the course's, and each way of scaling: the float32 model's scores for the numbers of the gateway."""
    import tensorflow as tf

    made = models["course"]
    options = ["--name", "m", "--output", str(tmp_path), "--preprocessing", preprocessing]
    assert main(["convert", str(made.source), "--input", "uint8", *options]) == 0
    pixels = np.random.default_rng(3).integers(0, 256, (2, made.size, made.size, 3), np.uint8)
    numbers = Scaling(preprocessing).numbers(pixels)
    plain = tf.saved_model.load(str(made.version)).signatures["serving_default"]
    bare = tf.saved_model.load(str(tmp_path / "m/1")).signatures["serving_default"]
    want = plain(input_8=tf.constant(numbers))["dense_7"].numpy()
    got = bare(input_8=tf.constant(pixels))["dense_7"].numpy()
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("kind", ["float32", "uint8", "encoded"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_channels_first(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, channels: str) -> None:
    """As PyTorch's models are, of a width that is given: Keras's scores for the gateway's numbers."""
    import keras
    import tensorflow as tf

    from clothing_model.evaluation.classifiers import Options, SavedModelClassifier

    photo = keras.Input((3, 16, None), name="photo")
    last = keras.layers.Permute((2, 3, 1))(photo)
    found = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(last))
    model = keras.Model(photo, keras.layers.Dense(3)(found))
    model.save(tmp_path / "m.keras")
    scaling = ["--preprocessing=rescale", "--mean=0.485,0.456,0.406", "--std=0.2", f"--channels={channels}"]
    options = ["--name=m", f"--output={tmp_path}", f"--input={kind}", "--labels=a,b,c", *scaling]
    assert main(["convert", str(tmp_path / "m.keras"), *options, "--image-size=9x16"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "m"), "--strict"]) == 0, capsys.readouterr().out
    ((_, tensor),) = savedmodel.read(tmp_path / "m").signatures["serving_default"].inputs.items()
    assert tensor.shape == ((-1,) if kind == "encoded" else (-1, 3, 16, 9))
    file = encoded(picture(50, 40), format="PNG")
    numbers = Scaling("rescale", (0.485, 0.456, 0.406), (0.2,), channels).numbers(pillow(file, 9, 16))
    expected = model(tf.constant(numbers.transpose(2, 0, 1)[None]), training=False)[0]
    answer = SavedModelClassifier(tmp_path / "m", Options(), ()).classify(file)
    assert answer.scores == pytest.approx(np.asarray(expected), abs=1e-5)
    assert main(["convert", str(tmp_path / "m.keras"), *options, "--image-size=9x17"]) == 1
    assert "takes photos of ?x16 only" in capsys.readouterr().err


def test_served(demo: Path, serve: Starter) -> None:
    """All three on one portable server, warmed up; a broken file is the client's fault, and harms nobody."""
    config = "".join(
        f'config {{ name: "{kind}" base_path: "{demo / kind}" model_platform: "tensorflow" }}\n'
        for kind in ("float32", "uint8", "encoded")
    )
    (demo / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    server: Server = serve(f"--model_config_file={demo / 'models.config'}").wait_until_up()
    file = encoded(picture(400, 300), format="JPEG")
    pixels = pillow(file, 160, 160)
    requests = {
        "float32": Scaling("tf").numbers(pixels).tolist(),
        "uint8": pixels.tolist(),
        "encoded": {"b64": base64.b64encode(file).decode()},
    }
    scores = {}
    for kind, photo in requests.items():
        status, answer = server.http(f"/v1/models/{kind}:predict", {"instances": [photo]})
        assert status == 200, answer
        scores[kind] = json.loads(answer)["predictions"][0]
    assert scores["uint8"] == pytest.approx(scores["float32"], abs=1e-5)
    assert scores["encoded"] == pytest.approx(scores["float32"], abs=1e-5)
    broken = {"b64": base64.b64encode(file[:300]).decode()}
    status, answer = server.http("/v1/models/encoded:predict", {"instances": [broken]})
    assert status == 400
    assert "JPEG" in answer
    status, answer = server.http("/v1/models/encoded:predict", {"instances": [requests["encoded"]]})
    assert json.loads(answer)["predictions"][0] == scores["encoded"]


def test_names_of_a_saved_model_can_be_changed(tmp_path: Path) -> None:
    """Rows S4 and S5: `inputs` and `output_0`, where a client sends `input_8` and reads `dense_7`."""
    options = ["--name", "m", "--output", str(tmp_path), "--input-name", "input_8", "--output-name", "dense_7"]
    assert main(["convert", str(DEMO), *options]) == 0
    signature = savedmodel.read(tmp_path / "m").signatures["serving_default"]
    assert (list(signature.inputs), list(signature.outputs)) == (["input_8"], ["dense_7"])


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras
    import tensorflow as tf

    def refused(source: Path, *options: str) -> str:
        capsys.readouterr()
        assert main(["convert", str(source), "--name", "m", "--output", str(tmp_path / "out"), *options]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    bare = tmp_path / "bare"
    make_model(bare, "savedmodel", "inputs", "output_0", 32, 4)
    assert "give --preprocessing, how photos were scaled" in refused(bare, "--input", "uint8")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))
    model.save(tmp_path / "open.keras")
    given = ["--input", "encoded", "--preprocessing", "tf"]
    assert "give --image-size" in refused(tmp_path / "open.keras", *given)
    module = tf.Module()
    module.serve = tf.function(
        lambda photo: {"scores": tf.reduce_mean(photo, (1, 2))},
        input_signature=[tf.TensorSpec((1, 32, 32, 3), tf.float32, name="photo")],
    )
    tf.saved_model.save(module, str(tmp_path / "fixed"), signatures={"serving_default": module.serve})
    assert "in batches of any size" in refused(tmp_path / "fixed", *given)
