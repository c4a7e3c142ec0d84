"""The model server's life: when its ports open, how versions come and go, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import Made, Starter, manager_of, refused, request

from clothing_model.commands.cli import main
from model_factory import expected, make_model, photos

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 86185888\n"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another model with the course's names: what a newer version is."""
    return make_model(tmp_path / "second", "savedmodel", "input_8", "dense_7", 96, 10, seed=99)


def put(model: Path, source: Path, version: int) -> None:
    """As `convert` does: whole, or not there."""
    model.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, model / ".copying")
    (model / ".copying").rename(model / str(version))


def scores(stub: Any, made: Made) -> tuple[int, np.ndarray[Any, Any]]:
    answer = stub.Predict(request(made), timeout=60)
    return answer.model_spec.version.value, np.array(answer.outputs["dense_7"].float_val).reshape(2, -1)


def test_versions_load_and_unload_without_a_gap(
    serve: Starter, models: dict[str, Made], tmp_path: Path, second: Path
) -> None:
    made = models["course"]
    base = tmp_path / "models" / "course"
    server = serve("--model_name=course", f"--model_base_path={base}", "--file_system_poll_wait_seconds=1")
    server.wait_for(lambda: "Could not find base path" in server.text, "word of the missing folder")
    base.mkdir(parents=True)
    (base / "not-a-version").mkdir()
    server.wait_for(lambda: server.text.count("No versions of servable course found") >= 2, "the repeated warning")
    assert f"under base path {base}. Did you forget to name your leaf directory as a number" in server.text
    assert not server.listens()  # an open port says: loaded and warm
    assert not server.listens(server.rest_port)

    put(base, made.version, 1)
    server.wait_until_up()
    stub = server.prediction()
    version, first = scores(stub, made)
    assert version == 1
    assert np.abs(first - expected(made.version.parents[2] / "made/course")).max() < 1e-4

    answered: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answered.append(scores(stub, made)[0])

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    put(base, second, 2)
    server.wait_for(lambda: "Done unloading servable version {name: course version: 1}" in server.text, "the exchange")
    count = len(answered)
    server.wait_for(lambda: len(answered) > count + 2, "more answers")
    stop.set()
    for client in clients:
        client.join()
    assert answered == sorted(answered)  # 1, 1, …, 2, 2: and no call failed, or the thread had ended
    assert set(answered) == {1, 2}
    text = server.text
    assert text.index("Successfully loaded servable version {name: course version: 2}") < text.index(
        "Unloading servable version {name: course version: 1}"
    )
    assert np.abs(scores(stub, made)[1] - expected(second)).max() < 1e-4

    (base / "3").mkdir()  # a broken version: the good one stays
    (base / "3" / "saved_model.pb").write_bytes(LFS)
    server.wait_for(lambda: "Git LFS pointer" in server.text, "word of the broken version")
    assert scores(stub, made)[0] == 2
    assert "NOT_FOUND" not in server.http("/v1/models/course/metadata")[1]
    code, status = server.http("/v1/models/course")
    assert code == 200
    assert '"version": "3"' in status
    assert '"state": "END"' in status
    assert server.terminate() == 0


def test_sigterm_finishes_requests_in_flight(serve: Starter, models: dict[str, Made]) -> None:
    made = models["exported"]
    server = serve("--model_name=exported", f"--model_base_path={made.version.parent}").wait_until_up()
    stub = server.prediction()
    message = request(made, array=np.tile(photos(224)[:1], (64, 1, 1, 1)))  # takes a while
    stub.Predict(message, timeout=120)
    begun = stub.Predict.future(message, timeout=120)
    time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    assert len(begun.result().outputs["output_0"].float_val) == 64 * 20
    assert server.process.wait(60) == 0
    assert "Stopped" in server.text
    assert refused(stub.Predict, message).code == grpc.StatusCode.UNAVAILABLE


def test_sigterm_without_a_handler_kills_the_process(serve: Starter, models: dict[str, Made]) -> None:
    """TensorFlow Serving's manners: what is begun is lost."""
    made = models["exported"]
    flags = ("--model_name=exported", f"--model_base_path={made.version.parent}", "--handle_signals=false")
    server = serve(*flags).wait_until_up()
    stub = server.prediction()
    message = request(made, array=np.tile(photos(224)[:1], (64, 1, 1, 1)))  # takes a while
    stub.Predict(message, timeout=120)
    begun = stub.Predict.future(message, timeout=120)
    time.sleep(0.1)
    assert server.terminate() == -signal.SIGTERM
    assert begun.exception().code() == grpc.StatusCode.UNAVAILABLE
    assert "Stopping" not in server.text


NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="no PID namespace can be made here: unshare is missing, or user namespaces are switched off",
)
@pytest.mark.parametrize("handled", [True, False])
def test_sigterm_to_pid_1(serve: Starter, models: dict[str, Made], handled: bool) -> None:
    """As in a container: without a handler the kernel keeps signals from PID 1, and only SIGKILL ends it."""
    made = models["course"]
    flags = (
        "--model_name=course",
        f"--model_base_path={made.version.parent}",
        f"--handle_signals={str(handled).lower()}",
    )
    server = serve(*flags, wrapper=NAMESPACE).wait_until_up()
    outer = server.process.pid
    first = int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
    status = Path(f"/proc/{first}/status").read_text()
    assert re.search(r"^NSpid:.*\s1$", status, re.MULTILINE)
    os.kill(first, signal.SIGTERM)
    if handled:
        assert server.process.wait(60) == 0
        assert "Stopped" in server.text
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)
        os.kill(first, signal.SIGINT)
        assert scores(server.prediction(), made)[0] == 1  # it serves on
        os.kill(first, signal.SIGKILL)
        assert server.process.wait(60) != 0


SIGNALLED = """
import os, signal, sys, threading, time
from clothing_model.server.app import _Signals

for line in range(1, 40):  # of those that a wait may run in Python, with or without a lock
    child = os.fork()
    if not child:
        signals, run = _Signals(True), 0

        def trace(frame, event, argument):
            global run
            run += event == "line"
            if run == line:
                run += 1
                signal.raise_signal(signal.SIGTERM)
            return trace

        def later():
            time.sleep(0.1)
            if not signals.asked():
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=later, daemon=True).start()
        sys.settrace(trace)
        signals.wait()
        os._exit(0)
    end = time.monotonic() + 5
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            sys.exit(f"waits for ever when a signal comes at line {line}")
        time.sleep(0.005)
"""


