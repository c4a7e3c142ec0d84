"""The benchmark itself: statistics, /proc readings, the Go programs, and a small load on the gateway.

What make bench measures is no test: figures depend on the machine.
"""

import ast
import dataclasses
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import bench
import grpc
import numpy as np
import photos
import procs
import programs
import pytest
import report
import stats
import systems
import targets
import urllib3
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
from ways import WAYS, Way

from processes import LABELS, ROOT

pytestmark = pytest.mark.timeout(300)  # building the Go programs for the first time


# ---- statistics ----


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2], 0.5, 1),
        ([2, 1, 3], 0.5, 2),
        (list(range(1, 101)), 0.5, 50),
        (list(range(1, 101)), 0.99, 99),
        (list(range(100, 0, -1)), 1, 100),
        (list(range(1, 1001)), 0.99, 990),
        ([5, 5, 5, 900], 0.99, 900),
    ],
)
def test_quantile_is_the_nearest_rank(values, share, expected):
    assert stats.quantile(values, share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 0), ([1], 1.01)])
def test_quantile_of_no_values_is_an_error(values, share):
    with pytest.raises(ValueError, match="quantile needs"):
        stats.quantile(values, share)


def test_spread_of_rounds():
    assert stats.spread([3, 1, 2, 10]) == stats.Spread(2.5, 1, 10, 4)
    assert stats.spread([3, 1, 2, 10]).text(1) == "2.5 (1.0–10.0)"
    assert stats.spread([3.456]).text() == "3.46"
    with pytest.raises(ValueError, match="no rounds"):
        stats.spread([])


def test_ratios_are_taken_round_by_round():
    # The second minute was twice as slow for both: no round says anything but 2.
    assert stats.ratio([4, 8], [2, 4]) == stats.Spread(2, 2, 2, 2)


