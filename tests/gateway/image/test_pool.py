"""Decode processes: the same pixels as in this process, killed in time, and no harm from one that misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import children, image_bytes
from pictures import arithmetic, bmp, chunk, gif, lossless, png, turned_file

from clothing_contract.fitting import Fit
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    BrokenImage,
    ClientLeft,
    DecoderCrashed,
    GatewayError,
    OutOfTime,
    TooManyPixels,
    Unavailable,
)
from clothing_gateway.image import decode, pool, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decode processes need Linux")

MIB = 1 << 20
LARGEST = 480 * MIB
SIZE = (40, 30)
SECRET = "GATEWAY_TEST_SECRET"
# 50 megapixels of 16-bit RGBA: 2 s of CPU, and 385 MiB.
COSTLY = png((8192, 6144), 16, 6, interlaced=True)
# As many of RGBA in rows take as much memory, and a third of the time.
LARGE = png((8192, 6144), 8, 6)
LIGHT = image_bytes(kind="PNG")


class Counted(pool.DecoderPool):
    """A pool that keeps its counted exits, and shows its processes."""

    def __init__(self, processes=2, largest=LARGEST):
        self.exits = []
        super().__init__(processes, largest, self.exits.append)

    def server(self):
        wait_for(lambda: self._serving is not None)
        return self._serving._process.pid

    def workers(self):
        return children(self.server())

    def of(self, data, *, deadline=None, heavy=False, gone=lambda: False, **options):
        header = decode.read_header(data, 1 << 30, 1 << 40, size=SIZE, **options)
        return decode.decode(
            data, header, SIZE, None, deadline, by=lambda *known: self.decode(*known, heavy=heavy, client_gone=gone)
        )


@pytest.fixture(scope="module")
def decoders():
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv(SECRET, "hidden")
        inherited = os.dup(0)
        stack.callback(os.close, inherited)
        os.set_inheritable(inherited, True)
        made = Counted()
        stack.callback(made.close)
        made.of(LIGHT)  # it is ready
        yield made


@pytest.fixture
def exits(decoders):
    decoders.exits.clear()
    return decoders.exits


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def in_a_thread(function):
    """Run a call that fails; a function that waits for its error."""
    errors = []

    def run():
        try:
            function()
        except GatewayError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def error():
        thread.join(30)
        assert errors
        return errors[0]

    return error


FILES = {
    "progressive cmyk": image_bytes((64, 48), mode="CMYK", progressive=True),
    "jpeg arithmetic": arithmetic((64, 48), 2, 3),
    "jpeg turned": turned_file(image_bytes((64, 48), progressive=True), 6),
    "png": image_bytes((64, 48), "PNG"),
    "png grey 16": png((64, 48), 16, 0),
    "png palette": png((64, 48), 8, 3, before=chunk(b"tRNS", bytes(range(256)))),
    "png rgba 16 interlaced": png((64, 48), 16, 6, interlaced=True),
    "gif": gif((64, 48), transparent=1, disposal=2, interlaced=True),
    "bmp": bmp((64, 48), 24),
    "webp": image_bytes((64, 48), "WEBP"),
    "webp lossless": lossless((64, 48), 30),
    "cut": image_bytes((640, 480), "PNG")[:-3000],
    "cut webp": image_bytes((640, 480), "WEBP")[:-30],
    "pixels that are none": png((64, 48), pixels=chunk(b"IDAT", b"\1\2\3")),
}
OPTIONS = [
    {"resampling": "bicubic"},
    {"resampling": "nearest", "fit": Fit("pad")},
    {"resampling": decode.TF_BILINEAR, "fit": Fit("crop", 35)},
    {"resampling": decode.TF_ANTIALIASED},
    {"resampling": "bilinear", "jpeg_scaling": True},
]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", FILES)
def test_result_is_bit_identical_to_decoding_in_this_process(decoders, name):
    def result(by, size):
        try:
            header = decode.read_header(FILES[name], 1 << 30, 1 << 40, size=size, **options)
            return decode.decode(FILES[name], header, size, by=by)
        except GatewayError as error:
            return type(error), error.detail, error.cause

    for options in OPTIONS:
        for size in (SIZE, None):
            own, others = result(None, size), result(decoders.decode, size)
            if isinstance(own, np.ndarray):
                assert own.dtype == others.dtype
                assert np.array_equal(own, others)
            else:
                assert own == others, options


def test_large_file_and_many_pixels_are_passed_whole(decoders):
    data = image_bytes((1500, 1200), "BMP")  # 5 MB, more than a socket holds
    header = decode.read_header(data, 1 << 30, 1 << 40)
    assert np.array_equal(
        decode.decode(data, header, (900, 800), by=decoders.decode), decode.decode(data, header, (900, 800))
    )


def test_photos_are_decoded_by_the_same_processes(decoders, exits):
    before = decoders.workers()
    for _ in range(5):
        decoders.of(LIGHT)
    assert decoders.workers() == before
    assert exits == []


def test_heavy_photo_yields_the_cpu_and_its_process_ends(decoders, exits):
    decoders.of(LIGHT)
    one = decoders.workers()[-1]
    assert os.getpriority(os.PRIO_PROCESS, one) == os.getpriority(os.PRIO_PROCESS, 0)
    error = in_a_thread(lambda: decoders.of(COSTLY, deadline=Deadline.after(1), heavy=True))
    wait_for(lambda: any(os.getpriority(os.PRIO_PROCESS, pid) >= worker._NICE for pid in decoders.workers()))
    assert isinstance(error(), OutOfTime)
    decoders.of(image_bytes((50, 40), "PNG"), heavy=True)
    assert not any(os.getpriority(os.PRIO_PROCESS, pid) >= worker._NICE for pid in decoders.workers())
    assert exits == ["deadline"]


def test_decode_is_killed_at_its_deadline(decoders, exits):
    start = time.monotonic()
    error = in_a_thread(lambda: decoders.of(COSTLY, deadline=Deadline.after(0.3)))
    wait_for(lambda: time.monotonic() > start + 0.1)
    others = decoders.workers()
    assert isinstance(error(), OutOfTime)
    assert exits == ["deadline"]
    assert len(others) - sum(map(is_running, others)) == 1  # it is gone by now, and so is its memory
    assert decoders.of(LIGHT) is not None


def test_decode_is_killed_when_its_client_is_gone(decoders, exits):
    gone = threading.Event()
    error = in_a_thread(lambda: decoders.of(COSTLY, deadline=Deadline.after(60), gone=gone.is_set))
    gone.set()
    assert isinstance(error(), ClientLeft)
    assert exits == ["client-left"]
    assert decoders.of(LIGHT) is not None


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [(signal.SIGSEGV, DecoderCrashed, "crash"), (signal.SIGABRT, DecoderCrashed, "crash"),
     (signal.SIGKILL, Unavailable, "killed")],
)  # fmt: skip
def test_death_of_a_process_costs_one_photo(decoders, exits, number, kind, reason):
    started = threading.Event()

    def gone():
        started.set()  # it is asked while the photo is decoded
        return False

    error = in_a_thread(lambda: decoders.of(COSTLY, heavy=True, gone=gone))
    assert started.wait(30)
    (one,) = [pid for pid in decoders.workers() if os.getpriority(os.PRIO_PROCESS, pid) >= worker._NICE]
    os.kill(one, number)
    caught = error()
    assert type(caught) is kind
    assert "process" in caught.cause
    assert exits == [reason]
    assert decoders.of(LIGHT) is not None


def test_death_of_an_idle_process_costs_no_photo(decoders, exits):
    decoders.of(LIGHT)
    for pid in decoders.workers():
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not is_running(pid))
    assert decoders.of(LIGHT) is not None
    assert exits == ["killed"] * len(exits)
    assert exits


def test_memory_beyond_the_count_is_refused(decoders, exits):
    header = decode.read_header(LARGE, 1 << 30, 1 << 40)
    with pytest.raises(TooManyPixels, match="more memory than allowed"):
        decode.decode(LARGE, dataclasses.replace(header, cost=header.cost - 100 * MIB), SIZE, by=decoders.decode)
    assert exits == []
    assert decoders.of(LIGHT) is not None


def test_photo_of_the_largest_cost_fits():
    header = decode.read_header(LARGE, 1 << 30, 1 << 40)
    with contextlib.closing(Counted(1, header.cost)) as decoders:
        decode.decode(LARGE, header, None, by=decoders.decode)


def test_process_inherits_neither_descriptors_nor_environment(decoders):
    decoders.of(LIGHT)
    for pid in (decoders.server(), *decoders.workers()):
        names = {line.partition("=")[0] for line in Path(f"/proc/{pid}/environ").read_text().split("\0")} - {""}
        assert names <= {*pool._ENVIRONMENT, "OPENBLAS_NUM_THREADS"}
        sockets = 0
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = str(entry.readlink())
            sockets += target.startswith("socket:")
            assert target == "/dev/null" or target.startswith("socket:") or int(entry.name) == 2
        assert sockets == 1
    for pid in decoders.workers():
        assert str(Path(f"/proc/{pid}/fd/2").readlink()) == "/dev/null"


def test_process_has_limits(decoders):
    decoders.of(LIGHT)
    (one, *_) = decoders.workers()
    lines = Path(f"/proc/{one}/limits").read_text().splitlines()[1:]
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max core file size"] == soft["Max file size"] == "0"
    assert int(soft["Max open files"]) <= 16
    assert int(soft["Max cpu time"]) <= worker._MOST_SECONDS + 60
    assert int(soft["Max address space"]) < 400 * MIB  # an idle one has 120 MiB
    status = Path(f"/proc/{one}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Threads:\t1" in status
    assert Path(f"/proc/{one}/oom_score_adj").read_text() == "1000\n"


# ---- what a process that is taken over may answer ----


class Hostile:
    """A fork server whose workers are threads that answer each photo with the same bytes."""

    def __init__(self, answer):
        self.answer = answer
        self.pids = itertools.count(1)
        self.killed = threading.Event()

    def wait_until_ready(self):
        return True

    def wait(self):
        self.killed.wait()
        return 0

    def kill(self):
        self.killed.set()

    def command(self, command, pid=0, *descriptors):
        if command == worker.END:
            return -signal.SIGKILL
        connection = socket.socket(fileno=os.dup(descriptors[0]))
        threading.Thread(target=self.run, args=(connection,), daemon=True).start()
        return next(self.pids)

    def run(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 20)
            connection.sendall(self.answer)
            self.killed.wait()


def answered(monkeypatch, answer):
    """The result or error of a photo whose worker gives this answer, and the counted exits."""
    monkeypatch.setattr(pool, "_ForkServer", lambda _: Hostile(answer))
    with contextlib.closing(Counted(1)) as decoders:
        try:
            return decoders.of(LIGHT, deadline=Deadline.after(10)), decoders.exits
        except GatewayError as error:
            return error, decoders.exits


PIXELS = SIZE[0] * SIZE[1] * 3


@pytest.mark.parametrize(
    "answer",
    [
        worker.RESPONSE.pack(worker.PIXELS, PIXELS - 1) + bytes(PIXELS - 1),
        worker.RESPONSE.pack(worker.PIXELS, PIXELS + 1) + bytes(PIXELS + 1),
        worker.RESPONSE.pack(worker.PIXELS, (1 << 32) - 1),
        worker.RESPONSE.pack(7, PIXELS) + bytes(PIXELS),
        worker.RESPONSE.pack(worker.ERROR, worker.MAX_ERROR_BYTES + 1) + bytes(worker.MAX_ERROR_BYTES + 1),
        *(
            worker.RESPONSE.pack(worker.ERROR, len(text)) + text
            for text in (
                b"",
                b"\xff",
                b"[]",
                b"[" * 4000,
                b'{"code": "unauthorized", "detail": "a", "cause": null}',
                b'{"code": ["broken-image"], "detail": "a", "cause": null}',
                b'{"code": "broken-image", "detail": 3, "cause": null}',
                b'{"code": "broken-image", "detail": "a", "cause": ["b"]}',
                b'{"code": "broken-image", "detail": "%s", "cause": null}' % (b"a" * 501),
                b'{"code": "broken-image", "detail": "a", "cause": "%s"}' % (b"a" * 501),
            )
        ),
    ],
)
def test_answer_that_is_none_is_refused(monkeypatch, answer):
    error, exits = answered(monkeypatch, answer)
    assert type(error) is DecoderCrashed
    assert exits == ["crash"]


def test_answer_at_the_limits_is_accepted(monkeypatch):
    pixels, exits = answered(
        monkeypatch, worker.RESPONSE.pack(worker.PIXELS, PIXELS) + bytes(range(240)) * (PIXELS // 240)
    )
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    assert exits == []
    text = b'{"code": "broken-image", "detail": "%s", "cause": "b"}' % (b"a" * 500)
    error, exits = answered(monkeypatch, worker.RESPONSE.pack(worker.ERROR, len(text)) + text)
    assert type(error) is BrokenImage
    assert error.detail == "a" * 500
    assert exits == []


def test_answer_before_a_photo_is_refused(decoders, exits):
    decoders.of(LIGHT)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(worker.RESPONSE.pack(worker.PIXELS, PIXELS))
        one = decoders._idle[-1]
        one._connection.close()
        one._connection = ours
        assert decoders.of(LIGHT) is not None
    assert exits == ["killed"]


# ---- the fork server ----


def test_fork_server_that_dies_is_replaced(decoders, exits, caplog):
    server, others = decoders.server(), decoders.workers()
    os.kill(server, signal.SIGKILL)
    for pid in others:
        wait_for(lambda pid=pid: not is_running(pid))
    assert decoders.of(LIGHT, deadline=Deadline.after(30)) is not None
    assert decoders.server() != server
    assert "fork server ended with SIGKILL" in caplog.text


def test_fork_server_that_does_not_start_costs_photos_only(monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with contextlib.closing(Counted(1)) as decoders:
        with pytest.raises(Unavailable) as caught:
            decoders.of(LIGHT, deadline=Deadline.after(30))
        assert caught.value.retry_after == 1
        assert "does not run" in caught.value.cause
        assert "ended with exit code 1" in caplog.text
        monkeypatch.undo()
        wait_for(lambda: decoders._serving is not None)  # tried again, after a pause
        assert decoders.of(LIGHT) is not None


def test_photos_wait_for_a_process_until_their_deadline(decoders, exits):
    gone = threading.Event()
    busy = [in_a_thread(lambda: decoders.of(COSTLY, gone=gone.is_set)) for _ in range(2)]
    wait_for(lambda: decoders._running == 2 and not decoders._idle)
    with pytest.raises(OutOfTime):
        decoders.of(LIGHT, deadline=Deadline.after(0.1))
    gone.set()
    assert {type(error()) for error in busy} == {ClientLeft}
    assert decoders.of(LIGHT) is not None


GATEWAY = textwrap.dedent("""
    import pathlib, sys
    from clothing_gateway.image import decode, pool

    if __name__ == "__main__":
        decoders = pool.DecoderPool(2, 480 << 20)
        data = pathlib.Path(sys.argv[1]).read_bytes()
        header = decode.read_header(data, 1 << 30, 1 << 40)
        decoders.decode(data, header, None, client_gone=lambda: print("decoding", flush=True))
