"""`clothing-model train`, with Keras and TensorFlow themselves, on pictures that are easy to tell apart."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clothing_model import progress
from clothing_model.commands.cli import main
from clothing_model.commands.train import network_names
from clothing_model.evaluation import dataset as photo_folders
from clothing_model.training.augmentation import batches
from clothing_model.training.loop import train
from clothing_model.training.plan import Plan, State
from clothing_model.training.report import curves_file, report_file

COLOURS = {"green": (20, 200, 40), "red": (210, 30, 20)}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy red and green pictures: 64 for training, 16 for validation."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for split, count in (("train", 32), ("validation", 8)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-20, 20, (90, 70, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


def command(dataset: Path, output: Path, *options: str) -> list[str]:
    return [
        "train", str(dataset / "train"), "--validation", str(dataset / "validation"), "--output", str(output),
        "--size", "64", "--batch", "16", "--device", "cpu", *options,
    ]  # fmt: skip


def test_compact_learns_and_reports(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clothing_model.training import network

    monkeypatch.setattr(network, "STAGES", ((16, 1), (32, 2)))  # enough for two colours, in a fifth of the time
    output = tmp_path / "colours.keras"
    assert main(command(dataset, output, "--epochs", "30", "--mixup", "0")) == 0
    printed = capsys.readouterr()
    assert "epoch 30/30" in printed.err
    assert "min left" in printed.err
    report = json.loads(report_file(output).read_text())
    assert report["labels"] == ["green", "red"]
    assert report["validation_accuracy"] == 1.0
    assert np.array(report["confusion"]).tolist() == [[8, 0], [0, 8]]
    assert len(report["history"]) == 30
    assert not (tmp_path / "colours.keras.state").exists()

    import keras

    model = keras.saving.load_model(output)
    assert model.input_shape == (None, 64, 64, 3)
    green = photo_folders.scale(photo_folders.read_pixels(dataset / "validation/green/0.jpg", 64))
    logits = np.asarray(model(green[None]))
    assert logits.dtype == np.float32
    assert logits[0].argmax() == 0
    assert not np.isclose(logits.sum(), 1), "logits, not probabilities: as the course's model gives"


class StopAfter(progress.Progress):
    """Ctrl-C once a line begins so."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def say(self, line: str) -> None:
        super().say(line)
        if line.startswith(self.start):
            raise KeyboardInterrupt


def weights_of(file: Path) -> list[np.ndarray[Any, Any]]:
    import keras

    return list(keras.saving.load_model(file).get_weights())


def test_stopped_training_resumes_and_the_seed_determines_it(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit as if it had never been stopped; which says, too, that the same seed gives the same weights."""
    from clothing_model.training import network

    monkeypatch.setattr(network, "STAGES", ((8, 1),))  # all kinds of layers, and little to compile
    data = photo_folders.find_photos(dataset / "train")
    validation = photo_folders.find_photos(dataset / "validation")
    plan = Plan(size=64, epochs=3, batch=16, keep="last")
    report = train(plan, data, validation, tmp_path / "whole.keras")

    stopped = tmp_path / "stopped.keras"
    with pytest.raises(KeyboardInterrupt):
        train(plan, data, validation, stopped, progress=StopAfter("epoch 2/"))
    assert not stopped.exists()
    capsys.readouterr()
    again = train(plan, data, validation, stopped)
    assert "resuming after epoch 2" in (printed := capsys.readouterr().err)
    assert "epoch 3/3" in printed
    assert "epoch 2/3" not in printed
    assert again["history"] == report["history"]
    assert all(
        np.array_equal(a, b) for a, b in zip(weights_of(tmp_path / "whole.keras"), weights_of(stopped), strict=True)
    )

    # Weights to go on from: at a rate of almost nothing, the same model comes out.
    begin = dataclasses.replace(plan, seed=4, epochs=1, rate=1e-12)
    further = train(begin, data, validation, tmp_path / "further.keras", weights=tmp_path / "whole.keras")
    assert further["weights"]["file"] == "whole.keras"
    (first, *_, last), (first_before, *_, last_before) = weights_of(tmp_path / "further.keras"), weights_of(stopped)
    assert np.allclose(first, first_before, atol=1e-6)
    assert np.allclose(last, last_before, atol=1e-6)
    monkeypatch.setattr(network, "STAGES", ((16, 1),))
    with pytest.raises(network.WeightsError, match="not the weights of compact with 2 classes"):
        train(begin, data, validation, tmp_path / "further.keras", weights=tmp_path / "whole.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(network.WeightsError, match="Keras can't read it"):
        train(begin, data, validation, tmp_path / "further.keras", weights=tmp_path / "broken.keras")


def test_each_phase_has_its_patience(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped early in the first phase and by Ctrl-C in the second, it goes on in the second for as long as it had."""
    import keras

    from clothing_model.training import network

    def tiny(input_shape: tuple[int, int, int], **_: Any) -> keras.Model:
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Conv2D(4, 3, 4)(inputs))

    monkeypatch.setitem(network.APPLICATIONS, "mobilenetv3small", tiny)
    data = photo_folders.find_photos(dataset / "train")
    validation = photo_folders.find_photos(dataset / "validation")
    # At a rate of 0 nothing is learned: in each phase the first epoch is the best, and the next one the last.
    plan = Plan("mobilenetv3small", size=64, epochs=5, fine_tune_epochs=5, batch=16, rate=0.0, patience=1)
    output = tmp_path / "colours.keras"
    with pytest.raises(KeyboardInterrupt):
        train(plan, data, validation, output, progress=StopAfter("epoch 3/"))
    assert "no better accuracy for 1 epochs: stopping" in capsys.readouterr().err
    report = train(plan, data, validation, output)
    assert "resuming after epoch 3" in (printed := capsys.readouterr().err)
    assert [entry["epoch"] for entry in report["history"]] == [1, 2, 3, 4]
    assert "epoch 4/7" in printed


