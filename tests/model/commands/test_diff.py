"""`clothing-model diff`, with TensorFlow itself, on photos and models whose every answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_models
import numpy as np
import pytest
from colour_models import LABELS
from PIL import Image

from clothing_model.commands import diff
from clothing_model.commands.cli import main
from clothing_model.errors import ModelError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_models.dataset(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 tells the colours apart; version 2 prefers green, so far that one dark red is green to it."""
    folder = tmp_path_factory.mktemp("models") / "colours"
    colour_models.write(folder / "1")
    colour_models.write(folder / "2", bias=(0, 5.8, 0))
    colour_models.write(folder / "3", labels=("red", "blue", "cyan"))
    colour_models.write(folder / "4", dtype="uint8")
    return folder


def compared(tmp_path: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    file = tmp_path / "diff.json"
    assert main(["diff", *map(str, arguments), "--json", str(file)]) == code
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_diff_reports_changed_classes(
    models: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compared(tmp_path, models / "1", models / "2", dataset, "--png", tmp_path / "changed.png")
    # green wins where 4 * (best - green) / 127.5 < 5.8: best - green < 184.9
    changed = {each["photo"]: each for each in report["details"] if each["old"]["label"] != each["new"]["label"]}
    assert set(changed) == {"red/0.png", "blue/0.png", "blue/1.png", "blue/2.png"}
    assert report["changed"] == len(changed)
    assert report["photos"] == 12
    assert report["agreement"] == pytest.approx(1 - len(changed) / 12)
    assert report["accuracy"] == {"old": 10 / 12, "new": 6 / 12, "mended": 0, "broken": 4}
    assert report["largest_score_difference"] == pytest.approx(5.8)
    first = report["details"][0]
    moved = [abs(e["largest_difference"]["new"] - e["largest_difference"]["old"]) for e in report["details"]]
    assert moved == sorted(moved, reverse=True)
    assert report["largest_probability_difference"] == pytest.approx(moved[0])
    assert set(first["old"]["scores"]) == set(LABELS)
    printed = capsys.readouterr()
    assert "the class of 4 of 12 photos changed" in printed.out
    assert "accuracy 0.833 -> 0.500: 0 mended, 4 broken" in printed.out
    assert "blue -> green" in printed.out
    with Image.open(tmp_path / "changed.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    assert (sheet[-3:] == 255).all(), "the last caption is whole"
    pixels = sheet.reshape(-1, 3)
    red = (np.abs(pixels.astype(int) - (200, 20, 20)).max(axis=1) < 3).sum()
    blue = (np.abs(pixels.astype(int) - (20, 20, 200)).max(axis=1) < 25).sum()
    assert red > 5000, "the red photo that changed is on the sheet"
    assert blue > 2 * red, "and the three blue ones"


def test_same_scores_of_another_input(
    models: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compared(tmp_path, models / "1", models / "4", dataset, "--max-changed", "0", "--png", tmp_path / "no.png")
    assert report["changed"] == 0
    assert report["agreement"] == 1
    assert report["largest_score_difference"] < 1e-5
    assert "input: photo DT_FLOAT (-1, 16, 16, 3) -> photo DT_UINT8 (-1, 16, 16, 3)" in capsys.readouterr().out
    assert (tmp_path / "no.png").is_file()


@pytest.mark.parametrize(("percent", "code"), [("33", 1), ("33.4", 0)])
def test_limit_for_ci(
    models: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], percent: str, code: int
) -> None:
    compared(tmp_path, models / "1", models / "2", dataset, "--max-changed", percent, code=code)
    assert ("changed: 33.33 %, more than --max-changed 33" in capsys.readouterr().err) == bool(code)


def test_photos_without_classes(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    colour_models.photo(photos / "1.png", 200, 20, 20)
    colour_models.photo(photos / "more/2.png", 20, 20, 250)
    report = compared(tmp_path, models / "1", models / "2", photos, "--png", tmp_path / "changed.png")
    assert report["accuracy"] is None
    assert [(each["photo"], each["truth"]) for each in report["details"]] == [("1.png", None), ("more/2.png", None)]
    assert report["changed"] == 1
    assert "accuracy" not in capsys.readouterr().out


def test_other_labels(models: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = compared(tmp_path, models / "1", models / "3", dataset)
    assert report["labels_only_in_old"] == ["green"]
    assert report["labels_only_in_new"] == ["cyan"]
    assert report["changed"] == 7, "what was green is blue, and what was blue is cyan"
    assert report["accuracy"]["new"] == pytest.approx(5 / 12), "red, and the green one among the blue"
    printed = capsys.readouterr().out
    assert "labels only in the new one: cyan" in printed
    assert "GATEWAY_LABELS" in printed


def test_photo_that_only_one_can_read_is_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = colour_models.dataset(tmp_path / "photos")
    (photos / "red/broken.png").write_bytes(b"no photo")
    report = compared(tmp_path, models / "1", models / "2", photos, code=1)
    assert list(report["failed"]) == ["red/broken.png"]
    assert report["photos"] == 12
    assert "not classified: red/broken.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1", "absent", "PHOTOS"), "absent does not exist"),
        (("1", "2", "absent"), "absent: no such folder"),
        (("1", "2", "EMPTY"), "holds no photos"),
        (("1", "2", "PHOTOS", "--max-changed", "101"), "--max-changed=101.0: give percent"),
        (("1", "2", "PHOTOS", "--png", "x.gif"), "must end in .png"),
    ],
)
def test_impossible_requests_are_errors(
    models: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    places = {"1": str(models / "1"), "2": str(models / "2"), "PHOTOS": str(dataset), "EMPTY": str(tmp_path)}
    assert main(["diff", *(places.get(each, each) for each in arguments)]) == 1
    assert words in capsys.readouterr().err


def test_models_of_other_things() -> None:
    scores = np.zeros((1, 2), np.float32)
    with pytest.raises(ModelError, match="no label in common: a, b; c, d"):
        diff.compare(["1.png"], None, (("a", "b"), ("c", "d")), (scores, scores), (scores, scores))
