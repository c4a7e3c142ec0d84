"""The field's terms occur in the documents: what a reader greps or searches for is found."""

import ast
import re
import subprocess

import pytest
from charts import ROOT
from commands import DOCUMENTS

# The terms that one would search for, in a document's title and first paragraphs.
OPENING_TERMS = {
    "README.md": ["inference", "Helm chart", "Kubernetes", "TensorFlow Serving", "GPU", "canary", "autoscaling"],
    "CONTRIBUTING.md": ["development", "unit tests", "pull request"],
    "SECURITY.md": ["vulnerability", "report", "supported versions"],
    "UPGRADING.md": ["upgrade", "rollback", "breaking change"],
    "gateway/README.md": ["inference gateway", "authentication", "rate limit", "SSRF", "graceful shutdown"],
    "docs/README.md": ["quick start", "operations", "troubleshooting"],
    "docs/architecture.md": ["gRPC", "admission control", "round robin"],
    "docs/canary.md": ["canary", "rollback", "hot reload"],
    "docs/chart-comparison.md": ["Helm chart", "comparison", "operator"],
    "docs/chart-objects.md": ["Kubernetes objects", "Deployment", "Service"],
    "docs/comparison.md": ["KServe", "BentoML", "Triton"],
    "docs/dashboards.md": ["observability", "Grafana", "Prometheus"],
    "docs/fault-tolerance.md": ["fault tolerance", "overload", "SIGKILL"],
    "docs/models.md": ["SavedModel", "PVC", "S3"],
    "docs/operations.md": ["autoscaling", "rollback", "observability"],
    "docs/performance.md": ["benchmark", "latency", "throughput"],
    "docs/platforms.md": ["prerequisites", "OpenShift", "Argo CD", "Istio"],
    "docs/releasing.md": ["release", "verify", "image"],
    "docs/runbooks/alerts.md": ["alert", "runbook", "SLO", "burn rate"],
    "docs/security.md": ["SSRF", "authentication", "threat model"],
    "docs/troubleshooting.md": ["troubleshooting", "error message", "doctor"],
    "docs/tutorial.md": ["quick start", "GPU", "EKS", "prerequisites"],
    "docs/zero-downtime.md": ["zero downtime", "graceful shutdown", "rolling update"],
}
# What must occur anywhere in a document.
TERMS = {
    "README.md": [
        *["quick start", "prerequisites", "zero downtime", "graceful shutdown", "backpressure", "admission control"],
        *["rate limit", "authentication", "SSRF", "NetworkPolicies", "mTLS", "canary", "rollback", "fallback"],
        *["autoscaling", "HorizontalPodAutoscaler", "KEDA", "GPU", "MIG", "batching", "hot reload", "troubleshooting"],
        *["observability", "Prometheus", "Grafana", "OpenTelemetry"],
    ],
    "docs/zero-downtime.md": ["readiness", "preStop", "PodDisruptionBudget", "node drain", "retries"],
    "docs/operations.md": ["HorizontalPodAutoscaler", "KEDA", "capacity", "rollout", "GPU", "backup"],
    "docs/architecture.md": ["admission control", "graceful shutdown", "deadline", "retries", "round robin"],
    "docs/security.md": ["SSRF", "authentication", "rate limit", "NetworkPolicy", "mTLS", "DNS rebinding"],
    "docs/canary.md": ["canary", "rollback", "promote", "fallback", "hot reload"],
    "docs/runbooks/alerts.md": ["burn rate", "SLO", "rollback"],
    "docs/dashboards.md": ["Grafana", "Prometheus", "observability"],
    "docs/performance.md": ["benchmark", "CPU", "latency", "throughput"],
    "CONTRIBUTING.md": ["prerequisites", "unit tests", "integration", "end-to-end", "lint"],
}
# The first words of a search: each is in README.md and in at least one page of docs/.
SEARCHED = [
    *["quick start", "zero downtime", "graceful shutdown", "rate limit", "authentication", "SSRF", "canary"],
    *["rollback", "autoscaling", "GPU", "troubleshooting", "observability", "fallback"],
]


def contains(text: str, term: str) -> bool:
    """Whether a term occurs, in any case, with its words apart by a space, a hyphen or a line's end."""
    pattern = r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", term)))
    return bool(re.search(rf"(?<![A-Za-z]){pattern}", text, re.IGNORECASE))


