"""What the chart says a second time is what the gateway says."""

from ipaddress import IPv6Network

from charts import CLASSIFIER, manifests
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