""")


def test_processes_end_with_the_gateway(tmp_path):
    """Also while one decodes, and though nothing has told them."""
    photo = tmp_path / "costly.png"
    photo.write_bytes(COSTLY)
    with subprocess.Popen([sys.executable, "-c", GATEWAY, photo], stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout.readline() == "decoding\n"
        (server,) = children(gateway.pid)
        processes = [server, *children(server)]
        assert len(processes) == 2
        gateway.kill()
    for pid in processes:
        wait_for(lambda pid=pid: not is_running(pid))


def test_closing_ends_all_processes(caplog):
    caplog.set_level(logging.INFO)
    decoders = Counted(1)
    decoders.of(LIGHT)
    processes = [decoders.server(), *decoders.workers()]
    decoders.close()
    wait_for(lambda: not any(map(is_running, processes)))
    assert caplog.text == ""
    with pytest.raises(Unavailable):
        decoders.of(LIGHT)


# ---- in a gateway ----


def test_gateway_kills_a_decode_and_survives_a_crash(start_gateway, model_server):
    gateway = start_gateway(model_server.address, decode_processes=2)
    assert gateway.post("/predict", LIGHT)[0] == 200
    (server,) = children(gateway.pid)

    status, problem, _ = gateway.post("/predict", COSTLY, **{"X-Request-Timeout-Ms": "400"})
    assert (status, problem["code"]) == (504, "out-of-time")
    wait_for(lambda: not children(server))

    def crash():
        wait_for(lambda: children(server))
        os.kill(*children(server), signal.SIGSEGV)

    crashing = threading.Thread(target=crash)
    crashing.start()
    status, problem, _ = gateway.post("/predict", COSTLY)
    crashing.join()
    assert (status, problem["code"]) == (422, "decoder-crashed")

    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n" % len(COSTLY) + COSTLY)
        wait_for(lambda: children(server))
    wait_for(lambda: not children(server))

    assert gateway.post("/predict", LIGHT)[0] == 200
    metrics = gateway.admin("/metrics")[1]
    for reason, count in {"deadline": 1, "client-left": 1, "crash": 1, "killed": 0}.items():
        assert f'gateway_decode_process_exits_total{{reason="{reason}"}} {count}.0' in metrics
    processes = [server, *children(server)]
    assert gateway.stop() == 0
    wait_for(lambda: not any(map(is_running, processes)))
    assert "fork server" not in "".join(gateway.log)


def test_gateway_without_decode_processes(start_gateway, model_server):
    gateway = start_gateway(model_server.address, decode_processes=0)
    assert gateway.post("/predict", LIGHT)[0] == 200
    assert children(gateway.pid) == []
