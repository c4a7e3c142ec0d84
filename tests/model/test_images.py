"""The rules that both images' Dockerfiles keep. Building them is for the cluster's tests."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from clothing_model.cli import main

FOLDER = Path(__file__).parents[2] / "model-image"


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.portable"])
def test_rules(name: str) -> None:
    found = instructions(name)
    defaults = dict(value.split("=", 1) for key, value in found if key == "ARG")
    for key, value in found:
        if key == "FROM":
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
    assert "--model_base_path=/models/clothing-model" in command[0]
    assert defaults["MODEL_DIR"] == "demo-model/clothing-model"


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


def test_the_portable_image_verifies_its_model(tmp_path: Path) -> None:
    """The Dockerfile's command, on the layout that it makes: the demo model passes, one without weights doesn't."""
    (line,) = [value for key, value in instructions("Dockerfile.portable") if key == "RUN" and " verify " in value]
    models = tmp_path / "models"
    shutil.copytree(FOLDER / "demo-model/clothing-model", models / "clothing-model")
    words = [word.replace("${MODEL_NAME}", "clothing-model").replace("/models", str(models)) for word in line.split()]
    assert words[0] == "clothing-model"
    assert main(words[1:]) == 0
    (models / "clothing-model/1/variables/variables.index").unlink()
    assert main(words[1:]) == 1
