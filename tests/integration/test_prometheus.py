"""Prometheus scrapes a loaded gateway and model server; the chart's dashboard and rules work on the metrics."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from monitored import NAMESPACE, PODS, RELEASE, Installation, installation, load, targets
from processes import wait_for

# Long enough to hold all of the load, however busy the machine is.
RATE_INTERVAL = "2m"


@pytest.fixture(scope="module")
def sent() -> Counter[int]:
    """Answered photo requests by status."""
    return Counter()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, sent: Counter[int]) -> Iterator[Installation]:
    settings = {"GATEWAY_MAX_IN_FLIGHT": "2", "GATEWAY_MAX_PHOTOS": "2"}
    with installation(tmp_path_factory.mktemp("monitored"), "2s", **settings) as system:
        # A rate needs two scrapes with a load between them, which on a busy machine may come late.
        grows = 'rate(gateway_request_duration_seconds_count{{status="{}"}}[2m]) > 0'.format
        batches = "rate(:tensorflow:serving:batching_session:queuing_latency_count[2m]) > 0"

        def seen() -> bool:
            # More clients than places: some are turned away with 503, which the rate of 5xx shows.
            sent.update(load(system, seconds=3, clients=5))
            return all(system.prometheus.value(query) for query in (grows(200), grows(503), grows(415), batches))

        wait_for("rates", seen, 90)
        system.gateway.get("/ping")
        total = 'sum(gateway_request_duration_seconds_count{route=~"/predict|/classify"})'
        asked = f"{total} == {sent.total()}"
        wait_for("the last scrape", lambda: system.prometheus.value(asked), 60)
        yield system


def test_prometheus_scrapes_both_without_errors(watched: Installation) -> None:
    def up() -> set[str]:
        found = watched.prometheus.api("targets")["activeTargets"]
        return {target["labels"]["pod"] for target in found if (target["lastError"], target["health"]) == ("", "up")}

    # A scrape may come too late on a busy machine; the next does not.
    wait_for("both targets", lambda: up() == set(PODS.values()), 20)


def test_every_dashboard_query_returns_numbers(watched: Installation) -> None:
    queries = targets(watched.monitoring.dashboard, RATE_INTERVAL)
    assert len(queries) > 20
    empty = []
    for query in queries:
        found = [float(series["value"][1]) for series in watched.prometheus.value(query.expression)]
        if not found or not all(math.isfinite(value) and value >= 0 for value in found):
            empty.append((query.panel, query.legend, found))
    assert empty == []


def test_dashboard_legend_labels_exist(watched: Installation) -> None:
    for query in targets(watched.monitoring.dashboard, RATE_INTERVAL):
        for label in (part.partition("}}")[0] for part in query.legend.split("{{")[1:]):
            assert all(label in series["metric"] for series in watched.prometheus.value(query.expression)), query


def test_error_rate_is_zero_without_errors(watched: Installation) -> None:
    (query,) = (t for t in targets(watched.monitoring.dashboard, RATE_INTERVAL) if t.panel == "5xx rate")
    (shown,) = watched.prometheus.value(query.expression.replace("5..", "599"))
    assert shown["value"][1] == "0"


def test_dashboard_variables_find_the_release(watched: Installation) -> None:
    variables = {variable["name"]: variable for variable in watched.monitoring.dashboard["templating"]["list"]}
    assert variables["namespace"]["query"] == "label_values(gateway_ready, namespace)"
    assert watched.prometheus.api("label/namespace/values", **{"match[]": "gateway_ready"}) == [NAMESPACE]
    assert variables["release"]["query"] == 'label_values(gateway_ready{namespace="$namespace"}, pod)'
    (pod,) = watched.prometheus.api("label/pod/values", **{"match[]": f'gateway_ready{{namespace="{NAMESPACE}"}}'})
    assert variables["release"]["regex"] == "/(.+)-gateway-.+/"
    assert pod.rpartition("-gateway-")[0] == RELEASE


def test_counted_requests_equal_sent_requests(watched: Installation, sent: Counter[int]) -> None:
    assert {200, 415, 424, 503} <= set(sent)
    by_status = 'sum by (status) (gateway_request_duration_seconds_count{route=~"/predict|/classify"})'
    counted = {int(s["metric"]["status"]): int(s["value"][1]) for s in watched.prometheus.value(by_status)}
    assert counted == dict(sent)


def test_probe_metrics_are_dropped(watched: Installation) -> None:
    """The PodMonitors' relabelling as Prometheus configuration."""
    assert watched.prometheus.value('gateway_request_duration_seconds_count{route="/ping"}') == []
    assert watched.prometheus.value(':tensorflow:serving:request_latency_count{API="",entrypoint="REST"}') == []
    assert b'route="/ping"' in watched.gateway.get("/metrics", "admin").data


def test_rules_evaluate_without_errors(watched: Installation) -> None:
    def evaluated() -> list[dict[str, str]]:
        (group,) = watched.prometheus.api("rules")["groups"]
        return group["rules"] if all(rule["health"] != "unknown" for rule in group["rules"]) else []

    rules = wait_for("the rules", evaluated, 20)
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    (burn,) = watched.prometheus.value("clothing_classifier:errors:ratio_rate5m")
    assert 0 < float(burn["value"][1]) < 1


def test_lost_model_is_a_pending_alert_that_clears(watched: Installation) -> None:
    def state() -> str:
        found = watched.prometheus.value('ALERTS{alertname="ClassifierNoGatewayReady"}')
        return found[0]["metric"]["alertstate"] if found else "inactive"

    wait_for("a quiet beginning", lambda: state() == "inactive", 40)
    watched.model.process.send_signal(signal.SIGSTOP)  # SIGSTOP: there, and silent
    try:
        wait_for("the alert", lambda: state() == "pending", 40)
    finally:
        watched.model.process.send_signal(signal.SIGCONT)
    wait_for("its end", lambda: state() == "inactive", 40)