def test_growth_is_detected_and_noise_is_not():
    noise = [100 + number * 7 % 5 for number in range(100)]
    assert stats.halves(noise) == (104, 104)
    breathing = [value - 40 * (number // 9 % 2) for number, value in enumerate(noise)]
    breathing[3] = breathing[97] = 1000
    assert stats.halves(breathing) == (104, 104)
    first, last = stats.halves([value + number / 5 for number, value in enumerate(breathing)])
    assert last - first == pytest.approx(10, abs=2)
    with pytest.raises(ValueError, match="two values"):
        stats.halves([1])


# ---- /proc ----


def test_usage_includes_child_processes_in_other_sessions():
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    family = {}
    try:
        process.stdout.readline()
        family = procs.family(process.pid)
        used = procs.usage(process.pid)
        assert len(family) == 2
        assert 0.5 <= used.cpu_seconds < 5
        assert used.minor_faults > 100
        assert 3e6 < procs.pss_bytes(process.pid) < 200e6
        process.kill()
        process.wait()
        child = (family.keys() - {process.pid}).pop()
        assert procs.survivors(family) == [child]
    finally:
        process.kill()
        for pid in procs.survivors(family):
            os.kill(pid, 9)
        process.stdout.close()


def test_peak_memory_is_kept_after_release():
    code = "x = bytearray(80 << 20); import time; time.sleep(0.5); del x; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        with procs.PeakMemory(process.pid) as peak:
            process.stdout.readline()
        assert procs.pss_bytes(process.pid) < 60e6
        assert peak.bytes > 80e6
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- the programs in Go ----


@pytest.fixture(scope="session")
def built():
    programs.build()


@pytest.fixture(scope="session")
def small(built, tmp_path_factory):
    """A few photos: the dataset's, or generated ones."""
    return photos.prepare(tmp_path_factory.mktemp("photos"), print, small=6, large=0)[0]


@pytest.fixture
def stub(built):
    with programs.model_server("-size", "8") as (_, address), grpc.insecure_channel(address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict_request(batch, name="clothing-model", input_name="input_8", version=None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if version:
        request.model_spec.version.value = version
    tensor = request.inputs[input_name]
    tensor.dtype = types_pb2.DT_FLOAT
    tensor.tensor_content = batch.tobytes()
    for size in batch.shape:
        tensor.tensor_shape.dim.add().size = size
    return request


def test_the_model_server_answers_with_ten_values_of_each_photo(stub):
    batch = np.random.default_rng(1).random((3, 8, 8, 3), np.float32)
    answer = stub.Predict(predict_request(batch, version=4), timeout=10)
    assert answer.model_spec.version.value == 4
    output = answer.outputs["dense_7"]
    assert [dim.size for dim in output.tensor_shape.dim] == [3, 10]
    expected = [photo.ravel()[[(2 * i + 1) * 192 // 20 for i in range(10)]] for photo in batch]
    assert np.array_equal(np.float32(output.float_val).reshape(3, 10), expected)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"input_name": "input_9"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"batch": np.zeros((1, 8, 9, 3), np.float32)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"batch": np.zeros((1, 8, 8, 3), np.uint8)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"batch": np.zeros(192, np.float32)}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_the_model_server_refuses_what_tensorflow_serving_would(stub, change, code):
    with pytest.raises(grpc.RpcError) as raised:
        stub.Predict(predict_request(**{"batch": np.zeros((1, 8, 8, 3), np.float32)} | change), timeout=10)
    assert raised.value.code() == code


@pytest.mark.parametrize(
    ("flags", "dtype", "shape"),
    [
        (["-input", "float32"], types_pb2.DT_FLOAT, [-1, 299, 299, 3]),
        (["-input", "uint8"], types_pb2.DT_UINT8, [-1, 299, 299, 3]),
        (["-input", "string"], types_pb2.DT_STRING, [-1]),
        (["-size", "28", "-channels", "1"], types_pb2.DT_FLOAT, [-1, 28, 28, 1]),
        (["-size", "224", "-layout", "nchw"], types_pb2.DT_FLOAT, [-1, 3, 224, 224]),
    ],
)
def test_the_model_server_describes_its_signature(built, flags, dtype, shape):
    with programs.model_server(*flags) as (_, address), grpc.insecure_channel(address) as channel:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "clothing-model"
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    info = signature.inputs["input_8"]
    assert (info.dtype, [dim.size for dim in info.tensor_shape.dim]) == (dtype, shape)
    assert [dim.size for dim in signature.outputs["dense_7"].tensor_shape.dim] == [-1, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-target", "ftp://x/", "-photos", "none", "-requests", "1"], "no http://host:port/path"),
        (["-target", "http://127.0.0.1:1/", "-photos", "none", "-clients", "0"], "at least one"),
        (["-target", "http://127.0.0.1:1/", "-photos", "none", "-requests", "1"], "no such file"),
    ],
)
def test_load_generator_names_wrong_arguments(built, arguments, words):
    done = subprocess.run([programs.BIN / "loadgen", *arguments], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_load_generator_counts_connections_that_fail(small, tmp_path):
    listing = small.listing(tmp_path / "photos.json", "http://127.0.0.1:1")
    measured = programs.load("http://127.0.0.1:1/predict", listing, "-clients", "2", "-requests", "6")
    assert measured["requests"] == 6
    assert sum(measured["errors"].values()) == 6
    assert not measured["statuses"]
    assert "127.0.0.1" not in str(measured["errors"])


class _Answers(http.server.BaseHTTPRequestHandler):
    """Refuses every third photo, and says when to come again every other time; the others get a score that is off, by
    two versions of the model in turn."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.headers["Host"])
        refused = len(self.seen) % 3 == 0
        body = json.dumps(dict.fromkeys(LABELS, 0.5)).encode()
        self.send_response(503 if refused else 200)
        if refused and len(self.seen) % 2:
            self.send_header("Retry-After", "1")
        self.send_header("X-Model-Version", str(len(self.seen) % 3))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(("tolerance", "wrong"), [("0.2", False), ("0.05", True)])
def test_load_generator_runs_until_signalled(small, tmp_path, monkeypatch, tolerance, wrong):
    """As the end-to-end tests use it: until SIGTERM, over short connections, with scores that may differ a little."""
    monkeypatch.setattr(_Answers, "seen", [])
    photos = [{"path": str(small.files[0]), "url": "", "scores": [0.6] * 10}]
    listing = tmp_path / "photos.json"
    listing.write_text(json.dumps(photos))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            programs.BIN / "loadgen", "-target", f"http://127.0.0.1:{server.server_port}/predict", "-photos", listing,
            "-keep", "4", "-tolerance", tolerance, "-moments", "-host", "shop.example.com",
            "-count", "X-Model-Version", "-pause", "20ms",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            sent, failed = map(int, running.stderr.readline().split())
            running.terminate()
            measured = json.loads(running.stdout.read())
        server.shutdown()
    assert running.returncode == 0
    assert 0 < failed <= sent <= measured["requests"] == len(_Answers.seen)
    assert set(_Answers.seen) == {"shop.example.com"}
    assert measured["connections"] == -(-measured["requests"] // 4)
    refused = measured["statuses"]["503"]
    assert refused == measured["requests"] // 3
    assert measured["without_retry_after"] == refused // 2
    assert measured["answered_ms"] == sorted(measured["answered_ms"])
    assert len(measured["answered_ms"]) == measured["statuses"]["200"]
    assert set(measured["counted"]) == {"1", "2"}
    assert sum(measured["counted"].values()) == measured["statuses"]["200"]
    assert measured["requests"] * 0.02 <= measured["seconds"] + 0.02  # a pause after each
    assert measured["wrong"] == (measured["statuses"]["200"] if wrong else 0)


def test_photo_server_delays_and_keeps_connections(small):
    with programs.photo_server(small.folder, delay="200ms") as (_, address), urllib3.PoolManager(retries=False) as pool:
        name = small.files[0].name
        started = time.monotonic()
        for _ in range(2):
            answer = pool.request("GET", f"http://{address}/{name}")
            assert answer.data == small.files[0].read_bytes()
            assert answer.headers["Content-Type"] == "image/jpeg"
        assert 0.4 <= time.monotonic() - started < 5
        assert pool.connection_from_url(f"http://{address}").num_connections == 1
        assert pool.request("GET", f"http://{address}/none.jpg").status == 404


def test_missing_go_error_states_the_fix(tmp_path, monkeypatch):
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci/find-go", tmp_path / "ci")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "env", "false", "sort", "head"):
        (tools / name).symlink_to(shutil.which(name))
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    monkeypatch.setattr(programs, "BIN", tmp_path / "built")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("PYTHON", "false")
    with pytest.raises(programs.BenchError, match=r"Install Go 1\.\d+"):
        programs.build()


def test_uninstallable_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    lock = tmp_path / "requirements.lock"
    lock.write_text("pillow==0.0.0 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said = []
    with pytest.raises(programs.BenchError, match=r"requirements\.lock could not be installed:\n.*pillow"):
        programs.environment("test", lock, said.append)
    assert said


# ---- a small load ----


def our_gateway(**variables):
    ours = systems.OURS
    return dataclasses.replace(ours, variables=lambda address: ours.variables(address) | variables)


@pytest.mark.parametrize("kind", ["float32", "uint8", "string"])
def test_answers_are_right_under_load(small, tmp_path, kind):
    with (
        programs.model_server("-input", kind) as (_, model),
        programs.photo_server(small.folder) as (_, hosted),
        our_gateway().running(model, hosted) as (running, address),
    ):
        listing = small.listing(tmp_path / "photos.json", f"http://{hosted}", partial(photos.scores, kind=kind))
        for form in systems.OURS.forms.values():
            measured = programs.load(
                address.url + form.path, listing, *form.flags(), "-clients", "4", "-requests", "30"
            )
            assert measured["statuses"] == {"200": 30}, measured
            assert measured["wrong"] == 0, measured["first_wrong"]
            assert measured["errors"] == {}
            assert measured["connections"] == 4
            assert len(measured["latencies_us"]["200"]) == 30
            assert 0 < measured["seconds"] < 60
        assert running.usage().cpu_seconds > 0.1

        # A wrong score, and the load generator says so.
        listed = json.loads(listing.read_text())
        listed[0]["scores"][9] += 0.001
        listing.write_text(json.dumps(listed))
        form = systems.OURS.forms["upload"]
        measured = programs.load(address.url + form.path, listing, *form.flags(), "-requests", str(len(listed)))
        assert measured["wrong"] == 1
        assert "t-shirt is" in measured["first_wrong"]


def test_small_benchmark_run(small, tmp_path, monkeypatch):
    """Floor and gateway, one short round: the shape of what is written, and what is said when one of them fails."""
    monkeypatch.setattr(bench, "FRESH_PHOTOS", 12)
    monkeypatch.setattr(bench, "FRESH_ROUNDS", 1)
    monkeypatch.setattr(bench, "SMALL_SECONDS", 0.3)
    monkeypatch.setattr(bench, "LARGE_SECONDS", 0.3)
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(photos, "prepare", lambda *_: (small, dataclasses.replace(small, name="large")))
    broken = dataclasses.replace(systems.FLOOR, name="broken", title="broken", command=lambda address: ["false"])
    monkeypatch.setattr(bench, "SYSTEMS", [systems.OURS, systems.FLOOR, broken])
    # A process each; the others differ from these by a filter or a scale.
    ways = [way for way in WAYS if way.name in ("torchvision", "tf-bilinear-antialias", "grey", "turned")]
    monkeypatch.setattr(bench, "WAYS", ways)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "1", "--output", str(tmp_path / "out")])
    monkeypatch.setattr(report, "draw", lambda *_: "no plot here: matplotlib has an environment of its own")
    assert bench.main() == 1  # as one failed
    results = json.loads((tmp_path / "out/gateway.json").read_text())
    assert results["failures"].keys() == {"broken"}
    assert "ended with 1" in results["failures"]["broken"]
    assert results["systems"].keys() == {"clothing-gateway", "floor"}
    expected = {f"clothing-gateway {kind} 8" for kind in (*report.WORKLOADS, "small-multipart")}
    expected |= {f"clothing-gateway small-{kind} {clients}" for kind in ("url", "upload") for clients in (1, 32, 200)}
    expected |= {f"floor {kind} 1" for kind in report.WORKLOADS}
    assert results["cells"].keys() == expected
    for name, (cell,) in results["cells"].items():
        assert cell["photos"] > 0, name
        assert cell["wrong"] == cell["other_answers"] == 0, name
        assert 0 < cell["p50_ms"] <= cell["p99_ms"] <= cell["max_ms"], name
        assert cell["photos_per_second"] == pytest.approx(cell["photos"] / cell["seconds"])
        assert set(cell["statuses"]) <= {"200", "503"}
    reached = {check["what"]: check["reached"] for check in results["checks"]}
    assert reached["photos whose scores are not Pillow's"] is True
    assert reached["12 MP by URL: photos per second over the course's"] is None
    assert list(results["ways"]) == ["torchvision", "tf-bilinear-antialias", "grey", "turned"]
    for name, way in results["ways"].items():
        for cell in (*way["small"], *way["large"]):
            assert cell["photos"] > 0, name
            assert cell["wrong"] == cell["other_answers"] == 0, (name, cell["first_wrong"])
        assert len(way["small"]) == len(way["large"]) == 1, name
    text = (tmp_path / "out/gateway.md").read_text()
    assert "## By the way of preparing" in text
    assert "broken FAILED: broken ended with 1" in text
    assert "## Dataset photos by URL" in text


def test_ways_alone_are_reported_without_goals_and_a_failed_way_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SMALL_SECONDS", 0.1)
    monkeypatch.setattr(bench, "LARGE_SECONDS", 0.1)
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(photos, "prepare", lambda *_: (small, dataclasses.replace(small, name="large")))
    broken = Way("broken", "broken", WAYS[0].tensor, {"GATEWAY_RESAMPLING": "none"})
    monkeypatch.setattr(bench, "WAYS", [WAYS[0], broken])
    monkeypatch.setattr(sys, "argv", ["bench.py", "--ways", "--rounds", "2", "--output", str(tmp_path / "out")])
    assert bench.main() == 1
    results = json.loads((tmp_path / "out/gateway.json").read_text())
    assert "GATEWAY_RESAMPLING" in results["failures"]["way-broken"]
    assert results["command"] == "make bench BENCH=ways"
    assert [len(way["large"]) for way in results["ways"].values()] == [2]
    text = (tmp_path / "out/gateway.md").read_text()
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["By the way of preparing"]
    assert "way-broken FAILED" in text


def test_second_concurrent_benchmark_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--output", str(tmp_path)])
    with bench.alone():
        assert bench.main() == 1
    assert "another one runs" in capsys.readouterr().err


def test_unknown_system_error_lists_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "floor", "nginx", "--output", str(tmp_path)])
    assert bench.main() == 1
    assert "no system nginx; there are clothing-gateway, floor, floor-2, course-1" in capsys.readouterr().err


# ---- goals ----


def results_of(**cpu):
    """Two rounds for each system, with so much CPU per photo by URL."""
    roles = {"clothing-gateway": "ours", "floor": "floor", "course-1": "course"}
    base = {"photos_per_second": 100, "p50_ms": 10, "p99_ms": 20, "other_answers": 0, "wrong": 0}
    named = {name.replace("_", "-"): value for name, value in cpu.items()}
    return {
        "systems": {name: {"role": roles.get(name, "peer")} for name in named},
        "cells": {
            f"{name} small-url {1 if name == 'floor' else 8}": [base | {"cpu_ms": value}, base | {"cpu_ms": 2 * value}]
            for name, value in named.items()
        },
        "memory": {},
        "fresh": {"clothing-gateway": [{"faults": 3}, {"faults": 12}, {"faults": 30}]},
    }


def test_goals_are_reached_missed_or_not_measured():
    found = targets.checks(results_of(clothing_gateway=3, floor=2, course_1=4, kserve_1=8, litserve_2=6))
    said = {check.what: (check.value and check.value.median, check.reached) for check in found}
    assert said["dataset photos by URL: CPU over the floor's"] == (1.5, True)
    assert said["dataset photos by URL: CPU of the best peer (litserve-2) over ours"] == (2.0, True)
    assert said["dataset photos by URL: CPU of the course's gateway, warm, over ours"] == (pytest.approx(4 / 3), False)
    assert said["dataset photos by URL: photos per second over the course's, warm"] == (1, False)
    assert said["dataset photos by URL: p99 over p50 at 8 clients"] == (2, True)
    assert said["12 MP by upload: CPU over the floor's"] == (None, None)
    assert said["12 MP, 8 uploads at once: PSS"] == (None, None)
    assert said["page faults per photo, from the first request of a new process on"] == (12, False)
    assert said["photos whose scores are not Pillow's"] == (0, True)


def test_a_lost_request_is_neither_200_nor_503():
    results = results_of(clothing_gateway=3)
    (cell, _) = results["cells"]["clothing-gateway small-url 8"]
    results["cells"]["clothing-gateway small-url 200"] = [cell | {"other_answers": 1}]
    check = next(one for one in targets.checks(results) if "by URL: answers at 200 clients" in one.what)
    assert check.reached is False


def test_two_checkouts_are_compared_round_by_round():
    results = results_of(clothing_gateway=3, before=2)
    results["systems"]["before"]["role"] = "before"
    title, header, rows = report._against(results)
    assert (title, header[1]) == ("This checkout over the other one", "CPU")
    assert rows[0] == ["dataset photos by URL", "1.50 (1.50–1.50)", "1.00 (1.00–1.00)", "1.00 (1.00–1.00)"]
    assert report._against(results_of(clothing_gateway=3))[2] == []


def cell(cpu_ms, wrong=0):
    return {"cpu_ms": cpu_ms, "wrong": wrong}


def test_ways_of_preparing_are_a_table_where_they_were_measured():
    results = results_of(clothing_gateway=3)
    assert report._by_way(results)[2] == []  # a quick run, or one from before
    results["ways"] = {
        "nearest": {"title": "the course's", "small": [cell(1.5), cell(2.5), cell(2)], "large": [cell(20), cell(30)]},
        "grey": {"title": "grey", "small": [cell(1, wrong=3)], "large": [cell(10)]},
        "failed": {"title": "failed", "small": [], "large": []},
    }
    title, header, rows = report._by_way(results)
    assert (title, len(header)) == ("By the way of preparing", 4)
    assert rows == [["the course's", "2.00 (1.50–2.50)", "25.0 (20.0–30.0)", "0"], ["grey", "1.00", "10.0", "3"]]


def test_ways_of_preparing_expect_different_scores(small):
    """So that a gateway that ignores a setting is found."""
    data = small.files[0].read_bytes()
    found = {tuple(way.scores(data)) for way in WAYS}
    assert len(found) == len(WAYS) - 1  # "turned" differs by its files
    assert len({way.name for way in WAYS} | {way.title for way in WAYS}) == 2 * len(WAYS)


def test_plot_has_a_colour_for_each_role():
    """Matplotlib has an environment of its own, so the plot is read, not run."""
    plot = (Path(systems.__file__).parent / "plot/plot.py").read_text()
    coloured = set(ast.literal_eval(re.search(r"^COLOURS = (.*)$", plot, re.MULTILINE)[1]))
    roles = set(re.findall(r'role="(\w+)"', Path(systems.__file__).read_text()))
    assert "before" in roles
    assert roles <= coloured


def test_another_checkout_must_be_one(tmp_path, monkeypatch):
    with pytest.raises(programs.BenchError, match="no checkout of this repository"):
        systems.before(tmp_path).prepare(print)
    (tmp_path / "gateway/src/clothing_gateway").mkdir(parents=True)
    built = []
    monkeypatch.setattr(systems.programs, "build_jpeg", lambda *paths: built.append(paths))
    other = systems.before(tmp_path)
    other.prepare(print)
    assert built == [(tmp_path / "gateway/jpeg", systems.CACHE / "before")]
    address = systems.Address(1, 2, "127.0.0.1:3", "127.0.0.1:4", 1)
    assert other.variables(address)["PYTHONPATH"].startswith(str(tmp_path / "gateway/src"))


# ---- what is measured is what is shipped ----


def test_benchmark_gateway_has_the_images_environment():
    variables = systems.image_variables()
    assert variables["PYTHONUNBUFFERED"] == "1"
    assert not variables.keys() & {"PATH", "HOME", "GATEWAY_LISTEN_HOST"}


def test_large_photos_are_deterministic_and_12_megapixels(small):
    data = small.files[0].read_bytes()
    large = photos._enlarged(data, 1)
    assert large == photos._enlarged(data, 1)
    assert large != photos._enlarged(data, 2)
    with photos.Image.open(photos.io.BytesIO(large)) as image:
        assert image.size == (4000, 3000)
    assert len(large) > 0.5e6


def test_photos_are_generated_without_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "dataset_photos", lambda count: [])
    said = []
    small, large = photos.prepare(tmp_path, said.append, small=3, large=1)
    assert "CLOTHING_DATASET" in said[0]
    assert (len(small.files), len(large.files)) == (3, 1)
    assert len({tuple(photos.scores(file.read_bytes())) for file in small.files}) == 3
    assert small.describe()["source"] == "drawn"
    generated = len(said)
    assert photos.prepare(tmp_path, said.append, small=3, large=1) == (small, large)
    assert len(said) == generated  # they were in the cache
