"""Which URLs may be fetched: a table of hostile ones, and proof that none of them makes a connection."""

from __future__ import annotations

import re
import socket
import threading
from ipaddress import ip_address, ip_network

import pytest

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import AddressNotAllowed
from clothing_gateway.fetch import Fetcher, Policy, Resolver
from clothing_gateway.fetch.policy import FORBIDDEN_IPV4, FORBIDDEN_IPV6, METADATA, Malformed, NotAllowed
from clothing_gateway.fetch.resolver import NoAddress
from clothing_gateway.limits.admission import ByteBudget

# Names that an attacker's DNS server answers for, and with what.
NAMES = {
    "public.test": ["93.184.215.14"],
    "public6.test": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "loopback.test": ["127.0.0.1"],
    "any.test": ["0.0.0.0"],
    "private.test": ["10.1.2.3"],
    "metadata.test": ["169.254.169.254"],
    "mixed.test": ["93.184.215.14", "10.0.0.1"],
    "mixed6.test": ["93.184.215.14", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::a9fe:a9fe"],
    "6to4.test": ["2002:7f00:1::"],
    "teredo.test": ["2001:0:7f00:1:0:0:80ff:fffe"],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "kubernetes.default.svc.cluster.local": ["10.96.0.1"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "redis": ["10.96.7.7"],
    "metadata.google.internal": ["169.254.169.254"],
    "metadata": ["169.254.169.254"],
    "instance-data": ["169.254.169.254"],
    "host.docker.internal": ["192.168.65.2"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
    "169.254.169.254.nip.io": ["169.254.169.254"],
    "7f000001.c0a80001.rbndr.us": ["127.0.0.1"],
    "xn--lcalhost-yyc.test": ["127.0.0.1"],
    "broadcast.test": ["255.255.255.255"],
    "multicast.test": ["224.0.0.1"],
    "azure.test": ["168.63.129.16"],
    "alibaba.test": ["100.100.100.200"],
    "podnet.test": ["100.64.3.4"],
    "ula.test": ["fd00:ec2::254"],
    "linklocal6.test": ["fe80::1"],
}

HOSTILE = [
    # addresses, written plainly
    *(
        f"http://{address}/"
        for address in (
            "0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 "
            "127.0.0.1 127.0.0.2 127.1.2.3 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 "
            "169.254.170.23 172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.0.170 192.0.0.192 192.0.2.1 "
            "192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 192.168.65.2 192.168.255.255 192.175.48.1 198.18.0.1 "
            "198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255"
        ).split()
    ),
    *(
        f"http://[{address}]/"
        for address in (
            ":: ::1 0:0:0:0:0:0:0:1 ::7f00:1 ::127.0.0.1 ::a9fe:a9fe ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 "
            "::ffff:169.254.169.254 0:0:0:0:0:ffff:a9fe:a9fe ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe "
            "64:ff9b::10.0.0.1 64:ff9b::100.64.0.1 64:ff9b:1::1 64:ff9b:1:ffff::7f00:1 100::1 2001::1 "
            "2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:7f00:1:0:0:80ff:fffe 2001:2::1 2001:10::1 2001:20::1 "
            "2001:db8::1 2002:7f00:1:: 2002:7f00:0001::1 2002:a9fe:a9fe::1 2002:c0a8:0101::1 2620:4f:8000::1 "
            "3fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00::1 fd00:ec2::23 fd00:ec2::254 fd20:ce::254 fe80::1 "
            "fe80::a9fe:a9fe fec0::1 ff02::1 ff0e::1"
        ).split()
    ),
    # addresses, spelled for the C library or a browser
    *(
        f"http://{host}/"
        for host in (
            "2130706433 2852039166 0x7f000001 0x7f.1 0x7f.0.0.1 0x7f.0x0.0x0.0x1 0X7F.0.0.1 0xa9fea9fe 017700000001 "
            "0177.0.0.1 0177.0.0.01 "
            "00000177.0.0.1 127.1 127.0.1 127.0.0.01 127.0.0.1. 0 0. 0x 0x0 00 10.1 169.254.43518 "
            "0251.0376.0251.0376 0xA9.0xFE.0xA9.0xFE 425.510.425.510 1.2.3.4.5 1.2.3 256.1.1.1 127.0.0.0x1 "
            "127。0。0。1 127．0．0．1 １２７.0.0.1 ①②⑦.⓪.⓪.① "
            "⑯⑨。②⑤④。⑯⑨｡②⑤④ ⓛⓞⓒⓐⓛⓗⓞⓢⓣ localhoſt loc%61lhost %31%32%37.0.0.1 "
            "127.0.0.1%00 127.0.0.1%2f.example.com [::1]x [::1 ::1 [::1%25lo] "
            "[fe80::1%25eth0] [fe80::1%eth0] [127.0.0.1] "
            "[::ffff:127.0.0.1]. "
            "[v1.127.0.0.1] -leading.test trailing-.test under..dots .leadingdot.test a..b * "
            "a_very$odd.test exa!mple.test"
        ).split()
    ),
    # names that lead inside
    *(f"http://{name}/" for name in NAMES if not name.startswith("public")),
    "http://localhost./",
    "http://LOCALHOST/",
    "http://Metadata.Google.Internal/computeMetadata/v1/",
    "http://unknown.test/",
    # schemes
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://public.test/a.jpg",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "tftp://public.test/a",
    "sftp://public.test/a",
    "jar:http://public.test!/a",
    "data:image/png;base64,iVBORw0KGgo=",
    "data://text/plain;base64,SGVsbG8=",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "ws://public.test/",
    "blob:http://public.test/1",
    "view-source:http://public.test/",
    "url:http://127.0.0.1/",
    "//127.0.0.1/a.jpg",
    "//public.test/a.jpg",
    "public.test/a.jpg",
    "/etc/passwd",
    "../a.jpg",
    "a",
    "",
    " ",
    "?",
    "#",
    "http",
    "http:",
    "http:/",
    "http://",
    "http:///a.jpg",
    "http://?a",
    "http://#a",
    "http:127.0.0.1",
    "http:public.test",
    "http:/127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "https://:443/",
    # user names, to hide the host
    "http://user@public.test/",
    "http://user:password@public.test/",
    "http://public.test@127.0.0.1/",
    "http://public.test:80@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://:@public.test/",
    "http://public.test%40127.0.0.1/",
    "http://127.0.0.1\\@public.test/",
    "http://127.0.0.1#@public.test/",
    "http://127.0.0.1?@public.test/",
    "http://127.0.0.1/#@public.test/",
    "http://public.test#@127.0.0.1:22@a/\\",
    "http://a@b@127.0.0.1/",
    # characters that two parsers read in two ways
    "http://127.0.0.1\t/",
    "http://public.test\n.evil.test/",
    "http://public.test/\r\nHost: 127.0.0.1",
    "http://pub lic.test/",
    "http:// public.test/",
    "http://public.test /",
    "http://public.test:80 /",
    "http://127.0.0.1 .public.test/",
    "http://public.test/a\x00b",
    "http://public.test\x7f/",
    "http://public.test\\.evil.test/",
    "\x00http://public.test/",
    "http://public.test/\ta",
    "ht\ttp://public.test/",
    "http://public.test/\\..\\..",
    # ports
    "http://public.test:0/",
    "http://public.test:22/",
    "http://public.test:25/",
    "http://public.test:6379/",
    "http://public.test:8080/",
    "http://public.test:8500/",
    "http://public.test:10250/",
    "http://public.test:65535/",
    "http://public.test:65616/",
    "http://public.test:99999999/",
    "http://public.test:-80/",
    "http://public.test:80a/",
    "http://public.test:0x50/",
    "http://public.test:８０/",
    "http://public.test:80:22/",
    "http://[::1]:80:22/",
    # unicode in the host
    "http://exämple.test/",
    "http://еxample.test/",
    "http://local\u00adhost/",
    "http://lo\u200bcalhost/",
    "http://ｌｏｃａｌｈｏｓｔ/",
    "http://127\u00ad.0.0.1/",
    "http://127.0.0\u200b.1/",
    "http://private。test/",
    "http://\u202epublic.test/",
    "http://a\u200d.test/",
    "http://public\u2100.test/",
    "http://public／@loopback.test/",
    "http://public＠loopback.test/",
    "http://public.test＃.loopback.test/",
    "http://[：：1]/",
    "http://é\ud800.test/",
    "http://ﬀ.test/",
    # length
    "http://public.test/" + "a" * 5000,
    "http://" + "a" * 64 + ".test/",
    "http://" + ".".join(["a" * 60] * 5) + "/",
]


def fake_look_up(host):
    if host not in NAMES:
        raise NoAddress(host)
    return [ip_address(address) for address in NAMES[host]]


@pytest.fixture
def connections(monkeypatch):
    """Every attempt to connect, none of which goes out."""
    attempts = []

    def connect(self, address):
        attempts.append(address)
        raise ConnectionRefusedError(111, "refused by the test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return attempts


def make_fetcher(**policy):
    return Fetcher(
        Policy(**policy),
        ByteBudget(1 << 20),
        timeout_seconds=5,
        max_bytes=1 << 20,
        max_redirects=3,
        resolver=Resolver(fake_look_up),
    )


def test_at_least_250_hostile_urls_are_tested():
    assert len(set(HOSTILE)) >= 250
    assert len(set(HOSTILE)) == len(HOSTILE)


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused_and_nothing_connects(url, connections):
    with pytest.raises(AddressNotAllowed) as caught:
        make_fetcher().fetch(url, Deadline.after(5))
    assert connections == []
    # One text for all that depends on a network: it must not tell a private address from one that doesn't exist. A
    # mistake in the spelling is named, as the URL alone shows it.
    mistake = None
    try:
        Policy().target(url)
    except Malformed as error:
        mistake = str(error)
    except NotAllowed:
        pass
    assert caught.value.detail == mistake or (mistake is None and caught.value.detail == AddressNotAllowed.detail)
    assert caught.value.cause


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://public.test/", ("93.184.215.14", 80)),
        ("HTTP://PUBLIC.test/", ("93.184.215.14", 80)),
        ("http://public.test./a", ("93.184.215.14", 80)),
        ("http://public.test?a=b", ("93.184.215.14", 80)),
        ("http://public.test:443/", ("93.184.215.14", 443)),
        ("https://public.test/", ("93.184.215.14", 443)),
        ("http://8.8.8.8/", ("8.8.8.8", 80)),
        ("http://public6.test/", ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", 80, 0, 0)),
        ("http://[2606:4700:4700::1111]/", ("2606:4700:4700::1111", 80, 0, 0)),
        ("http://[64:ff9b::8.8.8.8]/", ("64:ff9b::808:808", 80, 0, 0)),
        ("http://[::ffff:8.8.8.8]/", ("::ffff:8.8.8.8", 80, 0, 0)),
        ("http://public.test/#@127.0.0.1", ("93.184.215.14", 80)),
        ("http://public.test/?u=http://127.0.0.1/", ("93.184.215.14", 80)),
    ],
)
def test_a_public_url_is_connected_to_at_its_checked_address(url, address, connections):
    with pytest.raises(Exception, match="could not be fetched"):
        make_fetcher().fetch(url, Deadline.after(5))
    assert connections == [address]


def test_a_name_is_looked_up_once_for_each_fetch(connections):
    asked = []

    def rebinding(host):
        asked.append(host)
        return [ip_address("93.184.215.14" if len(asked) == 1 else "127.0.0.1")]

    fetcher = make_fetcher()
    fetcher._resolver = Resolver(rebinding)
    with pytest.raises(Exception, match="could not be fetched"):
        fetcher.fetch("http://rebind.test/", Deadline.after(5))
    assert asked == ["rebind.test"]
    assert connections == [("93.184.215.14", 80)]
    with pytest.raises(AddressNotAllowed):
        fetcher.fetch("http://rebind.test/", Deadline.after(5))
    assert len(connections) == 1


@pytest.mark.parametrize("network", [*(row[0] for row in (*FORBIDDEN_IPV4, *FORBIDDEN_IPV6))])
def test_the_ends_of_each_forbidden_network_are_forbidden(network):
    policy = Policy()
    first, last = ip_network(network)[0], ip_network(network)[-1]
    assert policy.forbids(first)
    assert policy.forbids(last)
    # The addresses beside them are open, unless another row has them, or the rule that only 2000::/3 is public.
    others = [ip_network(row[0]) for row in (*FORBIDDEN_IPV4, *FORBIDDEN_IPV6)]
    for beside in (int(first) - 1, int(last) + 1):
        if 0 <= beside < 1 << first.max_prefixlen:
            address = type(first)(beside)
            public = first.version == 4 or address in ip_network("2000::/3")
            assert bool(policy.forbids(address)) == (not public or any(address in other for other in others)), address


@pytest.mark.parametrize("row", [*FORBIDDEN_IPV4, *FORBIDDEN_IPV6], ids=lambda row: row[0])
def test_each_row_of_the_table_names_its_source(row):
    network, what, source = row
    assert str(ip_network(network)) == network or network.startswith("::ffff:0:")
    assert what
    assert "RFC" in source or source.startswith(("Microsoft", "IBM"))


@pytest.mark.parametrize(
    ("allowed", "address", "opened"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", True),
        ("10.0.0.0/8", "192.168.1.1", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:192.168.1.1", False),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3", True),
        ("127.0.0.0/8", "127.0.0.1", True),
        ("fd00::/8", "fd12::1", True),
        ("169.254.0.0/16", "169.254.1.1", True),
        ("169.254.0.0/16", "169.254.169.254", False),
        ("0.0.0.0/0", "169.254.169.254", False),
        ("0.0.0.0/0", "10.0.0.1", True),
        ("fd00::/8", "fd00:ec2::254", False),
        ("100.64.0.0/10", "100.100.100.200", False),
        ("169.254.169.254/32", "169.254.169.254", True),
        ("fd00:ec2::254/128", "fd00:ec2::254", True),
        ("64:ff9b::/96", "64:ff9b::127.0.0.1", True),
    ],
)
def test_networks_open_what_they_name_and_nothing_else(allowed, address, opened):
    policy = Policy(allowed_networks=(ip_network(allowed),))
    assert (policy.forbids(ip_address(address)) is None) == opened


@pytest.mark.parametrize("address", [row[0] for row in METADATA])
def test_metadata_services_open_only_by_their_own_address(address):
    whole = ip_network("::/0" if ":" in address else "0.0.0.0/0")
    assert Policy(allowed_networks=(whole,)).forbids(ip_address(address))
    assert Policy(allowed_networks=(ip_network(address),)).forbids(ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("64:ff9b::a9fe:a9fe", "64:ff9b::/96"),  # NAT64
        ("64:ff9b:1::a9fe:a9fe", "64:ff9b:1::/48"),
        ("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::/48"),  # RFC 6052: /48,
        ("64:ff9b:1:aaa9:fe:a9fe::", "64:ff9b:1::/48"),  # /56,
        ("64:ff9b:1:aabb:a9:fea9:fe00:0", "64:ff9b:1::/48"),  # /64
        ("2002:a9fe:a9fe::1", "2002::/16"),  # 6to4
        ("2001:0:a9fe:a9fe::1", "2001::/32"),  # Teredo, the server
        ("2001:0:808:808:0:0:5601:5601", "2001::/32"),  # Teredo, the client
        ("2001:4860::5efe:a9fe:a9fe", "2001:4860::/32"),  # ISATAP
        ("2001:4860::200:5efe:a9fe:a9fe", "2001:4860::/32"),
        ("::a9fe:a9fe", "::/96"),
        ("::ffff:0:a9fe:a9fe", "::ffff:0:0:0/96"),
        ("::ffff:a9fe:a9fe", "::ffff:0:0/96"),
    ],
)
def test_wide_allow_rule_opens_no_embedded_metadata_address(address, own):
    """Each leads to 169.254.169.254, by a translator or a tunnel."""
    for network in (own, "::/0"):
        policy = Policy(allowed_networks=(ip_network(network), ip_network("169.254.0.0/16")))
        assert policy.forbids(ip_address(address))


@pytest.mark.parametrize(
    ("allowed", "address", "opened"),
    [
        ("::/0", "64:ff9b::10.0.0.1", False),
        ("::/0", "64:ff9b::8.8.8.8", True),
        ("::/0", "2002:a00:1::1", False),
        ("2002::/16", "2002:a00:1::1", True),
        ("::/0", "2001:0:808:808:0:0:f5ff:fffe", False),
        ("::/0", "fd12::1", True),
        ("64:ff9b::a00:0/104", "64:ff9b::10.0.0.1", True),
    ],
)
def test_a_wide_rule_for_ipv6_opens_no_private_ipv4(allowed, address, opened):
    policy = Policy(allowed_networks=(ip_network(allowed, strict=False),))
    assert (policy.forbids(ip_address(address)) is None) == opened


@pytest.mark.parametrize(
    ("denied", "address"),
    [
        ("2600:1f18::/32", "2600:1f18:1::5"),  # pods of EKS, global in form
        ("11.0.0.0/8", "11.1.2.3"),
        ("11.0.0.0/8", "::ffff:11.1.2.3"),
        ("11.0.0.0/8", "64:ff9b::11.1.2.3"),
        ("11.0.0.0/8", "2002:b01:203::1"),
        ("93.184.215.14/32", "93.184.215.14"),
    ],
)
def test_a_denied_network_is_closed_whatever_is_allowed(denied, address):
    networks = tuple(map(ip_network, ("::/0", "0.0.0.0/0", f"{ip_address(address)}/{128 if ':' in address else 32}")))
    assert Policy(allowed_networks=networks).forbids(ip_address(address)) is None
    policy = Policy(allowed_networks=networks, denied_networks=(ip_network(denied),))
    assert policy.forbids(ip_address(address)) == "among GATEWAY_FETCH_DENIED_NETWORKS"


def test_a_name_with_an_address_in_a_denied_network_is_refused(connections):
    with pytest.raises(AddressNotAllowed):
        make_fetcher(denied_networks=(ip_network("93.184.0.0/16"),)).fetch("http://public.test/", Deadline.after(5))
    assert connections == []


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://public.test/a%2bb?X-Sig=%2f%2F+~", "/a%2bb?X-Sig=%2f%2F+~"),
        ("http://public.test/?d=[1]&{y}|^", "/?d=[1]&{y}|^"),
        ("http://public.test?size[w]=300#x", "/?size[w]=300"),
        ("http://public.test/é b?c d", "/%C3%A9%20b?c%20d"),
        ("http://public.test/a%20b%zz%", "/a%20b%zz%"),
        ('http://public.test/"<x>`', "/%22%3Cx%3E%60"),
        ("http://public.test/a/../b/./c/..?../.", "/b/?../."),
        ("http://public.test/../../a//b", "/a//b"),
        ("http://public.test/a?b?c#d?e", "/a?b?c"),
        ("http://public.test:80", "/"),
        ("http://public.test:/", "/"),
    ],
)
def test_path_and_query_are_sent_unchanged(url, path):
    assert Policy().target(url).path == path


