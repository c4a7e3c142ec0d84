"""From Keras 2 and Keras 3 files to the gateway's answer, for common architectures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import processes
from processes import LABELS, MODEL_BIN, PNG, ROOT, SAMPLE

NAMES = [
    f"{keras}-{network}" for keras in ("keras2", "keras3") for network in ("xception", "efficientnetv2", "mobilenetv3")
]

# Six networks are made, converted and loaded first: a minute of two quiet cores, more beside others.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The converted models' folder, and Keras's own scores of the sample photo."""
    folder = tmp_path_factory.mktemp("architectures")
    script = [MODEL_BIN / "python", ROOT / "tests/architectures.py", folder, SAMPLE]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def server(made: tuple[Path, dict[str, Any]]) -> Iterator[processes.Running]:
    """One model server with all models."""
    folder, models = made
    config = "".join(
        f'config {{ name: "{name}" base_path: "{folder / "models" / name}" model_platform: "tensorflow" }}\n'
        for name in models
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    flag = f"--model_config_file={folder / 'models.config'}"
    with processes.model_server(folder / "server.log", folder / "models", flag, name=NAMES[-1], seconds=240) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_architecture_scores_equal_keras(
    made: tuple[Path, dict[str, Any]], server: processes.Running, tmp_path: Path, name: str
) -> None:
    expected = made[1][name]
    keras = expected["scores"][str(SAMPLE)]
    largest = max(abs(score) for score in keras)
    assert max(keras) - min(keras) > 0.1 * largest > 0, "scores that differ, so that equal ones say something"
    # Untrained models' scores are near 0, and could as well be independent probabilities.
    settings = {
        "GATEWAY_MODEL_NAME": name,
        "GATEWAY_PREPROCESSING": expected["preprocessing"],
        "GATEWAY_SCORES": "logits",
    }
    with processes.gateway(tmp_path / "gateway.log", server.ports["grpc"], **settings) as gateway:
        processes.wait_until_ready(gateway)
        answer = gateway.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
    assert answer.status == 200, answer.data
    scores = answer.json()
    assert sorted(scores) == sorted(LABELS)
    assert [scores[label] for label in LABELS] == pytest.approx(keras, abs=1e-4 * largest)
