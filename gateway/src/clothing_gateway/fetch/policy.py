"""SSRF policy: the addresses that photos may be fetched from.

The tables are spelled out, not left to ``ipaddress``: there ``is_private`` and ``is_global`` change with Python's patch
releases and call 224.0.0.1, the NAT64 form of 169.254.169.254, and 100.64.0.1 by turns global or not private.

IPv4 may be anything outside the table. IPv6 may only be global unicast, 2000::/3, and outside the table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import idna

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class NotAllowed(Exception):
    """The URL or an address of its host must not be fetched.

    The text is for the log, never for the client. It holds no URL: a signature or a password would be in it.
    """


class Malformed(NotAllowed):
    """The URL is malformed; the text is for the client.

    It depends on the URL alone, not on any network.
    """


# (network, what it is, where that is said). Sources: RFCs and the special-purpose registries of IANA
# (iana-ipv4-special-registry, iana-ipv6-special-registry), where they list the range as not globally reachable.
FORBIDDEN_IPV4: tuple[tuple[str, str, str], ...] = (
    ("0.0.0.0/8", "this network; 0.0.0.0 reaches the host itself", "RFC 791, RFC 1122 3.2.1.3"),
    ("10.0.0.0/8", "private use", "RFC 1918"),
    ("100.64.0.0/10", "shared address space; pods of EKS and GKE, 100.100.100.200 of Alibaba", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122 3.2.1.3"),
    ("161.26.0.0/16", "IBM Cloud's services, seen from inside only", "IBM, 'IBM Cloud IP ranges', service network"),
    ("166.8.0.0/14", "IBM Cloud's private endpoints, seen from inside only", "IBM, 'IBM Cloud IP ranges'"),
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

# Where clouds give out credentials. Opening a wide network, such as 169.254.0.0/16, does not open these, nor an IPv6
# address that leads to one (NAT64, 6to4 …): only an entry of GATEWAY_FETCH_ALLOWED_NETWORKS for exactly that address.
METADATA: tuple[tuple[str, str], ...] = (
    ("100.100.100.200", "Alibaba Cloud, 'View instance metadata'"),
    ("168.63.129.16", "Microsoft, 'What is IP address 168.63.129.16?'"),
    ("169.254.0.23", "Tencent Cloud, 'Querying instance metadata'"),
    ("169.254.42.42", "Scaleway, 'How to use the metadata API'"),
    ("169.254.169.254", "AWS, Google, Azure, DigitalOcean, OpenStack: instance metadata"),
    ("169.254.170.2", "AWS, 'Task IAM role' of ECS"),
    ("169.254.170.23", "AWS, EKS Pod Identity"),
    ("192.0.0.192", "Oracle Cloud, classic metadata"),
    ("fd00:42::42", "Scaleway, metadata over IPv6"),
    ("fd00:c1::a9fe:a9fe", "Oracle Cloud, metadata over IPv6"),
    ("fd00:ec2::23", "AWS, EKS Pod Identity over IPv6"),
    ("fd00:ec2::254", "AWS, instance metadata over IPv6"),
    ("fd20:ce::254", "Google, metadata over IPv6"),
    ("fe80::a9fe:a9fe", "OpenStack, 'Metadata service', over IPv6"),
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291 2.4, IANA ipv6-address-space
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1: how pods without IPv4 reach IPv4 hosts (DNS64)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_IPV4_AT_THE_END = (_NAT64, _LOCAL_NAT64, IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"))  # RFC 4291, RFC 2765
_TRANSLATED = (
    *_IPV4_AT_THE_END,
    IPv6Network("2002::/16"),
    IPv6Network("2001::/32"),
)  # 6to4 (RFC 3056), Teredo (RFC 4380)
_FORBIDDEN = tuple(
    (ip_network(network), f"{network}: {what}") for network, what, _ in (*FORBIDDEN_IPV4, *FORBIDDEN_IPV6)
)
_METADATA = frozenset(ip_address(address) for address, _ in METADATA)

MAX_URL_LENGTH = 4096
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?")  # RFC 3986, appendix B
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED = re.compile(r'(?:[^\x21-\x7e]|["<>`])+')  # in a path or query: what browsers encode as well
_HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL: all that the request needs, so that no second parser reads it."""

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def host_header(self) -> str:
        """The Host header: brackets around IPv6, no default port."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Policy:
    """What may be fetched: ports, hosts, and networks opened or denied."""

    ports: frozenset[int] = frozenset({80, 443})
    allowed_networks: tuple[Network, ...] = ()
    # Hosts, or *.host for all below one. Without allowed hosts all are; denied ones take precedence.
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()
    denied_networks: tuple[Network, ...] = ()  # take precedence, too

    def target(self, url: str) -> Target:
        """Parse a URL; raises Malformed for its spelling, NotAllowed for its target.

        Path and query are sent byte for byte: a signature is over their letters, and %2b is not %2B. As browsers do,
        only blanks, letters outside ASCII, quotes and angle brackets are percent-encoded, and dot segments removed.
        """
        _refuse_mistakes(url)
        parts = _URL.fullmatch(url)
        if parts is None or parts[1].lower() not in _DEFAULT_PORTS or not parts[2]:
            raise Malformed("The URL must begin with http:// or https:// and a host.")
        if " " in parts[2]:
            raise Malformed("The URL's host has a blank in it; remove it.")
        scheme = parts[1].lower()
        if "@" in parts[2]:
            raise Malformed("The URL has a user name or password; remove it.")
        authority = _AUTHORITY.fullmatch(parts[2])
        if authority is None:
            raise Malformed("The URL's host or port is misspelled; check it.")
        port = int(authority[2] or _DEFAULT_PORTS[scheme])
        if port not in self.ports:
            raise NotAllowed(f"port {port} is not among GATEWAY_FETCH_ALLOWED_PORTS")
        host, address = _host(authority[1])
        if _matches(host, self.denied_hosts):
            raise NotAllowed(f"{host} is among GATEWAY_FETCH_DENIED_HOSTS")
        if self.allowed_hosts and not _matches(host, self.allowed_hosts):
            raise NotAllowed(f"{host} is not among GATEWAY_FETCH_ALLOWED_HOSTS")
        path = _ENCODED.sub(_percent_encoded, _without_dots(parts[3] or "/") + (parts[4] or ""))
        return Target(scheme, host, port, path, address)

    def check(self, addresses: Iterable[Address]) -> None:
        """Raise NotAllowed when any of a host's addresses is forbidden."""
        for address in addresses:
            reason = self.forbids(address)
            if reason:
                raise NotAllowed(f"{address} is forbidden ({reason})")

    def forbids(self, address: Address) -> str | None:
        """Return why an address is forbidden, or None."""
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                return "an address with a zone, RFC 4007"
            if address.ipv4_mapped is not None:  # RFC 4291 2.5.5.2: the kernel connects to the IPv4 address
                return self.forbids(address.ipv4_mapped)
        reached = (address, *_embedded(address))
        if any(one in network for one in reached for network in self.denied_networks):
            return "among GATEWAY_FETCH_DENIED_NETWORKS"
        opened = [network for network in self.allowed_networks if address in network]
        if any(network.num_addresses == 1 for network in opened):
            return None
        if any(one in _METADATA and not self._opens_exactly(one) for one in reached):
            return "a cloud's metadata service"
        form = None
        if isinstance(address, IPv6Address):
            form = next((form for form in _TRANSLATED if address in form), None)
        if form is not None and not any(_within(network, form) for network in opened):
            # A translator or tunnel leads to the IPv4 address, which opening ::/0 is not meant for.
            reason = next(filter(None, map(self.forbids, _embedded(address))), None)
            if reason or form is _NAT64:
                return reason
        return None if opened else _listed(address)

    def _opens_exactly(self, address: Address) -> bool:
        return any(network.num_addresses == 1 and address in network for network in self.allowed_networks)


