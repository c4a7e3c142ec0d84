"""The rules that both images' Dockerfiles keep. Building them is for the cluster's tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

FOLDER = Path(__file__).parents[2] / "model-image"


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.portable"])
def test_rules(name: str) -> None:
    found = instructions(name)
    defaults = dict(value.split("=", 1) for key, value in found if key == "ARG")
    stages = [value.split(" AS ")[1] for key, value in found if key == "FROM" and " AS " in value]
    for key, value in found:
        if key == "FROM" and value.split()[0] not in stages:
            (argument,) = re.findall(r"\$\{(\w+)\}", value)
            registry, image = defaults[argument].split("/", 1)
            assert "." in registry
            assert re.search(r":\d+\.\d+", image), f"{image}: pin the version"
    stage = found[max(index for index, (key, _) in enumerate(found) if key == "FROM") :]
    (user,) = [value for key, value in stage if key == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # numbers, so that Kubernetes can tell it is not root
    entry, command = ([json.loads(v) for k, v in stage if k == key] for key in ("ENTRYPOINT", "CMD"))
    assert len(entry) == len(command) == 1
    assert [key for key, _ in stage].index("USER") > max(
        i for i, (key, _) in enumerate(stage) if key in ("RUN", "COPY")
    )
    assert "--model_config_file=/models/models.config" in command[0]
    assert defaults["MODEL_DIR"] == "model-image/demo-model/clothing-model"


def test_the_final_stage_installs_nothing() -> None:
    """A base image's package sources disappear, and an air-gapped build reaches none."""
    found = instructions("Dockerfile")
    stage = found[max(index for index, (key, _) in enumerate(found) if key == "FROM") :]
    assert not [value for key, value in stage if key == "RUN"]
    assert ("COPY", "--from=model /usr/bin/tini-static /usr/bin/tini") in stage


def test_the_official_server_is_not_pid_1() -> None:
    (entry,) = [json.loads(value) for key, value in instructions("Dockerfile") if key == "ENTRYPOINT"]
    assert entry == ["/usr/bin/tini", "--", "/usr/bin/tensorflow_model_server"]


