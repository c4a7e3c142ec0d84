"""What `convert` writes with today's TensorFlow is loaded and scored by the TensorFlow of tensorflow/serving's images.

Each has an environment of its own under .cache/, made on first use: one to two minutes, 250 MB of downloads, 1.3 GB on
disk. A run takes some ten seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Made

from clothing_model.commands.cli import main
from model_factory import photos

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "older_tensorflow"
NEWEST_PYTHON = {"2.19": (3, 12), "2.20": (3, 13)}  # that there are wheels for
PHOTO = ROOT / "charts/clothing-classifier/files/photo.png"
UNREACHABLE = ("No matching distribution", "Max retries", "Connection", "Temporary failure", "timed out", "Network")


def interpreter(version: str) -> Path:
    """The Python of the environment with this TensorFlow, which is made where it is missing."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("tensorflow-cpu has wheels for Linux on x86-64 only, as tensorflow/serving has images")
    if sys.version_info[:2] > NEWEST_PYTHON[version]:
        pytest.skip(f"TensorFlow {version} has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}")
    lock = HERE / f"requirements-{version}.lock"
    pins = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    digest = hashlib.sha256("\n".join([*pins, sys.version]).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"tensorflow-{version}-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            install = ["-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--requirement", str(lock)]
            done = subprocess.run([folder / "bin/python", *install], capture_output=True, text=True, check=False)
            if done.returncode and any(word in done.stderr for word in UNREACHABLE):
                pytest.skip(f"TensorFlow {version} can't be installed here: the package registry can't be reached")
            assert done.returncode == 0, done.stderr
            (folder / "complete").touch()
    return folder / "bin/python"


@pytest.fixture(scope="module")
def converted(models: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """By name a version folder and a batch for it: each kind of source, of input and of weights, and the demo model."""
    folder = tmp_path_factory.mktemp("interfaces")
    found: dict[str, tuple[Path, Any]] = {name: (made.version, photos(made.size)) for name, made in models.items()}
    for name, options, batch in (
        ("uint8", ("--input", "uint8"), (photos(96) * 100 + 128).clip(0, 255).astype(np.uint8)),
        ("encoded", ("--input", "encoded"), np.array([PHOTO.read_bytes()] * 2, object)),
        ("float16", ("--weights", "float16"), photos(96)),
    ):
        command = ["convert", str(models["keras3"].source), "--name", name, "--output", str(folder)]
        assert main([*command, "--preprocessing", "tf", *options]) == 0
        found[name] = (folder / name / "1", batch)
    found["demo"] = (ROOT / "model-image/demo-model/clothing-model/1", photos(160))
    return found


@pytest.mark.parametrize("version", NEWEST_PYTHON)
def test_models_score_the_same(version: str, converted: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    import tensorflow as tf

    python = interpreter(version)
    (tmp_path / "versions.json").write_text(json.dumps({name: str(path) for name, (path, _) in converted.items()}))
    np.savez(tmp_path / "inputs.npz", **{name: batch for name, (_, batch) in converted.items()})
    files = [str(tmp_path / name) for name in ("versions.json", "inputs.npz", "outputs.npz")]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, HERE / "score.py", *files], capture_output=True, text=True, env=clean, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    scores = np.load(tmp_path / "outputs.npz")
    assert str(scores["tensorflow"]).startswith(f"{version}.")
    for name, (path, batch) in converted.items():
        (here,) = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(batch)).values()
        largest = max(1.0, float(np.abs(here).max()))
        assert np.abs(scores[name] - here.numpy()).max() < 1e-4 * largest, name
