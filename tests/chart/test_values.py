"""Every value is documented, typed, used by a template and set by a test; and what can't be meant is refused."""

import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHARTS, CLASSIFIER, EXAMPLES, PING, ROOT, flatten, helm_template, run, tool

sys.path.insert(0, str(ROOT / "scripts"))
import values_schema

by_chart = pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)


def defaults(chart: Path) -> dict[str, Any]:
    return flatten(yaml.safe_load((chart / "values.yaml").read_text()))


def values_in_use(chart: Path) -> Iterator[dict[str, Any]]:
    """All that the suites, the ci files and the examples set."""
    for suite in (chart / "tests").glob("*_test.yaml"):
        for test in yaml.safe_load(suite.read_text())["tests"]:
            yield flatten(test.get("set", {}))
    for file in (*(chart / "ci").glob("*-values.yaml"), *(EXAMPLES if chart == CLASSIFIER else [])):
        yield flatten(yaml.safe_load(file.read_text()) or {})


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    if not reference:
        return node
    for key in reference.removeprefix("#/").split("/"):
        schema = schema[key]
    return schema


def schema_paths(
    schema: dict[str, Any], node: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, child in node.get("properties", {}).items():
        resolved = resolve(schema, child)
        yield f"{prefix}{key}", resolved
        yield from schema_paths(schema, resolved, f"{prefix}{key}.")


@by_chart
def test_chart_readme_is_generated_from_the_values(chart, tmp_path):
    copy = tmp_path / chart.name
    shutil.copytree(chart, copy)
    (copy / "README.md").unlink()
    result = run(
        tool("helm-docs"), "--log-level=error", "--chart-search-root", copy, "--sort-values-order=file", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert (copy / "README.md").read_text() == (chart / "README.md").read_text(), (
        "README.md is stale: run .tools/bin/helm-docs --chart-search-root charts --sort-values-order file"
    )


@by_chart
def test_the_schema_has_the_descriptions_and_defaults_of_the_values(chart):
    """Helm reads no default from a schema: they are for an editor, and are those of values.yaml."""
    assert (chart / "values.schema.json").read_text() == values_schema.generate(chart), (
        "values.schema.json is stale: run python scripts/values_schema.py, or make docs"
    )


def test_stale_schema_is_detected(tmp_path):
    chart = tmp_path / "chart"
    shutil.copytree(PING, chart)
    text = (chart / "values.yaml").read_text()
    text = text.replace("# -- Replicas", "# -- Number of pods,\n# all alike").replace("replicas: 1", "replicas: 2")
    (chart / "values.yaml").write_text(text)
    assert values_schema.generate(chart) != (chart / "values.schema.json").read_text()
    (chart / "values.schema.json").write_text(values_schema.generate(chart))
    replicas = json.loads((chart / "values.schema.json").read_text())["properties"]["replicas"]
    assert replicas == {"description": "Number of pods, all alike", "type": "integer", "minimum": 0, "default": 2}


@by_chart
def test_every_value_is_documented(chart):
    rows = re.findall(r"^\| ([\w.]+) \| [^|]+ \| .+ \| (.*) \|$", (chart / "README.md").read_text(), re.MULTILINE)
    documented = {key for key, text in rows if text.strip()}
    undocumented = {
        key for key in defaults(chart) if not any(key == row or key.startswith(f"{row}.") for row in documented)
    }
    assert documented
    assert undocumented == set()


@by_chart
def test_schema_has_exactly_the_values(chart):
    schema = json.loads((chart / "values.schema.json").read_text())
    known = dict(schema_paths(schema, schema))
    # A map that is the operator's own is typed as a whole.
    missing = {
        key for key in defaults(chart) if key not in known and not any(key.startswith(f"{path}.") for path in known)
    }
    assert missing == set()
    for parents_own in ("enabled",):  # a parent chart's condition
        known.pop(parents_own)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    pass_through = (
        "server.flags.",
        "resources.",
        "helperResources.",
        "dnsConfig.",
        "behavior.",
        "affinity.",
        "ecurityContext.",
    )
    for path in known:
        node: Any = values
        for key in path.split("."):
            if not isinstance(node, dict) or key not in node:
                assert path == "global" or any(part in f"{path}." for part in pass_through), f"{path} is no value"
                break
            node = node[key]


def test_chart_and_portable_server_have_the_same_flag_table():
    """A flag that one of the two didn't know would be refused here, or end the server there."""
    table = yaml.safe_load((CLASSIFIER / "files" / "server-flags.yaml").read_text())
    source = ast.parse((ROOT / "model-image/src/clothing_model/server/flags.py").read_text())
    flags = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Flags")
    known = {ast.unparse(node.target): ast.unparse(node) for node in flags.body if isinstance(node, ast.AnnAssign)}
    assert len(known) > 40
    assert set(table) == set(known)
    own = {flag for flag, text in known.items() if "of this server only" in text}
    kinds = {"bool": "boolean", "int": "integer", "str": "string", "float": "number"}
    for flag, text in known.items():
        kind = table[flag].get("type", "string")  # an enum's are strings
        assert "value" in table[flag] or kind == kinds[text.split(": ")[1].split(" ")[0]], flag
    assert {flag for flag, about in table.items() if "portable" in about} == own


def test_each_flag_that_follows_from_a_value_names_it():
    table = yaml.safe_load((CLASSIFIER / "files" / "server-flags.yaml").read_text())
    values = defaults(CLASSIFIER)
    named = [about["value"] for about in table.values() if re.fullmatch(r"[a-zA-Z.]+", about.get("value", ""))]
    assert len(named) == 12
    assert [name for name in named if not any(f"{key}.".startswith(f"{name}.") for key in values)] == []


@by_chart
def test_schema_refuses_unknown_keys(chart):
    schema = json.loads((chart / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    for path, node in schema_paths(schema, schema):
        # A flag that isn't in the schema is refused by validate.yaml, which says why.
        if "properties" in node and path not in {"global", "server.flags"}:
            assert node["additionalProperties"] is False, path


@by_chart
def test_every_value_is_used_by_a_template(chart):
    text = "\n".join(file.read_text() for file in (chart / "templates").rglob("*") if file.is_file())
    for key in defaults(chart):
        # Resources, labels and security contexts are passed as they are.
        used = [
            part
            for part in (
                "resources",
                "dashboard.labels",
                "podSecurityContext",
                "containerSecurityContext",
            )
            if f"{part}." in key
        ] or [key]
        last = used[0].rsplit(".", 1)[-1]
        assert re.search(rf"\.{last}\b", text), f"{key} is used by no template"


@by_chart
def test_every_value_is_set_by_a_test(chart):
    tried: set[str] = set()
    for values in values_in_use(chart):
        tried |= set(values)

    def is_set(key: str) -> bool:
        # A suite may set a map as a whole or a key below: image as well as image.tag.
        return any(key == other or other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in tried)

    assert {key for key in defaults(chart) if not is_set(key)} == set()


def refusal(chart: Path, values: str, tmp_path: Path) -> str:
    file = tmp_path / "values.yaml"
    file.write_text(values)
    result = helm_template(chart, "--values", file)
    assert result.returncode != 0, f"{values} was taken"
    return result.stderr


MISTAKES = [
    (row["values"], row["message"]) for row in yaml.safe_load(Path(__file__).with_name("mistakes.yaml").read_text())
]
# What the schema prints of a regular expression, or of alternatives: no cause that a reader sees.
POOR = re.compile("does not match pattern|'(not|anyOf|oneOf)' failed")
POOR_KEYWORDS = {"pattern", "not", "anyOf", "oneOf"}


@pytest.mark.parametrize(("values", "message"), MISTAKES, ids=[values for values, _ in MISTAKES])
def test_mistake_is_refused_with_its_cause(values, message, tmp_path):
    found = refusal(CLASSIFIER, values, tmp_path)
    assert message in found
    assert not POOR.search(found), found


def test_schema_leaves_shapes_to_sentences():
    """A pattern would be checked first, and printed; the server's version is compared before a sentence could."""
    schema = json.loads((CLASSIFIER / "values.schema.json").read_text())
    with_pattern = {path for path, node in schema_paths(schema, schema) if POOR_KEYWORDS & set(node)}
    assert with_pattern == {"server.version"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("image: {tag: latest}", "at '/image/tag': 'not' failed"),
        ("service: {type: None}", "at '/service/type': value must be one of"),
        ("image: {name: ping}", "at '/image': additional properties 'name' not allowed"),
    ],
)
def test_ping_refuses_invalid_values(values, message, tmp_path):
    assert message in refusal(PING, values, tmp_path)


@by_chart
def test_parent_chart_may_set_global_values_and_a_condition(chart, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text("global: {domain: example.com}\nenabled: true\n")
    assert helm_template(chart, "--values", file).returncode == 0


EVERYTHING = """
gateway:
  ingress: {enabled: true, controller: nginx}
  httpRoute: {enabled: true, parentRefs: [{name: shared}]}
  service: {type: NodePort}
monitoring: {rules: {enabled: true}, podMonitor: {enabled: true}}
networkPolicy: {enabled: true, server: {egress: [{}]}, metrics: {from: [{podSelector: {}}]}}
server:
  autoscaling: {keda: {prometheusAddress: "http://prometheus:9090"}}
  batching: {enabled: true}
"""
ALTERNATIVES = {
    "autoscaled": "server: {autoscaling: {enabled: true}}\ngateway: {autoscaling: {enabled: true}}",
    "by KEDA": "server: {autoscaling: {enabled: true, keda: {enabled: true}}}",
    "fixed, on GPUs": "server: {gpu: {enabled: true}}",
    "downloaded": f"""
model: {{source: {{type: download, download: {{archives: [{{url: 'https://a.b/c', sha256: {"a" * 64}}}]}}}}}}""",
    "reloading": """
model: {source: {type: pvc, pvc: {accessModes: [ReadWriteMany]}}}
server: {rollout: {mode: hotReload}}""",
    "least by number": "server: {pdb: {minAvailable: 1000000}}\ngateway: {pdb: {minAvailable: 1000000}}",
}


def is_number(schema: dict[str, Any], node: dict[str, Any]) -> bool:
    node = resolve(schema, node)
    kinds = node.get("type", [])
    return bool({"integer", "number"} & ({kinds} if isinstance(kinds, str) else set(kinds))) or any(
        is_number(schema, one) for one in node.get("anyOf", [])
    )


def with_large_numbers(schema: dict[str, Any]) -> dict[str, Any]:
    """Each number value, by its path, with a million and a few; a limit of the schema below that is kept."""
    found: dict[str, Any] = {}
    for path, node in schema_paths(schema, schema):
        if is_number(schema, node) and "exclusiveMaximum" not in node:
            found[path] = min(node.get("maximum", 10**9), 1_000_000 + len(found))
    # Values that must fit each other: two replicas at least, one budget, and batches as large as what gateways send.
    for tier in ("server", "gateway"):
        found[f"{tier}.autoscaling.maxReplicas"] = found[f"{tier}.autoscaling.minReplicas"] = found[f"{tier}.replicas"]
        del found[f"{tier}.pdb.minAvailable"]
    return found


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in flat.items():
        node = values
        *above, last = path.split(".")
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return values


@pytest.mark.parametrize("alternative", ALTERNATIVES.values(), ids=ALTERNATIVES)
def test_large_numbers_are_rendered_without_an_exponent(alternative, tmp_path):
    """Go prints 1000000 of a values file as 1e+06, at which TensorFlow Serving ends and the API server refuses."""
    schema = json.loads((CLASSIFIER / "values.schema.json").read_text())
    flat = with_large_numbers(schema)
    assert len(flat) >= 60
    flat |= {"model.version": 20261122, "model.canary.version": 20261123, "test.maxSeconds": 1000000}
    if "hotReload" in alternative:
        flat = {path: value for path, value in flat.items() if not path.startswith("model.")}
    files = []
    for number, text in enumerate((EVERYTHING, yaml.safe_dump(nested(flat)), alternative)):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    result = helm_template(CLASSIFIER, *(f"--values={file}" for file in files))
    assert result.returncode == 0, result.stderr
    # Not within base64, as the test's photo is.
    printed = re.findall(r"^.*(?<![\w+/])\d(?:\.\d+)?[eE]\+\d+(?![\w+/=]).*$", result.stdout, re.MULTILINE)
    assert [line[:200] for line in printed] == []
    assert f"grpc_max_threads={flat['server.flags.grpc_max_threads']}" in result.stdout
    assert f"batch_timeout_micros {{ value: {flat['server.batching.timeoutMicros']} }}" in result.stdout


def test_two_aliases_of_an_umbrella_chart_share_no_object(tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(CLASSIFIER, parent / "charts" / CLASSIFIER.name)
    dependencies = [{"name": CLASSIFIER.name, "version": "*", "alias": alias} for alias in ("shoes", "hats")]
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": dependencies}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(chart))
    on = {"monitoring": {key: {"enabled": True} for key in ("rules", "serviceMonitor")}}
    values = {"shoes": on, "hats": on, "global": {"imagePullSecrets": ["regcred"]}}
    (parent / "values.yaml").write_text(yaml.safe_dump(values))
    result = helm_template(parent, release="shop")
    assert result.returncode == 0, result.stderr
    objects = [one for one in yaml.safe_load_all(result.stdout) if one]
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names)) > 20
    assert {("Deployment", "shop-shoes-gateway"), ("Deployment", "shop-hats-gateway")} <= set(names)
    rules = [rule for one in objects if one["kind"] == "PrometheusRule" for rule in one["spec"]["groups"][0]["rules"]]
    keys = [(rule.get("record") or rule["alert"], rule["labels"]["classifier"]) for rule in rules]
    assert len(keys) == len(set(keys)) > 40


def test_chart_works_as_a_subchart(tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(CLASSIFIER, parent / "charts" / CLASSIFIER.name)
    dependency = {"name": CLASSIFIER.name, "version": "*", "condition": f"{CLASSIFIER.name}.enabled"}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (parent / "values.yaml").write_text(
        "global: {imageRegistry: registry.example.com}\nclothing-classifier: {enabled: true}\n"
    )
    result = helm_template(parent)
    assert result.returncode == 0, result.stderr
    assert "registry.example.com/clothing-gateway:" in result.stdout
