"""`clothing-model evaluate`, with TensorFlow itself, on photos and models whose every figure is known."""

from __future__ import annotations

import http.server
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import colour_models
import numpy as np
import pytest
from colour_models import LABELS
from PIL import Image

from clothing_contract.scaling import Scaling
from clothing_model.commands.cli import main
from clothing_model.commands.evaluate import figures
from clothing_model.errors import ModelError
from clothing_model.evaluation import classifiers, metrics, plots
from clothing_model.evaluation import dataset as photo_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_models.dataset(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_models.write(tmp_path_factory.mktemp("model") / "colours/1")


def evaluated(tmp_path: Path, dataset: Path, *options: str | Path) -> dict[str, Any]:
    """The report of a run that exits with 0."""
    file = tmp_path / "report.json"
    assert main(["evaluate", str(dataset), "--json", str(file), *map(str, options)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_every_figure(dataset: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluated(tmp_path, dataset, "--model", model.parent, "--png", tmp_path / "report.png")
    assert report["labels"] == list(LABELS), "the model's order, not the folders'"
    assert report["photos"] == 12
    assert report["accuracy"] == pytest.approx(10 / 12)
    assert report["confusion"] == [[4, 0, 0], [1, 3, 0], [0, 1, 3]]
    assert report["classes"] == {
        "red": {"photos": 4, "precision": 4 / 5, "recall": 1.0},
        "green": {"photos": 4, "precision": 3 / 4, "recall": 3 / 4},
        "blue": {"photos": 4, "precision": 1.0, "recall": 3 / 4},
    }
    confidences = [
        1 / (1 + 2 * math.exp(-4 * (best - rest) / 127.5))
        for best, rest in [(200, 20), (210, 20), (220, 20), (230, 20), *[(180, 20), (190, 20), (200, 20)] * 2,
                           (220, 30), (220, 30)]
    ]  # fmt: skip
    calibration = report["calibration"]
    assert calibration["mean_confidence"] == pytest.approx(np.mean(confidences), abs=1e-5)
    (only,) = calibration["bins"]
    assert (only["low"], only["high"], only["photos"]) == (0.9, 1.0, 12)
    assert calibration["expected_calibration_error"] == pytest.approx(np.mean(confidences) - 10 / 12, abs=1e-5)
    assert set(report["latency_ms"]) == {"prepare", "predict"}
    for step in report["latency_ms"].values():
        assert 0 < step["p50"] <= step["p99"] <= step["max"]
    assert report["photos_per_second"] > 0
    assert report["failed"] == {}
    printed = capsys.readouterr()
    assert "accuracy 0.833 (12 photos; ±0.211 at 95 %)" in printed.out
    assert "green" in printed.out
    assert "expected calibration error" in printed.out
    assert "classifying 12 photos of 3 classes" in printed.err
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600


@pytest.mark.parametrize("dtype", ["uint8", "encoded"])
def test_models_with_the_preprocessing_inside(dataset: Path, model: Path, tmp_path: Path, dtype: str) -> None:
    inside = colour_models.write(tmp_path / "inside/1", dtype=dtype)
    expected = evaluated(tmp_path, dataset, "--model", model)
    report = evaluated(tmp_path, dataset, "--model", inside)
    assert report["confusion"] == expected["confusion"]
    assert report["calibration"]["mean_confidence"] == pytest.approx(expected["calibration"]["mean_confidence"])


def test_preprocessing_noted_and_given(dataset: Path, model: Path, tmp_path: Path) -> None:
    noted = colour_models.write(tmp_path / "noted/1", preprocessing="none")
    expected = evaluated(tmp_path, dataset, "--model", model)["calibration"]["mean_confidence"]
    found = evaluated(tmp_path, dataset, "--model", noted)["calibration"]["mean_confidence"]
    assert found == pytest.approx(expected)
    wrong = evaluated(tmp_path, dataset, "--model", noted, "--preprocessing", "tf")["calibration"]["mean_confidence"]
    assert wrong < 0.4, "nearly black photos for a model that takes 0 to 255"


@pytest.mark.parametrize("name", ["tf", "caffe", "torch", "none"])
def test_preprocessing_is_keras(name: str) -> None:
    from keras.applications import imagenet_utils

    pixels = np.random.default_rng(5).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)
    floats = pixels.astype(np.float32)
    expected = floats if name == "none" else imagenet_utils.preprocess_input(floats.copy(), "channels_last", mode=name)
    ours = Scaling(name).numbers(pixels)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_open_size_and_no_labels(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_ = str(colour_models.write(tmp_path / "open/1", size=None, labels=None))
    assert main(["evaluate", str(dataset), "--model", open_]) == 1
    assert "has the shape (-1, -1, -1, 3), which leaves the size open: set --image-size" in capsys.readouterr().err
    report = evaluated(tmp_path, dataset, "--model", open_, "--image-size", "24x16", "--labels", ",".join(LABELS))
    assert report["accuracy"] == pytest.approx(10 / 12)
    by_folders = evaluated(tmp_path, dataset, "--model", open_, "--image-size", "16")
    assert by_folders["labels"] == ["blue", "green", "red"], "the folders in alphabetical order, as Keras has them"
    assert by_folders["confusion"] == [[0, 1, 3], [1, 3, 0], [4, 0, 0]]


def test_class_without_photos_has_no_recall(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = tmp_path / "some"
    colour_models.photo(some / "blue/1.png", 0, 0, 255)
    report = evaluated(tmp_path, some, "--model", model)
    assert report["classes"]["red"] == {"photos": 0, "precision": None, "recall": None}
    assert report["classes"]["blue"] == {"photos": 1, "precision": 1.0, "recall": 1.0}
    assert "NaN" not in (tmp_path / "report.json").read_text()
    assert " - " in capsys.readouterr().out


def test_invalid_photo_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = colour_models.dataset(tmp_path / "some")
    (some / "red/broken.jpg").write_bytes(b"\xff\xd8 no photo")
    report = tmp_path / "report.json"
    assert main(["evaluate", str(some), "--model", str(model), "--json", str(report)]) == 1
    assert "not classified: red/broken.jpg: can't be read as a photo" in capsys.readouterr().err
    found = json.loads(report.read_text())
    assert list(found["failed"]) == ["red/broken.jpg"]
    assert found["photos"] == 12
    assert found["accuracy"] == pytest.approx(10 / 12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "absent"), "absent does not exist"),
        (("--model", "MODEL", "--labels", "a,b"), "has 3 classes, and --labels names 2"),
        (("--model", "MODEL", "--labels", "red,green,cyan"), "classes blue are none of the model's"),
        (("--model", "MODEL", "--png", "x.jpg"), "must end in .png"),
        (("--model", "MODEL", "--json", "absent/x.json"), "there is no folder absent"),
        (("--model", "MODEL", "--parallel", "0"), "--parallel=0: give a number from 1 to 64"),
        (("--gateway", "localhost:9696"), "as http://localhost:9696"),
        (("--gateway", "ftp://localhost"), "as http://HOST:PORT"),
    ],
)
def test_impossible_requests_are_errors(
    dataset: Path, model: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    arguments = [str(model) if option == "MODEL" else option for option in options]
    assert main(["evaluate", str(dataset), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_photos_are_counted_by_the_threshold() -> None:
    """One label above it is the photo's class; of several, or none, the best."""
    chances = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.7]])
    held = np.array([[False, True], [True, False], [True, True]])
    report = figures(("bee", "wasp"), np.array([1, 0, 1]), chances.astype(np.float32), chances, held)
    assert report["confusion"] == [[1, 0], [1, 1]]
    assert report["above_threshold"] == {"own_label": 1.0, "labels_per_photo": pytest.approx(4 / 3)}
    assert report["classes"]["wasp"] == {"photos": 2, "precision": 1.0, "recall": 0.5, "above_threshold": 1.0}
    assert "above_threshold" not in figures(("bee", "wasp"), np.array([1]), chances[:1].astype(np.float32), chances[:1])


def test_probabilities_and_bins() -> None:
    logits = np.array([[0.2, 0.5, 0.3], [1.0, 1.0, 1.0], [-2.0, 0.0, 1.0]], np.float32)
    found = metrics.probabilities(logits)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found[1], 1 / 3)
    for kept in (logits[:1], np.array([[0.95, 0.9, 0.05]], np.float32)):  # a distribution, and independent sigmoids
        np.testing.assert_allclose(metrics.probabilities(kept), kept, rtol=1e-6)
    confidence = np.array([0.1, 0.11, 0.2, 0.95, 1.0])
    table = metrics.reliability(confidence, np.array([True, False, True, True, False]))
    assert [(each.low, each.high, each.photos, each.accuracy) for each in table] == [
        (0.0, 0.1, 1, 1.0), (0.1, 0.2, 2, 0.5), (0.9, 1.0, 2, 0.5),
    ]  # fmt: skip
    error = (1 * 0.9 + 2 * abs(0.155 - 0.5) + 2 * (0.975 - 0.5)) / 5
    assert metrics.expected_calibration_error(table) == pytest.approx(error)
    assert metrics.latency([0.001] * 99 + [1.0]) == pytest.approx({"p50": 1, "p99": 10.99, "mean": 10.99, "max": 1000})


# ---- through a gateway that misbehaves; a real one is asked in tests/integration ----


class Gateway:
    """Answers /classify by a function of the request's number and body: status, headers, JSON."""

    def __init__(self, answer: Callable[[int, bytes], tuple[int, dict[str, str], Any]]) -> None:
        self.requests: list[tuple[float, str, bytes]] = []
        self.most = self._now = 0
        lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    outer.requests.append((time.monotonic(), self.path, body))
                    number = len(outer.requests)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                status, headers, content = answer(number, body)
                with lock:
                    outer._now -= 1
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def starter(answer: Callable[[int, bytes], tuple[int, dict[str, str], Any]]) -> Gateway:
        running.append(Gateway(answer))
        return running[-1]

    yield starter
    for each in running:
        each.stop()


def classified(body: bytes) -> dict[str, Any]:
    scores = dict(
        zip(LABELS, map(float, photo_folders.scale(photo_folders.read_pixels(body, 16)).mean(axis=(0, 1))), strict=True)
    )
    best_first = sorted(scores, key=lambda label: -scores[label])
    return {
        "model": {"name": "colours", "version": "3"},
        "predictions": [{"label": each, "probability": 0.5, "score": scores[each]} for each in best_first],
    }


def test_retry_after_of_a_full_gateway_is_respected(
    dataset: Path, tmp_path: Path, start: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(number: int, body: bytes) -> tuple[int, dict[str, str], Any]:
        if number == 2:
            return 503, {"Retry-After": "2"}, {"detail": "all places are taken"}
        if number == 3:
            return 503, {"Retry-After": formatdate(time.time() + 3, usegmt=True)}, {"detail": "busy"}
        return 200, {}, classified(body)

    gateway = start(answer)
    report = evaluated(tmp_path, dataset, "--gateway", gateway.url + "/", "--parallel", "1")
    assert report["labels"] == ["blue", "green", "red"], "a gateway names its labels, so their order is nobody's worry"
    assert report["confusion"] == [[3, 1, 0], [0, 3, 1], [0, 0, 4]]
    assert report["model"] == {"labels": sorted(LABELS), "models": {"colours 3": 12}, "retries": 2}
    moments = [moment for moment, _, _ in gateway.requests]
    assert report["calibration"]["mean_confidence"] == 0.5, "the gateway's own probabilities: scores alone don't tell"
    assert moments[2] - moments[1] >= 2
    assert moments[3] - moments[2] >= 1.9, "a date, by whole seconds"
    assert report["latency_ms"]["request"]["max"] < 1900, "waiting is no latency"
    assert {path for _, path, _ in gateway.requests} == {"/classify"}
    assert "answered by colours 3: 12" in capsys.readouterr().out


def test_photos_in_flight_are_bounded(dataset: Path, tmp_path: Path, start: Callable[..., Gateway]) -> None:
    def answer(_: int, body: bytes) -> tuple[int, dict[str, str], Any]:
        time.sleep(0.1)
        return 200, {}, classified(body)

    gateway = start(answer)
    report = evaluated(tmp_path, dataset, "--gateway", gateway.url, "--parallel", "3")
    assert gateway.most == 3
    assert report["parallel"] == 3
    assert report["latency_ms"]["request"]["p50"] >= 100


def test_refused_photo_is_noted(
    dataset: Path, start: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = start(
        lambda number, body: (422, {}, {"detail": "cut short"}) if number == 4 else (200, {}, classified(body))
    )
    assert main(["evaluate", str(dataset), "--gateway", gateway.url]) == 1
    printed = capsys.readouterr()
    assert ": 422: cut short" in printed.err
    assert "(11 photos" in printed.out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, {"detail": "no such route"}), "answers 404 (no such route)"),
        ((200, {}, {"hello": "there"}), "answers what no gateway does"),
        ((422, {}, {"detail": "cut short"}), "classified none of 12 photos; the first: 422: cut short"),
    ],
    ids=["another server", "another JSON", "no photo at all"],
)
def test_response_of_another_server_is_an_error(
    dataset: Path,
    start: Callable[..., Gateway],
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, dict[str, str], Any],
    words: str,
) -> None:
    gateway = start(lambda *_: answer)
    assert main(["evaluate", str(dataset), "--gateway", gateway.url]) == 1
    assert words in capsys.readouterr().err


def test_unreachable_gateway_is_an_error(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(dataset), "--gateway", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 can't be reached" in capsys.readouterr().err
    monkeypatch.setattr(classifiers, "TRIES", 3)
    gateway = start(lambda *_: (503, {"Retry-After": "0"}, {"detail": "no model"}))
    with pytest.raises(ModelError, match=r"answers 503 \(no model\), 3 times in a row"):
        classifiers.open_classifier(gateway.url, classifiers.Options()).classify(b"photo")
    assert len(gateway.requests) == 3


def test_help_needs_neither_tensorflow_nor_matplotlib() -> None:
    code = (
        "import sys\nfrom clothing_model.commands.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: print([each for each in ('tensorflow', 'matplotlib', 'numpy') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_picture_of_the_same_figures_is_the_same(tmp_path: Path) -> None:
    table = np.array([[3, 1], [0, 2]])
    bins = metrics.reliability(np.array([0.4, 0.9]), np.array([False, True]))
    for name in ("a.png", "b.png"):
        plots.evaluation(tmp_path / name, "title", ("a", "b"), table, bins)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
