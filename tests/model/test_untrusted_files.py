"""Keras files that would do more than compute: refused unseen, by the layer's name, and run only with --trust."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.errors import ModelError
from clothing_model.keras import config, files

# Of saving: that .h5 is old, and the optimizer of a file that is not trained further.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

KERAS = ("tf_keras", "keras")
SUFFIXES = (".h5", ".keras")


def convert(source: Path, output: Path, *options: str) -> int:
    return main(["convert", str(source), "--name", "m", "--output", str(output), *options])


def saved(keras: Any, path: Path, *layers: Any) -> Path:
    """A classifier of ten classes that begins with these layers."""
    photo = keras.Input((8, 8, 3))
    x = photo
    for layer in (*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)):
        x = layer(x)
    keras.Model(photo, x).save(path)
    return path


def patched(path: Path, change: Any) -> Path:
    """The file, with ``change`` applied to its config."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "r+") as file:
            model = json.loads(file.attrs["model_config"])
            change(model)
            file.attrs["model_config"] = json.dumps(model)
        return path
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    model = json.loads(parts["config.json"])
    change(model)
    parts["config.json"] = json.dumps(model).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def writing(marker: Path) -> Any:
    """A lambda that leaves a file behind where it runs; it needs nothing around it, as code from a file has nothing."""
    return eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x * 2.0)[1]")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("library", KERAS)
@pytest.mark.parametrize("where", ["layer", "time-distributed", "sequential", "functional"])
def test_lambda_layer_needs_trust(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], library: str, suffix: str, where: str
) -> None:
    keras = importlib.import_module(library)
    marker = tmp_path / "it-ran"
    layer = keras.layers.Lambda(writing(marker), name="double_it")
    if where == "time-distributed":
        layer = keras.layers.TimeDistributed(layer)
    elif where == "sequential":
        layer = keras.Sequential([keras.Input((8, 8, 3)), layer])
    elif where == "functional":
        inner = keras.Input((8, 8, 3))
        layer = keras.Model(inner, layer(inner))
    source = saved(keras, tmp_path / f"model{suffix}", layer)
    marker.unlink()  # making it called it
    assert convert(source, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "layer double_it: Lambda runs Python code that the file holds" in said
    assert "--trust" in said
    assert "loading TensorFlow" not in said
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="--trust"):  # whoever loads it
        files.load(files.identify(source))
    assert not marker.exists()
    if where == "layer":
        assert convert(source, tmp_path / "out", "--trust") == 0
        assert marker.exists()
        assert savedmodel.read(tmp_path / "out/m").version == 1


CALLS = "calls a function that the file names"


def function(module: str | None, name: str, registered: str = "function") -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": registered}


def of_class(name: str, module: str | None = "keras.layers", registered: str | None = None, **given: Any) -> Any:
    return {
        "class_name": name,
        "module": module,
        "registered_name": registered,
        "config": {"name": "evil", "trainable": True, **given},
    }


