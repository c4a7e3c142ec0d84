"""Models of each kind of input and output, from `convert` to the page: scores equal those of Keras's own pipeline.

Each is converted, verified, and served by one model server; the values that `clothing-model values` prints, rendered by
the chart, configure a gateway. Models and expected scores are those of model_kinds.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import model_worker
import processes
from browser import Browser, chromium, expect
from model_kinds import KINDS, Kind
from model_worker import Worker
from processes import GATEWAY_BIN, ROOT, SAMPLE

sys.path.append(str(ROOT / "tests/chart"))

import charts

TOLERANCE = 1e-5
# Twenty models are made and converted first: half a minute of two quiet cores, more beside others.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@dataclass
class Made:
    """A kind's model, served as NAME, with a different one beside it."""

    name: str
    kind: Kind
    model: Path
    other: Path
    values: Path
    raw: dict[str, list[float]]
    probabilities: list[dict[str, list[float]]]  # of the model and of the other, by photo
    by_class: Path  # photos in a folder per class

    def expected(self, photos: list[Path], which: int = 0) -> np.ndarray:
        return np.array([self.probabilities[which][photo.name] for photo in photos])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A PNG, a JPEG, and real photos where the dataset is there."""
    folder = tmp_path_factory.mktemp("kinds") / "photos"
    folder.mkdir()
    (folder / "0-sample.png").write_bytes(SAMPLE.read_bytes())
    rows, columns = np.mgrid[:257, :401]
    waves = np.stack([rows / 257, np.sin(columns / 20) / 2 + 0.5, np.cos((rows + columns) / 31) / 2 + 0.5], axis=-1)
    Image.fromarray((waves * 255).astype(np.uint8)).save(folder / "1-drawn.jpg", quality=90)
    for number, photo in enumerate(processes.dataset_photos(3)[:3], 2):
        (folder / f"{number}-real.jpg").write_bytes(photo.read_bytes())
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with model_worker.worker(tmp_path_factory.mktemp("worker") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def all_made(worker: Worker, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each kind through `convert`, `verify` and `values`."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, kind in KINDS.items():
        keras = worker.ask(make=name, folder=folder, photos=photos[0].parent)
        for source, served in zip(keras["sources"], ("models", "others"), strict=True):
            options = [f"--labels={','.join(kind.labels)}", *kind.options]
            worker.run("convert", source, f"--name={name}", f"--output={folder / served}", *options)
            worker.run("verify", "--strict", folder / served / name)
        values = folder / f"{name}.yaml"
        values.write_text(worker.run("values", folder / "models" / name))
        by_class = folder / "by-class" / name
        for number, photo in enumerate(photos):
            target = by_class / kind.labels[number % len(kind.labels)] / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(photo)
        models = (folder / "models" / name, folder / "others" / name)
        made[name] = Made(name, kind, *models, values, keras["raw"], keras["probabilities"], by_class)
    return made


@pytest.fixture(scope="module")
def server(all_made: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Running]:
    folder = tmp_path_factory.mktemp("server")
    config = "".join(
        f'config {{ name: "{name}" base_path: "{made.model}" model_platform: "tensorflow" }}\n'
        for name, made in all_made.items()
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    flag = f"--model_config_file={folder / 'models.config'}"
    with processes.model_server(folder / "log", folder, flag, name=list(all_made)[-1]) as running:
        yield running


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, all_made: dict[str, Made], photos: list[Path]) -> Made:
    """One kind, whose scores are neither alike for all photos nor near 0 and 1."""
    found = all_made[request.param]
    probabilities = found.expected(photos)
    assert probabilities.std(axis=0).min() > 0.02
    assert 0.001 < probabilities.min() < probabilities.max() < 0.999
    assert np.abs(probabilities - found.expected(photos, 1)).max() > 0.02
    return found


@pytest.fixture(scope="module")
def settings(made: Made) -> dict[str, str]:
    """The gateway's environment in the chart, by the printed values."""
    options = ("--values", made.values, "--show-only", "templates/gateway/deployment.yaml")
    (deployment,) = charts.manifests(charts.CLASSIFIER, *options)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return {name: value for name, value in environment.items() if name.startswith("GATEWAY_") and "DRAIN" not in name}


