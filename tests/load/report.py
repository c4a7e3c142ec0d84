"""Reports: tables for the terminal, Markdown and JSON for the docs, and the plot."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
from programs import BenchError
from stats import ratio, spread
from targets import Results, best_peer, checks, column

NAME = "gateway"
# So much for others costs caches and turns on the CPU, which CPU times don't leave out.
BUSY_CORES = 0.3
WORKLOADS = {
    "small-url": "dataset photos by URL",
    "small-upload": "dataset photos by upload",
    "large-url": "12 MP by URL",
    "large-upload": "12 MP by upload",
}


def _cell(values: list[float], digits: int) -> str:
    return spread(values).text(digits) if values else "–"


Table = tuple[str, list[str], list[list[str]]]
_FIGURES = (("photos_per_second", 0), ("p50_ms", 1), ("p99_ms", 1))
_LOAD_HEADER = ["clients", "CPU s per 1,000 photos", "photos per second", "p50 ms", "p99 ms"]


def _tables(results: Results) -> list[Table]:
    """Title, header and rows of each table that has any."""
    tables = [_by_system(results, workload) for workload in WORKLOADS]
    tables += [_against(results), _by_clients(results), _by_way(results), _by_process(results)]
    return [table for table in tables if table[2]]


def _by_system(results: Results, workload: str) -> Table:
    rows = []
    small = workload.startswith("small")
    for name, system in results["systems"].items():
        clients = system["clients"]
        cpu = column(results, name, workload, clients, "cpu_ms")
        if cpu:
            figures = [
                _cell(column(results, name, workload, clients, figure), digits if small else 1)
                for figure, digits in _FIGURES
            ]
            rows.append([system["title"], str(clients), _cell(cpu, 2 if small else 1), *figures])
    title = WORKLOADS[workload]
    return title[0].upper() + title[1:], ["system", *_LOAD_HEADER], rows


def _against(results: Results) -> Table:
    """Compare this checkout with another one (--against), round by round.

    Both were measured in the same minute.
    """
    rows = []
    for workload, title in WORKLOADS.items():
        row = [title]
        for figure in ("cpu_ms", "photos_per_second", "p99_ms"):
            now, then = (column(results, name, workload, 8, figure) for name in ("clothing-gateway", "before"))
            row.append(ratio(now, then).text() if now and then else "–")
        if "before" in results["systems"]:
            rows.append(row)
    return "This checkout over the other one", ["workload", "CPU", "photos per second", "p99"], rows


def _by_clients(results: Results) -> Table:
    rows = []
    for workload in ("small-url", "small-upload", "small-multipart"):
        title = WORKLOADS.get(workload, "dataset photos by upload, multipart")
        for clients in (1, 8, 32, 200):
            rounds = results["cells"].get(f"clothing-gateway {workload} {clients}")
            if rounds:
                figures = [_cell([cell[figure] for cell in rounds], digits) for figure, digits in _FIGURES]
                refused = [cell["statuses"].get("503", 0) / cell["seconds"] for cell in rounds]
                cpu = _cell([cell["cpu_ms"] for cell in rounds], 2)
                rows.append([title, str(clients), cpu, *figures, _cell(refused, 0)])
    return "By the number of clients", ["clothing-gateway", *_LOAD_HEADER, "503 per second"], rows


def _ways(results: Results) -> list[dict[str, Any]]:
    """The ways of preparing; none in a quick run."""
    return list(results.get("ways", {}).values())


def _by_way(results: Results) -> Table:
    """Our gateway by the way of preparing photos; empty where it was not measured."""
    rows = []
    for way in _ways(results):
        if way["small"]:
            cpu = [
                _cell([cell["cpu_ms"] for cell in way[name]], digits) for name, digits in (("small", 2), ("large", 1))
            ]
            wrong = sum(cell["wrong"] for name in ("small", "large") for cell in way[name])
            rows.append([way["title"], *cpu, str(wrong)])
    header = ["clothing-gateway, 8 clients, by upload", "dataset photos: CPU s per 1,000", "12 MP: CPU s per 1,000"]
    return "By the way of preparing", [*header, "photos whose scores are not the framework's"], rows


def _by_process(results: Results) -> Table:
    rows = []
    for name, system in results["systems"].items():
        memory, fresh = results["memory"].get(name), results["fresh"].get(name)
        if memory and fresh:
            rows.append(
                [system["title"]]
                + [f"{memory[f'{which}_bytes'] / 1e6:.0f}" for which in ("small", "large_peak", "after")]
                + [
                    _cell([cell[figure] for cell in fresh], digits)
                    for figure, digits in (("cpu_ms", 2), ("photos_per_second", 0), ("faults", 1))
                ]
            )
    header = ["system", "PSS MB, dataset photos", "highest with 12 MP, 8 clients", "after them"]
    header += ["fresh: CPU s per 1,000", "fresh: photos per second", "fresh: page faults a photo"]
    return "Memory, and the first photos of a new process", header, rows


def _goals(results: Results) -> list[Table]:
    """The goals' table; none where no system was measured."""
    if not results["systems"]:
        return []
    rows = []
    for check in checks(results):
        goal = f"{'≤' if check.at_most else '≥'} {check.goal:g}" + (f" {check.unit}" if check.unit else "")
        word = {True: "reached", False: "MISSED", None: "not measured"}[check.reached]
        rows.append([check.what, goal, check.value.text() if check.value else "–", word])
    return [("Goals", ["goal", "wanted", "measured", ""], rows)]