def _listed(address: Address) -> str | None:
    """Return why an address is not in the public internet, or None."""
    for network, reason in _FORBIDDEN:
        if address in network:
            return reason
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "outside 2000::/3, RFC 4291 2.4"
    return None


def _within(network: Network, form: IPv6Network) -> bool:
    return isinstance(network, IPv6Network) and network.subnet_of(form)


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses embedded in an IPv6 address (translators, tunnels)."""
    if isinstance(address, IPv4Address):
        return
    number = int(address)
    last = IPv4Address(number & 0xFFFFFFFF)
    if any(address in network for network in _IPV4_AT_THE_END) or (number >> 32) & 0xFDFFFFFF == 0x5EFE:
        yield last  # the second: ISATAP, RFC 5214 6.1
    if address in _LOCAL_NAT64:  # RFC 6052 2.2: /48, /56 and /64 have it around the bits 64 to 71, which are zero
        whole = ((number >> 64) & 0xFFFF) << 56 | (number & ((1 << 56) - 1))  # those 8 bits left out
        yield from (IPv4Address((whole >> shift) & 0xFFFFFFFF) for shift in (40, 32, 24))
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _refuse_mistakes(url: str) -> None:
    """Raise Malformed where two parsers could read a URL in two ways."""
    if len(url) > MAX_URL_LENGTH:
        raise Malformed(f"The URL has more than {MAX_URL_LENGTH} characters; use a shorter one.")
    if url[:5].lower() == "data:":
        raise Malformed("The URL is a data: URL; send its bytes as the body.")
    if _CONTROL.search(url):
        raise Malformed("The URL has a line end or control character; remove it.")
    if "\\" in url:
        raise Malformed("The URL has a backslash in it; write /.")


def _percent_encoded(letters: re.Match[str]) -> str:
    try:
        return "".join(f"%{byte:02X}" for byte in letters[0].encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        raise Malformed("The URL has half of a surrogate pair; send valid Unicode.") from None


def _without_dots(path: str) -> str:
    """Return a path without its segments . and .. (RFC 3986 5.2.4)."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _matches(host: str, hosts: tuple[str, ...]) -> bool:
    return any(host.endswith(one[1:]) if one.startswith("*.") else host == one for one in hosts)