@pytest.fixture(scope="module")
def gateway(
    made: Made, settings: dict[str, str], server: processes.Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[processes.Running]:
    log = tmp_path_factory.mktemp("gateway") / f"{made.name}.log"
    with processes.gateway(log, server.ports["grpc"], **settings) as running:
        processes.wait_until_ready(running)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def in_order(predictions: list[dict[str, Any]], kind: Kind, key: str = "probability") -> list[float]:
    """Figures in the order of the labels; they are listed best first."""
    scores = [each["score"] for each in predictions]
    assert scores == sorted(scores, reverse=True)
    found = {each["label"]: each[key] for each in predictions}
    assert sorted(found) == sorted(kind.labels)
    return [found[label] for label in kind.labels]


def holding(kind: Kind, probabilities: np.ndarray) -> list[str] | None:
    """Labels more likely than not, best first; None where the most probable one holds."""
    if kind.scores not in ("sigmoid", "independent"):
        return None
    return [kind.labels[at] for at in np.argsort(-probabilities) if probabilities[at] > 0.5]


def test_gateway_scores_equal_keras(made: Made, gateway: processes.Running, photos: list[Path]) -> None:
    for photo in photos:
        (expected,) = made.expected([photo])
        headers = {"Content-Type": "image/png" if photo.suffix == ".png" else "image/jpeg"}
        answer = gateway.post("/classify", body=photo.read_bytes(), headers=headers)
        assert answer.status == 200, answer.data
        held = holding(made.kind, expected)
        threshold = {} if held is None else {"threshold": 0.5}
        assert answer.json()["model"] == {"name": made.name, "version": "1", "scores": made.kind.scores, **threshold}
        assert answer.json().get("labels") == held
        assert in_order(answer.json()["predictions"], made.kind) == pytest.approx(expected, abs=TOLERANCE)
        raw = gateway.post("/predict", body=photo.read_bytes(), headers=headers).json()
        assert sorted(raw) == sorted(made.kind.labels)
        scores = made.raw[photo.name]
        if len(scores) == 1:  # for two labels
            scores = [0 if made.kind.scores == "logits" else 1 - scores[0], *scores]
        assert [raw[label] for label in made.kind.labels] == pytest.approx(scores, abs=TOLERANCE)


def test_classify_command_equals_keras(
    made: Made, gateway: processes.Running, server: processes.Running, settings: dict[str, str], photos: list[Path]
) -> None:
    by_gateway = ["--gateway", f"http://127.0.0.1:{gateway.ports['http']}"]
    by_server = ["--server", f"127.0.0.1:{server.ports['grpc']}"]
    for way, environment in ((by_gateway, {}), (by_server, settings)):
        command = [GATEWAY_BIN / "clothing-gateway", "classify", photos[0].parent, *way, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        found = {line["photo"]: line for line in map(json.loads, done.stdout.splitlines())}
        assert sorted(found) == [str(photo) for photo in photos]
        probabilities = [in_order(found[str(photo)]["predictions"], made.kind) for photo in photos]
        assert np.abs(probabilities - made.expected(photos)).max() < TOLERANCE


def test_evaluate_equals_keras(
    made: Made, gateway: processes.Running, worker: Worker, photos: list[Path], tmp_path: Path
) -> None:
    expected = made.expected(photos)
    truth = np.array([number % len(made.kind.labels) for number in range(len(photos))])
    for where in (("--model", made.model), ("--gateway", f"http://127.0.0.1:{gateway.ports['http']}")):
        worker.run("evaluate", made.by_class, *where, "--json", tmp_path / "report.json")
        report = json.loads((tmp_path / "report.json").read_text())
        assert sorted(report["labels"]) == sorted(made.kind.labels)
        assert report["photos"] == len(photos)
        assert report["accuracy"] == np.mean(expected.argmax(axis=1) == truth)
        confidence = report["calibration"]["mean_confidence"]
        assert confidence == pytest.approx(expected.max(axis=1).mean(), abs=TOLERANCE)


def test_diff_equals_keras(
    made: Made, gateway: processes.Running, worker: Worker, photos: list[Path], tmp_path: Path
) -> None:
    """The model against itself, against the gateway before it, and against one with another bias."""

    def compared(new: str | Path) -> dict[str, Any]:
        worker.run("diff", made.model, new, made.by_class, "--json", tmp_path / "report.json")
        found: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
        assert found["photos"] == len(photos)
        return found

    assert compared(made.model)["largest_probability_difference"] == 0
    same = compared(f"http://127.0.0.1:{gateway.ports['http']}")
    assert same["changed"] == 0
    assert same["largest_probability_difference"] < TOLERANCE
    before, after = made.expected(photos), made.expected(photos, 1)
    other = compared(made.other)
    assert other["changed"] == np.sum(before.argmax(axis=1) != after.argmax(axis=1))
    assert other["largest_probability_difference"] == pytest.approx(np.abs(after - before).max(), abs=TOLERANCE)


def test_page_shows_the_figures_of_classify(
    made: Made, gateway: processes.Running, browser: Browser, photos: list[Path]
) -> None:
    photo = photos[1]
    answer = gateway.post("/classify", body=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}).json()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{gateway.ports['http']}/")
    page.locator("#files").set_input_files(photo)
    shown = [f"{each['probability'] * 100:.1f} %" for each in answer["predictions"]]
    (expected,) = made.expected([photo])
    held = holding(made.kind, expected)
    best = [f"{each['label']}, {percent}" for each, percent in zip(answer["predictions"], shown, strict=True)]
    text = "; ".join(best[: 1 if held is None else len(held)]) or "No class above 50.0 %"
    expect(page.locator(".answer")).to_have_text(text, timeout=20_000)
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".card tbody tr").all()]
    assert [row[0] for row in rows] == [each["label"] for each in answer["predictions"]]
    assert [row[-1] for row in rows] == shown
    is_independent = "need not sum" in page.locator(".card caption").inner_text()
    assert is_independent == (made.kind.scores == "independent")
    page.close()
