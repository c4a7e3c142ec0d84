"""Which addresses a photo may be fetched from.

The tables are spelled out, not left to ``ipaddress``: there ``is_private`` and ``is_global`` change with Python's patch
releases and call 224.0.0.1, the NAT64 form of 169.254.169.254, and 100.64.0.1 by turns global or not private.

IPv4 may be anything outside the table. IPv6 may only be global unicast, 2000::/3, and outside the table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import urllib3.exceptions
from urllib3.util import parse_url

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class NotAllowed(Exception):
    """The URL or an address of its host is not to be fetched; the text is for the log, never for the client."""


# (network, what it is, where that is said). Sources: RFCs and the special-purpose registries of IANA
# (iana-ipv4-special-registry, iana-ipv6-special-registry), where they list the range as not globally reachable.
FORBIDDEN_IPV4: tuple[tuple[str, str, str], ...] = (
    ("0.0.0.0/8", "this network; 0.0.0.0 reaches the host itself", "RFC 791, RFC 1122 3.2.1.3"),
    ("10.0.0.0/8", "private use", "RFC 1918"),
    ("100.64.0.0/10", "shared address space; pods of EKS and GKE, 100.100.100.200 of Alibaba", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122 3.2.1.3"),
    ("169.254.0.0/16", "link local; cloud metadata at 169.254.169.254, ECS at 169.254.170.2", "RFC 3927"),
    ("172.16.0.0/12", "private use", "RFC 1918"),
    ("192.0.0.0/24", "IETF protocol assignments, DS-Lite, NAT64 discovery; metadata of Oracle", "RFC 6890, RFC 7050"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.31.196.0/24", "AS112", "RFC 7535"),
    ("192.52.193.0/24", "AMT relays", "RFC 7450"),
    ("192.88.99.0/24", "6to4 relays", "RFC 7526"),
    ("192.168.0.0/16", "private use", "RFC 1918"),
    ("192.175.48.0/24", "AS112", "RFC 7534"),
    ("198.18.0.0/15", "benchmarks", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("240.0.0.0/4", "reserved; pods of some GKE clusters; 255.255.255.255 is broadcast", "RFC 1112 4, RFC 919"),
    ("168.63.129.16/32", "Azure's host: metadata, DNS, health", "Microsoft, 'What is IP address 168.63.129.16?'"),
)

FORBIDDEN_IPV6: tuple[tuple[str, str, str], ...] = (
    ("::/128", "unspecified; reaches the host itself", "RFC 4291 2.5.2"),
    ("::1/128", "loopback", "RFC 4291 2.5.3"),
    ("::/96", "IPv4-compatible, deprecated", "RFC 4291 2.5.5.1"),
    ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765 2.1"),
    ("64:ff9b:1::/48", "local-use IPv4/IPv6 translation", "RFC 8215"),
    ("100::/64", "discard only", "RFC 6666"),
    ("2001::/32", "Teredo: an IPv4 address in disguise", "RFC 4380"),
    ("2001::/23", "IETF protocol assignments", "RFC 2928"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "6to4: an IPv4 address in disguise", "RFC 3056, RFC 7526"),
    ("2620:4f:8000::/48", "AS112", "RFC 7534"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "segment routing", "RFC 9602"),
    ("fc00::/7", "unique local; fd00:ec2::254 is AWS's metadata, fd20:ce::254 Google's", "RFC 4193"),
    ("fe80::/10", "link local", "RFC 4291 2.5.6"),
    ("fec0::/10", "site local, deprecated", "RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291 2.7"),
)

# Where clouds give out credentials. Opening a wide network, such as 169.254.0.0/16, does not open these: only an entry
# of GATEWAY_FETCH_ALLOWED_NETWORKS for exactly one such address does.
METADATA: tuple[tuple[str, str], ...] = (
    ("100.100.100.200", "Alibaba Cloud, 'View instance metadata'"),
    ("168.63.129.16", "Microsoft, 'What is IP address 168.63.129.16?'"),
    ("169.254.169.254", "AWS, Google, Azure, DigitalOcean, OpenStack: instance metadata"),
    ("169.254.170.2", "AWS, 'Task IAM role' of ECS"),
    ("169.254.170.23", "AWS, EKS Pod Identity"),
    ("192.0.0.192", "Oracle Cloud, classic metadata"),
    ("fd00:ec2::23", "AWS, EKS Pod Identity over IPv6"),
    ("fd00:ec2::254", "AWS, instance metadata over IPv6"),
    ("fd20:ce::254", "Google, metadata over IPv6"),
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291 2.4, IANA ipv6-address-space
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1: how pods without IPv4 reach IPv4 hosts (DNS64)
_FORBIDDEN = tuple(
    (ip_network(network), f"{network}: {what}") for network, what, _ in (*FORBIDDEN_IPV4, *FORBIDDEN_IPV6)
)
_METADATA = frozenset(ip_address(address) for address, _ in METADATA)

MAX_URL_LENGTH = 4096
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_AUTHORITY = re.compile(r"[^/?#]*//([^/?#]*)")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart once: all that is needed to ask for the photo, with no second parser in between."""

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def host_header(self) -> str:
        """The Host header: brackets around IPv6, no port where it is the scheme's own."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Policy:
    """What may be fetched: ports, hosts, and networks opened beyond the public internet."""

    ports: frozenset[int] = frozenset({80, 443})
    allowed_networks: tuple[Network, ...] = ()
    # Hosts, or *.host for all below one; no allowed ones allow all, and a denied one is denied whatever is allowed.
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()

    def target(self, url: str) -> Target:
        """Take a URL apart; NotAllowed when it could mean two things to two parsers, or leads where none may."""
        if len(url) > MAX_URL_LENGTH or _UNSAFE.search(url):
            raise NotAllowed("the URL has blanks, control characters or backslashes, or is too long")
        authority = _AUTHORITY.match(url)
        if authority is None or not authority[1].isascii():
            # Unicode has many spellings of a digit, a dot and a slash; a host has exactly one ASCII form (xn--…).
            raise NotAllowed("the URL has no host, or not in its ASCII form")
        try:
            parts = parse_url(url)
        except (urllib3.exceptions.LocationParseError, ValueError) as error:
            raise NotAllowed(f"not a URL: {error}") from None
        scheme = parts.scheme or ""
        if scheme not in _DEFAULT_PORTS:
            raise NotAllowed(f"the scheme {scheme!r} is not http or https")
        if parts.auth is not None:
            raise NotAllowed("the URL has a user name or password")
        port = _DEFAULT_PORTS[scheme] if parts.port is None else parts.port
        if port not in self.ports:
            raise NotAllowed(f"port {port} is not among GATEWAY_FETCH_ALLOWED_PORTS")
        host, address = _host(parts.host or "")
        if _matches(host, self.denied_hosts):
            raise NotAllowed(f"{host} is among GATEWAY_FETCH_DENIED_HOSTS")
        if self.allowed_hosts and not _matches(host, self.allowed_hosts):
            raise NotAllowed(f"{host} is not among GATEWAY_FETCH_ALLOWED_HOSTS")
        path = parts.request_uri
        if not (path.startswith("/") and path.isascii()):
            raise NotAllowed("the path can't be sent as it is")
        return Target(scheme, host, port, path, address)

    def check(self, addresses: Iterable[Address]) -> None:
        """NotAllowed when any of a host's addresses is forbidden: one bad address spoils the name."""
        for address in addresses:
            reason = self.forbids(address)
            if reason:
                raise NotAllowed(f"{address} is forbidden ({reason})")

    def forbids(self, address: Address) -> str | None:
        """Why an address may not be connected to, or None where it may."""
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                return "an address with a zone, RFC 4007"
            if address.ipv4_mapped is not None:  # RFC 4291 2.5.5.2: the kernel connects to the IPv4 address
                return self.forbids(address.ipv4_mapped)
        opened = [network for network in self.allowed_networks if address in network]
        if address in _METADATA:
            return None if any(network.num_addresses == 1 for network in opened) else "a cloud's metadata service"
        if opened:
            return None
        if isinstance(address, IPv6Address) and address in _NAT64:
            return self.forbids(IPv4Address(int(address) & 0xFFFFFFFF))
        for network, reason in _FORBIDDEN:
            if address in network:
                return reason
        if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
            return "outside 2000::/3, RFC 4291 2.4"
        return None


def _matches(host: str, hosts: tuple[str, ...]) -> bool:
    return any(host.endswith(one[1:]) if one.startswith("*.") else host == one for one in hosts)


@functools.lru_cache(1024)  # photos come from few hosts, and what a spelling means never changes
def _host(host: str) -> tuple[str, Address | None]:
    """The host in lower case without its last dot, and its address where it is written as one."""
    if host.startswith("[") and host.endswith("]"):
        if "%" in host:
            raise NotAllowed("the address has a zone")
        try:
            literal = IPv6Address(host[1:-1])
        except ValueError:
            raise NotAllowed("the brackets hold no IPv6 address") from None
        return literal.compressed, literal
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise NotAllowed("the host is no name")
    if _NUMBER.fullmatch(labels[-1]):
        # Ends in a number, so it is an IPv4 address (WHATWG URL, "ends in a number checker"). The C library also reads
        # 0x7f.1, 0177.0.0.1 and 2130706433: nobody links to a photo like that.
        try:
            return name, IPv4Address(host)
        except ValueError:
            raise NotAllowed("an odd spelling of an IPv4 address") from None
    return name, None
