"""What the chart says a second time is what the gateway says."""

import ast
import re
from ipaddress import IPv6Network

import yaml
from charts import CLASSIFIER, ROOT, flatten, manifests

from clothing_gateway.commands.doctor.chart import CHART_VALUES
from clothing_gateway.fetch.policy import FORBIDDEN_IPV4, FORBIDDEN_IPV6
from clothing_gateway.settings import Settings


def blocks(*options: str) -> dict[str, set[str]]:
    """Where the gateways' policy lets photos come from, and what is left out of it."""
    found = manifests(CLASSIFIER, "--set", "networkPolicy.enabled=true", *options)
    policy = next(m for m in found if m["kind"] == "NetworkPolicy" and m["metadata"]["name"].endswith("-gateway"))
    peers = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    return {block["cidr"]: set(block.get("except", [])) for block in peers}


def test_the_network_policy_leaves_out_what_the_gateway_refuses():
    internet = IPv6Network("2000::/3")
    ipv6 = {network for network, _, _ in FORBIDDEN_IPV6 if IPv6Network(network).subnet_of(internet)}
    ipv4 = {network for network, _, _ in FORBIDDEN_IPV4}
    assert blocks("--set", "networkPolicy.ipFamilies={IPv4,IPv6}") == {"0.0.0.0/0": ipv4, str(internet): ipv6}


def test_the_network_policy_opens_what_the_gateway_opens():
    opened = blocks("--set", "gateway.fetch.allowedNetworks={10.1.0.0/16,192.168.7.9/32}")
    assert set(opened) == {"0.0.0.0/0", "10.1.0.0/16", "192.168.7.9/32"}


def test_an_ingress_takes_as_much_as_the_gateway_does():
    found = manifests(CLASSIFIER, "--set", "gateway.ingress.enabled=true,gateway.ingress.controller=nginx")
    ingress = next(m for m in found if m["kind"] == "Ingress")
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size) == Settings().max_body_bytes


def test_the_doctor_names_the_value_behind_each_setting():
    """clothing-gateway doctor says which value to change: each setting's is the one that the chart makes it of."""
    text = (CLASSIFIER / "templates/gateway/_env.tpl").read_text()
    parts = re.split(r'- name: (?=[A-Z])|\(list "(?=[A-Z])', text)
    made = {re.match(r"[A-Z_]+", part)[0]: part for part in parts[1:]}
    # Named by a helper, or inside a `with` or an `if` that names them.
    elsewhere = {
        "GATEWAY_MODEL_VERSION": "model.version",
        "GATEWAY_SELECTABLE_VERSIONS": "model.selectableVersions",
        "GATEWAY_DRAIN_TIMEOUT_SECONDS": "gateway.requestTimeoutSeconds",
        "GATEWAY_FETCH_ALLOWED_NETWORKS": "gateway.fetch.allowedNetworks",
        "GATEWAY_KEYS_FILE": "gateway.keys.secretName",
        "GATEWAY_MODEL_TLS": "gateway.serverTls.secretName",
        "GATEWAY_MODEL_TLS_CA_FILE": "gateway.serverTls.secretName",
        "GATEWAY_MODEL_TLS_CERTIFICATE_FILE": "gateway.serverTls.mutual",
        "GATEWAY_MODEL_TLS_KEY_FILE": "gateway.serverTls.mutual",
        "GATEWAY_MODEL_TLS_SERVER_NAME": "gateway.serverTls.serverName",
    }
    for variable, value in CHART_VALUES.items():
        if variable == "TF_SERVING_HOST" or variable not in made:
            assert value == "gateway.extraEnv", variable
        elif variable in elsewhere:
            assert value == elsewhere[variable]
        else:
            assert re.search(rf"\.Values\.{re.escape(value)}\b(?!\.)", made[variable]), variable


def test_the_doctor_names_values_that_there_are():
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
    assert len(named) > 60
    named = {name.removesuffix(".limits.cpu") for name in named}  # which is not set by default
    assert {name for name in named if not any(f"{path}.".startswith(f"{name}.") for path in values)} == set()
