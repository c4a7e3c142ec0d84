"""`clothing-model values`: the chart's values for a model, with what is guessed marked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import Made

import clothing_contract
from clothing_model import savedmodel
from clothing_model.commands.cli import main

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "model-image/demo-model/clothing-model"


def values(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[dict[str, str], str]:
    """The lines below `model:`, still as YAML, and the notes."""
    capsys.readouterr()
    assert main(["values", str(path), *options]) == 0
    printed = capsys.readouterr()
    first, *lines = printed.out.splitlines()
    assert first == "model:"
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line), printed.err


def test_of_a_described_model(capsys: pytest.CaptureFixture[str]) -> None:
    found, notes = values(capsys, DEMO)
    assert (json.loads(found["name"]), json.loads(found["preprocessing"])) == ("clothing-model", "tf")
    assert json.loads(found["labels"])[0] == "dress"
    assert notes == ""
    schema = json.loads((ROOT / "charts/clothing-classifier/values.schema.json").read_text())
    known = schema["properties"]["model"]["properties"]
    assert set(found) <= set(known)
    found, _ = values(capsys, DEMO, "--image", "127.0.0.1:5000/team/kitchen-model:1.2")
    assert {json.loads(found[key]) for key in ("registry", "repository", "tag")} == {
        "127.0.0.1:5000", "team/kitchen-model", "1.2",
    }  # fmt: skip
    image = schema["properties"]["server"]["properties"]["image"]
    place = schema["$defs"][image["$ref"].rsplit("/", 1)[1]] if "$ref" in image else image
    assert {"registry", "repository", "tag", "digest"} <= set(place["properties"])


def test_inspect_prints_the_same(models: dict[str, Made], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["values", str(models["kitchen"].version)]) == 0
    ours = capsys.readouterr().out
    assert main(["inspect", str(models["kitchen"].version)]) == 0
    assert capsys.readouterr().out.split("# values for charts/clothing-classifier\n")[1] == ours


def test_guessed_values_are_marked(models: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = models["kitchen"].version
    found, notes = values(capsys, path)
    assert "# not noted in the model: check names and order" in found["labels"]
    assert "# not noted in the model: tf, caffe, torch, rescale or none" in found["preprocessing"]
    assert notes.count("note: ") == 2
    names = [f"thing-{number}" for number in range(20)]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    found, notes = values(capsys, path, "--labels", str(tmp_path / "labels.txt"), "--preprocessing", "caffe")
    assert json.loads(found["labels"]) == names
    assert found["preprocessing"] == '"caffe"'
    assert notes == ""
    assert main(["values", str(path), "--labels", "a,b", "--json"]) == 1
    assert "2 labels are noted" in capsys.readouterr().err


def test_size_and_outputs_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None, None, None, 3), tf.float32, name="photo")
    module.serve = tf.function(
        lambda photo: {"scores": tf.reduce_mean(photo, (1, 2)), "hidden": tf.reduce_sum(photo, (1, 2))},
        input_signature=[spec],
    )
    tf.saved_model.save(module, str(tmp_path / "m/1"), signatures={"serving_default": module.serve})
    found, _ = values(capsys, tmp_path / "m")
    assert found["imageSize"].startswith('""  # the model leaves it open')
    assert found["outputName"] == '""  # hidden, scores can each hold scores: give the right one with --output-name'
    found, notes = values(capsys, tmp_path / "m", "--output-name", "scores")
    assert found["outputName"] == '"scores"'
    assert "outputName" not in notes
    assert main(["values", str(tmp_path / "m"), "--output-name", "other"]) == 1
    assert "--output-name=other: the model has hidden, scores" in capsys.readouterr().err
    found, _ = values(capsys, tmp_path / "m", "--image-size", "64x48")
    assert found["imageSize"] == '"64x48"'
    assert main(["values", str(tmp_path / "m"), "--image-size", "224", "--image", "kitchen:1", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["model"]["imageSize"] == "224"
    assert both["server"] == {"image": {"repository": "kitchen", "tag": "1"}}


def several(path: Path, width: int = 10, **more: str) -> Path:
    """A model with the outputs classes (int64), probabilities, and more of these types and shapes."""
    import tensorflow as tf

    def classify(image: Any) -> dict[str, Any]:
        scores = tf.nn.softmax(tf.reduce_mean(image, [1, 2])[:, :1] * tf.reshape(tf.range(float(width)), (1, width)))
        kinds = {
            "labels": tf.as_string(tf.argmax(scores, 1)),
            "embedding": tf.reduce_mean(image, [1, 2]),
            "map": tf.reduce_mean(image, 3),
            "best": tf.reduce_max(scores, 1),
            "half": tf.cast(scores, tf.float16),
        }
        given = {name: kinds[kind] for name, kind in more.items()}
        return {"classes": tf.argmax(scores, 1), "probabilities": scores, **given}

    module = tf.Module()
    module.serve = tf.function(classify, input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")])
    tf.saved_model.save(module, str(path / "1"), signatures={"serving_default": module.serve})
    return path


@pytest.mark.parametrize(
    ("more", "options", "name"),
    [
        ({}, [], "probabilities"),
        # By type and shape: strings, maps and one number a photo hold no scores, whatever they are called.
        ({"a": "labels", "b": "map", "scores": "best"}, [], "probabilities"),
        ({"a_first": "embedding"}, [], ""),  # three numbers a photo: it may be either
        ({"a_first": "embedding"}, ["--labels", ",".join("abcdefghij")], "probabilities"),
        ({"a_first": "embedding"}, ["--labels", "a,b,c"], "a_first"),
        ({"a_first": "half"}, ["--output-name", "a_first"], "a_first"),
    ],
)
def test_output_is_chosen_by_type_and_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], options: list[str], name: str
) -> None:
    found, _ = values(capsys, several(tmp_path / "m", **more), *options)
    assert found["outputName"].split("  #")[0] == json.dumps(name)
    if name and "--labels" not in options and "--output-name" not in options:
        assert len(json.loads(found["labels"].split("  #")[0])) == 10
    elif not name:
        assert (
            "a_first, probabilities can each hold scores: give the right one with --output-name" in found["outputName"]
        )


def test_evaluate_and_convert_take_the_same_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clothing_model.errors import ModelError
    from clothing_model.evaluation.classifiers import Options, SavedModelClassifier

    names = tuple("abcdefghij")
    plain = several(tmp_path / "plain", a_first="labels")
    facts = SavedModelClassifier(plain, Options(), names)._facts
    assert str(facts["output"]).startswith("probabilities ")
    unclear = several(tmp_path / "unclear", a_first="embedding")
    with pytest.raises(ModelError, match="convert --output-name NAME"):
        SavedModelClassifier(unclear, Options(), names)
    convert = ["convert", str(unclear), "--name", "m", "--output", str(tmp_path)]
    assert main([*convert, "--input", "uint8", "--preprocessing", "none"]) == 1
    assert "Choose the one that gives the scores with --output-name NAME" in capsys.readouterr().err
    assert main([*convert, "--output-name", "probabilities"]) == 0
    (output,) = savedmodel.read(tmp_path / "m").signatures["serving_default"].outputs.items()
    assert (output[0], output[1].shape) == ("probabilities", (-1, 10))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("kitchen", "give REPOSITORY:TAG"),
        ("kitchen:latest", "the chart refuses `latest`"),
        ("a b:1", "give REPOSITORY"),
    ],
)
def test_bad_images(capsys: pytest.CaptureFixture[str], image: str, message: str) -> None:
    assert main(["values", str(DEMO), "--image", image]) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_served_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = Path(shutil.copytree(DEMO / "1", tmp_path / "m/1"))
    (version / "variables/variables.index").unlink()
    assert main(["values", str(version)]) == 1
    printed = capsys.readouterr()
    assert "variables.index is missing" in printed.err
    assert printed.out == ""


def test_needs_no_tensorflow() -> None:
    program = "import sys; from clothing_model.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", program, "values", str(DEMO)]
    source = f"{Path(savedmodel.__file__).parents[2]}:{Path(clothing_contract.__file__).parents[1]}"
    done = subprocess.run(command, check=True, env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert done.stdout.startswith("model:\n")