def _head(results: Results) -> list[str]:
    machine = results["machine"]
    measured = [*results["cells"].values(), *(way[name] for way in _ways(results) for name in ("small", "large"))]
    others = [cell["others_cores"] for rounds in measured for cell in rounds]
    small, large = results["photos"]["small"], results["photos"]["large"]
    where = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
    rounds = "One round"
    if results["rounds"] > 1:
        rounds = f"{results['rounds']} interleaved rounds; medians, in brackets the lowest and the highest"
    lines = [
        f"{results['date'][:10]}: {where}. {rounds}.",
        (
            f"Small photos: {small['photos']}, {small['source']}, median {small['median_bytes'] / 1000:.0f} kB. "
            f"12 MP: {large['photos']}, {large['source']}, median {large['median_bytes'] / 1e6:.2f} MB."
        ),
    ]
    if others:
        seen = spread(others)
        busy = "; figures of a quieter machine would be better ones" if seen.median > BUSY_CORES else ""
        lines.append(
            f"Other processes of the machine took {seen.median:.2f} cores (up to {seen.high:.2f}) meanwhile{busy}."
        )
    for name, system in results["systems"].items():
        if name == "floor":
            lines.append(f"The floor decodes with {system['decoder']}.")
        if system["role"] != "floor" and not name.endswith("-2"):
            lines.append(
                f"{system['title'].split(',')[0]}: " + ", ".join(f"{n} {v}" for n, v in system["versions"].items())
            )
    helpers = {
        words: [cell[figure] for key, rounds in results["cells"].items() if " small-url " in key for cell in rounds]
        for figure, words in (
            ("model_cpu_ms", "model server"),
            ("photo_host_cpu_ms", "photo server"),
            ("loadgen_cpu_ms", "load generator"),
        )
    }
    if all(helpers.values()):
        costs = ", ".join(f"{words} {spread(values).median:.2f}" for words, values in helpers.items())
        lines.append(f"The benchmark's own programs, by URL, in CPU s per 1,000 photos: {costs}.")
    peers = {title: best_peer(results, workload) for workload, title in WORKLOADS.items()}
    if any(peers.values()):
        lines.append(
            "Best peer by CPU: " + "; ".join(f"{title}: {peer}" for title, peer in peers.items() if peer) + "."
        )
    lines += [f"{name} FAILED: {words.splitlines()[0]}" for name, words in results["failures"].items()]
    return lines


def text(results: Results) -> str:
    """Tables for a terminal."""
    out = ["", *_head(results)]
    for title, header, rows in [*_tables(results), *_goals(results)]:
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        out += ["", title]
        out += ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
                for row in [header, *rows]]  # fmt: skip
    return "\n".join([*out, ""])


def markdown(results: Results) -> str:
    """Tables in Markdown for the docs."""
    out = [
        f"<!-- Written by `{results['command']}`; docs/performance.md says how to read it. -->",
        "# What a photo costs",
        "",
        *(f"- {line}" for line in _head(results)),
    ]
    for title, header, rows in [*_goals(results), *_tables(results)]:
        out += ["", f"## {title}", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        out += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*out, ""])


def write(results: Results, folder: Path) -> None:
    """Write JSON and Markdown, also during a run.

    So an aborted run leaves its results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(markdown(results))


def draw(results: Results, folder: Path, here: Path, say: Callable[[str], Any]) -> str:
    """Draw the plot in matplotlib's own environment; returns the file's description."""
    files = f"{folder}/{NAME}.json, {NAME}.md"
    if not results["cells"]:
        return files
    python = programs.environment("plot", here / "plot/requirements.lock", say) / "bin/python"
    done = subprocess.run(
        [python, here / "plot/plot.py", folder / f"{NAME}.json", folder / f"{NAME}.png"],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the plot could not be drawn:\n{done.stderr.strip()[-1500:]}")
    return f"{files}, {NAME}.png"
