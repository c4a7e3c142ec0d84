"""Batching: what is computed together, waits, is refused. What it gains: tests/load/batching.py."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import Made, Server, Starter, request, scores_of

from clothing_model.errors import ModelError
from clothing_model.server import config
from clothing_model.server.batching import BatchingSession, Parameters, Scheduler
from clothing_model.server.errors import RequestError, invalid
from clothing_model.server.metrics import Metrics
from model_factory import photos

LONG = 10_000_000  # microseconds that no test waits


class Doubling:
    """A session that doubles its input, and can be held; it keeps the sizes that it was asked for."""

    def __init__(self, held: bool = False) -> None:
        self.sizes: list[int] = []
        self.timeouts: list[int] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, feeds: dict[str, Any], fetches: list[str], timeout_ms: int) -> list[Any]:
        self.sizes.append(len(feeds["x"]))
        self.timeouts.append(timeout_ms)
        self.begun.set()
        assert self.go.wait(30)
        if (feeds["x"] == -1).any():
            raise invalid("not a photo")
        return [feeds["x"] * (2 if name == "double" else 3) for name in fetches]


def session_of(run: Any, metrics: Metrics | None = None, threads: int = 1, **given: Any) -> BatchingSession:
    parameters = Parameters(**{"num_batch_threads": threads, **given})
    parameters.check()
    return BatchingSession(run, parameters, Scheduler(threads, "batch"), metrics or Metrics())


def rows(*values: float, width: int = 2) -> dict[str, Any]:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting(session: BatchingSession) -> int:
    return sum(len(batch.tasks) for queue in session._queues.values() for batch in queue.batches)


class Asking:
    """Clients of a session, each in a thread, begun one after the other."""

    def __init__(self, session: BatchingSession, pool: ThreadPoolExecutor) -> None:
        self.session = session
        self.pool = pool

    def __call__(
        self, feeds: dict[str, Any], fetches: tuple[str, ...] = ("double",), timeout_ms: int = 0
    ) -> Future[Any]:
        before = waiting(self.session)
        future = self.pool.submit(self.session.run, feeds, list(fetches), timeout_ms)
        until(lambda: future.done() or waiting(self.session) > before)
        return future


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def first_is_held(run: Doubling, session: BatchingSession, pool: ThreadPoolExecutor) -> tuple[Asking, Future[Any]]:
    """The one batch thread is busy with a first request: what comes now waits."""
    first = pool.submit(session.run, rows(0), ["double"])
    assert run.begun.wait(30)
    return Asking(session, pool), first


def test_queued_requests_are_computed_in_one_batch(pool: ThreadPoolExecutor) -> None:
    run, metrics = Doubling(held=True), Metrics()
    session = session_of(run, metrics, max_batch_size=4)
    ask, first = first_is_held(run, session, pool)
    others = [ask(rows(*values)) for values in ((1,), (2, 3), (4,), (5, 6))]
    run.go.set()
    assert first.result(30)[0].tolist() == [[0, 0]]
    answers = [other.result(30)[0][:, 0].tolist() for other in others]
    assert answers == [[2], [4, 6], [8], [10, 12]]
    assert run.sizes == [1, 4, 2]  # four rows fill a batch
    page = metrics.page()
    assert ":tensorflow:serving:batching_session:wrapped_run_count{} 3\n" in page
    assert ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name=""} 5\n' in page
    limits = re.findall(r'queuing_latency_bucket\{thread_pool_name="",le="(.*?)"\}', page)
    assert (len(limits), limits[0], limits[1], limits[-1]) == (53, "100", "120", "+Inf")


def test_requested_outputs_are_returned(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run)
    ask, first = first_is_held(run, session, pool)
    swapped, both = ask(rows(1), ("triple", "double")), ask(rows(2), ("double", "triple"))
    run.go.set()
    first.result(30)
    assert [array[0, 0] for array in swapped.result(30)] == [3, 2]
    assert [array[0, 0] for array in both.result(30)] == [4, 6]
    assert run.sizes == [1, 2]


def test_a_batch_waits_for_its_timeout_or_until_it_is_full(pool: ThreadPoolExecutor) -> None:
    run = Doubling()
    session = session_of(run, max_batch_size=2, batch_timeout_micros=LONG)
    ask = Asking(session, pool)
    started = time.monotonic()
    one = ask(rows(1))
    assert not one.done()
    ask(rows(2)).result(30)
    one.result(30)
    assert time.monotonic() - started < LONG / 2e6
    assert run.sizes == [2]
    run = Doubling()
    started = time.monotonic()
    session_of(run, max_batch_size=2, batch_timeout_micros=200_000).run(rows(1), ["double"])
    assert time.monotonic() - started >= 0.2


def test_waiting_queue_is_scheduled_while_another_computes(pool: ThreadPoolExecutor) -> None:
    """Two threads, one in a long batch: the other must wake for a batch whose time comes meanwhile."""
    run = Doubling(held=True)
    session = session_of(run, threads=2, max_batch_size=2, batch_timeout_micros=100_000)
    full = pool.submit(session.run, rows(1, 2), ["double"])
    assert run.begun.wait(30)
    other = pool.submit(session.run, rows(3), ["triple"])
    until(lambda: len(run.sizes) == 2)
    run.go.set()
    full.result(30)
    assert other.result(30)[0][0, 0] == 9


def test_a_full_queue_is_unavailable(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run, max_batch_size=2, max_enqueued_batches=2)
    ask, first = first_is_held(run, session, pool)
    accepted = [ask(rows(value)) for value in (1, 2, 3, 4)]
    with pytest.raises(RequestError) as refused:
        session.run(rows(5), ["double"])
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert refused.value.message == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2"
    )
    with pytest.raises(RequestError, match="Task size 3 is larger than maximum input batch size 2") as refused:
        session.run(rows(1, 2, 3), ["double"])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    run.go.set()
    assert [future.result(30)[0][0, 0] for future in (first, *accepted)] == [0, 2, 4, 6, 8]
    assert session.run(rows(5), ["double"])[0][0, 0] == 10  # there is room again


def test_padding_to_the_allowed_sizes(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run, max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    ask, first = first_is_held(run, session, pool)
    others = [ask(rows(value)) for value in (1, 2, 3)]
    run.go.set()
    assert [future.result(30)[0].tolist() for future in (first, *others)] == [[[v, v]] for v in (0, 2, 4, 6)]
    assert run.sizes == [2, 4]


def test_deadlines(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run)
    ask, first = first_is_held(run, session, pool)
    late, patient = ask(rows(1), timeout_ms=100), ask(rows(2), timeout_ms=60_000)
    with pytest.raises(RequestError, match=re.escape("Run() timeout exceeded while waiting in batching queue")) as gone:
        late.result(30)  # before the thread is free: nobody is kept beyond his deadline
    assert gone.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    run.go.set()
    first.result(30)
    assert patient.result(30)[0][0, 0] == 4
    assert run.sizes == [1, 1]  # what is too late is not computed
    assert run.timeouts[0] == 0
    assert 1 <= run.timeouts[1] <= 60_000  # what is left of it
    run.go.clear()
    with pytest.raises(RequestError) as slow:
        session.run(rows(3), ["double"], 100)
    assert slow.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    run.go.set()


def test_failing_request_does_not_fail_its_batch(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run)
    ask, first = first_is_held(run, session, pool)
    good, bad, odd = ask(rows(1)), ask(rows(-1)), ask(rows(2, width=3))
    run.go.set()
    first.result(30)
    assert good.result(30)[0].tolist() == [[2, 2]]
    assert odd.result(30)[0].tolist() == [[4, 4, 4]]
    with pytest.raises(RequestError, match="not a photo"):
        bad.result(30)


def test_variable_lengths_are_padded_where_asked(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(run, pad_variable_length_inputs=True)
    ask, first = first_is_held(run, session, pool)
    short, long = ask(rows(1, width=1)), ask(rows(2, width=3))
    run.go.set()
    first.result(30)
    assert short.result(30)[0].tolist() == [[2, 2, 2]]  # with its own first element, as TensorFlow Serving does
    assert long.result(30)[0].tolist() == [[4, 4, 4]]
    assert run.sizes == [1, 2]


def test_large_requests_are_split_where_asked(pool: ThreadPoolExecutor) -> None:
    run = Doubling(held=True)
    session = session_of(
        run, max_batch_size=8, max_execution_batch_size=2, enable_large_batch_splitting=True, max_enqueued_batches=4
    )
    ask, first = first_is_held(run, session, pool)
    one, five = ask(rows(1)), ask(rows(2, 3, 4, 5, 6))
    with pytest.raises(RequestError, match=r"task size is 3 but scheduling capacity is only 2") as refused:
        session.run(rows(7, 8, 9), ["double"])
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    run.go.set()
    first.result(30)
    assert one.result(30)[0][:, 0].tolist() == [2]
    assert five.result(30)[0][:, 0].tolist() == [4, 6, 8, 10, 12]
    assert run.sizes == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (np.zeros((5, 1), np.float32), "0th dimension does not equal the sum"),
    ],
)
def test_outputs_that_cannot_be_shared_out(outputs: Any, message: str) -> None:
    session = session_of(lambda *_: [np.asarray(outputs)])
    with pytest.raises(RequestError, match=message) as refused:
        session.run(rows(1), ["double"])
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_inputs_that_cannot_be_put_together(caplog: pytest.LogCaptureFixture) -> None:
    session = session_of(Doubling())
    with pytest.raises(RequestError, match="must have at least one dimension"):
        session.run({"x": np.asarray(1.0)}, ["double"])
    with pytest.raises(RequestError, match="must have equal 0th-dimension size"):
        session.run({"x": np.zeros((1, 2)), "y": np.zeros((2, 2))}, ["double"])
    assert session.run(rows(), ["double"])[0].shape == (0, 2)

    def broken(*_: Any) -> list[Any]:
        raise RuntimeError("out of memory")

    session = session_of(broken)
    for _ in range(2):  # the thread is still there for the second
        with pytest.raises(RequestError, match="RuntimeError: out of memory"):
            session.run(rows(1), ["double"])
    assert "a batch failed" in caplog.text


def test_parameters_file(tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 32 }\nbatch_timeout_micros { value: 2000 }\nmax_enqueued_batches { value: 5 }\n"
        'num_batch_threads { value: 3 }\nthread_pool_name { value: "pool" }\nallowed_batch_sizes: 8\n'
        "allowed_batch_sizes: 32\npad_variable_length_inputs: true\nenable_large_batch_splitting { value: false }\n"
    )
    parsed = config.batching_parameters(str(file))
    assert parsed == Parameters(32, 2000, 5, 3, "pool", (8, 32), True)
    default = config.batching_parameters("")
    assert (default.max_batch_size, default.batch_timeout_micros, default.max_enqueued_batches) == (1000, 0, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 8", "not a BatchingParameters in protobuf's text form"),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1; was 0"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be at least 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "match max_batch_size; last entry was 4; expected 8"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [8, 8]", "must be positive and increasing"),
        (("max_batch_size { value: 8 } max_execution_batch_size { value: 9 } "
          "enable_large_batch_splitting { value: true }"), "max_execution_batch_size must be from 1 to max_batch_size"),
    ],
)  # fmt: skip
def test_refused_parameters(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(ModelError, match=re.escape(message)):
        config.batching_parameters(str(file))


def test_batching_server(serve: Starter, models: dict[str, Made], tmp_path: Path) -> None:
    """A real process: every client its own scores, by gRPC and REST, in fewer runs than requests."""
    made = models["course"]
    (tmp_path / "batching.config").write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 20000 } num_batch_threads { value: 1 } "
        "max_enqueued_batches { value: 2 } allowed_batch_sizes: 4 allowed_batch_sizes: 8"
    )
    (tmp_path / "monitoring.config").write_text("prometheus_config { enable: true }")
    server = serve(
        "--model_name=course", f"--model_base_path={made.version.parent}", "--enable_batching", "--grpc_max_threads=64",
        f"--batching_parameters_file={tmp_path / 'batching.config'}",
        f"--monitoring_config_file={tmp_path / 'monitoring.config'}",
    ).wait_until_up()  # fmt: skip
    assert "Wrapping session to perform batch processing" in server.text
    assert "without effect" not in server.text
    stub = server.prediction()
    both, wanted = photos(96), scores_of(made)

    def ask(number: int) -> None:
        chosen = (slice(0, 1), slice(1, 2), slice(0, 2))[number % 3]
        if number % 4 == 0:
            code, text = server.http("/v1/models/course:predict", {"instances": both[chosen].tolist()})
            assert code == 200, text
            got = np.array(re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text), float).reshape(-1, 10)
        else:
            answer = stub.Predict(request(made, array=both[chosen]), timeout=60).outputs["dense_7"]
            got = np.array(answer.float_val).reshape(-1, 10)
        assert np.abs(got - wanted[chosen]).max() < 1e-4

    runs = wrapped_runs(server)
    with ThreadPoolExecutor(8) as clients:  # two full batches may wait: none of them is refused
        list(clients.map(ask, range(48)))
    assert 0 < wrapped_runs(server) - runs < 48

    # More than the queue takes, at once: some are refused, in TensorFlow Serving's words, and the others get theirs.
    eight = request(made, array=np.tile(both[:1], (8, 1, 1, 1)))
    refused = []

    def insist(_: int) -> None:
        try:
            assert len(stub.Predict(eight, timeout=60).outputs["dense_7"].float_val) == 80
        except grpc.RpcError as error:
            refused.append((error.code(), error.details()))

    with ThreadPoolExecutor(32) as clients:
        list(clients.map(insist, range(64)))
    message = (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and max_"
    )
    assert 0 < len(refused) < 64
    assert all(code is grpc.StatusCode.UNAVAILABLE and text.startswith(message) for code, text in refused)
    code, text = server.http("/v1/models/course:predict", {"instances": np.tile(both[:1], (9, 1, 1, 1)).tolist()})
    assert code == 400
    assert "Task size 9 is larger than maximum input batch size 8" in text


def wrapped_runs(server: Server) -> int:
    page = server.http("/monitoring/prometheus/metrics")[1]
    found = re.search(r"batching_session:wrapped_run_count\{\} (\d+)", page)
    return int(found[1]) if found else 0


def test_parameters_of_a_model(models: dict[str, Made], tmp_path: Path) -> None:
    """With enable_per_model_batching_parameters the file beside saved_model.pb counts; without it there is none."""
    import shutil

    from clothing_model.server.flags import Flags
    from clothing_model.server.servable import Servable, Settings

    made, feeds = models["course"], photos(96)[:2]
    settings = Settings.of(Flags(model_base_path="/m", enable_batching=True, enable_per_model_batching_parameters=True))
    shutil.copytree(made.version, tmp_path / "1")
    for text, message in ((None, None), ("max_batch_size { value: 1 }", "Task size 2 is larger"), ("x", "not a Batch")):
        if text:
            (tmp_path / "1" / "batching_params.pbtxt").write_text(text)
        if message is None or message.startswith("Task"):
            servable = Servable("m", 1, tmp_path / "1", settings)
            signature = servable.signatures["serving_default"]
            given = {signature.inputs["input_8"].name: feeds}, [signature.outputs["dense_7"].name]
            if message is None:
                assert np.abs(servable.run(*given)[0] - scores_of(made)).max() < 1e-4
            else:
                with pytest.raises(RequestError, match=message):
                    servable.run(*given)
            servable.close()
        else:
            with pytest.raises(RequestError, match=message):
                Servable("m", 1, tmp_path / "1", settings)
