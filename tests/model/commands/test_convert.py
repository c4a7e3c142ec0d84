"""`clothing-model convert`: every kind of source, and every message that a user can get."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import MODELS, Made

from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.savedmodel import warmup
from model_factory import expected, make_model, photos

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 86185888\n"


def convert(source: Path, output: Path, *options: str) -> int:
    return main(["convert", str(source), "--name", "m", "--output", str(output), *options])


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not list(folder.rglob("*"))


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_keras(models: dict[str, Made], name: str) -> None:
    import tensorflow as tf

    made = models[name]
    signature = tf.saved_model.load(str(made.version)).signatures["serving_default"]
    scores = signature(**{made.input_name: tf.constant(photos(made.size))})[made.output_name].numpy()
    assert np.abs(scores - expected(made.version.parents[2] / "made" / name)).max() < 1e-4
    single = signature(**{made.input_name: tf.constant(photos(made.size)[:1])})[made.output_name].numpy()
    assert single.shape == (1, made.classes)  # the batch is free


@pytest.mark.parametrize("name", MODELS)
def test_signature_is_pinned(models: dict[str, Made], name: str) -> None:
    made = models[name]
    signature = savedmodel.read(made.version).signatures["serving_default"]
    assert signature.method == "tensorflow/serving/predict"
    ((input_name, photo),) = signature.inputs.items()
    ((output_name, scores),) = signature.outputs.items()
    assert (input_name, photo.dtype, photo.shape) == (made.input_name, "DT_FLOAT", (-1, made.size, made.size, 3))
    assert (output_name, scores.dtype, scores.shape) == (made.output_name, "DT_FLOAT", (-1, made.classes))


def test_h5_that_keras_3_cannot_read_is_converted(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row S6 of the course's failures: its Xception's file. tf-keras reads it; where that is missing, it is said."""
    import keras

    source = models["course"].source
    assert source.suffix == ".h5"
    with pytest.raises((TypeError, ValueError), match="groups"):
        keras.models.load_model(source, compile=False)
    capsys.readouterr()
    assert convert(source, tmp_path, "--warmup", "none") == 0
    said = capsys.readouterr().err
    assert "(HDF5 of Keras 2.2.4-tf" in said
    assert "loading the model with tf-keras" in said
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    assert convert(source, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "the package tf_keras is not installed here" in said
    assert "pip install --require-hashes --no-deps -r requirements-dev.lock" in said
    assert nothing_left(tmp_path / "out")


def test_description_and_warm_up(models: dict[str, Made]) -> None:
    import hashlib

    import tensorflow as tf

    made = models["kitchen"]
    description = json.loads((made.version / savedmodel.DESCRIPTION).read_text())
    assert description["name"] == "kitchen"
    assert description["keras"] == "2.2.4-tf"
    assert description["source"]["sha256"] == hashlib.sha256(made.source.read_bytes()).hexdigest()
    (record,) = warmup.read(made.version / savedmodel.WARMUP)
    request = record.predict_log.request
    assert request.model_spec.name == "kitchen"
    assert tf.make_ndarray(request.inputs["input_28"]).shape == (1, 64, 64, 3)
    assert (made.version / savedmodel.WARMUP).stat().st_size < 1000
    cut = made.version.parents[2] / "cut"
    cut.write_bytes((made.version / savedmodel.WARMUP).read_bytes()[:-5])
    with pytest.raises(ValueError, match="middle of a record"):
        list(warmup.read(cut))


def test_training_report_is_added_to_the_description(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "kitchen.h5"
    shutil.copy(models["kitchen"].source, source)
    report = tmp_path / "kitchen.training.json"
    labels = [f"thing-{number}" for number in range(20)]
    figures = {"validation_accuracy": 0.88, "accuracy_per_class": {"thing-0": 0.5}, "parameters": 1180494}
    report.write_text(json.dumps({"labels": labels, "preprocessing": "torch", "confusion": [[1]], **figures}))
    assert convert(source, tmp_path, "--warmup", "1,8") == 0
    description = json.loads((tmp_path / "m/1" / savedmodel.DESCRIPTION).read_text())
    assert description["metrics"] == figures
    assert (description["labels"], description["preprocessing"]) == (labels, "torch")
    assert {"name", "keras", "library", "tensorflow", "source", "signature"} < set(description)
    assert convert(source, tmp_path, "--preprocessing", "caffe", "--labels", ",".join(reversed(labels))) == 0
    given = json.loads((tmp_path / "m/2" / savedmodel.DESCRIPTION).read_text())  # what is given goes before
    assert (given["labels"][0], given["preprocessing"]) == ("thing-19", "caffe")
    report.write_text(json.dumps({"labels": ["cat", "dog"]}))
    assert convert(source, tmp_path) == 1
    assert "2 labels (cat, dog), but the model has 20 classes" in capsys.readouterr().err
    report.write_text("[")
    assert convert(source, tmp_path) == 1
    assert "kitchen.training.json can't be read" in capsys.readouterr().err


def test_a_saved_models_digest_and_warm_up(models: dict[str, Made], tmp_path: Path) -> None:
    """A folder's digest is that of `sha256sum`'s lines; its warm-up requests stay unless others are asked."""
    source = tmp_path / "source"
    shutil.copytree(models["exported"].version, source)
    (source / savedmodel.DESCRIPTION).unlink()
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    printed = subprocess.run(["sha256sum", *names], cwd=source, check=True, capture_output=True).stdout
    digest = subprocess.run(["sha256sum"], input=printed, check=True, capture_output=True).stdout.split()[0].decode()
    assert convert(source, tmp_path) == 0
    assert savedmodel.read(tmp_path / "m/1").description["source"]["sha256"] == digest
    kept = (tmp_path / "m/1" / savedmodel.WARMUP).read_bytes()
    assert kept == (source / savedmodel.WARMUP).read_bytes()
    assert convert(source, tmp_path, "--warmup", "2,16") == 0
    sizes = [record.predict_log.request.inputs["inputs"].tensor_shape.dim[0].size
             for record in warmup.read(tmp_path / "m/2" / savedmodel.WARMUP)]  # fmt: skip
    assert sizes == [2, 16]
    assert convert(source, tmp_path, "--warmup", "none") == 0
    assert not (tmp_path / "m/3" / savedmodel.WARMUP).exists()


@pytest.mark.parametrize(
    "text",
    [
        "server:\n  batching:\n    # allowedBatchSizes: [3]\n    allowedBatchSizes: [1, 4, 16]\n    maxBatchSize: 16\n",
        "server:\n  batching:\n    allowedBatchSizes:\n      - 1\n      - 4\n      - 16\n    maxBatchSize: 16\n",
        "server: {batching: {allowedBatchSizes: [1, 4, 16]}}\n",
        '{"server": {"batching": {"allowedBatchSizes": [1,\n 4, 16], "maxBatchSize": 16}}}\n',
    ],
)
def test_warm_up_sizes_of_the_charts_values(models: dict[str, Made], tmp_path: Path, text: str) -> None:
    """Batches are padded to the allowed sizes, so these are the ones to warm up."""
    values = tmp_path / "my-values.yaml"
    values.write_text(text)
    assert convert(models["exported"].version, tmp_path, "--warmup", str(values)) == 0
    sizes = [record.predict_log.request.inputs["inputs"].tensor_shape.dim[0].size
             for record in warmup.read(tmp_path / "m/1" / savedmodel.WARMUP)]  # fmt: skip
    assert sizes == [1, 4, 16]


def test_values_without_allowed_batch_sizes(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tmp_path / "my-values.yaml"
    values.write_text("server:\n  batching:\n    allowedBatchSizes: []\n    maxBatchSize: 16\n")
    assert convert(models["exported"].version, tmp_path, "--warmup", str(values)) == 1
    assert "it has no server.batching.allowedBatchSizes, as [1, 4, 8]" in capsys.readouterr().err


def test_versions(models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = models["keras3"].version  # a SavedModel, so that nothing waits for Keras
    assert convert(source, tmp_path) == 0
    assert convert(source, tmp_path, "--version", "7") == 0
    assert convert(source, tmp_path) == 0
    assert sorted(savedmodel.version_folders(tmp_path / "m")) == [1, 7, 8]
    before = (tmp_path / "m/7/saved_model.pb").stat().st_ino
    capsys.readouterr()
    assert convert(source, tmp_path, "--version", "7") == 1
    assert "is there already" in (message := capsys.readouterr().err)
    assert "--force" in message
    assert (tmp_path / "m/7/saved_model.pb").stat().st_ino == before
    assert convert(source, tmp_path, "--version", "7", "--force") == 0
    assert (tmp_path / "m/7/saved_model.pb").stat().st_ino != before
    assert {child.name for child in (tmp_path / "m").iterdir()} == {"1", "7", "8"}
    for part in (tmp_path / "m").rglob("*"):  # another user, the server's, must be able to read it
        assert part.stat().st_mode & 0o004


def test_names_and_size_can_be_set(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))
    model.save(tmp_path / "open.keras")
    options = ["--input-name", "inputs", "--output-name", "output_0", "--warmup", "1,4", "--labels", "a,b,c"]
    assert (
        convert(tmp_path / "open.keras", tmp_path, *options, "--image-size", "64x48", "--preprocessing", "torch") == 0
    )
    found = savedmodel.read(tmp_path / "m/1")
    signature = found.signatures["serving_default"]
    assert signature.inputs["inputs"].shape == (-1, 48, 64, 3)
    assert list(signature.outputs) == ["output_0"]
    assert found.description["imageSize"] == "64x48"
    assert found.description["preprocessing"] == "torch"
    assert [r.predict_log.request.inputs["inputs"].tensor_shape.dim[0].size
            for r in warmup.read(tmp_path / "m/1" / savedmodel.WARMUP)] == [1, 4]  # fmt: skip
    assert convert(tmp_path / "open.keras", tmp_path, "--warmup", "none") == 0
    assert savedmodel.read(tmp_path / "m/2").signatures["serving_default"].inputs.popitem()[1].shape == (-1, -1, -1, 3)
    assert not (tmp_path / "m/2" / savedmodel.WARMUP).exists()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["export", ".keras", "tf_keras.h5"])
def test_half_precision_becomes_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, kind: str
) -> None:
    """As Keras exports a model of mixed precision: DT_HALF or DT_BFLOAT16 scores; what convert writes is DT_FLOAT."""
    import importlib

    import tensorflow as tf

    keras = importlib.import_module("tf_keras" if kind.startswith("tf") else "keras")
    before = keras.mixed_precision.global_policy() if kind.startswith("tf") else keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        photo = keras.Input((8, 8, 3))
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(photo))
        model = keras.Model(photo, keras.layers.Dense(10, activation="softmax")(x))
        source = tmp_path / ("exported" if kind == "export" else f"model{kind[-6:] if kind[0] == '.' else '.h5'}")
        if kind == "export":
            model.export(source, verbose=False)
            scores = savedmodel.photo_signature(savedmodel.read(source))
            assert scores is not None
            assert scores[1].dtype in ("DT_HALF", "DT_BFLOAT16")
            (tmp_path / "kept").mkdir()
            shutil.copytree(source, tmp_path / "kept/1")
            # The gateway reads scores of 16 bits.
            assert main(["verify", str(tmp_path / "kept")]) == 0, capsys.readouterr().out
        else:
            with warnings.catch_warnings(action="ignore"):
                model.save(source)
        want = np.asarray(tf.cast(model(photos(8)), tf.float32))
    finally:
        keras.mixed_precision.set_global_policy(before)
    assert convert(source, tmp_path) == 0
    found = savedmodel.photo_signature(savedmodel.read(tmp_path / "m"))
    assert found is not None
    assert [tensor.dtype for tensor in found] == ["DT_FLOAT", "DT_FLOAT"]
    assert main(["verify", str(tmp_path / "m")]) == 0
    signature = tf.saved_model.load(str(tmp_path / "m/1")).signatures["serving_default"]
    (got,) = signature(tf.constant(photos(8))).values()
    assert np.abs(got.numpy() - want).max() < 1e-2  # three digits are all that bfloat16 has


