"""Builds Go programs and the peers' environments; starts and stops processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import procs

from processes import ROOT, free_port

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache/bench"
BIN = CACHE / "bin"
LOGS = CACHE / "logs"
START_SECONDS = 90


class BenchError(Exception):
    """Something is missing or fails; the text states the cause and the fix."""


def build() -> None:
    """Build the Go programs; quick with Go's cache when nothing has changed."""
    BIN.mkdir(parents=True, exist_ok=True)
    wanted = next(line.split()[1] for line in (HERE / "go.mod").read_text().splitlines() if line.startswith("go "))
    found = subprocess.run([ROOT / "ci/find-go", wanted], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise BenchError(f"the load tests' programs are written in Go. Install Go {wanted} or newer.")
    done = subprocess.run(
        [found.stdout.strip(), "build", "-C", HERE, "-trimpath", "-o", f"{BIN}/", "./..."],
        env=os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"},
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(
            f"the programs in tests/load did not build; their packages come from the Go proxy (GOPROXY):\n{done.stderr}"
        )


def environment(name: str, lock: Path, say: Callable[[str], object]) -> Path:
    """Create a virtual environment from a hashed lock, if it is out of date.

    Returns its folder.
    """
    folder = CACHE / "envs" / name
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    say(f"installing {lock.relative_to(ROOT)} (the first time: minutes)")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    commands: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", "--clear", folder],
        [folder / "bin/python", *pip, "-r", lock],
    ]
    for command in commands:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{lock.relative_to(ROOT)} could not be installed:\n{done.stderr.strip()[-2000:]}")
    stamp.write_text(digest)
    return folder


def build_jpeg(source: Path, folder: Path) -> None:
    """Build a checkout's native core into a folder, for PYTHONPATH."""
    pip = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--upgrade"]
    command = [sys.executable, "-m", *pip, "--target", folder, source]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{source} did not build; run make dev first:\n{done.stderr.strip()[-1500:]}")


@dataclass
class Running:
    """A process and its descendants, in a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise BenchError when it has ended."""
        if self.process.poll() is not None:
            end = self.log.read_text(errors="replace")[-1500:]
            raise BenchError(f"{self.name} ended with {self.process.returncode}; its log:\n{end}")

    def usage(self) -> procs.Usage:
        return procs.usage(self.process.pid)

    def stop(self) -> None:
        """Send SIGTERM to the process; after ten seconds SIGKILL to all that it started."""
        family = procs.family(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        for pid in procs.survivors(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def start(name: str, command: list[str | Path], folder: Path = ROOT, **variables: str) -> Running:
    """Start a process with its output in a log file."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "TF_SERVING_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env=inherited | variables,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Running(name, process, log)


@contextlib.contextmanager
def stopping(running: Running) -> Iterator[Running]:
    """Stop it at the end of the block."""
    try:
        yield running
    finally:
        running.stop()


def wait_until(running: Running, ready: Callable[[], object]) -> None:
    """Wait until ``ready`` returns a true value; it may raise OSError until then."""
    end = time.monotonic() + START_SECONDS
    while True:
        running.check()
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            if ready():
                return
        if time.monotonic() > end:
            raise BenchError(f"{running.name} was not ready within {START_SECONDS} s; its log is {running.log}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a GET returns 200."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)


def connects(port: int) -> bool:
    """Whether the port accepts connections."""
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


@contextlib.contextmanager
def model_server(*flags: str, name: str = "modelserver") -> Iterator[tuple[Running, str]]:
    """Start the model server that answers at once; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    with stopping(start(name, [BIN / "modelserver", "-listen", address, *flags])) as running:
        wait_until(running, lambda: connects(int(address.rpartition(":")[2])))
        yield running, address


@contextlib.contextmanager
def photo_server(*folders: Path, delay: str = "0s") -> Iterator[tuple[Running, str]]:
    """Start the photo server; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    command: list[str | Path] = [BIN / "photoserver", "-listen", address, "-delay", delay, *folders]
    with stopping(start("photoserver", command)) as running:
        wait_until(running, lambda: connects(int(address.rpartition(":")[2])))
        yield running, address


def load(target: str, photos: Path, *flags: str) -> dict[str, object]:
    """Run the load generator; returns its measurements."""
    done = subprocess.run(
        [BIN / "loadgen", "-target", target, "-photos", photos, *flags],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the load generator ended with {done.returncode}: {done.stderr.strip()}")
    measured: dict[str, object] = json.loads(done.stdout)
    return measured