def test_stops_early_and_draws_the_curves(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "colours.keras"
    assert main(command(dataset, output, "--epochs", "20", "--rate", "1e-9", "--patience", "2")) == 0
    assert "no better accuracy for 2 epochs: stopping" in capsys.readouterr().err
    history = json.loads(report_file(output).read_text())["history"]
    assert len(history) == 3, "at such a rate nothing is learned, and an accuracy that stays is none that grows"
    with Image.open(curves_file(output)) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int).reshape(-1, 3)
    for colour in ("#08519c", "#1b7837"):  # a line for the loss, and one for the accuracy
        line = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (np.abs(pixels - line).max(axis=1) < 3).sum() > 100


@pytest.mark.parametrize(
    ("network_name", "application"),
    [
        ("xception", "Xception"),
        ("efficientnetv2b0", "EfficientNetV2B0"),
        ("mobilenetv3small", "MobileNetV3Small"),
        ("mobilenetv3large", "MobileNetV3Large"),
    ],
)
def test_weights_as_keras_publishes_them(tmp_path: Path, network_name: str, application: str) -> None:
    """…_notop.h5 are weights in Keras 2's HDF5, of networks with their preprocessing inside."""
    import keras
    import tf_keras

    from clothing_model.training import network

    published = getattr(tf_keras.applications, application)(include_top=False, weights=None, pooling="avg")
    file = tmp_path / f"{network_name}_notop.h5"
    published.save_weights(file, save_format="h5")
    pixels = np.random.default_rng(2).integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)
    same_size = getattr(tf_keras.applications, application)(
        include_top=False, weights=None, pooling="avg", input_shape=(96, 96, 3)
    )
    same_size.set_weights(published.get_weights())
    expected = same_size(photo_folders.scale(pixels) if network_name == "xception" else pixels.astype(np.float32))

    ours = network.transfer(network_name, 10, 96, file)
    assert not network.base_of(ours).trainable
    features = keras.Model(ours.inputs[0], ours.get_layer("pool").output)(photo_folders.scale(pixels))
    largest = np.abs(expected).max()
    assert largest > 0
    assert np.abs(features - expected).max() < 1e-4 * largest


def test_state_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    identity = {"plan": {"seed": 1}, "photos_sha256": "ab"}
    State(epoch=4, best={"epoch": 4, "accuracy": 0.5}).save(tmp_path, identity)
    saved = State.load(tmp_path, identity)
    assert saved is not None
    assert saved.epoch == 4
    assert State.load(tmp_path, {"plan": {"seed": 2}, "photos_sha256": "ab"}) is None
    assert State.load(tmp_path / "absent", identity) is None