@pytest.mark.parametrize(
    ("url", "mistake"),
    [
        ("http://public .test/photo.jpg", "host has a blank"),
        ("http://public.test/\na", "line end"),
        ("http://public.test/\r\nHost: a", "line end"),
        ("http:\\\\public.test\\a", "backslash"),
        ("data:image/jpeg;base64,/9j/4AAQ", "send its bytes"),
        ("DATA:,x", "send its bytes"),
        ("public.test/a.jpg", "begin with http:// or https://"),
        ("ftp://public.test/a.jpg", "begin with http:// or https://"),
        ("http://user:secret@public.test/", "user name or password"),
        ("http://public.test/" + "a" * 4096, "more than 4096 characters"),
        ("http://☕.test/", "letters that no name has"),
        ("http://a!b.test/", "no valid name"),
        ("http://public.test:99999999/", "host or port is misspelled"),
        ("http://127.1/", "no valid IPv4 address"),
        ("http://[::g]/", "brackets hold no IPv6 address"),
        ("http://[fe80::1%eth0]/", "has a zone"),
        ("http://public.test/\ud800", "valid Unicode"),
    ],
)
def test_a_mistake_in_the_spelling_is_named(url, mistake, connections):
    with pytest.raises(AddressNotAllowed, match=re.escape(mistake)):
        make_fetcher().fetch(url, Deadline.after(5))
    assert connections == []


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example.", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),  # as macOS decomposes it
        ("straße.example", "xn--strae-oqa.example"),  # IDNA 2003 made it strasse.example, which is another's
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("ｐｕｂｌｉｃ．test", "public.test"),
        ("a_b.bücher.example", "a_b.xn--bcher-kva.example"),
        ("xn--bcher-kva.bücher.example", "xn--bcher-kva.xn--bcher-kva.example"),
    ],
)
def test_host_names_are_normalised_as_by_browsers(host, name):
    target = Policy(allowed_hosts=(name,)).target(f"http://{host}/a")
    assert (target.host, target.host_header, target.address) == (name, name, None)