def test_signal_at_any_moment_of_the_wait_is_handled() -> None:
    """A handler that takes a lock which the wait holds would leave the server there until it is killed."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_sigterm_while_the_model_loads(serve: Starter, tmp_path: Path) -> None:
    server = serve("--model_name=m", f"--model_base_path={tmp_path}")
    server.wait_for(lambda: "No versions of servable m" in server.text, "the warning")
    assert server.terminate() == 0


def test_unloadable_model_stops_the_server(serve: Starter, models: dict[str, Made], tmp_path: Path) -> None:
    base = tmp_path / "models"
    put(base, models["course"].version, 1)
    shutil.rmtree(base / "1" / "variables")
    server = serve(
        "--model_name=m", f"--model_base_path={base}", "--max_num_load_retries=1", "--load_retry_interval_micros=1000"
    )
    assert server.process.wait(180) == 1
    assert "Failed to start server. Error: 1 servable(s) did not become available" in server.text
    assert "variables.index is missing" in server.text
    assert "Retrying of loading {name: m version: 1}, retry: 1" in server.text
    assert "Traceback" not in server.text


@pytest.mark.parametrize(
    ("path", "content", "code", "message"),
    [
        ("saved_model.pb", LFS, "FAILED_PRECONDITION", "Git LFS pointer"),
        ("saved_model.pb", None, "NOT_FOUND", "Could not find SavedModel .pb or .pbtxt at supplied export directory"),
        ("variables/variables.data-00000-of-00001", LFS, "FAILED_PRECONDITION", "Git LFS pointer"),
        ("assets.extra/tf_serving_warmup_requests", b"\x01", "INVALID_ARGUMENT", "Failed to parse warmup record"),
    ],
)
def test_load_failure_states_the_reason(
    models: dict[str, Made], tmp_path: Path, path: str, content: bytes | None, code: str, message: str
) -> None:
    """The loader itself, with real files and TensorFlow: what GetModelStatus and the log then show."""
    from clothing_model.server.servable import Servable

    put(tmp_path, models["course"].version, 1)
    broken = tmp_path / "1" / path
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    manager = manager_of(tmp_path, Servable, enable_model_warmup=True, max_num_load_retries=0)
    manager.poll()
    state = manager.states("m")[1]
    assert (state.stage.name, state.error.code.name) == ("END", code)
    assert message in str(state.error)


def test_flags_change_the_responses(serve: Starter, models: dict[str, Made], tmp_path: Path) -> None:
    """Content in place of values, the age of connections, a socket, threads, a session config; and no warm-up."""
    made = models["course"]
    (tmp_path / "session.config").write_text("allow_soft_placement: true\n")
    server = serve(
        "--model_name=course",
        f"--model_base_path={made.version.parent}",
        "--enable_serialization_as_tensor_content=true",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=500,grpc.max_connection_age_grace_ms=5000",
        f"--grpc_socket_path={tmp_path / 'grpc.sock'}",
        f"--tensorflow_session_config_file={tmp_path / 'session.config'}",
        "--tensorflow_intra_op_parallelism=1",
        "--tensorflow_inter_op_parallelism=1",
        "--grpc_max_threads=2",
        "--enable_model_warmup=false",
        "--num_load_threads=2",
        "--enable_profiler=false",
    ).wait_until_up()
    answer = server.prediction().Predict(request(made), timeout=60)
    output = answer.outputs["dense_7"]
    assert not output.float_val
    got = np.frombuffer(output.tensor_content, np.float32).reshape(2, 10)
    assert np.abs(got - expected(made.version.parents[2] / "made/course")).max() < 1e-4
    assert "--num_load_threads is accepted without effect: models are loaded one after the other" in server.text
    assert "--enable_profiler" not in server.text
    assert "warming up" not in server.text

    channel = server.channel()
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    server.wait_for(lambda: states.count(grpc.ChannelConnectivity.READY) >= 1, "a connection")
    server.wait_for(lambda: grpc.ChannelConnectivity.IDLE in states[states.index(grpc.ChannelConnectivity.READY) :],
                    "its end, by age")  # fmt: skip
    with grpc.insecure_channel(f"unix:{tmp_path / 'grpc.sock'}") as by_socket:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        stub = prediction_service_pb2_grpc.PredictionServiceStub(by_socket)
        assert stub.Predict(request(made), timeout=60).outputs
    assert server.http("/monitoring/prometheus/metrics")[0] == 404  # no monitoring_config_file


def config_text(base: Path, labels: str, versions: str = "versions: 1 versions: 2") -> str:
    return f"""model_config_list {{ config {{
      name: "course" base_path: "{base}" model_platform: "tensorflow"
      model_version_policy {{ specific {{ {versions} }} }} {labels}
    }} }}"""


def test_config_file_policies_and_labels(serve: Starter, models: dict[str, Made], tmp_path: Path, second: Path) -> None:
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_management_pb2

    made, base, file = models["course"], tmp_path / "models", tmp_path / "models.config"
    for version, source in ((1, made.version), (2, second), (3, second)):
        put(base, source, version)
    stable = 'version_labels { key: "stable" value: 1 }'
    file.write_text(config_text(base, stable + ' version_labels { key: "canary" value: 2 }'))
    server = serve(
        f"--model_config_file={file}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
    ).wait_until_up()
    stub = server.prediction()

    def labelled(label: str) -> int:
        message = request(made)
        message.model_spec.version_label = label
        return int(stub.Predict(message, timeout=60).model_spec.version.value)

    assert (labelled("stable"), labelled("canary")) == (1, 2)
    assert scores(stub, made)[0] == 2  # the newest of those wanted; 3 is not
    assert server.http("/v1/models/course/labels/stable/metadata")[0] == 200

    file.write_text(config_text(base, 'version_labels { key: "stable" value: 2 }'))  # the canary is promoted
    server.wait_for(lambda: labelled("stable") == 2, "the label")
    file.write_text(config_text(base, 'version_labels { key: "stable" value: 3 }'))  # not loaded: refused, kept
    server.wait_for(lambda: "Request to assign label to version 3 of model course" in server.text, "the refusal")
    assert labelled("stable") == 2
    file.write_text("model_config_list { nonsense }")
    server.wait_for(lambda: "not a ModelServerConfig" in server.text, "the parser's word")
    assert labelled("stable") == 2
    file.write_text(config_text(base, "", "versions: 3"))
    server.wait_for(lambda: scores(stub, made)[0] == 3, "version 3")

    reload = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(config_text(base, "", "versions: 1").replace("course", "renamed"), reload.config)
    file.unlink()  # or the watch would set the file's models again
    assert server.model_service().HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
    message = request(made, model="renamed")
    assert stub.Predict(message, timeout=60).model_spec.version.value == 1
    assert "Servable not found for request: Latest(course)" in refused(stub.Predict, request(made)).details
    empty = model_management_pb2.ReloadConfigRequest()
    assert refused(server.model_service().HandleReloadConfigRequest, empty).code.name == "INVALID_ARGUMENT"


def test_a_taken_port_is_an_error(serve: Starter, models: dict[str, Made]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ("--model_name=course", f"--model_base_path={models['course'].version.parent}")
        server = serve(*flags, f"--port={port}")
        assert server.process.wait(180) == 1
        assert f"can't listen on 127.0.0.1:{port}" in server.text


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--port=8500", "--rest_api_port=0", "--model_name='default'", "--enable_profiler=true"):
        assert flag in shown