def test_the_portable_image_installs_by_hash() -> None:
    runs = [value for key, value in instructions("Dockerfile.portable") if key == "RUN"]
    assert any("--require-hashes --no-deps -r /build/requirements.lock" in run for run in runs)
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (FOLDER / lock).read_text()
        packages = re.findall(r"^[a-z0-9_-]+==", text, re.MULTILINE)
        assert len(packages) > 20
        for block in re.split(r"^(?=[a-z0-9_-]+==)", text, flags=re.MULTILINE)[1:]:
            assert "--hash=sha256:" in block
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links[ =]", text)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.portable"])
def test_the_image_verifies_its_model(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Dockerfile's command, on the layout that it makes: the demo model passes, one without weights doesn't."""
    (line,) = [value for key, value in instructions(name) if key == "RUN" and " verify " in value]
    models = tmp_path / "models"
    shutil.copytree(FOLDER / "demo-model/clothing-model", models / "clothing-model")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MODEL_NAME", "clothing-model")
    sources = f"{FOLDER / 'src'}:{FOLDER.parent / 'contract/src'}"
    command = ["sh", "-c", re.sub(r"(?<=[ >])/models(?=[ /])", str(models), line).replace("/src", sources)]
    subprocess.run(command, check=True)
    config = (models / "models.config").read_text()
    parsed = text_format.Parse(config, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert [(each.name, each.base_path, each.model_platform) for each in parsed] == [
        ("clothing-model", "/models/clothing-model", "tensorflow")
    ]
    (models / "clothing-model/1/variables/variables.index").unlink()
    (models / "models.config").unlink()
    assert subprocess.run(command, check=False).returncode == 1
    assert "variables.index is missing" in capfd.readouterr().out
    assert not (models / "models.config").exists()


def test_tensorflow_has_a_layer_of_its_own() -> None:
    """What the package is made of is copied after TensorFlow was installed, in a stage that the image takes apart."""
    found = instructions("Dockerfile.portable")
    sources = next(at for at, (key, value) in enumerate(found) if key == "COPY" and value.startswith("model-image/src"))
    lock = next(at for at, (key, value) in enumerate(found) if key == "RUN" and "requirements.lock" in value)
    stages = [at for at, (key, _) in enumerate(found) if key == "FROM"]
    assert len(stages) == 3
    assert stages[0] < lock < stages[1] < sources < stages[2]
    copied = [value.split()[0] for key, value in found[stages[2] :] if key == "COPY" and value.startswith("--from")]
    assert copied == ["--from=tensorflow", "--from=package"]


# ---- make model-image ----

RECORDER = """#!/bin/sh
test "$1" != info || exit ${DOCKER_INFO:-0}
for word; do printf '%s\\n' "$word"; done > "$RECORD"
for context; do :; done
find "$context" -type f | sort > "$RECORD.files"
echo STEP 1
exit ${DOCKER_BUILD:-0}
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that writes down how it is called; the file that it writes."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(RECORDER)
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("RECORD", str(tmp_path / "argv"))
    monkeypatch.setenv("E2E_CLUSTER", str(tmp_path / "no-cluster"))
    return tmp_path / "argv"


def model_image(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = FOLDER.parent / "scripts/model_image.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


def test_model_image_command_builds_dockers_command_line(docker: Path) -> None:
    done = model_image(str(FOLDER / "demo-model/clothing-model"), "--tag", "registry.example.com/shop/clothing-model:7")
    assert done.returncode == 0, done.stderr
    verb, *words, context = docker.read_text().splitlines()
    assert verb == "build"
    options = list(zip(words[::2], words[1::2], strict=True))
    assert options[:4] == [
        ("--file", str(FOLDER / "Dockerfile")), ("--tag", "registry.example.com/shop/clothing-model:7"),
        ("--build-arg", "MODEL_DIR=models/clothing-model"), ("--build-arg", "MODEL_NAME=clothing-model"),
    ]  # fmt: skip
    labels = dict(value.split("=", 1) for key, value in options[4:] if key == "--label")
    known = json.loads((FOLDER / "demo-model/clothing-model/1/assets.extra/model.json").read_text())
    assert labels["org.opencontainers.image.version"] == "7"
    assert labels["org.opencontainers.image.title"] == "clothing-model"
    assert labels["clothing-model.version"] == "1"
    assert labels["clothing-model.labels"] == ",".join(known["labels"])
    assert labels["clothing-model.preprocessing"] == "tf"
    assert labels["clothing-model.source"] == known["source"]["file"]
    assert labels["clothing-model.source.sha256"] == known["source"]["sha256"]
    files = {Path(file).relative_to(context).as_posix() for file in Path(f"{docker}.files").read_text().splitlines()}
    assert {
        "models/clothing-model/1/saved_model.pb",
        "contract/src/clothing_contract/contract.py",
        "model-image/src/clothing_model/commands/verify.py",
        "model-image/requirements.lock",
    } <= files
    assert not Path(context).exists()
    assert 'repository: "shop/clothing-model"' in done.stdout  # the chart's values
    for step in ("converting", "verifying", "building", "next: push"):
        assert f"==> {step}" in done.stderr

    options_given = ("--name", "shoes", "--version", "4", "--base", "docker.io/tensorflow/serving:2.19.1-gpu")
    done = model_image(str(FOLDER / "demo-model/clothing-model/1"), "--tag", "shop:8", *options_given)
    assert done.returncode == 0, done.stderr
    words = docker.read_text().splitlines()
    assert "TF_SERVING_IMAGE=docker.io/tensorflow/serving:2.19.1-gpu" in words
    assert "MODEL_DIR=models/shoes" in words
    assert "clothing-model.version=4" in words
    assert "org.opencontainers.image.title=shoes" in words


def test_portable_image_is_built_on_request(docker: Path) -> None:
    arguments = (
        "--portable",
        "--base",
        "mirror.example.com/python:3.13-slim",
        "--builder",
        "docker buildx build --load",
    )
    done = model_image(str(FOLDER / "demo-model/clothing-model"), "--tag", "m:1", *arguments)
    assert done.returncode == 0, done.stderr
    words = docker.read_text().splitlines()
    assert words[:5] == ["buildx", "build", "--load", "--file", str(FOLDER / "Dockerfile.portable")]
    assert "PYTHON_IMAGE=mirror.example.com/python:3.13-slim" in words


def test_model_image_errors_stop_the_build(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = str(FOLDER / "demo-model/clothing-model")
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    (broken / "1/variables/variables.data-00000-of-00001").write_text("version https://git-lfs.github.com/spec/v1\n")
    cases = [
        ((demo, "--tag", "m"), "TAG=m: give a name and a version"),
        ((demo, "--tag", "m:latest"), "`latest` would not tell one model from the next"),
        ((str(tmp_path / "absent.h5"), "--tag", "m:1"), "absent.h5 does not exist"),
        ((str(broken), "--tag", "m:1"), "run `git lfs install` and `git lfs pull`"),
        ((demo, "--tag", "m:1", "--labels", "cat,dog"), "--labels: 2 labels (cat, dog), but the model has 10 classes"),
        ((demo, "--tag", "m:1", "--builder", "nerdctl build"), "there is no nerdctl on the PATH"),
    ]
    for arguments, message in cases:
        done = model_image(*arguments)
        assert (done.returncode, done.stdout) == (1, ""), message
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not docker.exists(), "nothing is built"
    monkeypatch.setenv("DOCKER_BUILD", "17")
    assert "`docker build` ended with 17; its last lines say why" in model_image(demo, "--tag", "m:1").stderr
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setenv("DOCKER_INFO", "1")
    assert "`docker info` fail" in model_image(demo, "--tag", "m:1").stderr
    (tmp_path / "bin/docker").unlink()
    assert "none of them is on the PATH: install one of them" in model_image(demo, "--tag", "m:1").stderr


def test_code_of_a_keras_file_is_run_on_request(docker: Path, tmp_path: Path) -> None:
    import keras

    photo = keras.Input((8, 8, 3))
    doubled = keras.layers.Lambda(lambda x: x * 2.0)(photo)
    keras.Model(photo, keras.layers.GlobalAveragePooling2D()(doubled)).save(tmp_path / "m.keras")
    options = (str(tmp_path / "m.keras"), "--tag", "m:1", "--labels", "a,b,c")
    done = model_image(*options)
    assert done.returncode == 1
    assert "pass --trust" in done.stderr
    assert not docker.exists(), "nothing is built"
    done = model_image(*options, "--trust")
    assert done.returncode == 0, done.stderr
    assert docker.exists()


def test_make_model_image(docker: Path) -> None:
    make = ["make", "--silent", "--directory", str(FOLDER.parent), "model-image"]
    done = subprocess.run(
        [*make, "MODEL=model-image/demo-model/clothing-model", "TAG=m:1", "PORTABLE=1", "VERSION=9"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "clothing-model.version=9" in docker.read_text().splitlines()
    # `make model-image … > my-values.yaml` has the chart's values in it, and nothing else.
    assert done.stdout.startswith("model:\n")
    assert all(re.match(r"(  )*\w+:", line) for line in done.stdout.splitlines()), done.stdout
    assert "STEP 1" in done.stderr
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make model-image MODEL=path TAG=kitchen-model:1" in done.stdout
