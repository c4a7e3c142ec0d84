"""Alerts fire when they should and not otherwise, by Prometheus's own engine; all metrics that are named exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CLASSIFIER, ROOT, flatten, manifests, run, tool
from clothing_gateway.settings import Settings

SETTINGS = (
    "monitoring.rules.enabled=true,monitoring.dashboard.enabled=true,monitoring.podMonitor.enabled=true,"
    "server.tls.certManager.enabled=true,server.tls.certManager.issuerRef.name=ca"
)
RUNBOOKS = ROOT / "docs" / "runbooks" / "alerts.md"
POD = 'namespace="photos",pod="demo-clothing-classifier-gateway-5b5ff4b767-8p2fd"'
SERVER = 'namespace="photos",pod="demo-clothing-classifier-server-557cb496cc-qp5hx"'
OTHER = 'namespace="photos",pod="demo-clothing-classifier-gateway-gateway-5b5ff4b767-8p2fd"'  # another release's
# What others export, and the rules go by where they are there.
FOREIGN = {"certmanager_certificate_expiration_timestamp_seconds"}


@pytest.fixture(scope="module")
def objects():
    return manifests(CLASSIFIER, "--set", SETTINGS)


@pytest.fixture(scope="module")
def rules(objects):
    return next(m for m in objects if m["kind"] == "PrometheusRule")["spec"]


@pytest.fixture(scope="module")
def dashboard(objects):
    config = next(m for m in objects if m["metadata"]["name"].endswith("-dashboard"))
    return json.loads(config["data"]["clothing-classifier.json"])


@pytest.fixture
def firing(rules, tmp_path):
    """The alerts that fire at a time, for series as promtool takes them."""
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))

    def firing(series: str, at: str, interval: str = "1m") -> dict[str, dict[str, Any]]:
        question = {"load": f"load {interval}\n{series}", "interval": interval, "at": [at]}
        result = run(tool("promrules"), file, input=json.dumps(question))
        assert result.returncode == 0, result.stderr
        return {alert["labels"]["alertname"]: alert for alert in json.loads(result.stdout)[at]}

    return firing


def alerts(rules) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules["groups"][0]["rules"] if "alert" in rule}


def requests(steps: int, good: int, bad: int, slow: int = 0, labels: str = POD) -> str:
    """So many requests at each step: answered fast, answered with 503, and answered after more than 2.5 s."""
    name, route = "gateway_request_duration_seconds", f'{labels},route="/predict"'
    return f"""\
  {name}_count{{{route},status="200"}} 0+{good + slow}x{steps}
  {name}_bucket{{{route},status="200",le="2.5"}} 0+{good}x{steps}
  {name}_bucket{{{route},status="200",le="+Inf"}} 0+{good + slow}x{steps}
  {name}_count{{{route},status="503"}} 0+{bad}x{steps}
  gateway_ready{{{labels}}} 1x{steps}
