"""What an upgrade, another Helm, another registry and a reader may count on."""

import re
import shutil
import subprocess
import tarfile
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pytest
import yaml
from charts import (
    CHARTS,
    CLASSIFIER,
    EXAMPLES,
    ROOT,
    Manifest,
    manifests,
    name,
    of_version,
    pods,
    render,
    render_anew,
    run,
    tool,
    values_files,
)
from golden import GOLDEN, golden_renders, readable

by_chart = pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
by_values = pytest.mark.parametrize("chart_and_file", values_files(), ids=name)
TEMPLATES = [(chart, file) for chart in CHARTS for file in sorted((chart / "templates").rglob("*")) if file.is_file()]


def lines_of(rendered: str) -> list[str]:
    """Helm 4 leaves a blank line between manifests, and Helm 3 none."""
    return [line for line in rendered.splitlines() if line.strip()]


@by_values
def test_rendering_is_deterministic(chart_and_file):
    chart, file = chart_and_file
    assert render_anew(chart, "--values", file) == render(chart, "--values", file)


@by_values
def test_helm_3_and_helm_4_render_the_same(chart_and_file):
    chart, file = chart_and_file
    assert lines_of(render_anew(chart, "--values", file, helm="helm4")) == lines_of(render(chart, "--values", file))


@by_chart
def test_helm_4_lint_has_no_message(chart):
    for file in sorted((chart / "ci").glob("*-values.yaml")):
        result = run(tool("helm4"), "lint", "--strict", "--quiet", chart, "--values", file)
        assert (result.returncode, result.stdout.strip()) == (0, ""), result.stdout + result.stderr


def test_golden_renders_match_the_examples():
    kept = {file.name: file.read_text() for file in GOLDEN.glob("*.yaml")}
    renders = golden_renders()
    assert set(kept) == set(renders) == {file.name for file in EXAMPLES}
    for example, text in renders.items():
        assert text == kept[example], f"{example} renders to something else: look at it with `make docs` and git diff"


def test_golden_render_omits_long_lines():
    assert readable(f"a: 1\n  b: {'x' * 500}\nc: {'y' * 300}\n") == f"a: 1\n  # a long line\nc: {'y' * 300}\n"


@by_values
def test_new_chart_version_restarts_no_pod(chart_and_file):
    chart, file = chart_and_file
    with of_version(chart, "99.0.0") as newer:
        before, after = manifests(chart, "--values", file), manifests(newer, "--values", file)
    assert before != after

    def templates(objects: list[Manifest]) -> list[str]:
        return [yaml.safe_dump(pod) for what, pod in pods(objects).items() if what.startswith("Deployment")]

    assert templates(before) == templates(after)
    for old, new in zip(before, after, strict=True):
        for labels in (old["metadata"].get("labels", {}), new["metadata"].get("labels", {})):
            labels.pop("helm.sh/chart", None)
        assert old == new, "a new version of the chart changes more than the label that names it"


def test_new_configuration_restarts_only_the_server():
    before = pods(manifests(CLASSIFIER))
    after = pods(manifests(CLASSIFIER, "--set=server.monitoring.enabled=false"))
    assert [what for what in before if before[what] != after[what]] == ["Deployment demo-clothing-classifier-server"]


@pytest.mark.parametrize(("chart", "file"), TEMPLATES, ids=[f"{c.name}/{f.relative_to(c)}" for c, f in TEMPLATES])
def test_templates_use_no_random_clock_or_lookup(chart, file):
    code = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
    calls = re.findall(
        r"\b(rand\w+|uuidv4|now|date\w*|htmlDate\w*|ago|lookup|gen(?:CA|SelfSigned|Signed|Private)\w*|htpasswd|bcrypt)\b",
        " ".join(re.findall(r"\{\{.*?\}\}", re.sub(r'"[^"]*"|`[^`]*`', "", code), re.DOTALL)),
    )
    assert calls == []


IDENTITY = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}


@by_values
def test_selectors_are_immutable_labels(chart_and_file):
    chart, file = chart_and_file
    for manifest in manifests(chart, "--values", file):
        if manifest["kind"] == "Deployment":
            assert set(manifest["spec"]["selector"]["matchLabels"]) == IDENTITY
            assert (
                manifest["spec"]["selector"]["matchLabels"].items()
                <= manifest["spec"]["template"]["metadata"]["labels"].items()
            )


