"""JSON schemas as kubeconform takes them.

Kubernetes' own are from the wheel kubernetes-validate, those of custom resources from their definitions.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from charts import ROOT

Schema = dict[str, Any]

CRDS = ROOT / ".tools" / "crds"
# Where kubeconform looks for a kind, beneath the folder of one Kubernetes version.
LOCATION = "{{.ResourceKind}}{{.KindSuffix}}.json"
GROUPS = {"", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}


def write_schemas(version: str, folder: Path) -> None:
    """One file for each kind that a chart may make in this version of Kubernetes."""
    for group, kind, api_version, schema in (*kubernetes_kinds(version), *custom_kinds()):
        file = "-".join(filter(None, [kind.lower(), group.split(".")[0], api_version]))
        (folder / f"{file}.json").write_text(json.dumps(schema))


def kubernetes_kinds(version: str) -> list[tuple[str, str, str, Schema]]:
    """Group, kind, version and strict schema, with all that it refers to, of Kubernetes' own kinds."""
    found = []
    definitions = _definitions(version)
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if kind["group"] not in GROUPS or kind["kind"] == "DeleteOptions":
                continue
            needed: set[str] = set()
            new = {name}
            while new:
                needed |= new
                new = set().union(*(_references(definitions[one]) for one in new)) - needed
            content = {"$ref": f"#/$defs/{name}", "$defs": {one: _local(definitions[one]) for one in sorted(needed)}}
            found.append((kind["group"], kind["kind"], kind["version"], content))
    return found


def custom_kinds() -> list[tuple[str, str, str, Schema]]:
    """The same of the custom resources whose definitions ci/tools/install has put into .tools/crds."""
    files = sorted(CRDS.glob("*.yaml"))
    assert files, "no definitions of custom resources: run ci/tools/install crds"
    found = []
    for file in files:
        spec = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found.append((spec["group"], spec["names"]["kind"], version["name"], schema))
    return found


def strict(node: Any) -> Any:
    """A definition's schema as JSON schema that takes no unknown field, where the API server would prune it unseen."""
    if isinstance(node, list):
        return [strict(child) for child in node]
    if not isinstance(node, dict):
        return node
    new = {key: strict(child) for key, child in node.items() if not key.startswith("x-kubernetes-")}
    # A field may itself be called "properties" or "type": then it is no word of the schema.
    is_object = isinstance(node.get("properties"), dict) and isinstance(node.get("type"), str)
    if is_object and not node.get("x-kubernetes-preserve-unknown-fields"):
        new.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        new["type"] = ["integer", "string"]
    if node.get("nullable") is True and isinstance(new.get("type"), str):
        new["type"] = [new["type"], "null"]
    return new


def _definitions(version: str) -> dict[str, Schema]:
    package = find_spec("kubernetes_validate")
    assert package, "kubernetes-validate, which carries the schemas, is not installed"
    assert package.origin
    folder = Path(package.origin).parent / "kubernetes-json-schema" / f"v{version}-local-strict"
    found: dict[str, Schema] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return found


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].rsplit("/", 1)[1]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(_references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(child) for child in node))
    return set()


def _local(node: Any) -> Any:
    """The same, with references into this file, as kubeconform would ask the network for another."""
    if isinstance(node, dict):
        return {
            key: f"#/$defs/{value.rsplit('/', 1)[1]}" if key == "$ref" and isinstance(value, str) else _local(value)
            for key, value in node.items()
        }
    return [_local(child) for child in node] if isinstance(node, list) else node
