"""Every render against the strict schemas of each Kubernetes version, which the wheel kubernetes-validate carries."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import KUBERNETES, name, render, run, tool, values_files


def definitions(version: str) -> dict[str, Any]:
    package = find_spec("kubernetes_validate")
    assert package, "kubernetes-validate, which carries the schemas, is not installed"
    assert package.origin
    folder = Path(package.origin).parent / "kubernetes-json-schema" / f"v{version}-local-strict"
    found: dict[str, Any] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return found


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].rsplit("/", 1)[1]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(references(child) for child in node))
    return set()


def local(node: Any) -> Any:
    """The same, with references into this file, as kubeconform would ask the network for another."""
    if isinstance(node, dict):
        return {
            key: f"#/$defs/{value.rsplit('/', 1)[1]}" if key == "$ref" and isinstance(value, str) else local(value)
            for key, value in node.items()
        }
    return [local(child) for child in node] if isinstance(node, list) else node


def write_schemas(version: str, folder: Path) -> None:
    """One file for each kind, with all that it refers to, named as kubeconform looks for it."""
    defs = definitions(version)
    for definition, schema in defs.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if (
                kind["group"] not in {"", "apps", "autoscaling", "policy", "networking.k8s.io"}
                or kind["kind"] == "DeleteOptions"
            ):
                continue
            needed: set[str] = set()
            new = {definition}
            while new:
                needed |= new
                new = set().union(*(references(defs[one]) for one in new)) - needed
            group = kind["group"].split(".")[0]
            file = "-".join(filter(None, [kind["kind"].lower(), group, kind["version"]]))
            content = {"$ref": f"#/$defs/{definition}", "$defs": {one: local(defs[one]) for one in sorted(needed)}}
            (folder / f"{file}.json").write_text(json.dumps(content))


@pytest.fixture(params=KUBERNETES)
def version(request):
    return request.param


@pytest.fixture
def conform(version, tmp_path):
    """What kubeconform finds in the manifests: the invalid ones, and how many there are."""
    schemas, rendered = tmp_path / "schemas", tmp_path / "rendered"
    schemas.mkdir()
    rendered.mkdir()
    write_schemas(version, schemas)

    def conform(texts: dict[str, str]) -> tuple[list[dict[str, str]], int]:
        for what, text in texts.items():
            (rendered / f"{what}.yaml").write_text(text)
        location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
        options = ["-strict", "-summary", "-output=json", "-n=2", f"-kubernetes-version={version}"]
        result = run(tool("kubeconform"), *options, f"-schema-location={location}", rendered)
        report = json.loads(result.stdout)
        return report["resources"], report["summary"]["valid"]

    return conform


def test_a_cluster_would_take_every_render(version, conform):
    texts = {
        name((chart, file)): render(chart, "--values", file, "--kube-version", version)
        for chart, file in values_files()
    }
    expected = sum(len([one for one in yaml.safe_load_all(text) if one]) for text in texts.values())
    assert conform(texts) == ([], expected)


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("minReadySeconds:", "minReadySecond:"),  # no such field
        ("failureThreshold: 60", "failureThreshold: many"),  # another type
        ("apiVersion: apps/v1", "apiVersion: apps/v2"),  # no such kind
    ],
)
def test_a_mistake_is_noticed(before, after, conform):
    chart, file = values_files()[0]
    rendered = render(chart, "--values", file)
    assert before in rendered
    problems, _ = conform({"mistake": rendered.replace(before, after)})
    assert problems
