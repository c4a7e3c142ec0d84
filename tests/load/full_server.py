"""Responses to clients of a slow model server with few threads.

It refuses calls as TensorFlow Serving does.

    full_server.py [--seconds N] [--threads 4,8,64] [--delay 200ms] [--clients N]

A gateway with its default settings asks one server; the clients wait as long as a 503's Retry-After says. Printed are
their answers, the gateway's error codes, and whether /readyz was 200 throughout.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import programs
import urllib3
from stats import quantile
from systems import image_variables

from processes import GATEWAY_BIN, LABELS, SAMPLE, free_port

_ERROR = re.compile(r'^gateway_errors_total\{code="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """Responses to patient clients of a full server, and the gateway's readiness."""

    threads: int
    answers: dict[str, int]  # by HTTP status
    errors: dict[str, int]  # by the gateway's error code
    not_ready: list[str]  # what /readyz said when it was not 200
    without_retry_after: int
    p99_ms: float

    def row(self) -> str:
        ready = f"not ready: {Counter(self.not_ready)}" if self.not_ready else "ready throughout"
        return f"{self.threads:>3} threads: {self.answers}, {self.errors}, p99 of 200s {self.p99_ms:.0f} ms, {ready}"


def measure(threads: int, seconds: float, delay: str = "200ms", clients: int = 24) -> Result:
    """Start a server with these threads and a gateway, and send photos for a while."""
    admin = f"http://127.0.0.1:{free_port()}"
    port = free_port()
    with programs.model_server("-delay", delay, "-threads", str(threads)) as (_, model):
        variables = image_variables() | {
            "TF_SERVING_HOST": model,
            "GATEWAY_LISTEN_PORT": str(port),
            "GATEWAY_ADMIN_LISTEN_PORT": admin.rpartition(":")[2],
            "GATEWAY_DRAIN_DELAY_SECONDS": "0",
        }
        running = programs.start("full-server", [GATEWAY_BIN / "clothing-gateway", "serve"], **variables)
        with programs.stopping(running), tempfile.TemporaryDirectory() as folder:
            programs.wait_until(running, lambda: programs.answers(f"{admin}/readyz"))
            base = f"http://127.0.0.1:{port}/predict"
            body = SAMPLE.read_bytes()
            answer = urllib3.request("POST", base, body=body, headers={"Content-Type": "image/png"})
            photos = Path(folder) / "photos.json"
            scores = [answer.json()[label] for label in LABELS]
            photos.write_text(json.dumps([{"path": str(SAMPLE), "url": "", "scores": scores}]))
            not_ready: list[str] = []
            stop = threading.Event()
            watch = threading.Thread(target=_watch, args=(f"{admin}/readyz", not_ready, stop))
            watch.start()
            flags = ["-clients", str(clients), "-seconds", str(seconds), "-patient"]
            measured = programs.load(base, photos, *flags)
            stop.set()
            watch.join()
            errors = _ERROR.findall(urllib3.request("GET", f"{admin}/metrics").data.decode())
    latencies: list[int] = measured["latencies_us"].get("200", [0])  # type: ignore[attr-defined]
    return Result(
        threads,
        measured["statuses"],  # type: ignore[arg-type]
        {code: int(float(count)) for code, count in errors if float(count)},
        not_ready,
        int(measured["without_retry_after"]),  # type: ignore[call-overload]
        quantile(latencies, 0.99) / 1000,
    )


def _watch(url: str, not_ready: list[str], stop: threading.Event) -> None:
    http = urllib3.PoolManager(timeout=5, retries=False)
    while not stop.is_set():
        answer = http.request("GET", url)
        if answer.status != 200:
            not_ready.append(answer.data.decode()[:200])
        time.sleep(0.25)


def main() -> int:
    """Print a line for each number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long each load lasts")
    parser.add_argument("--threads", default="4,8,64", help="the server's threads, separated by commas")
    parser.add_argument("--delay", default="200ms", help="how long the model takes for a photo")
    parser.add_argument("--clients", type=int, default=24, help="clients at the same time")
    arguments = parser.parse_args()
    programs.build()
    for threads in arguments.threads.split(","):
        print(measure(int(threads), arguments.seconds, arguments.delay, arguments.clients).row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