@functools.lru_cache(1024)  # most photos are on few hosts
def _host(host: str) -> tuple[str, Address | None]:
    """Return the host in lower case without its last dot, and its IP address if any."""
    if host.startswith("[") and host.endswith("]"):
        if "%" in host:
            raise Malformed("The URL's IPv6 address has a zone; remove it.")
        try:
            literal = IPv6Address(host[1:-1])
        except ValueError:
            raise Malformed("The URL's brackets hold no IPv6 address; check it.") from None
        return literal.compressed, literal
    name = _ascii(host).removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise Malformed("The URL's host is no valid name; check it.")
    if _NUMBER.fullmatch(labels[-1]):
        # Ends in a number, so it is an IPv4 address (WHATWG URL, "ends in a number checker"). The C library also reads
        # 0x7f.1, 0177.0.0.1 and 2130706433: no photo is linked like that.
        try:
            return name, IPv4Address(host)
        except ValueError:
            raise Malformed("The URL's host is no valid IPv4 address; check it.") from None
    return name, None


def _ascii(host: str) -> str:
    """Return a host name in lower case and in ASCII, as browsers map it.

    Sources: UTS 46, IDNA 2008 (RFC 5891).

    Unicode has many spellings of a digit, a dot and a letter, which the mapping makes one: fullwidth letters are ASCII.
    Lists of hosts, the lookup, TLS and the Host header get the mapped name alone.
    """
    if host.isascii():
        return host.lower()
    try:
        labels = idna.uts46_remap(host, std3_rules=False).split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)
    except idna.IDNAError:
        raise Malformed("The URL's host has letters that no name has; check it.") from None
