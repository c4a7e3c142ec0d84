"""`make demo`: runs model server and gateway on loopback, classifies a photo.

Runs until Ctrl-C, SIGINT, SIGTERM or SIGHUP, with or without a terminal, and takes both processes with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "model-image/demo-model/clothing-model"
PHOTO = ROOT / "charts/clothing-classifier/files/photo.png"
GATEWAY, ADMIN, GRPC, REST = 9696, 9697, 8500, 8501
START_SECONDS = 120  # TensorFlow's first import from a cold disk takes most of it


class Stopped(Exception):
    """A signal asked the demo to end."""


def say(text: str = "") -> None:
    print(text, flush=True)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def request(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text of an answer; 0 while nothing listens."""
    headers = {"Content-Type": "image/png"} if body else {}
    try:
        # The address is one of the constants above.
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def start(name: str, *command: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    # In this process's group: Ctrl-C reaches all of it, and so does a signal to the group where there is no terminal.
    log = ROOT / f".cache/demo/{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_until_ready(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + START_SECONDS
    waiting_for = ""
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                log = ROOT / f".cache/demo/{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise SystemExit(f"demo: the {name} ended with code {process.returncode}; the end of {log}:\n{tail}")
        status, text = request(f"http://127.0.0.1:{ADMIN}/readyz")
        if status == 200:
            return
        if time.monotonic() > end:
            raise SystemExit(f"demo: not ready after {START_SECONDS} s: {waiting_for or text}; logs: .cache/demo/")
        if status:
            reason = json.loads(text)["reason"].partition(" (")[0]  # without gRPC's own words
            if reason != waiting_for:
                waiting_for = reason
                say(f"    waiting: {reason}")
        time.sleep(0.1)


def stop(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes.values()):
        if process.poll() is None:
            process.terminate()
    for process in reversed(processes.values()):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def on_signal(number: int, _frame: object) -> None:
    # Once: the second Ctrl-C of an impatient user must not cut the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


def main() -> int:
    # Set here because a shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, on_signal)
    busy = [str(port) for port in (GATEWAY, ADMIN, GRPC, REST) if taken(port)]
    if busy:
        say(f"demo: port {', '.join(busy)} of 127.0.0.1 is in use: another demo? Stop what listens there first")
        return 1
    processes: dict[str, subprocess.Popen[bytes]] = {}
    began = time.monotonic()
    try:
        say("==> starting the model server (127.0.0.1:8500) and the gateway (127.0.0.1:9696)")
        processes["model server"] = start(
            "model server",
            ROOT / "model-image/.venv/bin/clothing-model",
            "serve",
            f"--port={GRPC}",
            f"--rest_api_port={REST}",
            "--listen_host=127.0.0.1",
            "--model_name=clothing-model",
            f"--model_base_path={MODEL}",
            "--grpc_max_threads=64",  # above 32 photos in flight: a call without a thread is refused
        )
        processes["gateway"] = start(
            "gateway",
            ROOT / "gateway/.venv/bin/clothing-gateway",
            "serve",
            TF_SERVING_HOST=f"127.0.0.1:{GRPC}",
            GATEWAY_LISTEN_HOST="127.0.0.1",
            GATEWAY_DRAIN_DELAY_SECONDS="0",  # no load balancer to wait for
        )
        wait_until_ready(processes)
        say(f"    ready after {time.monotonic() - began:.1f} s")
        say(f"==> classifying {PHOTO.relative_to(ROOT)}")
        status, text = request(f"http://127.0.0.1:{GATEWAY}/classify?top=3", PHOTO.read_bytes())
        if status != 200:
            raise SystemExit(f"demo: the gateway answered {status}: {text}")
        for found in json.loads(text)["predictions"]:
            say(f"    {found['label']:<12} {found['probability']:.3f}  {'#' * round(40 * found['probability'])}")
        say()
        say(f"page     http://127.0.0.1:{GATEWAY}, in a browser   admin  http://127.0.0.1:{ADMIN}/readyz  /metrics")
        say(f"yours:   curl -F image=@photo.jpg http://127.0.0.1:{GATEWAY}/predict")
        say("         curl -H 'Content-Type: application/json' -d '{\"url\": \"https://example.org/photo.jpg\"}' \\")
        say(f"              http://127.0.0.1:{GATEWAY}/predict")
        say("Ctrl-C ends it.")
        ended = threading.Event()
        while not ended.wait(0.5):
            for name, process in processes.items():
                if process.poll() is not None:
                    say(f"demo: the {name} ended with code {process.returncode}; see .cache/demo/{name}.log")
                    return 1
    except Stopped as signalled:
        say(f"\n==> {signalled}: stopping")
        return 0
    finally:
        stop(processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