@pytest.mark.parametrize(
    "url",
    [
        "http://good.test:99999/x?X-Amz-Signature=SECRET",
        "http://user:SECRET@good.test:99999/",
        "http://[SECRET]/",
        "http://good.test:SECRET/",
        "SECRET://good.test/",
        "http://SECRET\u2100@good.test/",
        "http://good.test/\ud800?SECRET",
        "http://good.test/?SECRET\x00",
        "http://SECRET@[::1/",
    ],
)
def test_no_signature_or_password_is_in_an_error(url):
    with pytest.raises(AddressNotAllowed) as caught:
        make_fetcher().fetch(url, Deadline.after(5))
    assert "SECRET" not in f"{caught.value.detail} {caught.value.cause}".upper()


def test_ipv6_zone_is_forbidden():
    with pytest.raises(NotAllowed):
        Policy(allowed_networks=(ip_network("fe80::/10"),)).check([ip_address("fe80::1%lo")])


def test_ports_are_allowed_by_setting(connections):
    with pytest.raises(Exception, match="could not be fetched"):
        make_fetcher(ports=frozenset({8080})).fetch("http://public.test:8080/", Deadline.after(5))
    assert connections == [("93.184.215.14", 8080)]
    with pytest.raises(AddressNotAllowed):
        make_fetcher(ports=frozenset({8080})).fetch("http://public.test/", Deadline.after(5))


