"""What the chart says a second time is what the gateway says."""

import ast
import json
import re
import sys
from ipaddress import IPv6Network

import pytest
import yaml
from charts import CLASSIFIER, ROOT, flatten, helm_template, manifests, pods

from clothing_gateway.fetch.policy import FORBIDDEN_IPV4, FORBIDDEN_IPV6
from clothing_gateway.settings import EXTRA_ENV, ROWS, Settings, SettingsError

sys.path.insert(0, str(ROOT / "scripts"))
import gateway_settings


def blocks(*options: str) -> dict[str, set[str]]:
    """Where the gateways' policy lets photos come from, and what is left out of it."""
    found = manifests(CLASSIFIER, "--set", "networkPolicy.enabled=true", *options)
    policy = next(m for m in found if m["kind"] == "NetworkPolicy" and m["metadata"]["name"].endswith("-gateway"))
    peers = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    return {block["cidr"]: set(block.get("except", [])) for block in peers}


def test_network_policy_excludes_networks_that_the_gateway_refuses():
    internet = IPv6Network("2000::/3")
    ipv6 = {network for network, _, _ in FORBIDDEN_IPV6 if IPv6Network(network).subnet_of(internet)}
    ipv4 = {network for network, _, _ in FORBIDDEN_IPV4}
    assert blocks("--set", "networkPolicy.ipFamilies={IPv4,IPv6}") == {"0.0.0.0/0": ipv4, str(internet): ipv6}


def test_network_policy_allows_networks_that_the_gateway_allows():
    opened = blocks("--set", "gateway.fetch.allowedNetworks={10.1.0.0/16,192.168.7.9/32}")
    assert set(opened) == {"0.0.0.0/0", "10.1.0.0/16", "192.168.7.9/32"}


def test_network_policy_denies_the_networks_that_the_gateway_denies():
    default = blocks("--set", "networkPolicy.ipFamilies={IPv4,IPv6}")
    closed = blocks(
        "--set",
        "networkPolicy.ipFamilies={IPv4,IPv6},gateway.fetch.deniedNetworks={11.0.0.0/8,2600:1f18::/36,fd12::/16}",
    )
    assert closed["0.0.0.0/0"] - default["0.0.0.0/0"] == {"11.0.0.0/8"}
    # fd12::/16 lies outside of what is opened, where an exception is refused by the API server.
    assert closed["2000::/3"] - default["2000::/3"] == {"2600:1f18::/36"}
    everything = "networkPolicy.ipFamilies={IPv4,IPv6},gateway.fetch.deniedNetworks={0.0.0.0/0,::/0}"
    assert blocks("--set", everything) == {}


def test_ingress_limits_match_the_gateway():
    found = manifests(CLASSIFIER, "--set", "gateway.ingress.enabled=true,gateway.ingress.controller=nginx")
    ingress = next(m for m in found if m["kind"] == "Ingress")
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size) == Settings().max_body_bytes


@pytest.mark.parametrize("file", gateway_settings.generate(), ids=lambda file: file.name)
def test_files_generated_from_the_settings_are_up_to_date(file):
    """The settings' table for people, the gateway's environment, and the types of their values."""
    assert file.read_text() == gateway_settings.generate()[file], f"{file.relative_to(ROOT)} is stale: run make docs"


def test_each_setting_names_the_value_that_sets_it():
    """What the doctor names is what the chart makes the variable of."""
    values = flatten(yaml.safe_load((CLASSIFIER / "values.yaml").read_text()))
    template = (CLASSIFIER / "templates/gateway/_env.tpl").read_text()
    for row in ROWS:
        if row.chart == EXTRA_ENV:
            continue
        assert row.chart in values, row.variable
        if not row.template:
            (made,) = re.findall(rf'\(list "{row.variable}" (.+)\)', template)
            assert re.search(rf"\.Values\.{re.escape(row.chart)}\b(?!\.)", made), row.variable


@pytest.mark.parametrize(
    "settings",
    [
        {"GATEWAY_MODEL_VERSION": "1", "GATEWAY_MODEL_LABEL": "stable"},
        {"GATEWAY_MODEL_VERSION": "1", "GATEWAY_CANARY_VERSION": "2", "GATEWAY_CANARY_LABEL": "next"},
        {"GATEWAY_CANARY_PERCENT": "5"},
        {"GATEWAY_CANARY_VERSION": "2"},
        {"GATEWAY_MODEL_VERSION": "2", "GATEWAY_CANARY_VERSION": "2"},
    ],
    ids=" ".join,
)
def test_chart_and_gateway_reject_contradicting_versions_with_one_message(settings):
    with pytest.raises(SettingsError) as caught:
        Settings.load(settings)
    (words,) = caught.value.problems
    values = {row.variable: row.chart for row in ROWS}
    given = [f"{values[variable]}={text}" for variable, text in settings.items()]
    refused = helm_template(CLASSIFIER, "--set", ",".join(given))
    assert refused.returncode != 0
    assert re.sub(r"GATEWAY_\w+", lambda name: values[name[0]], words) in refused.stderr


@pytest.mark.parametrize("row", [row for row in ROWS if row.chart == EXTRA_ENV], ids=lambda row: row.name)
def test_setting_without_a_value_is_set_by_extra_env(row):
    text = {"TF_SERVING_HOST": "dns:///other:8500"}.get(row.variable, row.default or "2")
    found = pods(
        manifests(CLASSIFIER, "--set-json", f"{EXTRA_ENV}={json.dumps([{'name': row.variable, 'value': text}])}")
    )
    (container,) = found["Deployment demo-clothing-classifier-gateway"]["spec"]["containers"]
    assert [entry["value"] for entry in container["env"] if entry["name"] == row.variable] == [text]


def test_threads_and_alerts_use_the_default_in_flight_limit():
    for file in ("server/_config.tpl", "_alerts.tpl"):
        counted = re.findall(
            r"default (\d+) \.Values\.gateway\.maxInFlight", (CLASSIFIER / "templates" / file).read_text()
        )
        assert counted == [str(Settings().max_in_flight)]


def test_templates_use_the_gateways_defaults():
    """What is derived from a null value (threads, a proxy's limits, alerts) uses the setting's default."""
    defaults = {row.chart: row.default for row in ROWS}
    templates = "".join(file.read_text() for file in (CLASSIFIER / "templates").rglob("*") if file.is_file())
    written = re.findall(r"default (\d+) \$?\.Values\.(gateway\.\w+)", templates)
    assert len(written) >= 4
    assert [(number, path) for number, path in written if defaults[path] != number] == []


def test_doctor_names_existing_values():
    values = flatten(yaml.safe_load((CLASSIFIER / "values.yaml").read_text()))
    top = "|".join({path.partition(".")[0] for path in values})
    files = sorted((ROOT / "gateway/src/clothing_gateway/commands/doctor").glob("*.py"))
    strings = [
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = {name for text in strings for name in re.findall(rf"(?<![\w/.])((?:{top})\.[a-z]\w*(?:\.\w+)*)", text)}
    assert len(named) > 40
    # What a free map holds is not set by default.
    named = {re.sub(r"\.limits\.cpu$|(?<=^server\.flags)\.\w+$", "", name) for name in named}
    assert {name for name in named if not any(f"{path}.".startswith(f"{name}.") for path in values)} == set()
