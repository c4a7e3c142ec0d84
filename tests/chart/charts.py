"""Renders the charts as an operator would, with the helm of ci/tools."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER = ROOT / "charts" / "clothing-classifier"
PING = ROOT / "charts" / "ping"
CHARTS = [CLASSIFIER, PING]
EXAMPLES = sorted((ROOT / "Chart-values-examples").glob("*.yaml"))

# The oldest and the newest Kubernetes that the charts are made for, and all between.
KUBERNETES = [f"1.{minor}.0" for minor in range(29, 36)]

Manifest = dict[str, Any]


def values_files() -> list[tuple[Path, Path]]:
    """Each chart with each file of values that the repository has for it."""
    of_charts = [(chart, file) for chart in CHARTS for file in sorted((chart / "ci").glob("*-values.yaml"))]
    return of_charts + [(CLASSIFIER, file) for file in EXAMPLES]


def name(chart_and_file: tuple[Path, Path]) -> str:
    chart, file = chart_and_file
    return f"{chart.name}-{file.stem}"


def tool(program: str) -> str:
    found = shutil.which(program, path=str(ROOT / ".tools" / "bin")) or shutil.which(program)
    assert found, f"{program} is missing: run ci/tools/install {program}"
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"timeout": 50} | options
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def helm_template(
    chart: Path, *options: str | Path, release: str = "demo", helm: str = "helm"
) -> subprocess.CompletedProcess[str]:
    return run(tool(helm), "template", release, chart, "--namespace", "photos", *options)


def render_anew(chart: Path, *options: str | Path, release: str = "demo", helm: str = "helm") -> str:
    result = helm_template(chart, *options, release=release, helm=helm)
    assert result.returncode == 0, result.stderr
    return result.stdout


# Many tests look at the same render.
render = functools.cache(render_anew)


@contextmanager
def of_version(chart: Path, version: str, app_version: str | None = None) -> Iterator[Path]:
    """A copy of the chart with another version, for as long as it lasts."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / chart.name
        shutil.copytree(chart, copy)
        text = re.sub("^version: .*$", f"version: {version}", (copy / "Chart.yaml").read_text(), flags=re.MULTILINE)
        if app_version:
            text = re.sub("^appVersion: .*$", f'appVersion: "{app_version}"', text, flags=re.MULTILINE)
        (copy / "Chart.yaml").write_text(text)
        yield copy


def manifests(chart: Path, *options: str | Path, release: str = "demo") -> list[Manifest]:
    return [
        manifest for manifest in yaml.load_all(render(chart, *options, release=release), yaml.CSafeLoader) if manifest
    ]


def pods(objects: list[Manifest]) -> dict[str, Manifest]:
    """The pod of each object that has one: its labels, annotations and spec."""
    return {
        f"{manifest['kind']} {manifest['metadata']['name']}": manifest
        if manifest["kind"] == "Pod"
        else manifest["spec"]["template"]
        for manifest in objects
        if manifest["kind"] in {"Pod", "Deployment", "Job"}
    }


def flatten(values: Manifest, prefix: str = "") -> dict[str, Any]:
    """The leaves of a values file by their paths; an empty map is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
    return leaves
