"""The report of a run: which server, which version, when, and each case's result, as YAML.

Its form follows the reports of the Kubernetes Gateway API (kind ConformanceReport): an implementation, a date, and for
each profile a result, statistics and the names of failed and skipped cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-serving-api", "grpcio")


@dataclass
class Report:
    """A pytest plugin that notes each case's result and writes the report at the end."""

    path: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a case's result: failed where any of its phases failed, skipped with the reason."""
        name = report.nodeid.rpartition("::")[2].removeprefix("test_")
        case = self.cases.setdefault(name, {"name": name, "result": "passed", "seconds": 0.0})
        case["seconds"] = round(case["seconds"] + report.duration, 2)
        case.update(report.user_properties)
        if report.failed:
            case["result"] = "failed"
        elif report.skipped and case["result"] == "passed":
            case["result"] = "skipped"
            case["reason"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        if not self.cases:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(_yaml(self.document())) + "\n", "utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the report is."""
        if self.path.exists():
            terminalreporter.write_line(f"report: {self.path}")

    def document(self) -> dict[str, Any]:
        """The report as one object."""
        names = {
            result: sorted(case["name"] for case in self.cases.values() if case["result"] == result)
            for result in ("passed", "failed", "skipped")
        }
        return {
            "kind": "ConformanceReport",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "implementation": implementation(),
            "profiles": [
                {
                    "name": "tensorflow-serving",
                    "result": "failure" if names["failed"] else "partial" if names["skipped"] else "success",
                    "statistics": {result: len(found) for result, found in names.items()},
                    "failedTests": names["failed"],
                    "skippedTests": names["skipped"],
                }
            ],
            "cases": list(self.cases.values()),
        }


def implementation() -> dict[str, str]:
    """Which server was asked, and its version as far as that can be told."""
    if address := os.environ.get("TF_SERVING_ADDRESS", ""):
        return {"server": f"at {address}", "version": os.environ.get("TF_SERVING_VERSION", "not given")}
    if image := os.environ.get("TF_SERVING_IMAGE", ""):
        command = ["docker", "run", "--rm", "--entrypoint", "/usr/bin/tensorflow_model_server", image, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return {"server": image, "version": "; ".join(done.stdout.split("\n")).strip("; ") or "unknown"}
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES if _installed(name)]
    return {
        "server": "portable",
        "version": f"clothing-model {_own_version()}, {', '.join(found)}, Python {sys.version.split()[0]}",
    }


def _own_version() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clothing_model", "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Lines of block-style YAML; strings are quoted as JSON quotes them, which YAML reads."""
    lines: list[str] = []
    items = value.items() if isinstance(value, dict) else ((None, each) for each in value)
    for key, each in items:
        start = indent + ("- " if key is None else f"{key}:")
        if isinstance(each, dict | list) and each:
            inner = _yaml(each, indent + "  ")
            if key is None:
                lines += [start + inner[0].lstrip(), *inner[1:]]
            else:
                lines += [start, *inner]
        else:
            lines.append(f"{start}{'' if key is None else ' '}{json.dumps(each, ensure_ascii=False)}")
    return lines
