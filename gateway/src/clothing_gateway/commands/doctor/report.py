"""Findings of the doctor, as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

OK, WARNING, FAIL, SKIPPED = "ok", "warning", "fail", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    state: str
    text: str  # the fact, and of a failure the cause
    change: str = ""  # the chart's values that fix it


def healthy(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing failed."""
    return all(finding.state != FAIL for finding in findings)


def as_text(finding: Finding) -> str:
    """Format a finding for people."""
    state = "FAIL" if finding.state == FAIL else finding.state
    text = f"{state:<8} {finding.check:<11} {finding.text}"
    return f"{text}\n{'':20} change: {finding.change}" if finding.change else text


def summary(findings: list[Finding]) -> str:
    """Format the last line for people."""
    failed = sum(finding.state == FAIL for finding in findings)
    warned = sum(finding.state == WARNING for finding in findings)
    warnings = f"{warned} warning" + ("" if warned == 1 else "s")
    return f"{failed} FAIL, {warnings}" if failed else f"healthy, {warnings}"


def as_json(findings: list[Finding]) -> str:
    """Format all findings for programs."""
    checks = [
        {"check": finding.check, "state": finding.state, "text": finding.text, "change": finding.change or None}
        for finding in findings
    ]
    return json.dumps({"healthy": healthy(findings), "checks": checks}, indent=2)