def test_pod_labels_cannot_change_the_selectors():
    plain = manifests(CLASSIFIER)
    tampering = [
        f"--set-string={part}.podLabels.app\\.kubernetes\\.io/{key}=other"
        for part in ("server", "gateway")
        for key in ("name", "instance", "component")
    ]
    tampered = manifests(CLASSIFIER, *tampering)
    for before, after in zip(plain, tampered, strict=True):
        assert before == after


def test_default_render_is_short():
    lines = render(CLASSIFIER).splitlines()
    assert len(lines) < 400, f"helm template of the defaults has {len(lines)} lines: nobody reads that"


def containers(pod: Manifest) -> list[Manifest]:
    return list(chain(pod["spec"].get("initContainers", []), pod["spec"]["containers"]))


GLOBAL = ("--set=global.imageRegistry=registry.example.com/team", "--set=global.imagePullSecrets[0].name=registry")


@pytest.mark.parametrize("file", [file for chart, file in values_files() if chart == CLASSIFIER], ids=lambda f: f.stem)
def test_global_registry_and_pull_secret_reach_every_container(file):
    for what, pod in pods(manifests(CLASSIFIER, "--values", file, *GLOBAL)).items():
        assert pod["spec"].get("imagePullSecrets") == [{"name": "registry"}], what
        for container in containers(pod):
            assert container["image"].startswith("registry.example.com/team/"), f"{what}: {container['name']}"
        for volume in pod["spec"].get("volumes", []):
            if "image" in volume:
                assert volume["image"]["reference"].startswith("registry.example.com/team/"), (
                    f"{what}: {volume['name']}"
                )


def test_images_by_digest_reach_every_container():
    digests = {part: f"sha256:{sha256(part.encode()).hexdigest()}" for part in ("server", "gateway")}
    options = [f"--set={part}.image.digest={digest}" for part, digest in digests.items()]
    used = {
        c["image"].rpartition("@")[2] for p in pods(manifests(CLASSIFIER, *options)).values() for c in containers(p)
    }
    assert used == set(digests.values())


@by_chart
def test_every_template_has_a_suite(chart):
    tested: set[str] = set()
    for suite in (chart / "tests").glob("*_test.yaml"):
        content = yaml.safe_load(suite.read_text())
        for part in (content, *content["tests"]):
            tested |= {*part.get("templates", []), part.get("template", "")}
    templates = {
        str(file.relative_to(chart)) for of, file in TEMPLATES if of == chart and not file.name.startswith("_")
    }
    assert templates - {f if f.startswith("templates/") else f"templates/{f}" for f in tested} == set()


@by_chart
def test_each_template_makes_one_kind(chart):
    kinds: dict[str, set[str]] = {}
    for of, file in values_files():
        if of == chart:
            for manifest in re.split("^---$", render(of, "--values", file), flags=re.MULTILINE):
                for source in re.findall("^# Source: (.*)$", manifest, re.MULTILINE):
                    kinds.setdefault(source, set()).update(re.findall(r"^kind: (\w+)$", manifest, re.MULTILINE))
    assert kinds
    kinds.pop(f"{chart.name}/templates/extra-objects.yaml", None)  # the operator's own
    assert {source: found for source, found in kinds.items() if len(found) > 1} == {}


def test_helpers_are_named_after_their_chart():
    for chart, file in TEMPLATES:
        for helper in re.findall(r'\{\{-? ?define "([^"]+)"', file.read_text()):
            assert helper.startswith(f"{chart.name}."), f"{file.name}: {helper} would meet another chart's"


def description(chart: Path) -> Manifest:
    found: Manifest = yaml.safe_load((chart / "Chart.yaml").read_text())
    return found


