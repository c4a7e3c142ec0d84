"""`clothing-model verify`: what it lets pass, and each message that a user can get."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import MODELS, Made

from clothing_model import savedmodel
from clothing_model.commands.cli import main
from clothing_model.savedmodel import warmup

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 86185888\n"
ROOT = Path(__file__).parents[3]
DEMO = ROOT / "model-image/demo-model/clothing-model"
DEMO_LABELS = "dress,hat,longsleeve,outwear,pants,shirt,shoes,shorts,skirt,t-shirt"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A copy of the demo model to break."""
    return Path(shutil.copytree(DEMO / "1", tmp_path / "clothing-model" / "1"))


def verify(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["verify", str(path), *options])
    return code, capsys.readouterr().out.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    """The errors of a model that must not pass, one a line, and the count of them at the end."""
    code, lines = verify(capsys, path, *options)
    assert code == 1
    errors = [line for line in lines if line.startswith("error ")]
    assert errors
    assert not [line for line in lines if line.startswith("ok ")]
    assert f"{len(errors)} error{'' if len(errors) == 1 else 's'}" in lines[-1]
    return "\n".join(errors)


def test_the_demo_model_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verify(capsys, DEMO, "--strict", "--name", "clothing-model", "--labels", DEMO_LABELS)
    assert (code, lines) == (
        0,
        [
            f"ok       {DEMO / '1'}: photo float (-1, 160, 160, 3) -> logits float (-1, 10), 5.3 MB",
            f"{DEMO}: 1 model, 1 version, 0 errors, 0 warnings",
        ],
    )
    assert verify(capsys, DEMO / "1")[0] == 0