def test_a_teachable_machine_model(tmp_path: Path) -> None:
    """keras_model.h5: Sequentials within a Sequential, and DepthwiseConv2D with the `groups` that no Keras takes."""
    import h5py
    import tf_keras

    layers = tf_keras.layers
    photo = layers.Input((16, 16, 3))
    x = layers.DepthwiseConv2D(3, padding="same", name="expanded_conv_depthwise")(layers.Conv2D(4, 3)(photo))
    features = tf_keras.Model(photo, layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(x)))
    first = tf_keras.Sequential([features])
    second = tf_keras.Sequential([layers.Dense(8, activation="relu", input_shape=(4,)), layers.Dense(2, "softmax")])
    model = tf_keras.Sequential([first, second])
    want = np.asarray(model(photos(16)))
    with warnings.catch_warnings(action="ignore"):
        model.save(tmp_path / "keras_model.h5")
    with h5py.File(tmp_path / "keras_model.h5", "r+") as file:
        text = json.dumps(json.loads(file.attrs["model_config"]))
        changed = text.replace('"class_name": "DepthwiseConv2D", "config": {', '"class_name": "DepthwiseConv2D", '
                               '"config": {"groups": 1, ')  # fmt: skip
        assert changed != text
        file.attrs["model_config"] = changed
        file.attrs["keras_version"] = "2.4.0"
    assert convert(tmp_path / "keras_model.h5", tmp_path, "--labels", "cup,fork") == 0
    import tensorflow as tf

    signature = tf.saved_model.load(str(tmp_path / "m/1")).signatures["serving_default"]
    (got,) = signature(tf.constant(photos(16))).values()
    assert np.abs(got.numpy() - want).max() < 1e-5