CODE = ["YwAAAA==\n", None, None]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        # CVE-2025-9905: of an .h5, whatever safe_mode says; also as the shape or the mask
        (of_class("Lambda", function=CODE, function_type="lambda"), "runs Python code"),
        (of_class("Custom>Lambda", function=CODE, function_type="lambda"), "runs Python code"),
        (of_class("Dense", "keras.layers", None, output_shape_type="lambda", output_shape=CODE), "runs Python code"),
        (of_class("Bidirectional", layer=of_class("Lambda", function={})), "runs Python code"),
        (of_class("Dense", activation={"class_name": "__lambda__", "config": {"value": CODE}}), "runs Python code"),
        # by another name than the one that is looked for first
        (of_class("Nothing", "keras.layers", "Lambda", function=CODE), "runs Python code"),
        (of_class("lambda_layer.Lambda", "keras.layers.core"), CALLS),
        # JSON within JSON
        (of_class("Dense", note=json.dumps({"layers": [of_class("Lambda")]})), "runs Python code"),
        # CVE-2025-1550: any module's function
        (of_class("Dense", activation=function("builtins", "eval")), "calls Python's eval"),
        (of_class("Dense", activation=function("builtins", "relu", "exec")), "calls Python's exec"),
        (of_class("Dense", activation=function(None, "__import__")), "calls Python's __import__"),
        (of_class("__import__", "builtins"), CALLS),
        (of_class("Exception", "builtins"), "makes a builtins.Exception"),
        # CVE-2025-8747 and CVE-2025-9906: Keras's own functions
        (of_class("Dense", activation=function("keras.utils", "get_file")), "calls keras.utils.get_file"),
        (of_class("get_file", "keras.utils", origin="http://a.test/"), CALLS),
        (of_class("Dense", activation=function("keras.config", "enable_unsafe_deserialization")), "calls keras.config"),
        (of_class("Dense", activation=function("tf_keras.src.utils.generic_utils", "func_load")), "calls tf_keras.src"),
        (of_class("FeatureSpace", "keras.utils"), "makes a keras.utils.FeatureSpace"),
        (of_class("deserialize_keras_object", None), CALLS),
        # layers that load something else
        (of_class("TFSMLayer", filepath="/elsewhere"), "loads another model"),
        (of_class("TorchModuleWrapper", module="UEsDBA=="), "unpickles"),
        (of_class("StringLookup", vocabulary="/etc/passwd"), "opens a vocabulary"),
        # TensorFlow's functions and operations in a network of Keras 2
        (of_class("TFOpLambda", function="io.gfile.rmtree"), "calls tf.io.gfile.rmtree"),
        (of_class("TFOpLambda", function="load_op_library"), "calls tf.load_op_library"),
        (of_class("Other", "keras.layers", "TFOpLambda", function="io.write_file"), "calls tf.io.write_file"),
        (of_class("ClassMethod", cls_symbol="io.gfile.GFile", method_name="__init__"), "calls a method"),
        (of_class("TensorFlowOpLayer", node_def={"op": "WriteFile"}), "runs the operation WriteFile"),
        (of_class("TensorFlowOpLayer", node_def="\n\x05x\x12\tWriteFile"), "runs the operation that its node_def"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_every_code_path_of_a_file_is_detected(layer: dict[str, Any], why: str, nested: bool) -> None:
    layers: list[Any] = [of_class("InputLayer", batch_shape=[None, 8, 8, 3]), layer]
    if nested:
        layers = [of_class("Sequential", "keras", layers=layers)]
    model = {"class_name": "Functional", "config": {"name": "model", "layers": layers}}
    (found,) = config.unsafe(model)
    assert why in found.why
    assert found.layer == "evil"
    with pytest.raises(ModelError, match=r"layer evil: .* pass --trust"):
        config.refuse(Path("model.h5"), model)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("library", KERAS)
def test_computing_layers_need_no_trust(tmp_path: Path, library: str, suffix: str) -> None:
    """TensorFlow's and Keras's functions, regularisers, constraints, wrappers, augmentation."""
    keras = importlib.import_module(library)
    tf = importlib.import_module("tensorflow")
    layers = keras.layers
    photo = keras.Input((16, 16, 3))
    x = layers.RandomFlip()(layers.Rescaling(1 / 127.5, offset=-1)(photo))
    x = (x / 2.0 + 1.0)[:, 1:]
    if library == "tf_keras":
        x = tf.nn.relu6(tf.image.resize(tf.cast(x, tf.float32), (8, 8)))
        own = {"kernel_initializer": tf.constant_initializer(0.5), "activation": tf.nn.relu6}
    else:
        x = keras.ops.relu(keras.ops.flip(x, 2))
        own = {"activation": keras.activations.hard_swish}
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(2), **own)(x)
    x = layers.TimeDistributed(layers.Dense(3, activation="swish"))(x)
    x = layers.Dropout(0.2)(layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(photo, layers.Activation("softmax")(x))
    model.compile("adam", loss=lambda y, z: y - z)  # how it was trained is not loaded
    model.save(tmp_path / f"model{suffix}")
    found = config.read(tmp_path / f"model{suffix}")
    assert (config.unsafe(found), config.foreign(found)) == ([], [])
    outline = config.outline(found)
    assert (list(outline.inputs.values()), list(outline.widths.values())) == ([(None, 16, 16, 3)], [5])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("library", KERAS)
def test_unknown_part_of_a_keras_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], library: str, suffix: str
) -> None:
    keras = importlib.import_module(library)

    class Scale(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x / 255.0

    def warm(x: Any) -> Any:
        return x + 1.0

    sources = [
        (saved(keras, tmp_path / f"layer{suffix}", Scale(name="my_scale")), "layer my_scale: Scale"),
        (saved(keras, tmp_path / f"function{suffix}", keras.layers.Conv2D(3, 3, activation=warm, name="conv")),
         "layer conv: warm"),
    ]  # fmt: skip
    for source, named in sources:
        assert convert(source, tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert named in said
        assert "load it where they are defined" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("library", KERAS)
def test_a_subclassed_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], library: str) -> None:
    import numpy as np

    keras = importlib.import_module(library)

    class Homemade(keras.Model):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Homemade()
    model(np.zeros((1, 8), np.float32))
    model.save(tmp_path / "model.keras")
    assert convert(tmp_path / "model.keras", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "as Keras lacks a part of it: Homemade is " in said
    assert "loading TensorFlow" not in said


def test_no_module_of_a_file_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """CVE-2025-1550: tf-keras imports whatever module a .keras names."""
    import tf_keras

    (tmp_path / "named_by_the_file.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = saved(tf_keras, tmp_path / "model.keras", tf_keras.layers.Conv2D(3, 3, name="conv"))

    def change(model: dict[str, Any]) -> None:
        model["config"]["layers"][1]["config"]["activation"] = function("named_by_the_file", "act", "act")

    patched(source, change)
    assert convert(source, tmp_path / "out") == 1
    assert "layer conv: act is of the module named_by_the_file" in capsys.readouterr().err
    with pytest.raises(ModelError):
        files.load(files.identify(source))
    assert not (tmp_path / "it-ran").exists()


def test_average_runs_no_code_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    source = saved(keras, tmp_path / "model.keras", keras.layers.Lambda(lambda x: x * 2.0))
    assert main(["average", str(source), "--mirrored", "--output", str(tmp_path / "mean.keras")]) == 1
    assert "Lambda runs Python code" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_malformed_config_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["keras_version"] = "2.11.0"
        if len(text) < 60_000:  # what an attribute holds
            file.attrs["model_config"] = text
        else:
            file.attrs.create("model_config", text, dtype=h5py.string_dtype())
    assert convert(tmp_path / "model.h5", tmp_path / "out") == 1
    assert "a config that" in capsys.readouterr().err