def test_transfer_learning_from_a_file_of_weights(dataset: Path, tmp_path: Path) -> None:
    import keras

    weights = tmp_path / "mobilenetv3small_notop.weights.h5"
    keras.applications.MobileNetV3Small(
        include_top=False, include_preprocessing=False, weights=None, input_shape=(64, 64, 3)
    ).save_weights(weights)
    output = tmp_path / "colours.keras"
    options = ("--network", "mobilenetv3small", "--weights", str(weights), "--epochs", "1", "--fine-tune-epochs", "1")
    assert main(command(dataset, output, *options)) == 0
    report = json.loads(report_file(output).read_text())
    assert report["weights"] == {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert [entry["epoch"] for entry in report["history"]] == [1, 2]
    assert keras.saving.load_model(output).output_shape == (None, 2)


def test_weights_of_another_network_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\nnot really")
    options = ("--network", "mobilenetv3small", "--weights", str(weights))
    assert main(command(dataset, tmp_path / "x.keras", *options)) == 1
    assert "not the weights of mobilenetv3small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "32"), "at least 64"),
        (("--epochs", "0"), "--epochs 0: must be above 0"),
        (("--network", "xception"), "wants --weights FILE"),
        (("--fine-tune-epochs", "3"), "choose another --network"),
        (("--weights", "absent.keras"), "absent.keras: no such file; give a .keras file that train has written"),
        (("--network", "xception", "--weights", "absent_notop.h5"), "absent_notop.h5: no such file"),
    ],
)
def test_arguments_that_contradict(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert main(command(dataset, tmp_path / "x.keras", *options)) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.keras").exists()


def test_invalid_dataset_folders_are_errors(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(photo_folders.DatasetError, match="no such folder"):
        photo_folders.find_photos(tmp_path / "absent")
    with pytest.raises(photo_folders.DatasetError, match="holds no folders"):
        photo_folders.find_photos(tmp_path)
    with pytest.raises(photo_folders.DatasetError, match="its classes are green, red"):
        photo_folders.find_photos(dataset / "train", ("green", "blue"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(photo_folders.DatasetError, match="holds no photos"):
        photo_folders.find_photos(tmp_path)
    (tmp_path / "empty/1.jpg").write_bytes(b"no photo")
    with pytest.raises(photo_folders.DatasetError, match=r"1\.jpg: can't be read"):
        photo_folders.load_pixels(photo_folders.find_photos(tmp_path), 64)


def test_pixels_are_keras_image_helpers(dataset: Path) -> None:
    from keras_image_helper import create_preprocessor

    photo = dataset / "validation/red/0.jpg"
    expected = create_preprocessor("xception", target_size=(64, 64)).from_path(str(photo))
    assert np.array_equal(photo_folders.scale(photo_folders.read_pixels(photo, 64))[None], expected)


def test_augmentation_is_reproducible_and_keeps_to_its_bounds(dataset: Path) -> None:
    data = photo_folders.find_photos(dataset / "train")
    plan = Plan(size=64, batch=16)
    pixels = photo_folders.load_pixels(data, 96)
    first = list(batches(plan, pixels, data.targets, 2, epoch=3))
    again = list(batches(plan, pixels, data.targets, 2, epoch=3))
    other = list(batches(plan, pixels, data.targets, 2, epoch=4))
    assert len(first) == 4
    for (x, y), (x_again, y_again), (x_other, _) in zip(first, again, other, strict=True):
        assert np.array_equal(x, x_again)
        assert np.array_equal(y, y_again)
        assert not np.array_equal(x, x_other)
        assert x.dtype == np.float32
        assert x.shape == (16, 64, 64, 3)
        assert np.abs(x).max() <= 1
        assert np.allclose(y.sum(axis=1), 1)


def test_training_size_grows_and_rate_falls() -> None:
    plan = Plan(size=160, epochs=60)
    assert [plan.training_size(epoch) for epoch in (0, 19, 20, 39, 40, 59)] == [96, 96, 128, 128, 144, 144]
    rates = [plan.learning_rate(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(plan.rate)
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] < plan.rate / 50


def test_help_lists_the_existing_networks() -> None:
    from clothing_model.training import network

    assert network_names() == network.NAMES


def test_help_loads_no_tensorflow() -> None:
    code = (
        "import sys\nfrom clothing_model.commands.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize("orientation", range(10))
def test_photos_are_read_upright_as_the_gateway_reads_them(orientation: int) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 45, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    picture.save(data, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue())))
    wanted = np.asarray(upright.resize((16, 12), Image.Resampling.NEAREST))
    assert np.array_equal(photo_folders.read_pixels(data.getvalue(), (12, 16)), wanted)


def test_unreadable_exif_block_is_ignored() -> None:
    picture = Image.new("RGB", (45, 31), "red")
    data = io.BytesIO()
    picture.save(data, "PNG", exif=b"Exif\0\0nothing of TIFF")
    assert photo_folders.read_pixels(data.getvalue(), (31, 45)).shape == (31, 45, 3)
