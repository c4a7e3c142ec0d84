"""make bench: the CPU cost of a photo, in this gateway and in other servers.

All systems run at the same time, and each is loaded in turn, round by round, so that a slow minute of the machine is
everyone's. docs/performance.md says how to read what comes out.

    bench.py [--quick | --ways] [--rounds N] [--only NAME…] [--against CHECKOUT] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import photos
import procs
import programs
import report
from programs import CACHE, HERE, BenchError, Running
from stats import quantile
from systems import OURS, SYSTEMS, Address, Form, System, before
from targets import checks
from ways import WAYS, Way

from processes import ROOT

# Photos for a process that has just started: enough for a mean, few enough that none of it is warm.
FRESH_PHOTOS = 300
FRESH_ROUNDS = 3
# A load shorter than this does not average out who ran when.
SMALL_SECONDS, LARGE_SECONDS = 2.0, 2.5
_STARTED = time.monotonic()


def say(words: str) -> None:
    """Print a line of progress."""
    elapsed = int(time.monotonic() - _STARTED)
    print(f"[{elapsed // 60:2}:{elapsed % 60:02}] {words}", flush=True)


@dataclass
class Bench:
    """One run: the helper processes, the systems, and the results."""

    model: Running
    model_address: str
    photo_host: Running
    photo_address: str
    listings: dict[str, Path]
    results: dict[str, Any]
    rounds: int
    live: dict[str, tuple[System, Running, Address]] = field(default_factory=dict)

    def failed(self, system: System, error: Exception) -> None:
        """Note it and go on: one that fails does not take the others' results with it."""
        self.results["failures"][system.name] = str(error)
        say(f"{system.title} FAILED and is left out from here on: {error}")

    def load(
        self, running: Running, address: Address, form: Form, photo_set: str, clients: int, *flags: str
    ) -> dict[str, Any]:
        """One load on one system, and what it cost."""
        running.check()
        known = (running, self.model, self.photo_host)
        before = [one.usage() for one in known]
        busy = procs.machine_busy_seconds()
        measured: dict[str, Any] = programs.load(
            address.url + form.path, self.listings[photo_set], *form.flags(), "-clients", str(clients), *flags
        )
        busy = procs.machine_busy_seconds() - busy
        used, model, photo_host = (one.usage() - was for one, was in zip(known, before, strict=True))
        running.check()
        statuses = measured["statuses"]
        good = statuses.get("200", 0)
        if not good:
            raise BenchError(f"no photo was answered: {statuses} {measured['errors']} {measured.get('first_wrong')}")
        latencies = measured["latencies_us"]["200"]
        ours = used.cpu_seconds + model.cpu_seconds + photo_host.cpu_seconds + measured["loadgen_cpu_seconds"]
        return {
            "photos": good,
            "seconds": measured["seconds"],
            "cpu_ms": used.cpu_seconds * 1000 / good,  # per photo, which is seconds per 1,000 photos
            "photos_per_second": good / measured["seconds"],
            "p50_ms": quantile(latencies, 0.5) / 1000,
            "p99_ms": quantile(latencies, 0.99) / 1000,
            "max_ms": max(latencies) / 1000,
            "faults": used.minor_faults / good,
            "statuses": statuses,
            "other_answers": measured["requests"] - good - statuses.get("503", 0),
            "errors": measured["errors"],
            "wrong": measured["wrong"],
            "first_wrong": measured.get("first_wrong"),
            "model_cpu_ms": model.cpu_seconds * 1000 / good,
            "photo_host_cpu_ms": photo_host.cpu_seconds * 1000 / good,
            "loadgen_cpu_ms": measured["loadgen_cpu_seconds"] * 1000 / measured["requests"],
            "others_cores": max(0.0, busy - ours) / measured["seconds"],
        }

    def warm_up(self, system: System, running: Running, address: Address) -> None:
        """Warm a new process up with its first photos, of 12 MP among them."""
        first = "url" if "url" in system.forms else "upload"
        clients = system.clients
        fresh = self.load(running, address, system.forms[first], "small", clients, "-requests", str(FRESH_PHOTOS))
        for name, form in system.forms.items():
            if name != first:
                self.load(running, address, form, "small", clients, "-requests", "100")
        small = procs.pss_bytes(running.process.pid)
        last = system.forms.get("upload", system.forms[first])
        with procs.PeakMemory(running.process.pid) as peak:
            self.load(running, address, last, "large", clients, "-requests", str(24 * system.workers))
        after = procs.pss_bytes(running.process.pid)
        self.load(running, address, system.forms[first], "small", clients, "-requests", "100")
        self.results["fresh"].setdefault(system.name, []).append(fresh)
        self.results["memory"][system.name] = {
            "small_bytes": small,
            "large_peak_bytes": peak.bytes,
            "after_bytes": after,
        }
        say(
            f"{system.title}: {small / 1e6:.0f} MB, with 12-megapixel photos {peak.bytes / 1e6:.0f} MB; "
            f"fresh {fresh['cpu_ms']:.2f} CPU s per 1,000 and {fresh['faults']:.0f} page faults a photo"
        )

    def start_all(self, chosen: list[System], stack: contextlib.ExitStack) -> None:
        """Start each, and warm it."""
        for number, system in enumerate(chosen, 1):
            say(f"starting {number} of {len(chosen)}: {system.title}")
            try:
                versions = system.prepare(say)
                running, address = stack.enter_context(system.running(self.model_address, self.photo_address))
                entry = {
                    "title": system.title,
                    "role": system.role,
                    "workers": system.workers,
                    "clients": system.clients,
                    "versions": versions,
                }
                if system.role == "floor":
                    entry["decoder"] = running.log.read_text().split("\n", 1)[0]
                self.results["systems"][system.name] = entry
                self.warm_up(system, running, address)
                self.live[system.name] = (system, running, address)
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                self.failed(system, error)

    def measure(self, workload: str, clients: int | None, seconds: float, only: str | None = None) -> None:
        """Measure one round of one load on every system that takes it.

        The order rotates from round to round.
        """
        photo_set, kind = workload.split("-")
        turn = self.results["turns"] = self.results["turns"] + 1
        names = [name for name in self.live if only in (None, name)]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            system, running, address = self.live[name]
            if kind not in system.forms:
                continue
            count = clients or system.clients
            try:
                cell = self.load(
                    running, address, system.forms[kind], photo_set, count, "-seconds", str(seconds)
                )  # fmt: skip
            except (BenchError, OSError) as error:
                self.failed(system, error)
                del self.live[name]
                continue
            self.results["cells"].setdefault(f"{name} {workload} {count}", []).append(cell)

    def fresh(self, system: System) -> None:
        """A new process's first photos, once more."""
        try:
            with system.running(self.model_address, self.photo_address) as (running, address):
                cell = self.load(
                    running, address, system.forms["url"], "small", system.clients, "-requests", str(FRESH_PHOTOS)
                )
        except (BenchError, OSError) as error:
            self.failed(system, error)
        else:
            self.results["fresh"][system.name].append(cell)

    def of_way(self, way: Way, sets: dict[str, photos.Photos], stack: contextlib.ExitStack) -> Bench:
        """Start a model server and a gateway for a way of preparing, and warm them."""
        model, model_address = stack.enter_context(programs.model_server(*way.model_flags(), name=f"model-{way.name}"))
        listings = {}
        for name, one in sets.items():
            sent = one.turned(CACHE / f"turned-{name}") if way.turned else one
            listings[name] = sent.listing(CACHE / f"{way.name}-{name}.json", "", way.scores)
        running, address = stack.enter_context(way.system.running(model_address, self.photo_address))
        own = replace(self, model=model, model_address=model_address, listings=listings)
        own.live = {way.name: (way.system, running, address)}
        for name, photos_sent in (("small", 100), ("large", 24)):
            own.load_way(way, name, "-requests", str(photos_sent))
        return own

    def load_way(self, way: Way, photo_set: str, *flags: str) -> dict[str, Any]:
        """One load by upload on a way's gateway."""
        system, running, address = self.live[way.name]
        tolerance = ("-tolerance", str(way.tolerance))
        return self.load(running, address, system.forms["upload"], photo_set, system.clients, *tolerance, *flags)

    def measure_ways(self, sets: dict[str, photos.Photos]) -> None:
        """Measure each way of preparing by upload, round by round."""
        live: list[tuple[Way, Bench]] = []
        found = self.results["ways"] = {}
        with contextlib.ExitStack() as stack:
            for number, way in enumerate(WAYS, 1):
                say(f"starting way of preparing {number} of {len(WAYS)}: {way.title}")
                try:
                    live.append((way, self.of_way(way, sets, stack)))
                except (BenchError, OSError) as error:
                    self.failed(way.system, error)
                else:
                    found[way.name] = {"title": way.title, "settings": way.settings, "small": [], "large": []}
            for turn in range(self.rounds):
                say(f"ways of preparing, round {turn + 1} of {self.rounds}")
                for way, own in live[turn:] + live[:turn]:
                    try:
                        cells = {
                            name: own.load_way(way, name, "-seconds", str(seconds))
                            for name, seconds in (("small", SMALL_SECONDS), ("large", LARGE_SECONDS))
                        }
                    except (BenchError, OSError) as error:
                        self.failed(way.system, error)
                        continue
                    for name, cell in cells.items():
                        found[way.name][name].append(cell)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Lock the cache: two concurrent benchmarks would measure each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another one runs in this checkout: wait for its end") from None
        yield


