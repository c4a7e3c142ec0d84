"""What a contributor's editor, hooks and CI take is what the project says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def loaded(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_hooks_download_nothing_and_run_what_make_lint_runs():
    hooks = [hook for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in loaded(".pre-commit-config.yaml")["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    linted = re.sub(r"\$\(GATEWAY\)", "gateway/.venv/bin", (ROOT / "Makefile").read_text())
    linted = re.sub(r"\$\(MODEL_BIN\)", "model-image/.venv/bin", linted)
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        if program.endswith("/mypy"):
            assert hook["entry"] in linted
        elif program.endswith("/ruff"):
            assert f"{program} {arguments[0]}" in linted
        elif not program.startswith(".tools/"):
            assert (ROOT / program).exists()


def test_one_lint_configuration_for_all_folders():
    """Ruff takes the nearest pyproject.toml with its table: a second one would hide the root's from an editor."""
    found = [path for path in ROOT.glob("*/**/pyproject.toml") if not {".venv", ".cache"} & set(path.parts)]
    assert found
    assert [path for path in found if "ruff" in tomllib.loads(path.read_text()).get("tool", {})] == []
    assert not [path for name in ("ruff.toml", ".ruff.toml") for path in ROOT.glob(f"**/{name}")]


def test_ci_tests_each_supported_python():
    tested = loaded(".github/workflows/ci.yaml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    makefile = (ROOT / "Makefile").read_text()
    low, high = re.search(r"not \((3), (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", makefile).groups()[1:]
    assert tested == [f"3.{minor}" for minor in range(int(low), int(high) + 1)]
    for package in ("gateway", "model-image"):
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        assert project["requires-python"].split(",")[0] == f">={tested[0]}"
