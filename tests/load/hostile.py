"""Honest clients beside hostile ones: cost of each attack, answered share.

    hostile.py [--seconds N] [--kinds silent,thin…] [--costly N]

The gateway runs as a process of its own with the memory settings that the chart derives for a limit of 1 GiB; two
honest clients send a photo each quarter of a second on new connections, without the attack and then beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import procs
import programs
import urllib3
from stats import quantile
from systems import image_variables

from processes import GATEWAY_BIN, SAMPLE, free_port

LIMIT = 1 << 30  # the chart's default limit of memory
PATIENCE_SECONDS = 10.0
# Another client than the attacker, which sends from 127.0.0.1: some limits are shares of each client's.
HONEST = "127.0.0.2"
_ATTACKER = (Path(__file__).parent / "attacker/main.go").read_text()
KINDS = tuple(re.findall(r"^//\t(\w+)(?: |$)", _ATTACKER.split("Kinds", 1)[1], re.MULTILINE))
# What a gateway may answer to each kind; "" is a connection that it closed without an answer.
ANSWERS = {
    "silent": {"", "408"},
    "half": {"", "400", "408"},
    "slow": {"", "408"},
    "unread": {""},
    "floods": {"", "200"},
    "fields": {"", "431"},
    "heads": {"", "415", "422", "503"},
    "blank": {"", "400"},
    "digits": {"", "400"},
    "unfinished": {"", "408", "413", "503"},
    "huge": {"", "413"},
    "endless": {"", "408", "413"},
    "bytes": {"", "400", "408", "413"},
    "morsels": {"", "400", "408", "413"},
    "forms": {"", "400", "413", "503"},
    "extension": {"", "400", "413", "431"},
    "json": {"", "413"},
    "pixels": {"413"},
    "text": {"200", "413"},
    "thin": {"413"},
    "scans": {"413", "415", "422"},
    "runs": {"413", "415", "422"},
    "segments": {"", "413", "422", "503"},
    "chunks": {"", "413", "422", "503"},
    "profiles": {"", "413", "422", "503"},
    "comments": {"", "413", "422", "503"},
    "costly": {"200", "503", "504"},
    "deep": {"200", "503", "504"},
    "refined": {"200", "503", "504"},
    "middle": {"200", "503", "504"},
    "large": {"", "200", "503", "504"},
    "urls": {"", "200", "503", "504"},  # 200 names each photo's own error
    "fetches": {"", "424", "503", "504"},
    "crumbs": {"", "424", "503", "504"},
    "pinches": {"", "415", "424", "503", "504"},
    "admin": {"", "404", "408"},  # 404 to the pipelined GETs
}
# Valid photos that take long to decode: they take their client's own turns in the slots and the decode queue.
COSTLY = ("costly", "deep", "refined", "middle", "large")
# Kinds that cost the attacker next to nothing, so that they can run beside a measurement of throughput.
CHEAP = ("silent", "half", "slow", "huge", "endless", "pixels", "text")
_DECODE_MEMORY = """
from clothing_gateway.limits import memory
from clothing_gateway.settings import Settings
s = Settings()
print(memory.for_decoders(s.max_buffered_bytes, s.max_in_flight, s.decode_processes, 1 << 30))
"""


@dataclass
class Honest:
    """Context manager: honest clients, each sending a photo every quarter second.

    Each photo has a new connection.
    """

    url: str
    photo: bytes
    seconds: list[float] = field(default_factory=list)
    statuses: list[int | str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            started = time.monotonic()
            status: int | str
            try:
                with urllib3.PoolManager(timeout=PATIENCE_SECONDS, retries=False, source_address=(HONEST, 0)) as pool:
                    headers = {"Content-Type": "image/png", "Connection": "close"}
                    status = pool.request("POST", self.url, body=self.photo, headers=headers).status
            except urllib3.exceptions.HTTPError as error:
                status = type(error).__name__
            self.seconds.append(time.monotonic() - started)
            self.statuses.append(status)

    @property
    def answered(self) -> float:
        """The share of photos that were answered with 200."""
        return self.statuses.count(200) / len(self.statuses)

    @property
    def p99(self) -> float:
        return quantile(self.seconds, 0.99)


@dataclass(frozen=True)
class Result:
    """Result of one attack: honest clients calm and attacked, gateway, attacker.

    The gateway's part is CPU and memory, the attacker's its responses by status.
    """

    kind: str
    calm: Honest
    attacked: Honest
    cpu_seconds: float
    sent_bytes: int
    peak_bytes: int
    answers: dict[str, int]
    alive: bool

    def row(self) -> str:
        megabytes = self.sent_bytes / 1e6
        return (
            f"{self.kind:<11} {self.attacked.answered:>6.1%} answered, p99 {self.attacked.p99:6.3f} s "
            f"(calm {self.calm.p99:.3f}); gateway {self.cpu_seconds:5.2f} CPU s for {megabytes:8.2f} MB, "
            f"{self.cpu_seconds / max(megabytes, 0.001):9.3f} a MB; peak {self.peak_bytes >> 20} MiB; "
            f"{'alive' if self.alive else 'KILLED'}; attacker got {self.answers}"
        )


@contextlib.contextmanager
def attack(target: str, kind: str, slow: str, admin: str, costly: int = 40) -> Iterator[dict[str, Any]]:
    """The attacker, while the block runs; afterwards ``answers`` and ``sent``."""
    command = [programs.BIN / "attacker", "-target", target, "-kinds", kind]
    command += ["-listen", slow, "-admin", admin, "-costly", str(costly)]
    found: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            found["answers"] = json.loads(process.stdout.readline())[kind]
            found["sent"] = json.loads(process.stdout.readline())[kind]


def measure(kind: str, seconds: float, calm_seconds: float, costly: int = 40) -> Result:
    """Measure honest clients of a new gateway, calm and beside one kind of attack."""
    done = subprocess.run([GATEWAY_BIN / "python", "-c", _DECODE_MEMORY], check=True, stdout=subprocess.PIPE, text=True)
    port, slow, admin = free_port(), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    target = f"http://127.0.0.1:{port}/predict"
    with programs.model_server() as (_, model):
        variables = image_variables() | {
            "TF_SERVING_HOST": model,
            "GATEWAY_LISTEN_PORT": str(port),
            "GATEWAY_ADMIN_LISTEN_PORT": admin.rpartition(":")[2],
            "GATEWAY_DRAIN_DELAY_SECONDS": "0",
            "GATEWAY_DECODE_MEMORY_BYTES": done.stdout.strip(),
            "GATEWAY_FETCH_ALLOWED_NETWORKS": "127.0.0.0/8",
            "GATEWAY_FETCH_ALLOWED_PORTS": slow.rpartition(":")[2],
        }
        running = programs.start(f"hostile-{kind}", [GATEWAY_BIN / "clothing-gateway", "serve"], **variables)
        with programs.stopping(running):
            programs.wait_until(running, lambda: programs.answers(f"http://{admin}/readyz"))
            photo = SAMPLE.read_bytes()
            with Honest(target, photo) as calm:
                time.sleep(calm_seconds)
            before = running.usage().cpu_seconds
            pid = running.process.pid
            with (
                attack(target, kind, slow, admin, costly) as found,
                Honest(target, photo) as attacked,
                procs.PeakMemory(pid) as peak,
            ):
                time.sleep(seconds)
                alive = running.process.poll() is None and _healthy(admin)
                used = running.usage().cpu_seconds - before if running.process.poll() is None else 0.0
    return Result(kind, calm, attacked, used, found["sent"], peak.bytes, found["answers"], alive)


def _healthy(admin: str) -> bool:
    try:
        return programs.answers(f"http://{admin}/healthz")
    except OSError:
        return False


def main() -> int:
    """Print a line for each kind of attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=20, help="how long each attack lasts")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, separated by commas")
    parser.add_argument("--costly", type=int, default=40, help="connections of each kind of costly photos")
    arguments = parser.parse_args()
    programs.build()
    for kind in arguments.kinds.split(","):
        print(measure(kind, arguments.seconds, 4, arguments.costly).row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