def test_hanging_lookups_time_out_without_blocking_others():
    release = threading.Event()

    def slow(host):
        if host == "slow.test":
            release.wait(10)
        return [ip_address("93.184.215.14")]

    resolver = Resolver(slow, threads=2)
    try:
        with pytest.raises(Exception, match="took too long"):
            resolver.addresses("slow.test", Deadline.after(0.05))
        assert resolver.addresses("quick.test", Deadline.after(5)) == [ip_address("93.184.215.14")]
        for _ in range(3):  # one thread is held up; the other does the rest, and no third is started
            with pytest.raises(Exception, match="took too long"):
                resolver.addresses("slow.test", Deadline.after(0.02))
    finally:
        release.set()
    assert resolver.addresses("quick.test", Deadline.after(5)) == [ip_address("93.184.215.14")]
    assert resolver._threads == 2


@pytest.mark.parametrize(
    ("url", "allowed", "denied", "is_let"),
    [
        ("http://example.com/", (), (), True),
        ("http://example.com/", ("example.com",), (), True),
        ("http://EXAMPLE.com./", ("example.com",), (), True),
        ("http://www.example.com/", ("example.com",), (), False),
        ("http://www.example.com/", ("*.example.com",), (), True),
        ("http://a.b.example.com/", ("*.example.com",), (), True),
        ("http://example.com/", ("*.example.com",), (), False),
        ("http://notexample.com/", ("*.example.com", "example.com"), (), False),
        ("http://example.com.attacker.test/", ("*.example.com", "example.com"), (), False),
        ("http://attacker.test/#.example.com", ("*.example.com",), (), False),
        ("http://93.184.215.14/", ("example.com",), (), False),
        ("http://93.184.215.14/", ("93.184.215.14",), (), True),
        ("http://[2606:2800:0:0::1]/", ("2606:2800::1",), (), True),
        ("http://example.com/", (), ("example.com",), False),
        ("http://example.com./", (), ("example.com",), False),
        ("http://www.example.com/", (), ("*.example.com",), False),
        ("http://bad.example.com/", ("*.example.com",), ("bad.example.com",), False),
        ("http://good.example.com/", ("*.example.com",), ("bad.example.com",), True),
    ],
)
def test_hosts_are_allowed_and_denied_by_name(url, allowed, denied, is_let):
    policy = Policy(allowed_hosts=allowed, denied_hosts=denied)
    if is_let:
        assert policy.target(url).path == "/"
    else:
        with pytest.raises(NotAllowed, match=r"GATEWAY_FETCH_(ALLOWED|DENIED)_HOSTS"):
            policy.target(url)


def test_an_allowed_host_opens_no_forbidden_address():
    policy = Policy(allowed_hosts=("private.test",))
    assert policy.target("http://private.test/").host == "private.test"
    with pytest.raises(NotAllowed, match="private use"):
        policy.check([ip_address("10.1.2.3")])
