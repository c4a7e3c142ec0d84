"""`clothing-model inspect`: signatures as saved_model_cli shows them, what is missing, and the values."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import MODELS, Made

import clothing_contract
from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.errors import ModelError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 86185888\n"


@pytest.fixture
def version(models: dict[str, Made], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(models["course"].version, tmp_path / "course" / "1"))


@pytest.mark.parametrize("name", MODELS)
def test_signatures_as_saved_model_cli(models: dict[str, Made], capsys: pytest.CaptureFixture[str], name: str) -> None:
    from tensorflow.python.tools import saved_model_cli

    assert main(["inspect", str(models[name].version)]) == 0
    ours = capsys.readouterr().out
    theirs = io.StringIO()
    with contextlib.redirect_stdout(theirs):
        saved_model_cli._show_inputs_outputs(str(models[name].version), "serve", "serving_default", indent=1)
    assert "shape:" in theirs.getvalue()
    for line in theirs.getvalue().splitlines():
        assert line.strip() in [each.strip() for each in ours.splitlines()]


def test_values(models: dict[str, Made], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(models["kitchen"].version.parent)]) == 0  # the model's folder does too
    first, *lines = capsys.readouterr().out.split("# values for charts/clothing-classifier\n")[1].splitlines()
    assert first == "model:"
    values = dict(line.removeprefix("  ").split(": ", 1) for line in lines)
    assert values["name"] == '"kitchen"'
    assert values["preprocessing"].split("  # ")[0] == '"tf"'
    labels, warning = values["labels"].split("  # ")
    assert json.loads(labels) == [f"class-{number}" for number in range(20)]
    assert "check names and order" in warning
    assert main(["inspect", str(models["course"].version), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["values"]["model"]["labels"][0] == "dress"
    assert found["signatures"]["serving_default"]["inputs"]["input_8"]["shape"] == [-1, 96, 96, 3]
    assert (found["name"], found["version"], found["variables"], found["problems"]) == ("course", 1, True, [])


def test_values_of_an_open_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None, None, None, 3), tf.float32, name="photo")
    module.serve = tf.function(lambda photo: {"scores": tf.reduce_mean(photo, (1, 2))}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert 'imageSize: ""  # the model leaves it open' in printed
    assert "no version folder" in printed
    assert "clothing-model convert" in printed
    assert not savedmodel.read(tmp_path).has_variables


def test_needs_no_tensorflow(models: dict[str, Made]) -> None:
    program = (
        "import sys; from clothing_model.commands.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'tensorflow', 'keras', 'numpy', 'google', 'grpc'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-S", "-c", program, "inspect", str(models["exported"].version)]
    source = f"{Path(savedmodel.__file__).parents[2]}:{Path(clothing_contract.__file__).parents[1]}"
    subprocess.run(command, check=True, env={"PYTHONPATH": source}, stdout=subprocess.DEVNULL)


def test_variables_missing(version: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(version / "variables")
    assert main(["inspect", str(version)]) == 1
    printed = capsys.readouterr().out
    assert "inputs['input_8'] tensor_info:" in printed  # the signatures are shown all the same
    assert "PROBLEM: " in printed
    assert "variables.index is missing" in printed


def test_variables_broken(version: Path) -> None:
    data = version / "variables" / "variables.data-00000-of-00001"
    index = version / "variables" / "variables.index"
    whole = data.read_bytes()
    assert savedmodel.read(version).problems == ()
    data.write_bytes(whole[:-1])
    assert f"has {len(whole) - 1} of {len(whole)} bytes: it was cut short" in savedmodel.read(version).problems[0]
    data.write_bytes(LFS)
    assert "Git LFS pointer" in savedmodel.read(version).problems[0]
    data.unlink()
    assert "the weights were not copied" in savedmodel.read(version).problems[0]
    index.write_bytes(index.read_bytes()[:-3])
    assert "broken or cut short" in savedmodel.read(version).problems[0]
    index.write_bytes(LFS)
    assert "Git LFS pointer" in savedmodel.read(version).problems[0]


def test_graph_broken(version: Path) -> None:
    pb = version / "saved_model.pb"
    whole = pb.read_bytes()
    for content, message in {
        LFS: "Git LFS pointer",
        whole[: len(whole) // 2]: "cut short",
        b"": "it holds no graph",
        b"hello, this is no model": "not a SavedModel",
    }.items():
        pb.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            savedmodel.read(version)


def test_paths(version: Path, tmp_path: Path) -> None:
    shutil.copytree(version, version.parent / "12")
    (version.parent / "13").mkdir()
    assert savedmodel.read(version.parent).version == 12  # the newest that holds a model
    assert savedmodel.read(version / "saved_model.pb").version == 1
    with pytest.raises(ModelError, match="does not exist"):
        savedmodel.read(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is a file"):
        savedmodel.read(version / "fingerprint.pb")
    with pytest.raises(ModelError, match="no folder named by a number"):
        savedmodel.read(version.parent / "13")


def test_not_for_the_gateway(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None, 4), tf.float32)
    module.serve = tf.function(lambda left, right: {"sum": left + right}, input_signature=[spec, spec])
    tf.saved_model.save(module, str(tmp_path / "add"), signatures={"serving_default": module.serve})
    assert main(["inspect", str(tmp_path / "add")]) == 1
    assert "serving_default has 2 inputs" in capsys.readouterr().out
    tf.saved_model.save(module, str(tmp_path / "named"), signatures={"add": module.serve})
    assert main(["inspect", str(tmp_path / "named")]) == 1
    printed = capsys.readouterr().out
    assert "no signature serving_default; it has add" in printed
    (version / savedmodel.DESCRIPTION).write_text(json.dumps({"labels": ["a", "b"]}))
    assert main(["inspect", str(version)]) == 1
    assert "2 labels are noted" in capsys.readouterr().out
