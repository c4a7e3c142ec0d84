"""The benchmark's goals, with the measured figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stats import Spread, ratio, spread

Results = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A goal and its measurement; None where a needed figure is missing."""

    what: str
    goal: float
    at_most: bool
    value: Spread | None
    unit: str = ""
    floor: Spread | None = None  # what the bare steps would give: no gateway does better

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value.median <= self.goal if self.at_most else self.value.median >= self.goal

    def row(self) -> dict[str, Any]:
        """For JSON."""
        value = self.value and {"median": self.value.median, "low": self.value.low, "high": self.value.high}
        return {
            "what": self.what,
            "goal": self.goal,
            "at_most": self.at_most,
            "unit": self.unit,
            "value": value,
            "reached": self.reached,
            "floor": self.floor and self.floor.median,
        }


def cells(results: Results, system: str, workload: str, clients: int) -> list[dict[str, Any]]:
    """The rounds of a system under a load; empty where it was not measured."""
    found: list[dict[str, Any]] = results["cells"].get(f"{system} {workload} {clients}", [])
    return found


def column(results: Results, system: str, workload: str, clients: int, figure: str) -> list[float]:
    """One figure of all rounds."""
    return [cell[figure] for cell in cells(results, system, workload, clients) if cell[figure] is not None]


def best_peer(results: Results, workload: str) -> str | None:
    """The peer with the least CPU."""
    medians = {
        name: spread(column(results, name, workload, 8, "cpu_ms")).median
        for name, system in results["systems"].items()
        if system["role"] == "peer" and column(results, name, workload, 8, "cpu_ms")
    }
    return min(medians, key=medians.__getitem__) if medians else None


def checks(results: Results) -> list[Check]:
    """The goals, most important first."""
    ours = "clothing-gateway"

    def against(
        other: str | None, workload: str, figure: str, clients: int = 8, *, over: bool, others_clients: int = 8
    ) -> Spread | None:
        """Ours over another's, or the other's over ours, round by round."""
        mine = column(results, ours, workload, clients, figure)
        theirs = column(results, other, workload, others_clients, figure) if other else []
        if not mine or not theirs:
            return None
        return ratio(mine, theirs) if over else ratio(theirs, mine)

    def floor(workload: str) -> Spread | None:
        return against("floor", workload, "cpu_ms", over=True, others_clients=1)

    def cheaper(what: str, goal: float, other: str | None, workload: str) -> Check:
        """By how much another costs more CPU."""
        theirs = column(results, other, workload, 8, "cpu_ms") if other else []
        least = column(results, "floor", workload, 1, "cpu_ms")
        return Check(
            what,
            goal,
            False,
            against(other, workload, "cpu_ms", over=False),
            floor=ratio(theirs, least) if theirs and least else None,
        )

    def per_round(figure: Callable[[dict[str, Any]], float | None], workload: str, clients: int) -> Spread | None:
        values: Sequence[float] = [
            value for cell in cells(results, ours, workload, clients) if (value := figure(cell)) is not None
        ]
        return spread(values) if values else None

    def tail(cell: dict[str, Any]) -> float | None:
        return cell["p99_ms"] / cell["p50_ms"] if cell["p50_ms"] else None

    listed = []
    for kind, name, most, less in (("upload", "by upload", 1.4, 1.4), ("url", "by URL", 1.5, 2.0)):
        peer = best_peer(results, f"small-{kind}")
        listed += [
            Check(f"dataset photos {name}: CPU over the floor's", most, True, floor(f"small-{kind}")),
            cheaper(
                f"dataset photos {name}: CPU of the best peer ({peer or 'none measured'}) over ours",
                less,
                peer,
                f"small-{kind}",
            ),
        ]
    listed += [
        cheaper("dataset photos by URL: CPU of the course's gateway, warm, over ours", 1.4, "course-1", "small-url"),
        Check("dataset photos by URL: photos per second over the course's, warm", 1.8, False,
              against("course-1", "small-url", "photos_per_second", over=True)),
        Check("12 MP by upload: CPU over the floor's", 1.15, True, floor("large-upload")),
        Check("12 MP by URL: CPU over the floor's", 1.15, True, floor("large-url")),
        cheaper("12 MP by URL: CPU of the course's gateway over ours", 2.0, "course-1", "large-url"),
        Check("12 MP by URL: photos per second over the course's", 4.0, False,
              against("course-1", "large-url", "photos_per_second", over=True)),
    ]  # fmt: skip
    memory = results["memory"].get(ours)
    peak = memory and spread([memory["large_peak_bytes"] / 1e6])
    listed.append(Check("12 MP, 8 uploads at once: PSS", 128, True, peak, "MB"))
    for kind, name in (("upload", "by upload"), ("url", "by URL")):
        workload = f"small-{kind}"
        listed += [
            Check(f"dataset photos {name}: p99 over p50 at 8 clients", 2.5, True, per_round(tail, workload, 8)),
            Check(f"12 MP {name}: p99 over p50 at 8 clients", 2.5, True, per_round(tail, f"large-{kind}", 8)),
            Check(f"dataset photos {name}: photos per second at 32 clients over those at 8", 0.95, False,
                  against(ours, workload, "photos_per_second", 32, over=True)),
            Check(f"dataset photos {name}: answers at 200 clients that are neither 200 nor 503", 0, True,
                  per_round(lambda cell: cell["other_answers"], workload, 200)),
            Check(f"dataset photos {name}: p99 of accepted ones at 200 clients over the p99 at 32", 2.0, True,
                  against(ours, workload, "p99_ms", 200, over=True, others_clients=32)),
        ]  # fmt: skip
    fresh = [one["faults"] for one in results["fresh"].get(ours, [])]
    listed.append(
        Check(
            "page faults per photo, from the first request of a new process on",
            10,
            True,
            spread(fresh) if fresh else None,
        )
    )
    wrong = [
        cell["wrong"]
        for key, rounds in results["cells"].items()
        if key.startswith(f"{ours} ")
        for cell in rounds
    ]  # fmt: skip
    listed.append(
        Check("photos whose scores are not Pillow's", 0, True, spread([float(sum(wrong))]) if wrong else None)
    )
    return listed
