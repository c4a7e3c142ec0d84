"""A model with its preprocessing inside, behind the gateway: the same scores, for a part of the bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import processes
from processes import DEMO_MODEL, MODEL_BIN, PNG, SAMPLE


@pytest.mark.parametrize("kind", ["uint8", "encoded"])
def test_gateway_sends_the_models_input_type(tmp_path: Path, kind: str) -> None:
    """Without a setting: the gateway reads the type in the signature."""
    command = [
        MODEL_BIN / "clothing-model", "convert", DEMO_MODEL, "--name", "clothing-model", "--output", tmp_path,
        "--input", kind,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    photos = [SAMPLE, *processes.dataset_photos(8)]
    expected = processes.reference_scores(DEMO_MODEL / "1", photos)
    with (
        processes.model_server(tmp_path / "model.log", tmp_path / "clothing-model") as server,
        processes.gateway(tmp_path / "gateway.log", server.ports["grpc"]) as front,
    ):
        processes.wait_until_ready(front)
        for photo in photos:
            headers = PNG if photo.suffix == ".png" else {"Content-Type": "image/jpeg"}
            answer = front.post("/predict", body=photo.read_bytes(), headers=headers)
            assert answer.status == 200, answer.data
            scores = [answer.json()[label] for label in processes.LABELS]
            assert scores == pytest.approx(expected[photo], abs=1e-4)