def test_labels(models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = models["late-keras2"].version  # six classes
    names = ["fork", "glass", "knife", "plate", "spoon", "cup"]
    (tmp_path / "lines.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "list.json").write_text(json.dumps(names))
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
    wanted = {",".join(names): names, "lines.txt": names, "list.json": names, "photos": sorted(names)}
    for argument, labels in wanted.items():
        given = argument if "," in argument else str(tmp_path / argument)
        assert convert(source, tmp_path / "out", "--labels", given, "--version", "1", "--force") == 0
        assert savedmodel.read(tmp_path / "out/m/1").description["labels"] == labels
    for argument, message in {
        "a,b": "2 labels (a, b), but the model has 6 classes",
        "a,a,b,c,d,e": "each only once",
        "a,,b": "labels must be there",
    }.items():
        assert convert(source, tmp_path / "bad", "--labels", argument) == 1
        assert message in capsys.readouterr().err
    assert nothing_left(tmp_path / "bad")


def zipped(path: Path, name: str, content: str = "{}") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def weights_only(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.11.0"
        file.create_group("dense")


def cut_short(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
        file.create_dataset("weights", data=np.zeros(10000))
    path.write_bytes(path.read_bytes()[:3000])


def unknown_layer(path: Path) -> None:
    import h5py

    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [{"class_name": "Own", "config": {}}]}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.4.0"
        file.attrs["model_config"] = json.dumps(config)


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("missing.h5", None, ["missing.h5 does not exist"]),
        ("pointer.h5", LFS, ["Git LFS pointer", "git lfs pull"]),
        ("empty.h5", b"", ["is empty", "download it again"]),
        ("broken.h5", b"\x00\x01 nonsense", ["It is not HDF5, or was cut short"]),
        ("page.h5", b"<!DOCTYPE html>", ["is text, not a model", "Fetch the file itself"]),
        ("cut.h5", cut_short, ["can't be read as HDF5", "download it again"]),
        ("weights.h5", weights_only, ["holds weights without the network", "model.save('model.keras')"]),
        ("own.h5", unknown_layer, ["can't be loaded", "Own", "where they are defined"]),
        ("model.keras", lambda path: zipped(path, "readme.txt"), ["a zip, but not one that Keras saved", "unzip it"]),
        ("model.zip", lambda path: zipped(path, "m/saved_model.pb"), ["zipped SavedModel", "unzip it"]),
        ("model.tflite", b"\x1c\x00\x00\x00TFL3", ["TensorFlow Lite can't be turned back"]),
        ("frozen.pb", b"\x0a\x10", ["frozen graph", "tf.saved_model.save"]),
        ("model.pt", b"\x80\x02", ["ONNX"]),
        ("model.bin", b"\x80\x02", ["none of .h5, .keras and SavedModel", "model.save('model.keras')"]),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, messages: list[str]
) -> None:
    source = tmp_path / name
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        content(source)
    assert convert(source, tmp_path / "out") == 1
    printed = capsys.readouterr().err
    for message in messages:
        assert message in printed
    assert "Traceback" not in printed
    assert nothing_left(tmp_path / "out")


def test_refuses_a_saved_model_that_cannot_be_served(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["keras3"].version, broken)
    shutil.rmtree(broken / "variables")
    assert convert(broken, tmp_path / "out") == 1
    assert "variables.index is missing" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty", tmp_path / "out") == 1
    assert "holds no saved_model.pb" in capsys.readouterr().err
    assert nothing_left(tmp_path / "out")


def test_refuses_several_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    one, two = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    keras.Model([one, two], keras.layers.Flatten()(keras.layers.Add()([one, two]))).save(tmp_path / "two.keras")
    assert convert(tmp_path / "two.keras", tmp_path / "out") == 1
    assert "has 2 inputs (left, right)" in capsys.readouterr().err
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]).save(tmp_path / "flat.keras")
    assert convert(tmp_path / "flat.keras", tmp_path / "out") == 1
    assert "a photo's is (batch, height, width, channels)" in capsys.readouterr().err
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("library", ["tf_keras", "keras"])
@pytest.mark.parametrize("kind", ["functional", "sequential", "nested", "activation"])
def test_what_the_file_tells_is_refused_before_tensorflow_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, library: str, suffix: str
) -> None:
    """Labels, sizes, ranks, the number of inputs and outputs: seconds, in place of a minute."""
    import importlib

    keras = importlib.import_module(library)
    layers = keras.layers
    photo = keras.Input((8, 8, 3))
    scores = layers.Dense(4)(layers.Flatten()(photo))
    if kind == "functional":
        model = keras.Model(photo, scores)
    elif kind == "activation":
        model = keras.Model(photo, layers.Activation("softmax")(layers.Dropout(0.1)(scores)))
    else:
        body = [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)]
        model = keras.Sequential([keras.Sequential(body)] if kind == "nested" else body)
        model(np.zeros((1, 8, 8, 3), np.float32))
    flat = keras.Model(first := keras.Input((8,)), layers.Dense(2)(first))
    one, two = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    pair = keras.Model([one, two], [layers.Flatten()(one), layers.Flatten()(layers.Add()([one, two]))])
    open_size = keras.Model(any_photo := keras.Input((None, None, 3)), layers.GlobalAveragePooling2D()(any_photo))
    with warnings.catch_warnings(action="ignore"):
        for name, each in {"model": model, "flat": flat, "pair": pair, "open": open_size}.items():
            each.save(tmp_path / f"{name}{suffix}")
    (tmp_path / "file").touch()
    for name, options, message in [
        ("model", ["--labels", "a,b,c"], "3 labels (a, b, c), but the model has 4 classes"),
        ("model", ["--image-size", "16"], "takes photos of 8x8 only"),
        ("model", ["--input-name", "a b"], "letters, digits and '_'"),
        ("flat", [], "a photo's is (batch, height, width, channels)"),
        ("pair", [], "has 2 inputs (left, right) and 2 outputs"),
        ("open", ["--input", "encoded", "--preprocessing", "tf"], "give --image-size"),
    ]:
        assert convert(tmp_path / f"{name}{suffix}", tmp_path / "out", *options) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "loading TensorFlow" not in said
    assert nothing_left(tmp_path / "out")