@pytest.mark.parametrize("name", MODELS)
def test_converted_model_passes(models: dict[str, Made], capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, lines = verify(capsys, models[name].version.parent)
    assert code == 0, lines
    assert any(line.startswith("ok ") for line in lines)
    (warning,) = [line for line in lines if line.startswith("warning ")]
    assert "no labels are noted in it" in warning
    assert verify(capsys, models[name].version.parent, "--strict")[0] == 1


def test_an_images_root_and_json(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    shutil.copytree(version, root / "models/clothing-model/1")
    shutil.copytree(version, root / "models/clothing-model/2")
    shutil.copytree(version, root / "models/other/7")
    (root / "models/models.config").write_text("")
    (root / "etc").mkdir()
    (root / "models/clothing-model/2/variables/variables.index").unlink()
    code, lines = verify(capsys, root, "--json")
    found = json.loads("\n".join(lines))
    assert (code, found["ok"], found["models"], found["versions"]) == (1, False, 2, 3)
    levels = {Path(each["path"]).relative_to(root / "models"): each["level"] for each in found["findings"]}
    assert levels == {
        Path("clothing-model/1"): "ok", Path("clothing-model/2"): "error", Path("other/7"): "ok",
    }  # fmt: skip
    assert verify(capsys, root, "--name", "other")[0] == 0
    assert "holds no model 'shoes', only clothing-model, other" in refusal(capsys, root, "--name", "shoes")


def test_needs_no_tensorflow_and_under_a_second(version: Path) -> None:
    """On a Python without any package; the weights as large as the course's, the graph as large as a ResNet's."""
    with (version / "variables/variables.data-00000-of-00001").open("r+b") as data:
        data.truncate(90_000_000)
    program = "import sys; from clothing_model.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", program, "verify", str(version)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        sources = {"PYTHONPATH": f"{ROOT / 'model-image/src'}:{ROOT / 'contract/src'}"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=sources)
        seconds.append(time.perf_counter() - started)
    assert done.stdout.startswith("ok ")
    assert min(seconds) < 1


def test_no_version_folder(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row S7 of the course's failures: `No versions of servable … found under base path`, for ever."""
    model = tmp_path / "models/clothing-model"
    shutil.copytree(version, model)
    for path in (model, model.parent):
        message = refusal(capsys, path)
        assert "it is in no version folder" in message
        assert "`No versions of servable found under base path`" in message
        assert f"move it to {model}/1" in message
        assert "clothing-model convert" in message
    (tmp_path / "empty").mkdir()
    assert "it holds no model" in refusal(capsys, tmp_path / "empty")
    (tmp_path / "m/1").mkdir(parents=True)
    assert "holds no saved_model.pb" in refusal(capsys, tmp_path / "m")
    shutil.copytree(version, tmp_path / "deep/1/1")
    assert "remove the extra folder level" in refusal(capsys, tmp_path / "deep")
    shutil.copytree(version, tmp_path / "twice/1")
    shutil.copytree(version, tmp_path / "twice/01")
    (tmp_path / "twice/v2").mkdir()
    code, lines = verify(capsys, tmp_path / "twice")
    assert code == 1
    assert any("the same version as 01" in line for line in lines)
    assert any(line.startswith("warning ") and "a version is named by a number" in line for line in lines)
    for path, message in ((tmp_path / "nowhere", "does not exist"), (version / "saved_model.pb", "is a file")):
        assert main(["verify", str(path)]) == 1
        assert message in capsys.readouterr().err


DATA = "variables/variables.data-00000-of-00001"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        # Row S8: weights absent, or Git LFS pointers
        (DATA, lambda _: LFS, "is a Git LFS pointer"),
        ("variables/variables.index", lambda _: LFS, "is a Git LFS pointer"),
        ("saved_model.pb", lambda _: LFS, "is a Git LFS pointer"),
        (DATA, lambda _: None, "variables.data-00000-of-00001 is missing: the weights were not copied"),
        ("variables/variables.index", lambda _: None, "variables.index is missing"),
        (DATA, lambda data: data[:-1], "it was cut short"),
        ("variables/variables.index", lambda data: data[:-9], "is broken or cut short"),
        ("saved_model.pb", lambda data: data[: len(data) // 2], "cut short"),
        ("saved_model.pb", lambda _: None, "holds no saved_model.pb"),
        ("assets.extra/model.json", lambda data: data[:9], "can't be read"),
        ("assets.extra/tf_serving_warmup_requests", lambda data: data[:-5], "ends in the middle of a record"),
        ("assets.extra/tf_serving_warmup_requests", lambda _: b"warm up please", "is not a TFRecord file"),
        ("assets.extra/tf_serving_warmup_requests", lambda data: data[:-6] + b"x" + data[-5:], "wrong checksum"),
    ],
)  # fmt: skip
def test_files(
    version: Path, capsys: pytest.CaptureFixture[str], name: str, change: Callable[[bytes], bytes | None], message: str
) -> None:
    path = version / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    found = refusal(capsys, version.parent)
    assert message in found
    assert len(found.splitlines()) == 1
    if content == LFS:
        assert "git lfs pull" in found


def test_labels(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row S29: scores under the wrong names, or under none, where the counts or the orders differ."""
    assert "3 labels are given (cat, dog, bird), but its output logits has 10 classes" in refusal(
        capsys, version, "--labels", "cat,dog,bird"
    )
    swapped = DEMO_LABELS.replace("dress,hat", "hat,dress")
    assert "in another order: class 0 is 'hat' there and 'dress' in the model" in refusal(
        capsys, version, "--labels", swapped
    )
    for label in DEMO_LABELS.split(","):
        (tmp_path / "photos" / label).mkdir(parents=True)
    assert verify(capsys, version, "--labels", str(tmp_path / "photos"))[0] == 0
    description = json.loads((version / savedmodel.DESCRIPTION).read_text())
    (version / savedmodel.DESCRIPTION).write_text(json.dumps({**description, "labels": ["cat", "dog"]}))
    assert "2 labels are noted in assets.extra/model.json (cat, dog)" in refusal(capsys, version)


def saved(folder: Path, function: Any, *specs: Any, key: str = "serving_default") -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder / "1"), signatures={key: module.serve})
    return folder


def test_signatures_that_the_gateway_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    def spec(*shape: int | None, dtype: Any = tf.float32, name: str = "photo") -> Any:
        return tf.TensorSpec(shape or None, dtype, name=name)

    def scores(photo: Any) -> dict[str, Any]:
        return {"scores": tf.reduce_mean(tf.cast(photo, tf.float32), (1, 2))}

    cases = {
        "channels": (scores, [spec(None, 32, 32, 2)], "of 3 channels or 1"),
        "open": (scores, [spec(None, None, None, 3)], "which leaves the size open: set model.imageSize"),
        "int": (
            scores,
            [spec(None, 32, 32, 3, dtype=tf.int64)],
            "is DT_INT64; the gateway sends DT_FLOAT",
        ),
        "batch": (scores, [spec(8, 32, 32, 3)], "a batch of exactly 8"),
        "strings": (
            lambda _: {"scores": tf.zeros((1, 3))},
            [spec(None, 2, dtype=tf.string)],
            "one of encoded photos has one dimension",
        ),
        "two": (
            lambda a, b: {"sum": a + b},
            [spec(None, 4, name="a"), spec(None, 4, name="b")],
            "has 2 inputs, 'a', 'b': choose one with",
        ),
        "classes": (
            lambda photo: {"class": tf.argmax(tf.reduce_mean(photo, (1, 2)), -1)},
            [spec(None, 32, 32, 3)],
            "output 'class' is DT_INT64",
        ),
        "map": (lambda photo: {"map": photo}, [spec(None, 32, 32, 3)], "scores have two dimensions"),
    }
    for name, (function, specs, message) in cases.items():
        assert message in refusal(capsys, saved(tmp_path / name, function, *specs)), name
    assert verify(capsys, tmp_path / "open", "--image-size", "64x48")[0] == 0
    for name, shape in (("first", (None, 3, 32, 48)), ("grey", (None, 28, 28, 1)), ("grey-first", (None, 1, 28, 28))):
        assert verify(capsys, saved(tmp_path / name, scores, spec(*shape)))[0] == 0, name
    half = saved(
        tmp_path / "half",
        lambda photo: {"scores": tf.cast(tf.reduce_mean(photo, (1, 2)), tf.float16)},
        spec(None, 32, 32, 3),
    )
    assert verify(capsys, half)[0] == 0
    first = saved(tmp_path / "open-first", scores, spec(None, 3, None, None))
    assert "leaves the size open" in refusal(capsys, first)
    assert verify(capsys, first, "--image-size", "48x32")[0] == 0
    description = first / "1" / savedmodel.DESCRIPTION
    description.parent.mkdir()
    description.write_text(json.dumps({"imageSize": "48x32"}))
    assert verify(capsys, first)[0] == 0
    description.write_text(json.dumps({"imageSize": "48x32", "channels": "grey"}))
    assert "of three channels: set model.channels of the chart (--channels of" in refusal(capsys, first)
    further = saved(
        tmp_path / "further",
        lambda photo, keep: {"scores": tf.reduce_mean(photo, (1, 2)) * keep},
        spec(None, 32, 32, 3),
        tf.TensorSpec((), tf.float32, name="keep_prob"),
    )
    assert "requires 'keep_prob' beside 'photo'" in refusal(capsys, further, "--input-name", "photo")
    fixed = saved(tmp_path / "fixed", scores, spec(None, 32, 32, 3))
    assert "is 64x48 (width x height): leave it out" in refusal(capsys, fixed, "--image-size", "64x48")
    code, lines = verify(capsys, fixed)
    assert code == 0
    assert any("no warm-up requests" in line for line in lines)
    both = saved(
        tmp_path / "both",
        lambda photo: {**scores(photo), "hidden": tf.reduce_sum(photo, (1, 2))},
        spec(None, 32, 32, 3),
    )
    assert "has 2 outputs, 'hidden', 'scores'" in refusal(capsys, both)
    assert verify(capsys, both, "--output-name", "scores")[0] == 0
    # Rows S4 and S5: names that are not the model's
    assert "has no input 'input_8', only 'photo'" in refusal(capsys, fixed, "--input-name", "input_8")
    assert "has no output 'dense_7', only 'scores'" in refusal(capsys, fixed, "--output-name", "dense_7")
    named = saved(tmp_path / "named", scores, spec(None, 32, 32, 3), key="predict")
    assert "has no signature serving_default, only predict" in refusal(capsys, named)
    assert verify(capsys, named, "--signature-name", "predict")[0] == 0


def test_warm_up_requests(version: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = version / savedmodel.WARMUP
    warmup.write(path, "clothing-model", "photo", dtype="DT_FLOAT", shape=(160, 160, 3), batch_sizes=[1, 4, 32])
    assert verify(capsys, version)[0] == 0
    for name, dtype, shape, message in (
        ("input_8", "DT_FLOAT", (160, 160, 3), "its request 1 has the inputs input_8, not photo"),
        ("photo", "DT_INT32", (160, 160, 3), "gives photo as DT_INT32, not DT_FLOAT"),
        ("photo", "DT_FLOAT", (299, 299, 3), "gives photo the shape (1, 299, 299, 3), not (-1, 160, 160, 3)"),
        ("photo", "DT_FLOAT", (160, 3), "gives photo the shape (1, 160, 3)"),
    ):
        warmup.write(path, "clothing-model", name, dtype=dtype, shape=shape, batch_sizes=[1])
        assert message in refusal(capsys, version)
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.request.model_spec.name = "clothing-model"
    other = prediction_log_pb2.PredictionLog()
    other.predict_log.request.model_spec.signature_name = "classify"
    for record, message in ((log, "is not a Predict"), (other, "calls the signature classify, which the model lacks")):
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(record.SerializeToString())
        assert message in refusal(capsys, version)
    warmup.write(path, "clothing-model", "photo", dtype="DT_FLOAT", shape=(160, 160, 3), batch_sizes=[1] * 1001)
    assert "1001 requests, and TensorFlow Serving takes 1000" in refusal(capsys, version)
    path.write_bytes(b"")
    code, lines = verify(capsys, version)
    assert code == 0
    assert any("it is empty" in line for line in lines)


def test_jit_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorFlow Serving fails each call of it, unless XLA is turned on; the wheel computes it."""
    import tensorflow as tf

    from clothing_model.server.errors import RequestError
    from clothing_model.server.flags import Flags
    from clothing_model.server.servable import Servable, Settings

    module = tf.Module()
    spec = tf.TensorSpec((None, 32, 32, 3), tf.float32, name="photo")
    inner = tf.function(lambda photo: tf.reduce_sum(photo, (1, 2)), jit_compile=True)
    module.serve = tf.function(lambda photo: {"scores": inner(photo)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m/1"), signatures={"serving_default": module.serve})
    assert "it has functions with jit_compile=True" in refusal(capsys, tmp_path / "m")
    assert verify(capsys, tmp_path / "m", "--xla")[0] == 0
    feeds = {"serving_default_photo:0": np.ones((1, 32, 32, 3), np.float32)}
    for xla in (False, True):
        settings = Settings.of(Flags(model_base_path="/m", xla_cpu_compilation_enabled=xla))
        servable = Servable("m", 1, tmp_path / "m/1", settings)
        fetches = [servable.signatures["serving_default"].outputs["scores"].name]
        if xla:
            assert servable.run(feeds, fetches)[0].tolist() == [[1024, 1024, 1024]]
        else:
            with pytest.raises(RequestError, match="XLA compilation disabled"):
                servable.run(feeds, fetches)
        servable.close()


def test_access(version: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (version / "saved_model.pb").chmod(0o640)
    code, lines = verify(capsys, version)
    assert code == 0
    assert any("only its owner and group can read it" in line for line in lines)
    if os.geteuid() != 0:  # nothing is closed to root
        (version / "saved_model.pb").chmod(0)
        assert "this user can't read it: chmod -R a+rX" in refusal(capsys, version)
