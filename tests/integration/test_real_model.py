"""The gateway and the model server together, as processes, with TensorFlow itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from PIL import Image, ImageOps

import processes
from clothing_gateway.commands.doctor import Question, examine, report
from processes import DEMO_MODEL, GATEWAY_BIN, LABELS, MODEL_BIN, PNG, ROOT, SAMPLE


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def model(logs: Path) -> Iterator[processes.Running]:
    with processes.model_server(logs / "model.log", DEMO_MODEL) as server:
        yield server


# One photo of so many; 1 is all 341 (make dataset), in two to three minutes.
DATASET_EVERY = int(os.environ.get("CLOTHING_DATASET_EVERY", "40"))
CLOSED_PORT = processes.free_port()


@pytest.fixture(scope="module")
def photos_at() -> Iterator[int]:
    """Port of a server of the sample photo."""
    with processes.photo_server(SAMPLE.parent) as port:
        yield port


@pytest.fixture(scope="module")
def gateway(logs: Path, model: processes.Running, photos_at: int) -> Iterator[processes.Running]:
    settings = {
        "GATEWAY_FETCH_ALLOWED_NETWORKS": "127.0.0.0/8",
        "GATEWAY_FETCH_ALLOWED_PORTS": f"80,{photos_at},{CLOSED_PORT}",
    }
    with processes.gateway(logs / "gateway.log", model.ports["grpc"], **settings) as server:
        processes.wait_until_ready(server)
        yield server


def ready_text(server: processes.Running) -> str:
    answer = server.get("/readyz", "admin")
    assert answer.status == 503
    return answer.data.decode()


def wait_for_reason(server: processes.Running, *parts: str) -> None:
    """Wait until /readyz names every one of ``parts``."""
    processes.wait_for(f"readyz with {parts}", lambda: all(part in ready_text(server) for part in parts), 20)


def test_scores_equal_tensorflow(gateway: processes.Running) -> None:
    photos = processes.dataset_photos(120)
    if not photos:
        pytest.skip(f"no photos at {processes.DATASET}; set CLOTHING_DATASET")
    expected = processes.reference_scores(DEMO_MODEL / "1", photos)
    worst = 0.0
    for photo in photos:
        answer = gateway.post("/predict", body=photo.read_bytes(), headers={"Content-Type": "image/jpeg"})
        assert answer.status == 200, answer.data
        scores = answer.json()
        assert tuple(sorted(scores)) == tuple(sorted(LABELS))
        worst = max(worst, *(abs(scores[label] - score) for label, score in zip(LABELS, expected[photo], strict=True)))
    assert len(photos) >= 100
    assert worst < 1e-4, f"largest difference of a score: {worst}"


def test_photos_stored_turned_are_classified_as_upright_ones(gateway: processes.Running) -> None:
    """PNG keeps each pixel, so that the seven turned files of a photo are the same picture; by EXIF's orientation."""
    photos = sorted((processes.DATASET / "validation").glob("*/*.jpg"))[::DATASET_EVERY]
    if not photos:
        pytest.skip(f"no photos at {processes.DATASET}; set CLOTHING_DATASET")
    # How a picture is stored that a tag's value sets upright: the inverses of PIL.ImageOps.exif_transpose.
    turns = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    right: Counter[int] = Counter()
    for photo in photos:
        with Image.open(photo) as opened:
            upright = ImageOps.exif_transpose(opened.convert("RGB"))
        scores = {}
        for orientation, turn in turns.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            file = io.BytesIO()
            stored = upright if turn is None else upright.transpose(turn)
            stored.save(file, "PNG", exif=exif, compress_level=1)
            scores[orientation] = gateway.post("/predict", body=file.getvalue(), headers=PNG).json()
            assert scores[orientation] == pytest.approx(scores[1], abs=1e-6), (photo, orientation)
            right[orientation] += max(scores[orientation], key=scores[orientation].get) == photo.parent.name
    assert set(right.values()) == {right[1]}
    assert right[1] > 0.7 * len(photos)  # 0.88 of all 341


