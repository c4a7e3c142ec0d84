"""Alerts fire when they should, not otherwise, and end, by promtool; all metrics that are named exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CLASSIFIER, ROOT, flatten, manifests, of_version, run, tool

from clothing_gateway.settings import Settings

SETTINGS = (
    "monitoring.rules.enabled=true,monitoring.dashboard.enabled=true,monitoring.podMonitor.enabled=true,"
    "server.tls.certManager.enabled=true,server.tls.certManager.issuerRef.name=ca,server.autoscaling.enabled=true,"
    "monitoring.rules.runbookUrl=https://runbooks.example.com/alerts.md"
)
RUNBOOKS = ROOT / "docs" / "runbooks" / "alerts.md"
ALERTS = Path(__file__).with_name("alerts.yaml")
ALIASES = Path(__file__).with_name("alerts-of-aliases.yaml")
# What others export, and the rules go by where they are there.
FOREIGN = {
    "certmanager_certificate_expiration_timestamp_seconds",
    "kube_deployment_spec_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_spec_min_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_pod_container_status_last_terminated_reason",
    "kube_pod_container_status_restarts_total",
    "kube_pod_status_phase",
}


@pytest.fixture(scope="module")
def objects():
    return manifests(CLASSIFIER, "--set", SETTINGS)


@pytest.fixture(scope="module")
def rules(objects):
    return next(m for m in objects if m["kind"] == "PrometheusRule")["spec"]


@pytest.fixture(scope="module")
def dashboard(objects):
    config = next(m for m in objects if m["metadata"]["name"].endswith("-dashboard"))
    return json.loads(*config["data"].values())


def alerts(rules) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules["groups"][0]["rules"] if "alert" in rule}


def promtool(folder: Path, *command: str) -> tuple[int, str]:
    result = run(tool("promtool"), *command, cwd=folder, timeout=170)
    return result.returncode, result.stdout + result.stderr


def with_the_tests(rules: str, folder: Path) -> Path:
    (folder / "rules.yaml").write_text(rules)
    (folder / ALERTS.name).write_text(ALERTS.read_text())
    return folder


@pytest.mark.timeout(180)  # hours of minutes, for a busy machine
def test_the_alerts_fire_and_clear(rules, tmp_path):
    code, text = promtool(with_the_tests(yaml.safe_dump(rules), tmp_path), "test", "rules", "--diff", ALERTS.name)
    assert code == 0, text


def test_silent_alert_is_detected(rules, tmp_path):
    wrong = yaml.safe_dump(rules).replace("gateway_in_flight_photos", "gateway_photos")
    code, text = promtool(with_the_tests(wrong, tmp_path), "test", "rules", "--run=photos pile up", ALERTS.name)
    assert code == 1
    assert "ClassifierPhotosPileUp" in text


def test_every_alert_is_tested(rules):
    """To fire, and to be quiet later."""
    tried = set()
    for test in yaml.safe_load(ALERTS.read_text())["tests"]:
        asked = [str(question.get("exp_samples", "")) for question in test["promql_expr_test"]]
        names = set(re.findall(r"Classifier\w+", "".join(asked)))
        assert not names & set(re.findall(r"Classifier\w+", asked[-1])) or len(names) > 1, test["name"]
        tried |= names
    assert tried == set(alerts(rules))


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(rules):
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts(rules))
    for name, rule in alerts(rules).items():
        assert rule["annotations"]["runbook_url"] == f"https://runbooks.example.com/alerts.md#{name.lower()}"


def runbook_urls(objects) -> set[str]:
    rules = next(m for m in objects if m["kind"] == "PrometheusRule")["spec"]
    return {rule["annotations"].get("runbook_url", "").partition("#")[0] for rule in alerts(rules).values()}


def test_runbook_urls_are_of_the_released_version():
    """A chart from a repository without an address has none, as a path is no link in Alertmanager."""
    enabled = ("--set", "monitoring.rules.enabled=true")
    assert runbook_urls(manifests(CLASSIFIER, *enabled)) == {""}
    with of_version(CLASSIFIER, "1.2.3") as chart:
        text = (chart / "Chart.yaml").read_text()
        (chart / "Chart.yaml").write_text(f"home: https://github.com/photos/classifier\n{text}")
        found = runbook_urls(manifests(chart, *enabled))
    assert found == {"https://github.com/photos/classifier/blob/v1.2.3/docs/runbooks/alerts.md"}


def test_rules_of_two_aliases_do_not_collide(tmp_path):
    groups = []
    for options in ("fullnameOverride=first", "fullnameOverride=second,server.gpu.enabled=true"):
        found = manifests(CLASSIFIER, "--set", f"monitoring.rules.enabled=true,{options}")
        groups += next(m for m in found if m["kind"] == "PrometheusRule")["spec"]["groups"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (tmp_path / ALIASES.name).write_text(ALIASES.read_text())
    code, text = promtool(tmp_path, "check", "rules", "--lint=duplicate-rules", "--lint-fatal", "rules.yaml")
    assert code == 0, text
    code, text = promtool(tmp_path, "test", "rules", "--diff", ALIASES.name)
    assert code == 0, text


def exported() -> set[str]:
    """The metrics that the gateway's README documents, and those of TensorFlow Serving that ours has, too."""
    readme = (ROOT / "gateway" / "README.md").read_text()
    names = set(re.findall(r"^\| `(gateway_\w+)` \|", readme, re.MULTILINE))
    assert "`process_…`" in readme
    server = (ROOT / "model-image/src/clothing_model/server/metrics.py").read_text()
    names |= {name.replace("/", ":") for name in re.findall(r'"(/tensorflow/serving/[\w/]+)"', server)}
    return names | {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def named(expression: str) -> set[str]:
    """The metrics of an expression: what is followed by a selector, or stands for a recorded ratio."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"([a-z_:][\w:]*)\{", expression)} - {""}


def test_rules_and_dashboard_name_metrics_that_exist(rules, dashboard):
    recorded = {rule["record"] for rule in rules["groups"][0]["rules"] if "record" in rule}
    expressions = [rule["expr"] for rule in rules["groups"][0]["rules"]]
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found = set().union(*(named(expression) for expression in expressions + panels))
    assert len(found) > 15
    assert found <= exported() | recorded | FOREIGN


def test_dashboards_of_two_releases_do_not_collide():
    found = []
    for name in ("first", "second"):
        objects = manifests(CLASSIFIER, "--set", f"monitoring.dashboard.enabled=true,fullnameOverride={name}")
        data = next(m for m in objects if m["metadata"]["name"].endswith("-dashboard"))["data"]
        ((file, text),) = data.items()
        board = json.loads(text)
        assert len(board["uid"]) <= 40  # Grafana's limit
        found.append((file, board.pop("uid"), board.pop("title"), board))
    first, second = found
    assert all(one != other for one, other in zip(first[:3], second[:3], strict=True))
    assert first[3] == second[3]


def test_dashboard_queries_parse(dashboard, tmp_path):
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    plain = [re.sub(r"\$__rate_interval", "5m", query) for query in queries]
    group = {"name": "dashboard", "rules": [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(plain)]}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    assert promtool(tmp_path, "check", "rules", file.name)[0] == 0
    file.write_text(file.read_text().replace("sum", "summ"))
    assert promtool(tmp_path, "check", "rules", file.name)[0] == 1


def test_dashboard_is_portable_and_panels_do_not_overlap(dashboard):
    assert "id" not in dashboard
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"$datasource"}


def test_pile_up_alert_uses_the_in_flight_limit(rules):
    assert f"> {0.8 * Settings().max_in_flight}" in alerts(rules)["ClassifierPhotosPileUp"]["expr"]


def test_pod_monitor_drops_probe_metrics(objects):
    monitors = {
        m["metadata"]["name"]: m["spec"]["podMetricsEndpoints"][0] for m in objects if m["kind"] == "PodMonitor"
    }
    gateway, server = (monitors[f"demo-clothing-classifier-{tier}"] for tier in ("gateway", "server"))

    def kept(endpoint: dict[str, Any], labels: dict[str, str]) -> bool:
        return not any(
            re.fullmatch(rule["regex"], ";".join(labels.get(label, "") for label in rule["sourceLabels"]))
            for rule in endpoint["metricRelabelings"]
        )

    duration, latency = "gateway_request_duration_seconds_bucket", ":tensorflow:serving:request_latency_count"
    assert kept(gateway, {"__name__": duration, "route": "/predict"})
    assert not kept(gateway, {"__name__": duration, "route": "/ping"})
    assert kept(server, {"__name__": latency, "API": "Predict", "entrypoint": "GRPC"})
    assert kept(server, {"__name__": latency, "API": "Predict", "entrypoint": "REST"})
    assert not kept(server, {"__name__": latency, "API": "", "entrypoint": "REST"})


def test_runbook_links_resolve():
    text = Path(RUNBOOKS).read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


def test_runbooks_name_existing_values():
    values = flatten(yaml.safe_load((CLASSIFIER / "values.yaml").read_text()))
    top = "|".join({path.partition(".")[0] for path in values})
    values |= dict.fromkeys(
        f"server.flags.{flag}" for flag in yaml.safe_load((CLASSIFIER / "files/server-flags.yaml").read_text())
    )
    named_values = set(re.findall(rf"`((?:{top})\.[\w.]+)`", RUNBOOKS.read_text()))
    assert len(named_values) > 10
    assert {name for name in named_values if not any(f"{path}.".startswith(f"{name}.") for path in values)} == set()