def test_a_destination_that_cannot_take_it(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert convert(models["keras3"].version, tmp_path / "file") == 1
    assert "file/m can't be written, and is as it was" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
    for source in (models["keras3"].source, models["course"].source, models["keras3"].version):
        assert convert(source, tmp_path / "full") == 1
        said = capsys.readouterr().err
        assert "0.0 MB are free there" in said
        assert "loading TensorFlow" not in said
    assert nothing_left(tmp_path / "full")


@pytest.mark.parametrize("kind", ["source", "version"])
def test_a_disk_that_fills_up(models: dict[str, Made], tmp_path: Path, kind: str) -> None:
    """As a limit of a file's size does: what is half written is removed, the version before stays."""
    assert convert(models["keras3"].version, tmp_path, "--version", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        "from clothing_model.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["convert", str(getattr(models["keras3"], kind)), "--name", "m", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "--version", "1", "--force"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "can't be written, and is as it was" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}.keys() == before.keys()


def test_force_loses_no_version(models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models["keras3"].version
    assert convert(source, tmp_path, "--version", "7") == 0
    before = (tmp_path / "m/7/saved_model.pb").stat().st_ino
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name == "7" and "-old-" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        assert convert(source, tmp_path, "--version", "7", "--force") == 1
    assert (tmp_path / "m/7/saved_model.pb").stat().st_ino == before
    # Killed between the renames: the next run puts it back.
    (tmp_path / "m/7").rename(tmp_path / "m/.converting-1-old-7")
    assert convert(source, tmp_path) == 0
    assert {child.name for child in (tmp_path / "m").iterdir()} == {"7", "8"}
    assert (tmp_path / "m/7/saved_model.pb").stat().st_ino == before


def test_a_sequential_model(tmp_path: Path) -> None:
    import keras

    layers = [keras.Input((8, 8, 3), name="inputs"), keras.layers.Flatten(), keras.layers.Dense(2, name="classes")]
    keras.Sequential(layers).save(tmp_path / "sequential.keras")
    assert convert(tmp_path / "sequential.keras", tmp_path) == 0
    signature = savedmodel.read(tmp_path / "m/1").signatures["serving_default"]
    assert (list(signature.inputs), list(signature.outputs)) == (["inputs"], ["classes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "--name=a/b"),
        (["--version", "0"], "a version is a number from 1 up"),
        (["--warmup", "0"], "give batch sizes"),
        (["--image-size", "big"], "must be pixels"),
        (["--image-size", "100"], "takes photos of 96x96 only"),
        (["--input-name", "a b"], "letters, digits and '_'"),
    ],
)
def test_bad_options(
    models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert convert(models["keras3"].source, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert nothing_left(tmp_path / "out")


def test_refuses_a_savedmodel_whose_scores_differ_from_keras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose answer depends on more than the photo: here, on chance."""
    import keras
    import tensorflow as tf

    from clothing_model.keras import files as keras_files

    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(tmp_path / "m.keras")
    load = keras_files.load

    def unsteady(source: keras_files.Source) -> keras_files.KerasModel:
        model = load(source)
        return dataclasses.replace(model, call=lambda x: model.call(x) + tf.random.uniform(()))

    monkeypatch.setattr(keras_files, "load", unsteady)
    assert convert(tmp_path / "m.keras", tmp_path / "out") == 1
    assert "the model may be random at inference" in capsys.readouterr().err
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killed_leaves_no_version(models: dict[str, Made], tmp_path: Path, number: int) -> None:
    """Killed while TensorFlow loads, when its temporary folder is there. SIGTERM and Ctrl-C clean up; after SIGKILL,
    the next run does."""
    process = subprocess.Popen(
        # A shell without job control has what it puts into the background ignore SIGINT.
        ["env", "--default-signal=INT", sys.executable, "-m", "clothing_model", "convert", str(models["keras3"].source),
         "--name", "m", "--output", str(tmp_path)], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("m/.converting-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
    finally:
        process.kill()
        process.wait()
    assert not [child for child in tmp_path.glob("m/*") if savedmodel.is_version(child.name)]
    if number != signal.SIGKILL:
        assert nothing_left(tmp_path)
    assert convert(models["keras3"].version, tmp_path) == 0
    assert [child.name for child in (tmp_path / "m").iterdir()] == ["1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_convert_despite_exception_handlers(tmp_path: Path, number: int) -> None:
    """As TensorFlow does, which takes an exception in an import of its own for a package that is not installed."""
    script = f"""
import os, pathlib, signal
from clothing_model.commands.convert import _temporary_folder
signal.signal(signal.SIGINT, signal.default_int_handler)
with _temporary_folder(pathlib.Path({str(tmp_path)!r}, "m")) as folder:
    (folder / "half").write_text("written")
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException:
        pass
    print("went on")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-number, ""), ended.stderr
    assert nothing_left(tmp_path)


def test_running_convert_keeps_its_temporary_folder(models: dict[str, Made], tmp_path: Path) -> None:
    from clothing_model.commands.convert import _lock

    other = tmp_path / "m" / ".converting-1"
    other.mkdir(parents=True)
    with _lock(other):
        assert convert(models["keras3"].version, tmp_path) == 0
        assert other.exists()
    assert convert(models["keras3"].version, tmp_path) == 0
    assert sorted(child.name for child in (tmp_path / "m").iterdir()) == ["1", "2"]


def test_factory_as_a_script(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(Path(__file__).parents[2] / "model_factory.py"), "--kind", "savedmodel", "--input-name",
         "inputs", "--output-name", "output_0", "--size", "32", "--classes", "4", "--out", str(tmp_path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert made.stdout.splitlines()[-1] == str(tmp_path)
    assert savedmodel.read(tmp_path).signatures["serving_default"].inputs["inputs"].shape == (-1, 32, 32, 3)
    assert expected(tmp_path).shape == (2, 4)
    again = make_model(tmp_path / "again", "savedmodel", "inputs", "output_0", 32, 4)
    assert np.array_equal(expected(again), expected(tmp_path))  # the seed makes it
