"""CPU and memory of process groups, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")
_STARTED = 19  # starttime among the fields of stat, counted from the third
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and page faults since the start, including ended children."""

    cpu_seconds: float
    minor_faults: int

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.cpu_seconds - before.cpu_seconds, self.minor_faults - before.minor_faults)


def _stat(pid: str) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on; None for an ended process."""
    try:
        text = (PROC / pid / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()  # the second field, the name, may hold blanks and brackets


def family(leader: int) -> dict[int, list[str]]:
    """Running processes of a leader's session and all their children, with stat.

    Some open sessions of their own for their workers, and some workers outlive who started them.
    """
    everyone = {int(entry.name): _stat(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()}
    there = {pid: fields for pid, fields in everyone.items() if fields is not None and fields[0] != "Z"}
    found = {pid for pid, fields in there.items() if int(fields[3]) == leader}
    while more := {pid for pid, fields in there.items() if int(fields[1]) in found} - found:
        found |= more
    return {pid: there[pid] for pid in found}


def survivors(family: dict[int, list[str]]) -> list[int]:
    """Processes of a family that still run; a reused process id is none of them."""
    now = {pid: _stat(str(pid)) for pid in family}
    return [
        pid
        for pid, fields in now.items()
        if fields is not None and fields[0] != "Z" and fields[_STARTED] == family[pid][_STARTED]
    ]


def usage(leader: int) -> Usage:
    """CPU seconds and page faults of a process and its descendants."""
    ticks = faults = 0
    for fields in family(leader).values():
        faults += int(fields[7]) + int(fields[8])  # minflt, cminflt
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return Usage(ticks / TICK, faults)


def machine_busy_seconds() -> float:
    """Busy CPU time of the whole machine."""
    user, nice, system, _idle, _wait, irq, soft = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft) / TICK


def pss_bytes(leader: int) -> int:
    """PSS of a process and its descendants, in bytes."""
    total = 0
    for pid in family(leader):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


class PeakMemory:
    """Peak memory of these processes during the block, sampled ten times a second."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.bytes = max(self.bytes, pss_bytes(self._leader))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.bytes = max(self.bytes, pss_bytes(self._leader))