"""


def test_nothing_fires_while_all_is_well(firing):
    probes = f'  gateway_request_duration_seconds_count{{{POD},route="none",status="500"}} 0+1000x90\n'
    assert firing(requests(90, good=1000, bad=4, slow=5) + probes, "1h30m") == {}


def test_a_fast_burn_pages_within_minutes_and_ends_with_the_trouble(firing):
    an_hour_well_then_down = requests(400, good=1000, bad=0, labels=POD).replace(
        'status="503"} 0+0x400', 'status="503"} 0x60 0+1000x30 30000x300'
    )
    assert firing(an_hour_well_then_down, "1h") == {}
    during = firing(an_hour_well_then_down, "1h15m")
    assert set(during) == {"ClassifierAvailabilityBurnFast"}
    assert during["ClassifierAvailabilityBurnFast"]["labels"] == {
        "alertname": "ClassifierAvailabilityBurnFast",
        "severity": "critical",
        "namespace": "photos",
        "release": "demo",
    }
    assert "ClassifierAvailabilityBurnFast" not in firing(an_hour_well_then_down, "3h")


def test_a_leak_warns_without_paging(firing):
    errors, slow = requests(730, good=1000, bad=16), requests(730, good=1000, bad=0, slow=32)
    assert set(firing(errors, "2d", interval="4m")) == {"ClassifierAvailabilityBurnSlow"}
    assert set(firing(slow, "2d", interval="4m")) == {"ClassifierLatencyBurnSlow"}


def test_slow_answers_page(firing):
    # All that there is of the three days is an hour, and that was slow.
    burns = {"ClassifierLatencyBurnFast", "ClassifierLatencyBurnSlow"}
    assert set(firing(requests(90, good=800, bad=0, slow=200), "1h10m")) == burns


def test_other_releases_are_their_own(firing):
    assert firing(requests(90, good=1000, bad=0) + requests(90, good=0, bad=1000, labels=OTHER), "1h10m") == {}


WELL = f"  gateway_ready{{{POD}}} 1x60\n"
SCENARIOS = {
    "ClassifierNoGatewayReady": ("  up 1x60\n", "5m"),
    "ClassifierGatewayNotReady": (f"{WELL}  gateway_ready{{{POD.replace('8p2fd', 'zzzzz')}}} 0x60\n", "15m"),
    "ClassifierModelCallsFail": (
        (
            f'{WELL}  gateway_rpcs_total{{{POD},method="Predict",code="OK"}} 0+90x60\n'
            f'  gateway_rpcs_total{{{POD},method="Predict",code="UNAVAILABLE"}} 0+10x60\n'
        ),
        "15m",
    ),
    "ClassifierOverloaded": (f'{WELL}  gateway_errors_total{{{POD},code="overloaded"}} 0+1x60\n', "20m"),
    "ClassifierPhotosPileUp": (f"{WELL}  gateway_in_flight_photos{{{POD}}} 30x60\n", "15m"),
    "ClassifierBatchQueueLong": (
        WELL
        + "".join(
            f'  :tensorflow:serving:batching_session:queuing_latency_bucket{{{SERVER},le="{le}"}} 0+{count}x60\n'
            for le, count in (("1e6", 0), ("2e6", 100), ("+Inf", 100))
        ),
        "20m",
    ),
    "ClassifierCertificateExpires": (
        f"{WELL}  certmanager_certificate_expiration_timestamp_seconds"
        f'{{namespace="cert-manager",exported_namespace="photos",name="demo-clothing-classifier-server"}} 864000x90\n'
        + WELL.replace("x60", "x90").replace("8p2fd", "zzzzz"),
        "1h10m",
    ),
}
HEALTHY = {
    "ClassifierNoGatewayReady": (WELL, "5m"),
    "ClassifierGatewayNotReady": (f"  gateway_ready{{{POD}}} 0x5 1x60\n", "15m"),
    "ClassifierModelCallsFail": (SCENARIOS["ClassifierModelCallsFail"][0].replace("UNAVAILABLE", "CANCELLED"), "15m"),
    "ClassifierOverloaded": (SCENARIOS["ClassifierOverloaded"][0].replace("overloaded", "not-an-image"), "20m"),
    "ClassifierPhotosPileUp": (SCENARIOS["ClassifierPhotosPileUp"][0].replace("30x60", "25x60"), "15m"),
    "ClassifierBatchQueueLong": (SCENARIOS["ClassifierBatchQueueLong"][0].replace("0+0x60", "0+100x60"), "20m"),
    "ClassifierCertificateExpires": (
        SCENARIOS["ClassifierCertificateExpires"][0].replace("864000", "8640000"),
        "1h10m",
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_alert_fires_and_only_it(name, firing):
    series, at = SCENARIOS[name]
    assert set(firing(series, at)) == {name}


@pytest.mark.parametrize("name", HEALTHY)
def test_the_alert_does_not_fire_for_less(name, firing):
    series, at = HEALTHY[name]
    assert firing(series, at) == {}


def test_every_alert_is_tried(rules):
    burns = {f"Classifier{what}Burn{pace}" for what in ("Availability", "Latency") for pace in ("Fast", "Slow")}
    assert set(alerts(rules)) == set(SCENARIOS) | burns


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(rules):
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts(rules))
    for name, rule in alerts(rules).items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/alerts.md#{name.lower()}"


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


def test_the_dashboards_queries_can_be_parsed(dashboard, tmp_path):
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    plain = [re.sub(r"\$__rate_interval", "5m", query) for query in queries]
    group = {"name": "dashboard", "rules": [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(plain)]}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    assert run(tool("promrules"), file, input="{}").returncode == 0
    file.write_text(file.read_text().replace("sum", "summ"))
    assert run(tool("promrules"), file, input="{}").returncode == 1


def test_the_dashboard_has_no_id_of_one_grafana_and_no_two_panels_in_one_place(dashboard):
    assert "id" not in dashboard
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"$datasource"}


def test_the_alert_on_full_gateways_goes_by_the_gateways_own_limit(rules):
    assert f"> {0.8 * Settings().max_in_flight}" in alerts(rules)["ClassifierPhotosPileUp"]["expr"]


def test_a_monitor_drops_the_probes(objects):
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


def test_the_runbooks_links_lead_somewhere():
    text = Path(RUNBOOKS).read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


def test_the_runbooks_name_values_that_there_are():
    values = flatten(yaml.safe_load((CLASSIFIER / "values.yaml").read_text()))
    top = "|".join({path.partition(".")[0] for path in values})
    named_values = set(re.findall(rf"`((?:{top})\.[\w.]+)`", RUNBOOKS.read_text()))
    assert len(named_values) > 10
    assert {name for name in named_values if not any(f"{path}.".startswith(f"{name}.") for path in values)} == set()
