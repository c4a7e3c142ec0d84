"""The documents are true: named tests exist, default objects are explained, figures match the measurements."""

import json
import re
from statistics import median

import pytest
import yaml
from charts import CLASSIFIER, EXAMPLES, ROOT, manifests

from clothing_contract import CHANNELS, FITS, PREPROCESSINGS, SCORES, Input

COMPARISON = (ROOT / "docs" / "chart-comparison.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in COMPARISON.splitlines() if line.startswith("|")
]


def exists(reference: str) -> bool:
    file, _, name = reference.partition("::" if "::" in reference else ": ")
    if file.endswith(".py"):
        path = ROOT / "tests" / ("" if "/" in file else "chart") / file
        return path.is_file() and f"\ndef {name}(" in path.read_text()
    path = CLASSIFIER / "tests" / file
    return path.is_file() and name in {test["it"] for test in yaml.safe_load(path.read_text())["tests"]}


def table(name: str, header: str) -> list[list[str]]:
    """The rows of a document's table, found by the beginning of its header."""
    rows: list[list[str]] = []
    for line in (ROOT / name).read_text().split(f"\n| {header} |", 1)[1].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_chart_comparison_names_existing_tests():
    assert ROWS[0][-2:] == ["this chart", "proved by"]
    assert len(ROWS) > 40
    missing = []
    for row in ROWS[2:]:
        assert len(row) == len(ROWS[0]), row
        references = re.findall("`(.+?)`", row[-1])
        assert references, f"{row[0]}: no test"
        missing += [f"{row[0]}: {reference}" for reference in references if not exists(reference)]
        for mark in row[1:-1]:
            assert mark[0] in "YP–?", f"{row[0]}: {mark}"
        assert row[-2][0] in "YP", row[0]
    assert missing == []


def test_missing_test_is_detected():
    assert exists("test_docs.py::test_missing_test_is_detected")
    assert exists("e2e/test_release.py::test_helm_test")
    assert not exists("test_docs.py::test_no")
    assert not exists("no.py::test_no")
    assert exists("validate_test.yaml: refuses nothing by default")
    assert not exists("validate_test.yaml: refuses everything")


def test_every_default_object_is_documented():
    text = (ROOT / "docs" / "chart-objects.md").read_text()
    explained = set(re.findall(r"^\| ([A-Z]\w+) `([\w-]+)` \|", text, re.MULTILINE))
    assert explained == {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests(CLASSIFIER)}
    parts = set(re.findall(r"^\| (?:init container|container|volume) `([\w-]+)` \|", text, re.MULTILINE))
    specs = [
        manifest["spec"]["template"]["spec"] for manifest in manifests(CLASSIFIER) if manifest["kind"] == "Deployment"
    ]
    assert parts == {
        part["name"]
        for spec in specs
        for key in ("initContainers", "containers", "volumes")
        for part in spec.get(key, [])
    }


def test_every_example_is_listed():
    text = (ROOT / "Chart-values-examples" / "README.md").read_text()
    assert re.findall(r"^\| \[([\w.-]+)\]\(\1\) \| .+ \|$", text, re.MULTILINE)
    assert set(re.findall(r"^\| \[([\w.-]+)\]", text, re.MULTILINE)) == {file.name for file in EXAMPLES}


def test_every_threat_names_existing_tests():
    rows = table("docs/security.md", "threat")
    assert len(rows) > 20
    missing = []
    for threat, mechanism, tests in rows:
        references = re.findall("`(.+?)`", tests)
        assert mechanism
        assert references, f"{threat}: no test"
        missing += [f"{threat}: {reference}" for reference in references if not exists(reference)]
    assert missing == []


def test_comparison_has_every_mark():
    [header, *rows] = [
        line.strip("|").split("|")
        for line in (ROOT / "docs/comparison.md").read_text().splitlines()
        if line.startswith("|") and line.count("|") == 9 and "---" not in line
    ]
    looked_at = [row[0] for row in table("docs/comparison.md", "| what")]
    assert [cell.strip() for cell in header[1:]] == [*looked_at, "this"]
    assert len(rows) > 15
    for row in rows:
        for mark in row[1:]:
            assert mark.strip()[0] in "YP–?" or mark.strip() == "n/a", row


@pytest.mark.parametrize(
    ("photo", "workloads"),
    [
        ("0.2 megapixels", ["small-upload"]),
        ("the same", ["small-url"]),
        ("12 megapixels", ["large-url", "large-upload"]),
    ],
)
def test_capacity_figures_match_the_benchmark(photo, workloads):
    """Another run changes the figures a little: only a large difference is an error."""
    cells = json.loads((ROOT / "docs/benchmarks/gateway.json").read_text())["cells"]
    [said] = [float(row[1].removesuffix(" ms")) for row in table("docs/operations.md", "a photo") if photo in row[0]]
    for workload in workloads:
        measured = median(cell["cpu_ms"] for cell in cells[f"clothing-gateway {workload} 8"])
        assert 2 / 3 < measured / said < 3 / 2, f"{workload}: {measured} ms"