def opening(text: str) -> str:
    """A document's title, with its text up to the second heading."""
    return re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(document, term) for document, terms in table.items() for term in terms]


@pytest.mark.parametrize(("document", "term"), pairs(OPENING_TERMS))
def test_opening_contains(document, term):
    if not contains(opening((ROOT / document).read_text()), term):
        pytest.fail(f"{document}: {term!r} is missing in its opening")


def test_every_page_of_docs_has_opening_terms():
    pages = {str(file.relative_to(ROOT)) for file in DOCUMENTS if file.is_relative_to(ROOT / "docs")}
    generated = {page for page in pages if page.startswith("docs/benchmarks/")}
    assert pages - generated - set(OPENING_TERMS) == set()
    assert all(len(terms) >= 3 for terms in OPENING_TERMS.values())


@pytest.mark.parametrize(("document", "term"), pairs(TERMS))
def test_document_contains(document, term):
    if not contains((ROOT / document).read_text(), term):
        pytest.fail(f"{document}: {term!r} is missing")


@pytest.mark.parametrize("term", SEARCHED)
def test_searched_term_is_in_readme_and_docs(term):
    pages = [file for file in DOCUMENTS if file.is_relative_to(ROOT / "docs")]
    for where, files in {"README.md": [ROOT / "README.md"], "docs/": pages}.items():
        if not any(contains(file.read_text(), term) for file in files):
            pytest.fail(f"{where}: {term!r} is missing")


def test_contains_ignores_case_hyphens_and_line_ends():
    assert contains("Zero-Downtime", "zero downtime")
    assert contains("graceful\nshutdown", "graceful shutdown")
    assert contains("rate limits", "rate limit")
    assert not contains("separate limit", "rate limit")
    assert not contains("nothing is lost", "zero downtime")
    assert opening("# A\n\nb\n\n## C\n\nd\n") == "# A\n\nb\n\n"


# ---- the changelog's form ----


def test_changelog_has_one_line_for_each_change():
    changes = (ROOT / "CHANGELOG.md").read_text().split("\n## ", 1)[1].splitlines()[1:]
    assert [line for line in changes if line and not re.match(r"(## |### \w+$|- \S.{10,165}$)", line)] == []


# ---- CONTRIBUTING.md's map ----


def rooms() -> set[str]:
    """Every folder that the map must name: both packages' rooms, the tests' folders, and those at the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = set()
    for file in listed.splitlines():
        parts = file.split("/")[:-1]
        if parts[1:2] == ["src"] and len(parts) > 3:
            found.add(f"{parts[3]}/")
        elif parts[:1] == ["tests"] and len(parts) > 1:
            found.add(f"tests/{parts[1]}")
        elif parts and parts[0] != "docs":
            found.add(f"{parts[0]}/")
    return found


def test_map_names_every_room_in_ten_rows():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("\n## Map\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) <= 10
    named = "\n".join(rows)
    assert {room for room in rooms() if f"`{room}" not in named and f"{room}`" not in named} == set()


# ---- docstrings: their form is ruff's (pydocstyle), which has no limit for the first line alone ----

FIRST_LINE = 80
SOURCES = ("contract/src", "gateway/jpeg/src", "gateway/src", "images", "model-image/src", "scripts", "tests/load")
# A test file is documented by its tests' names.
EXCLUDED = re.compile(r"/test_\w+\.py$")


def long_first_lines(text: str) -> list[str]:
    """First lines of docstrings over the limit."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [first for each in found if each and len(first := each.partition("\n")[0]) > FIRST_LINE]


def test_docstrings_begin_with_a_short_line():
    listed = subprocess.run(["git", "ls-files", *SOURCES], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [file for file in listed.splitlines() if file.endswith(".py") and not EXCLUDED.search(file)]
    assert len(files) > 100
    long = {file: lines for file in files if (lines := long_first_lines((ROOT / file).read_text("utf-8")))}
    assert long == {}, f"over {FIRST_LINE} characters: the reason belongs below the first line"


def test_long_first_line_is_detected():
    assert long_first_lines(f'"""{"a" * FIRST_LINE}"""\n') == []
    assert long_first_lines(f'def f():\n    """{"a" * (FIRST_LINE + 1)}"""\n') == ["a" * (FIRST_LINE + 1)]