def test_artifact_hub_annotation_lists_the_default_images():
    app_version, annotations = description(CLASSIFIER)["appVersion"], description(CLASSIFIER)["annotations"]
    told = {image["name"]: image["image"] for image in yaml.safe_load(annotations["artifacthub.io/images"])}
    used = {c["image"] for pod in pods(manifests(CLASSIFIER)).values() for c in containers(pod)}
    assert set(told.values()) == used
    assert all(image.endswith(f":{app_version}") for image in used)
    assert annotations["artifacthub.io/license"] in (ROOT / "LICENSE").read_text().splitlines()[0]
    for link in yaml.safe_load(annotations["artifacthub.io/links"]):
        assert link["name"]
        assert link["url"].startswith("https://")


def test_artifact_hub_annotation_has_the_changelog(tmp_path):
    package(tmp_path, ROOT)
    version = description(CLASSIFIER)["version"]
    with tarfile.open(tmp_path / f"{CLASSIFIER.name}-{version}.tgz") as archive:
        chart_yaml = archive.extractfile(f"{CLASSIFIER.name}/Chart.yaml")
        assert chart_yaml
        changes = yaml.safe_load(yaml.safe_load(chart_yaml)["annotations"]["artifacthub.io/changes"])
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    section = changelog[changelog.index(f"## {version}") :].partition(" ## ")[0]
    assert {change["kind"] for change in changes} <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(change["description"] in section for change in changes)
    assert len(changes) == len(re.findall("(?<= )- ", section)) > 0


def test_package_of_a_release_names_its_repository(tmp_path, monkeypatch):
    version = description(CLASSIFIER)["version"]
    for repository, home in (("photos/classifier", "https://github.com/photos/classifier"), ("", None)):
        monkeypatch.setenv("GITHUB_REPOSITORY", repository)
        assert run(ROOT / "scripts" / "package-charts", tmp_path).returncode == 0
        with tarfile.open(tmp_path / f"{CLASSIFIER.name}-{version}.tgz") as archive:
            chart_yaml = archive.extractfile(f"{CLASSIFIER.name}/Chart.yaml")
            assert chart_yaml
            assert yaml.safe_load(chart_yaml).get("home") == home


def test_packaging_needs_a_changelog_section(tmp_path):
    shutil.copytree(ROOT / "charts", tmp_path / "charts")
    (tmp_path / "scripts").mkdir()
    program = Path(shutil.copy(ROOT / "scripts" / "package-charts", tmp_path / "scripts"))
    (tmp_path / "CHANGELOG.md").write_text("## 0.0.9\n")
    environment = {"PATH": f"{ROOT / '.tools/bin'}:/usr/bin:/bin", "SOURCE_DATE_EPOCH": "0"}
    assert "CHANGELOG.md has no section for" in run(program, tmp_path, env=environment).stderr


def test_upgrading_has_a_section_for_each_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    sections = re.findall(r"^## To (\d+\.\d+\.\d+)$", (ROOT / "UPGRADING.md").read_text(), re.MULTILINE)
    assert versions
    assert sections == versions


def package(folder: Path, sources: Path) -> dict[str, bytes]:
    command = [sources / "scripts" / "package-charts", folder]
    environment = {"PATH": f"{ROOT / '.tools/bin'}:/usr/bin:/bin:/usr/local/bin", "SOURCE_DATE_EPOCH": "1700000000"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.tgz"))}


def test_packages_are_reproducible(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "charts", elsewhere / "charts", copy_function=shutil.copy)  # copied now: other dates
    shutil.copy(ROOT / "CHANGELOG.md", elsewhere)
    (elsewhere / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "package-charts", elsewhere / "scripts")
    for file in (elsewhere / "charts").rglob("*.yaml"):
        file.chmod(0o600)
    one, two = package(tmp_path / "one", ROOT), package(tmp_path / "two", elsewhere)
    assert list(one) == [f"{chart.name}-{description(chart)['version']}.tgz" for chart in CHARTS]
    assert one == two


def test_package_charts_passes_options_to_helm(tmp_path):
    program = ROOT / "scripts" / "package-charts"
    assert "usage: scripts/package-charts FOLDER" in run(program).stderr
    assert run(program, tmp_path, "--version", "7.0.0").returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == {f"{chart.name}-7.0.0.tgz" for chart in CHARTS}
    with tarfile.open(tmp_path / "ping-7.0.0.tgz") as archive:
        assert len({member.mtime for member in archive}) == 1
