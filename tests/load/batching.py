"""Throughput of the portable server for 16 clients, with batching and without.

    model-image/.venv/bin/python tests/load/batching.py [--rounds N]

The two servers take turns, so that a busy machine slows both. On a quiet machine of 2 cores batching gives 1.6 times
the photos. It is a figure and no test: on a busy machine it was 0.95.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "model"), str(Path(__file__).parents[1])]

from served import Made, Server, request, starter  # noqa: E402 - in tests/model

from model_factory import photos  # noqa: E402 - in tests

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "model-image/demo-model/clothing-model"
BATCHING = "max_batch_size { value: 8 } batch_timeout_micros { value: 5000 } num_batch_threads { value: 2 }"


def rate(server: Server, message: Any, count: int = 192) -> float:
    """Photos per second."""
    stub = server.prediction()
    stub.Predict(message, timeout=60)
    with ThreadPoolExecutor(16) as clients:
        started = time.monotonic()
        list(clients.map(lambda _: stub.Predict(message, timeout=60), range(count)))
        return count / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server (default: 5)")
    rounds = parser.parse_args().rounds
    os.environ.setdefault("PYTHONPATH", str(ROOT / "model-image/src"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "batching.config").write_text(BATCHING)
        start = stack.enter_context(starter(folder))
        flags = ("--model_name=clothing-model", f"--model_base_path={DEMO}", "--grpc_max_threads=64")
        alone = start(*flags)
        batching = start(*flags, "--enable_batching", f"--batching_parameters_file={folder / 'batching.config'}")
        demo = Made("clothing-model", "", "photo", "scores", 160, 10, DEMO, DEMO / "1")
        message = request(demo, array=photos(160)[:1])
        for server in (alone, batching):
            rate(server.wait_until_up(), message, 32)
        found = []
        for number in range(rounds):
            found.append((rate(alone, message), rate(batching, message)))
            print(f"round {number + 1}: alone {found[-1][0]:.0f}, batching {found[-1][1]:.0f} photos/s", flush=True)
    print(f"batching / alone: {statistics.median(b / a for a, b in found):.2f} (median of {rounds})")


if __name__ == "__main__":
    main()