def test_url_form_and_body_give_the_same(gateway: processes.Running, photos_at: int) -> None:
    raw = gateway.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
    form = gateway.post("/predict", fields={"image": (SAMPLE.name, SAMPLE.read_bytes(), "image/png")})
    url = gateway.post("/predict", json={"url": f"http://127.0.0.1:{photos_at}/{SAMPLE.name}"})
    assert raw.status == form.status == url.status == 200, (raw.data, form.data, url.data)
    assert raw.json() == form.json() == url.json()
    named = gateway.post("/classify?top=3", body=SAMPLE.read_bytes(), headers=PNG).json()
    assert named["model"] == {"name": "clothing-model", "version": "1", "scores": "logits"}
    best = sorted(raw.json(), key=raw.json().get, reverse=True)[:3]
    assert [found["label"] for found in named["predictions"]] == best


def test_classify_command_without_a_gateway(model: processes.Running, gateway: processes.Running) -> None:
    command = [GATEWAY_BIN / "clothing-gateway", "classify", SAMPLE, "--server", f"127.0.0.1:{model.ports['grpc']}"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
    through = gateway.post("/predict", body=SAMPLE.read_bytes(), headers=PNG).json()
    direct = {found["label"]: found["score"] for found in json.loads(done.stdout)["predictions"]}
    assert direct == pytest.approx(through, abs=1e-5)
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for step in ("decode", "predict", " ms"):
        assert step in shown.stdout + shown.stderr


def test_doctor_finds_the_cause(model: processes.Running, gateway: processes.Running) -> None:
    def look(**changes: str) -> list[tuple[str, str]]:
        """What failed, and which values mend it."""
        settings = {"tf_serving_host": f"localhost:{model.ports['grpc']}", "labels": ",".join(LABELS)} | changes
        findings = list(examine(Question({}, settings, f"http://127.0.0.1:{gateway.ports['admin']}")))
        assert ("predict", report.OK) in [(one.check, one.state) for one in findings] or changes
        return [(one.check, one.change) for one in findings if one.state == report.FAIL]

    assert look() == []
    assert look(labels="a,b") == [("signature", "model.labels")]
    assert look(model_version="3") == [("signature", "model.name, model.version, model.versionLabel")]
    assert look(input_name="x") == [("signature", "model.inputName")]
    ((check, change),) = look(model_name="other")
    assert (check, change.partition(":")[0]) == ("model", "model.name")
    ((check, change),) = look(model_tls="on")
    assert (check, change.partition(",")[0]) == ("tls", "server.tls.secretName")
    ((check, change),) = look(tf_serving_host=f"127.0.0.1:{model.ports['http']}")
    assert (check, change.partition(" ")[0]) == ("model", "TF_SERVING_HOST")
    ((check, change),) = look(tf_serving_host=f"127.0.0.1:{CLOSED_PORT}")
    assert (check, change.partition(" ")[0]) == ("connection", "server.startup.maxSeconds")


@pytest.mark.parametrize(
    ("kind", "input_name", "output_name", "size", "classes"),
    [("keras2", "input_28", "dense_18", 96, 20), ("savedmodel", "inputs", "output_0", 224, 20)],
)
def test_other_models_by_settings_only(
    tmp_path: Path, kind: str, input_name: str, output_name: str, size: int, classes: int
) -> None:
    made = [
        MODEL_BIN / "python", ROOT / "tests/model_factory.py", "--kind", kind, "--input-name", input_name,
        "--output-name", output_name, "--size", str(size), "--classes", str(classes), "--out", tmp_path / "made",
    ]  # fmt: skip
    source = subprocess.run(made, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    convert = [
        MODEL_BIN / "clothing-model",
        "convert",
        source,
        "--name",
        "kitchen-model",
        "--output",
        tmp_path / "models",
    ]
    subprocess.run(convert, check=True, capture_output=True)
    version = tmp_path / "models/kitchen-model/1"
    shown = subprocess.run(
        [MODEL_BIN / "clothing-model", "inspect", version, "--json"], capture_output=True, text=True, check=True
    )
    signature = json.loads(shown.stdout)["signatures"]["serving_default"]
    assert input_name in json.dumps(signature["inputs"])
    labels = [f"class-{number}" for number in range(classes)]
    expected = processes.reference_scores(version, [SAMPLE])[SAMPLE]
    settings = {"GATEWAY_MODEL_NAME": "kitchen-model", "GATEWAY_LABELS": json.dumps(labels)}
    with (
        processes.model_server(tmp_path / "model.log", version.parent, name="kitchen-model") as server,
        processes.gateway(tmp_path / "gateway.log", server.ports["grpc"], **settings) as front,
    ):
        processes.wait_until_ready(front)
        scores = front.post("/predict", body=SAMPLE.read_bytes(), headers=PNG).json()
    assert [scores[label] for label in labels] == pytest.approx(expected, abs=1e-4)


def test_gateway_starts_before_the_model_and_survives_its_restart(tmp_path: Path) -> None:
    port = processes.free_port()
    with processes.gateway(tmp_path / "gateway.log", port) as front:
        wait_for_reason(front, f"127.0.0.1:{port}")
        refused = front.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Type"] == "application/problem+json"
        for _ in range(2):  # the model comes, goes and comes again
            with processes.model_server(tmp_path / "model.log", DEMO_MODEL, port=port):
                processes.wait_until_ready(front)
                answer = front.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
                assert answer.status == 200, answer.data
            processes.wait_for("not ready again", lambda: front.get("/readyz", "admin").status == 503, 30)
        assert front.stop() == 0


def hot_reload_config(base: Path, versions: Iterable[int], stable: int) -> str:
    """The configuration of a hot reload as the chart writes it."""
    wanted = " ".join(f"versions: {version}" for version in versions)
    return f"""model_config_list {{ config {{
      name: "clothing-model" base_path: "{base}" model_platform: "tensorflow"
      model_version_policy {{ specific {{ {wanted} }} }}
      version_labels {{ key: "stable" value: {stable} }}
    }} }}"""


@dataclass
class Client:
    """Background client as a context manager; counts answers by status and version."""

    front: processes.Running
    seen: Counter[tuple[int, str]] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.stop.wait(0.05):
            answer = self.front.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
            self.seen[answer.status, answer.headers.get("X-Model-Version", "")] += 1

    def wait_for(self, version: str, answers: int) -> None:
        """Wait for as many more answers of a version."""
        wanted = self.seen[200, version] + answers
        processes.wait_for(f"answers of version {version}", lambda: self.seen[200, version] >= wanted, 60)


def wait_for_lines(log: Path, text: str, more: int) -> None:
    """Wait until so many more lines of a log have a text."""
    wanted = log.read_text().count(text) + more
    processes.wait_for(f"{text!r} in the log", lambda: log.read_text().count(text) >= wanted, 60)


def test_hot_reload_to_an_absent_version_keeps_the_old_one_and_loads_a_late_one(tmp_path: Path) -> None:
    """An absent version gets no label, so the old one serves; a late one is loaded."""
    base, config = tmp_path / "models", tmp_path / "models.config"
    source = next(DEMO_MODEL.iterdir())
    shutil.copytree(source, base / "1")
    config.write_text(hot_reload_config(base, [1], stable=1))
    flags = (
        f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=1", "--allow_version_labels_for_unavailable_models=true",
    )  # fmt: skip
    settings = {"GATEWAY_MODEL_LABEL": "stable", "GATEWAY_MODEL_CHECK_SECONDS": "1"}
    log = tmp_path / "model.log"
    with (
        processes.model_server(log, base, *flags) as server,
        processes.gateway(tmp_path / "gateway.log", server.ports["grpc"], **settings) as front,
    ):
        processes.wait_until_ready(front)
        with Client(front) as client:
            client.wait_for("1", 5)
            for versions in ([7], [1, 7]):  # instead of the one that serves, and beside it
                config.write_text(hot_reload_config(base, versions, stable=7))
                wait_for_lines(log, "assign label to version 7 of model clothing-model", 3)
                client.wait_for("1", 20)
                assert front.get("/readyz", "admin").status == 200
            config.write_text(hot_reload_config(base, [1, 7], stable=1))
            client.wait_for("1", 60)  # for three seconds and more the version is late
            shutil.copytree(source, base / ".late")
            (base / ".late").rename(base / "7")  # whole, as a copy to the volume should appear
            loaded = "Successfully loaded servable version {name: clothing-model version: 7}"
            processes.wait_for("version 7 to be loaded", lambda: loaded in log.read_text(), 60)
            assert client.seen[200, "7"] == 0
            config.write_text(hot_reload_config(base, [1, 7], stable=7))
            client.wait_for("7", 20)
        assert {status for status, _ in client.seen} == {200}, client.seen
        assert front.get("/readyz", "admin").status == 200


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"GATEWAY_MODEL_VERSION": "7"}, ("7", "clothing-model")),
        ({"GATEWAY_LABELS": "cat,dog,bird"}, ("3", "10", "GATEWAY_LABELS")),
        ({"GATEWAY_MODEL_NAME": "shoes-model"}, ("shoes-model", "GATEWAY_MODEL_NAME")),
        ({"GATEWAY_INPUT_NAME": "input_8"}, ("input_8", "GATEWAY_INPUT_NAME")),
        ({"GATEWAY_SIGNATURE_NAME": "predict"}, ("predict", "serving_default")),
    ],
    ids=["version", "labels", "name", "input", "signature"],
)
def test_mismatch_is_reported(
    model: processes.Running, tmp_path: Path, settings: dict[str, str], reason: tuple[str, ...]
) -> None:
    with processes.gateway(tmp_path / "gateway.log", model.ports["grpc"], **settings) as front:
        wait_for_reason(front, *reason)
        refused = front.post("/predict", body=SAMPLE.read_bytes(), headers=PNG)
        assert refused.status in (502, 503)
        assert "Traceback" not in refused.data.decode()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"body": b"", "headers": {"Content-Type": "image/jpeg"}}, 400),
        ({"body": b"not a photo at all", "headers": {"Content-Type": "image/jpeg"}}, 415),
        ({"body": SAMPLE.read_bytes()[:400], "headers": PNG}, 422),
        ({"json": {}}, 400),
        ({"json": {"url": "file:///etc/passwd"}}, 400),
        ({"json": {"url": "http://169.254.169.254/latest/meta-data/"}}, 400),
        ({"json": {"url": f"http://127.0.0.1:{CLOSED_PORT}/nobody.jpg"}}, 424),
    ],
    ids=["no-body", "not-an-image", "broken", "no-url", "file", "metadata", "unreachable"],
)
def test_bad_input_gets_a_clear_error(gateway: processes.Running, request_: dict[str, object], status: int) -> None:
    answer = gateway.post("/predict", **request_)
    problem = answer.json()
    assert answer.status == problem["status"] == status, problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(problem["detail"]) > 15
    assert problem["request_id"] == answer.headers["X-Request-Id"]


def test_demo_answers_and_cleans_up() -> None:
    """`make demo` without a terminal, its SIGINT ignored by the shell that started it, as for any background job."""
    if busy := [port for port in (9696, 9697, 8500, 8501) if _listens(port)]:
        pytest.fail(f"ports {busy} are in use; stop what listens there: the demo's ports are fixed")
    demo = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, ROOT / "scripts/demo.py"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    group = os.getpgid(demo.pid)
    assert demo.stdout is not None
    try:
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        text = "".join(lines)
        assert "http://127.0.0.1:9696" in text, text
        assert any(label in text for label in LABELS)
        again = subprocess.run(
            [sys.executable, ROOT / "scripts/demo.py"], capture_output=True, text=True, check=False, timeout=30
        )
        assert again.returncode == 1
        assert "9696" in again.stdout
        os.killpg(group, signal.SIGINT)
        assert demo.wait(20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        demo.wait(10)
        demo.stdout.close()
    time.sleep(0.2)
    assert not [port for port in (9696, 9697, 8500, 8501) if _listens(port)]


def _listens(port: int) -> bool:
    with processes.socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