@contextlib.contextmanager
def helpers(small: photos.Photos, large: photos.Photos) -> Iterator[tuple[Running, str, Running, str, dict[str, Path]]]:
    """Start model server and photo server; write the load generator's photo lists."""
    with (
        programs.model_server() as (model, model_address),
        programs.photo_server(small.folder, large.folder) as (photo_host, photo_address),
    ):
        listings = {
            name: one.listing(CACHE / f"{name}.json", f"http://{photo_address}")
            for name, one in (("small", small), ("large", large))
        }
        yield model, model_address, photo_host, photo_address, listings


def machine() -> dict[str, Any]:
    """The machine and its software versions."""
    cpu = "unknown"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
    }


def choose(arguments: argparse.Namespace) -> list[System]:
    """The systems named on the command line."""
    few = [OURS.name, "floor", "floor-2"]
    names = arguments.only or (few if arguments.quick else [system.name for system in SYSTEMS])
    unknown = set(names) - {system.name for system in SYSTEMS}
    if unknown:
        raise BenchError(f"no system {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SYSTEMS)}")
    chosen = [system for system in SYSTEMS if system.name in names]
    if arguments.against:
        chosen.insert(1, before(arguments.against.resolve()))
    return chosen


def measure_systems(bench: Bench, chosen: list[System], output: Path) -> None:
    """Measure all systems, round by round; results are also written after each round."""
    with contextlib.ExitStack() as stack:
        bench.start_all(chosen, stack)
        for number in range(1, bench.rounds + 1):
            say(f"round {number} of {bench.rounds}")
            for workload in ("small-url", "small-upload", "large-url", "large-upload"):
                bench.measure(workload, None, SMALL_SECONDS if workload.startswith("small") else LARGE_SECONDS)
            if OURS.name in bench.live:
                bench.measure("small-multipart", 8, SMALL_SECONDS, OURS.name)
                for workload in ("small-url", "small-upload"):
                    for clients in (1, 32, 200):
                        bench.measure(workload, clients, SMALL_SECONDS, OURS.name)
            report.write(bench.results, output)
        for number in range(2, FRESH_ROUNDS + 1):
            say(f"fresh processes, {number} of {FRESH_ROUNDS}")
            for system in chosen:
                if system.role in ("ours", "course") and system.name in bench.live:
                    bench.fresh(system)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns all results."""
    quick = arguments.quick
    chosen = [] if arguments.ways else choose(arguments)
    rounds = arguments.rounds or (3 if quick else 5)
    which = "quick" if quick else "ways" if arguments.ways else ""
    say("building the load generator, the model server and the photo server")
    programs.build()
    small, large = photos.prepare(CACHE, say)
    results: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": "make bench" + (f" BENCH={which}" if which else ""),
        "rounds": rounds,
        "machine": machine(),
        "photos": {"small": small.describe(), "large": large.describe()},
        "systems": {},
        "memory": {},
        "fresh": {},
        "cells": {},
        "failures": {},
        "turns": 0,
    }
    with helpers(small, large) as helped:
        bench = Bench(*helped, results, rounds)
        if chosen:
            measure_systems(bench, chosen, arguments.output)
        if arguments.ways or not (quick or arguments.only):
            bench.measure_ways({"small": small, "large": large})
    results["seconds"] = round(time.monotonic() - _STARTED)
    results["checks"] = [check.row() for check in checks(results)]
    return results


def main() -> int:
    """Run, print and write; returns 0 also for a missed target, as that is a result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--quick", action="store_true", help="ours and the floor only, three rounds")
    part.add_argument("--ways", action="store_true", help="the ways of preparing photos only")
    parser.add_argument("--rounds", type=int, help="how many rounds instead of 5, or 3 with --quick")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="which systems")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the gateway of another checkout beside ours")
    parser.add_argument("--output", type=Path, help="folder for the results")
    arguments = parser.parse_args()
    if arguments.output is None:
        # The published figures come from a whole run, and nothing less takes their place.
        part = arguments.quick or arguments.ways or arguments.only or arguments.rounds or arguments.against
        arguments.output = ROOT / "docs/benchmarks" if not part else CACHE / "results"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    try:
        with alone():
            results = run(arguments)
        report.write(results, arguments.output)
        print(report.text(results))
        say(f"written: {report.draw(results, arguments.output, HERE, say)}")
    except BenchError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make bench: stopped; run it again to begin anew", file=sys.stderr)
        return 130
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
