"""What the documents say of the chart is so: each test that they name is there, and each object is explained."""

import re

import yaml
from charts import CLASSIFIER, EXAMPLES, ROOT, manifests

COMPARISON = (ROOT / "docs" / "chart-comparison.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in COMPARISON.splitlines() if line.startswith("|")
]


def there_is(reference: str) -> bool:
    file, _, name = reference.partition("::" if "::" in reference else ": ")
    if file.endswith(".py"):
        path = ROOT / "tests" / ("" if "/" in file else "chart") / file
        return path.is_file() and f"\ndef {name}(" in path.read_text()
    path = CLASSIFIER / "tests" / file
    return path.is_file() and name in {test["it"] for test in yaml.safe_load(path.read_text())["tests"]}


def test_every_mark_for_this_chart_names_tests_that_there_are():
    assert ROWS[0][-2:] == ["this chart", "proved by"]
    assert len(ROWS) > 40
    missing = []
    for row in ROWS[2:]:
        assert len(row) == len(ROWS[0]), row
        references = re.findall("`(.+?)`", row[-1])
        assert references, f"{row[0]}: no test"
        missing += [f"{row[0]}: {reference}" for reference in references if not there_is(reference)]
        for mark in row[1:-1]:
            assert mark[0] in "YP–?", f"{row[0]}: {mark}"
        assert row[-2][0] in "YP", row[0]
    assert missing == []


def test_a_test_that_there_is_not_is_noticed():
    assert there_is("test_docs.py::test_a_test_that_there_is_not_is_noticed")
    assert there_is("e2e/test_release.py::test_helm_test")
    assert not there_is("test_docs.py::test_no")
    assert not there_is("no.py::test_no")
    assert there_is("validate_test.yaml: refuses nothing by default")
    assert not there_is("validate_test.yaml: refuses everything")


def test_every_object_of_the_defaults_is_explained():
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


def test_every_example_has_its_line():
    text = (ROOT / "Chart-values-examples" / "README.md").read_text()
    assert re.findall(r"^\| \[([\w.-]+)\]\(\1\) \| .+ \|$", text, re.MULTILINE)
    assert set(re.findall(r"^\| \[([\w.-]+)\]", text, re.MULTILINE)) == {file.name for file in EXAMPLES}
