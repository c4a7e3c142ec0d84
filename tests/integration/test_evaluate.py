"""`clothing-model evaluate` gives the same result through a gateway as in its own process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import processes
from processes import DEMO_MODEL, MODEL_BIN


def evaluated(photos: Path, report: Path, *options: str | Path) -> dict[str, Any]:
    command = [MODEL_BIN / "clothing-model", "evaluate", photos, "--json", report, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_evaluate_through_the_gateway(tmp_path: Path) -> None:
    photos = processes.dataset_photos(40)
    if not photos:
        pytest.skip(f"no photos at {processes.DATASET}; set CLOTHING_DATASET")
    for photo in photos:
        (tmp_path / "photos" / photo.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / photo.parent.name / photo.name).symlink_to(photo)
    here = evaluated(tmp_path / "photos", tmp_path / "here.json", "--model", DEMO_MODEL)
    with (
        processes.model_server(tmp_path / "model.log", DEMO_MODEL) as model,
        # Two in-flight slots for eight concurrent uploads: most of them get 503 and must be retried.
        processes.gateway(
            tmp_path / "gateway.log", model.ports["grpc"], GATEWAY_MAX_IN_FLIGHT="2", GATEWAY_MAX_PHOTOS="2"
        ) as gateway,
    ):
        processes.wait_until_ready(gateway)
        address = f"http://127.0.0.1:{gateway.ports['http']}"
        there = evaluated(tmp_path / "photos", tmp_path / "there.json", "--gateway", address, "--parallel", "8")
    assert here["photos"] == there["photos"] == len(photos)
    for same in ("accuracy", "classes", "labels", "confusion"):
        assert there[same] == here[same]
    confidence = here["calibration"]["mean_confidence"]
    assert there["calibration"]["mean_confidence"] == pytest.approx(confidence, abs=1e-4)
    assert there["model"]["models"] == {"clothing-model 1": len(photos)}
    assert there["model"]["retries"] > 0
    assert there["latency_ms"]["request"]["p50"] > 0