def test_readme_table_matches_the_last_full_run():
    run = json.loads((ROOT / "docs/benchmarks/cluster.json").read_text())
    measured = [
        [
            row["scenario"],
            f"{row['outcome']['requests']:,}",
            f"{row['outcome']['failed']:,}",
            f"{row['outcome']['longest_wait_seconds']:.1f}",
        ]
        for row in run["scenarios"]
    ]
    assert table("README.md", "while") == measured, "\n".join(f"| {' | '.join(row)} |" for row in measured)
    said = (ROOT / "README.md").read_text()
    assert f"`{run['command']}`" in said
    assert run["date"] in said


def test_tutorial_cluster_has_the_nodes_of_its_values():
    cluster = yaml.safe_load((ROOT / "scripts/eks.yaml").read_text())
    groups = {group["name"]: group for group in cluster["managedNodeGroups"]}
    [server] = [
        manifest["spec"]["template"]["spec"]
        for manifest in manifests(CLASSIFIER, "--values", ROOT / "Chart-values-examples/eks-gpu.yaml")
        if manifest["kind"] == "Deployment" and manifest["metadata"]["name"].endswith("-server")
    ]
    [taint] = groups["gpu"]["taints"]
    assert {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]} in server["tolerations"]
    assert server["nodeSelector"]["node.kubernetes.io/instance-type"] == groups["gpu"]["instanceType"]
    assert "taints" not in groups["cpu"]
    assert all(group["disablePodIMDS"] for group in groups.values())
    tutorial = (ROOT / "docs/tutorial.md").read_text()
    assert f"REGION={cluster['metadata']['region']}" in tutorial
    assert f"clusterName={cluster['metadata']['name']}" in tutorial
    [role] = cluster["iam"]["podIdentityAssociations"]
    assert f"serviceAccount.name={role['serviceAccountName']}" in tutorial


def test_index_links_every_document():
    text = (ROOT / "docs/README.md").read_text()
    documents = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert {document for document in documents if f"]({document})" not in text} == set()


def test_tensorflow_serving_version_is_the_same_everywhere():
    """Renovate updates the Dockerfile, but neither the documents nor the examples."""
    dockerfile = ROOT / "model-image/Dockerfile"
    version = re.search(r"^ARG TF_SERVING_IMAGE=\S+:(\S+)$", dockerfile.read_text(), re.MULTILINE)[1]
    gpu = re.search(r"tensorflow/serving:([\w.]+-gpu)", (ROOT / "ci/images.json").read_text())[1]
    places = [*(ROOT / "docs").rglob("*.md"), *EXAMPLES, dockerfile, ROOT / "ci/images.json"]
    named = {
        (file.name, tag)
        for file in places
        for tag in re.findall(r"tensorflow/serving(?:, tag: |:)([\w.-]+)", file.read_text())
    }
    assert named >= {("tutorial.md", gpu), ("models.md", version), ("Dockerfile", version), ("Dockerfile", gpu)}
    assert {tag for _, tag in named} == {version, gpu}


def test_values_by_model_are_the_charts():
    """Each row's values are valid, and every preprocessing, channel order, fit and kind of scores has a row."""
    known = json.loads((CLASSIFIER / "values.schema.json").read_text())["properties"]["model"]["properties"]
    named: dict[str, set[str]] = {}
    rows = table("docs/models.md", "trained with")
    assert len(rows) > 15
    for trained, cell in rows:
        spans = re.findall("`(.+?)`", cell)
        values = [yaml.safe_load(f"{{{span}}}") for span in spans if re.match(r"\w+: ", span)]
        assert values, trained
        for each in values:
            assert Input.read(each).values().items() >= {k: v for k, v in each.items() if k == "preprocessing"}.items()
            for key, value in each.items():
                assert value in known[key].get("enum", [value]), (trained, key)
                named.setdefault(key, set()).add(str(value))
    assert named["preprocessing"] == set(PREPROCESSINGS)
    assert named["scores"] == set(SCORES) - {"auto"}
    assert named["channels"] | {"rgb", "grey"} == set(CHANNELS)  # grey is read from the signature
    assert named["fit"] | {"stretch"} == set(FITS)


def test_every_picture_is_used_and_small():
    pictures = {file.name for kind in ("*.png", "*.svg") for file in (ROOT / "docs").rglob(kind)}
    shown = "".join(file.read_text() for file in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
    assert {"page.png", "page-phone.png", "architecture.svg"} <= pictures
    assert {name for name in pictures if f"/{name}" not in shown and f"({name})" not in shown} == set()
    for file in (ROOT / "docs/pictures").iterdir():
        assert file.stat().st_size < 150_000, file.name
