"""`make model-image` builds a real image, with Docker or the builder of tests/cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

from processes import DEMO_MODEL, MODEL_BIN, ROOT

TAG = "localhost/own-model:1"
BROKEN = "localhost/own-model:broken"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def builder() -> list[str]:
    """The builder's command that `make model-image` uses here."""
    code = "import json, sys; sys.path.insert(0, 'scripts'); import model_image as m; print(json.dumps(m.builder('')))"
    found = subprocess.run([MODEL_BIN / "python", "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return list(json.loads(found.stdout.splitlines()[-1]))


def test_model_image_is_built_and_labelled() -> None:
    tool = "docker" if builder()[0] == "docker" else "buildah"
    version = str(int(time.time()))  # one that no earlier build has cached
    try:
        script = (ROOT / "scripts/model_image.py", DEMO_MODEL, "--tag", TAG, "--portable", "--version", version)
        done = run(MODEL_BIN / "python", *script)
        assert done.returncode == 0, done.stdout[-3000:]
        assert f"ok       /models/own-model/{version}" in done.stdout, "verify ran inside the build"
        inspected = run(tool, "inspect", *(["--type", "image"] if tool == "buildah" else []), TAG)
        assert '"clothing-model.name": "own-model"' in inspected.stdout
        assert '"org.opencontainers.image.version": "1"' in inspected.stdout
        assert "65532:65532" in inspected.stdout
    finally:
        run(tool, "rmi", TAG)


def test_broken_model_fails_the_build(tmp_path: Path) -> None:
    """The Dockerfile itself refuses it with the message of `verify`."""
    for part in ("contract/src", "model-image/src"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for part in ("pyproject.toml", "README.md", "requirements.lock"):
        shutil.copyfile(ROOT / "model-image" / part, tmp_path / "model-image" / part)
    model = tmp_path / "model-image/demo-model/clothing-model"
    shutil.copytree(DEMO_MODEL, model)
    (model / "1/variables/variables.data-00000-of-00001").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4741329\n"
    )
    dockerfile = ROOT / "model-image/Dockerfile.portable"
    done = run(*builder(), "--file", dockerfile, "--tag", BROKEN, tmp_path)
    assert done.returncode != 0
    assert "is a Git LFS pointer" in done.stdout
    assert "git lfs pull" in done.stdout
