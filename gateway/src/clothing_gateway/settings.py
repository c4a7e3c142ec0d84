"""Every setting, in one frozen dataclass.

A value comes from its flag, else from its environment variable, else from its default; an empty one counts as not
given. Parsing looks at all of them and reports all errors at once. README.md has the same table for people; a test
compares them.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from clothing_gateway.limits import cgroup, memory

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CLOTHING_LABELS = "dress,hat,longsleeve,outwear,pants,shirt,shoes,shorts,skirt,t-shirt"
PREPROCESSINGS = ("tf", "caffe", "torch", "none")
RESAMPLINGS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LOG_LEVELS = ("debug", "info", "warning", "error")
MIB = 1 << 20
MAX_SELECTABLE_VERSIONS = 8

# What a version may be called by, in TensorFlow Serving's configuration and in a header.
_VERSION_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")

_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")

# What Kubernetes puts into every pod for a Service whose name begins with "gateway": no setting, and no spelling
# mistake.
_SERVICE_LINK_NAME = re.compile(
    r"GATEWAY_(.+_)?SERVICE_(HOST|PORT(_.+)?)|GATEWAY_(.+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


class SettingsError(Exception):
    """One line for each setting that can't be used."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _text(value: str) -> str:
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[^\s/]+", value):
        raise ValueError("must be a name without blanks or slashes")
    return value


def _address(value: str) -> str:
    """HOST:PORT, or a whole gRPC target with its scheme."""
    if re.match(r"(dns|ipv4|ipv6|unix|passthrough):", value):
        return value
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("must be HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("must put an IPv6 address into brackets, as in [::1]:8500")
    return value


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if number < low or (high is not None and number > high):
            raise ValueError(f"must be at least {low}" + ("" if high is None else f" and at most {high}"))
        return number

    return parse


def _seconds(low: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError("must be a number of seconds") from None
        if not low <= number <= 86400:
            raise ValueError(f"must be at least {low:g} and at most 86400 seconds")
        return number

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return value.lower()

    return parse


def _switch(value: str) -> bool:
    return _choice("on", "off")(value) == "on"


def _version(value: str) -> int | None:
    return _integer(0, 2**63 - 1)(value) if value else None


def _label(value: str) -> str:
    if value and (not _VERSION_LABEL.fullmatch(value) or value.isdigit()):
        raise ValueError("must be letters, digits, dots, dashes and underscores, and not digits alone")
    return value


def _versions(value: str) -> tuple[str, ...]:
    """Numbers and version labels, as they are written."""
    named = tuple(part.strip() for part in value.split(",")) if value else ()
    if len(named) > MAX_SELECTABLE_VERSIONS:
        raise ValueError(f"must name at most {MAX_SELECTABLE_VERSIONS}, as each is looked at again and again")
    for one in named:
        if one.isascii() and one.isdigit():
            _version(one)
        elif not _label(one):
            raise ValueError("must name no empty one")
    return named


def _percent(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not 0 <= number <= 100:
        raise ValueError("must be at least 0 and at most 100")
    return number


def _size(value: str) -> tuple[int, int] | None:
    if not value:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", value)
    if match is None or "0" in (match[1].lstrip("0") or "0", (match[2] or "1").lstrip("0") or "0"):
        raise ValueError('must be pixels, as in "299", or WIDTHxHEIGHT, as in "320x240"')
    width = int(match[1])
    return width, int(match[2] or width)


def _labels(value: str) -> tuple[str, ...]:
    if value.startswith("["):
        try:
            listed = json.loads(value)
        except ValueError:
            raise ValueError("begins like a JSON list and is none") from None
        if not all(isinstance(label, str) for label in listed):
            raise ValueError("must hold nothing but strings")
        labels = tuple(listed)
    else:
        labels = tuple(label.strip() for label in value.split(","))
    if not labels or not all(labels):
        raise ValueError("must name at least one label and no empty one")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"names twice: {', '.join(twice)}")
    return labels


def _ports(value: str) -> frozenset[int]:
    return frozenset(_integer(1, 65535)(part.strip()) for part in value.split(","))


def _rate(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not (number == 0 or 0.01 <= number <= 1e6):
        raise ValueError("must be 0, or at least 0.01 and at most 1000000")
    return number


def _hosts(value: str) -> tuple[str, ...]:
    hosts = tuple(part.strip().lower().removesuffix(".") for part in value.split(",")) if value else ()
    for host in hosts:
        try:
            if ":" in host and host == ipaddress.IPv6Address(host).compressed:
                continue
        except ValueError:
            pass
        if not _HOST.fullmatch(host) or ".." in host:
            raise ValueError(
                f'has {host!r}, which is no host: "example.com" is one host, "*.example.com" all below it; '
                "names with other letters than a to z are written as xn--…"
            )
    return hosts


def _proxy(value: str) -> tuple[str, int] | None:
    if not value:
        return None
    match = re.fullmatch(r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})/?", value)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("must be http://HOST:PORT, with no user name")
    return match[1].strip("[]"), int(match[2])


def _networks(value: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",")) if value else ()


def _setting(
    variable: str,
    default: str,
    parse: Callable[[str], Any],
    unit: str,
    reason: str,
    *,
    derive: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Any:  # noqa: ANN401 - a field of any type
    """A field of Settings. ``derive`` gives the value, from those above it, where nothing else does."""
    metadata = {
        "variable": variable,
        "default": default,
        "parse": parse,
        "unit": unit,
        "reason": reason,
        "derive": derive,
    }
    return field(default_factory=(lambda: derive({})) if derive else (lambda: parse(default)), metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the gateway is told from outside; never changed after the start."""

    tf_serving_host: str = _setting(
        "TF_SERVING_HOST",
        "localhost:8500",
        _address,
        "HOST:PORT",
        "The model server's gRPC address. A headless Service's name gives round robin over all pods.",
    )
    model_tls: bool = _setting(
        "GATEWAY_MODEL_TLS", "off", _switch, "on, off", "TLS to the model server; off is plain text inside a cluster."
    )
    model_tls_ca_file: str = _setting(
        "GATEWAY_MODEL_TLS_CA_FILE",
        "",
        _text,
        "file",
        "Certificates, in PEM form, that the model server's must come from; empty takes the public authorities. All "
        "three files are read anew when they change.",
    )
    model_tls_certificate_file: str = _setting(
        "GATEWAY_MODEL_TLS_CERTIFICATE_FILE",
        "",
        _text,
        "file",
        "The gateway's own certificate, in PEM form, for a model server that asks for one (mTLS).",
    )
    model_tls_key_file: str = _setting(
        "GATEWAY_MODEL_TLS_KEY_FILE", "", _text, "file", "The key of that certificate, in PEM form, with no password."
    )
    model_tls_server_name: str = _setting(
        "GATEWAY_MODEL_TLS_SERVER_NAME",
        "",
        _text,
        "name",
        "The name that the model server's certificate is for, where it is not the host of TF_SERVING_HOST.",
    )
    listen_host: str = _setting(
        "GATEWAY_LISTEN_HOST",
        "127.0.0.1",
        _text,
        "address",
        "Where both ports listen. Loopback until told otherwise; the image says 0.0.0.0; :: takes IPv6 and IPv4.",
    )
    listen_port: int = _setting(
        "GATEWAY_LISTEN_PORT",
        "9696",
        _integer(0, 65535),
        "port",
        "Clients' port, the course's number; 0 takes a free one.",
    )
    admin_listen_port: int = _setting(
        "GATEWAY_ADMIN_LISTEN_PORT",
        "9697",
        _integer(0, 65535),
        "port",
        "Health and metrics, with threads of their own, so that full work never starves a probe.",
    )
    model_name: str = _setting("GATEWAY_MODEL_NAME", "clothing-model", _name, "name", "The model's name on the server.")
    model_version: int | None = _setting(
        "GATEWAY_MODEL_VERSION", "", _version, "number", "The version to ask for; empty is the newest that is loaded."
    )
    model_label: str = _setting(
        "GATEWAY_MODEL_LABEL",
        "",
        _label,
        "name",
        "The version to ask for by its label (version_labels of the model server's configuration), in place of its "
        "number: the label can be moved with no restart of the gateway.",
    )
    canary_version: int | None = _setting(
        "GATEWAY_CANARY_VERSION", "", _version, "number", "A second version, which gets a part of the requests."
    )
    canary_label: str = _setting(
        "GATEWAY_CANARY_LABEL", "", _label, "name", "The same by its label, in place of its number."
    )
    canary_percent: float = _setting(
        "GATEWAY_CANARY_PERCENT",
        "0",
        _percent,
        "percent",
        "How many of the requests the second version gets, chosen by a hash of the request id, so that a request that "
        "is sent again meets the same version.",
    )
    selectable_versions: tuple[str, ...] = _setting(
        "GATEWAY_SELECTABLE_VERSIONS",
        "",
        _versions,
        "list",
        "Version numbers and labels that a client may ask for in X-Model-Version, at most 8; empty lets none choose.",
    )
    signature_name: str = _setting(
        "GATEWAY_SIGNATURE_NAME", "serving_default", _text, "name", "The signature to call; Keras saves this one."
    )
    input_name: str = _setting(
        "GATEWAY_INPUT_NAME", "", _text, "name", "The signature's input; empty takes the only one that there is."
    )
    output_name: str = _setting(
        "GATEWAY_OUTPUT_NAME", "", _text, "name", "The signature's output; empty takes the only one that there is."
    )
    image_size: tuple[int, int] | None = _setting(
        "GATEWAY_IMAGE_SIZE",
        "",
        _size,
        "pixels",
        'Width and height, "299" or "320x240", for a signature that leaves them open; empty takes the signature\'s.',
    )
    labels: tuple[str, ...] = _setting(
        "GATEWAY_LABELS",
        CLOTHING_LABELS,
        _labels,
        "list",
        "What the scores stand for, in the output's order: a,b,c or a JSON list. As many as the output is wide.",
    )
    preprocessing: str = _setting(
        "GATEWAY_PREPROCESSING",
        "tf",
        _choice(*PREPROCESSINGS),
        "tf, caffe, torch, none",
        "How pixels become float32; tf is what Xception, and so the course's model, was trained with.",
    )
    resampling: str = _setting(
        "GATEWAY_RESAMPLING",
        "nearest",
        _choice(*RESAMPLINGS),
        ", ".join(RESAMPLINGS),
        "How a photo is brought to the model's size, by Pillow's names; nearest is what the course's model was trained "
        "with, another is for a model that was trained with that.",
    )
    jpeg_scaling: bool = _setting(
        "GATEWAY_JPEG_SCALING",
        "off",
        _switch,
        "on, off",
        "Lets large JPEGs be decoded at a half, a quarter or an eighth of their size: faster, and other pixels than in "
        "training.",
    )
    model_check_seconds: float = _setting(
        "GATEWAY_MODEL_CHECK_SECONDS",
        "5",
        _seconds(0.05),
        "seconds",
        "How often the model's signature is looked at while it is ready, so that a change or a loss is noticed; every "
        "second, or more often, while it is not.",
    )
    request_timeout_seconds: float = _setting(
        "GATEWAY_REQUEST_TIMEOUT_SECONDS",
        "20",
        _seconds(0.05),
        "seconds",
        "From a request's first byte to its answer: the fetch, the queue and the model. The course's deadline.",
    )
    max_body_bytes: int = _setting(
        "GATEWAY_MAX_BODY_BYTES",
        str(20 * MIB),
        _integer(1024),
        "bytes",
        "One request's body. Phones' largest photos have about 15 MB.",
    )
    max_buffered_bytes: int = _setting(
        "GATEWAY_MAX_BUFFERED_BYTES",
        str(128 * MIB),
        _integer(1024),
        "bytes",
        "Uploads and downloads in memory at a time, over all requests; beyond it 503.",
    )
    max_connections: int = _setting(
        "GATEWAY_MAX_CONNECTIONS",
        "1000",
        _integer(1, 60000),
        "connections",
        "Open connections; further ones wait in the kernel. waitress's 100 are few behind an ingress with keep-alive.",
    )
    max_in_flight: int = _setting(
        "GATEWAY_MAX_IN_FLIGHT",
        "32",
        _integer(1, 1024),
        "photos",
        "Photos worked on at a time; beyond it 503 at once. TensorFlow Serving takes 4 calls a core at a time.",
    )
    max_photos: int = _setting(
        "GATEWAY_MAX_PHOTOS",
        "8",
        _integer(1, 1024),
        "photos",
        "Photos in one request; each takes one of the places above.",
    )
    max_pixels: int = _setting(
        "GATEWAY_MAX_PIXELS",
        str(50 * MIB),
        _integer(1),
        "pixels",
        "Width times height of a photo, read before it is decoded; 50 Mi lets 8192x6144 in and a bomb not.",
    )
    decode_slots: int = _setting(
        "GATEWAY_DECODE_SLOTS",
        "",
        _integer(1, 256),
        "photos",
        "Photos decoded at a time; empty is the number of cores that the process may use. More only slow each other.",
        derive=lambda _: cgroup.available_cores(),
    )
    decode_memory_bytes: int = _setting(
        "GATEWAY_DECODE_MEMORY_BYTES",
        "",
        _integer(MIB),
        "bytes",
        "Memory of all decoders together; a photo waits until its part is free, and one that needs more gets 413. "
        "Empty is what the container's limit leaves, from 128 MiB to 512 MiB.",
        derive=lambda values: memory.for_decoders(
            values.get("max_buffered_bytes", 128 * MIB), values.get("max_in_flight", 32)
        ),
    )
    predict_batch_size: int = _setting(
        "GATEWAY_PREDICT_BATCH_SIZE",
        "8",
        _integer(1, 1024),
        "photos",
        "Photos in one Predict call; at most the max_batch_size of a server that batches.",
    )
    fetch_timeout_seconds: float = _setting(
        "GATEWAY_FETCH_TIMEOUT_SECONDS",
        "10",
        _seconds(0.05),
        "seconds",
        "For fetching one photo, redirects included; leaves the rest of the request's time to the model.",
    )
    fetch_max_bytes: int = _setting(
        "GATEWAY_FETCH_MAX_BYTES",
        str(20 * MIB),
        _integer(1024),
        "bytes",
        "One fetched photo; as large as an upload may be.",
    )
    fetch_max_redirects: int = _setting(
        "GATEWAY_FETCH_MAX_REDIRECTS", "5", _integer(0, 20), "redirects", "A link shortener needs two or three."
    )
    fetch_allowed_ports: frozenset[int] = _setting(
        "GATEWAY_FETCH_ALLOWED_PORTS",
        "80,443",
        _ports,
        "list of ports",
        "Photos are on the web; other ports are other services.",
    )
    fetch_allowed_networks: tuple[Network, ...] = _setting(
        "GATEWAY_FETCH_ALLOWED_NETWORKS",
        "",
        _networks,
        "list of CIDRs",
        "Networks outside the public internet that photos may come from, such as the cluster's pods.",
    )
    fetch_allowed_hosts: tuple[str, ...] = _setting(
        "GATEWAY_FETCH_ALLOWED_HOSTS",
        "",
        _hosts,
        "list of hosts",
        "The only hosts that photos may come from, redirects included; *.example.com is every host below example.com. "
        "Empty allows all.",
    )
    fetch_denied_hosts: tuple[str, ...] = _setting(
        "GATEWAY_FETCH_DENIED_HOSTS",
        "",
        _hosts,
        "list of hosts",
        "Hosts that no photo may come from, whatever is allowed; written in the same way.",
    )
    fetch_proxy: tuple[str, int] | None = _setting(
        "GATEWAY_FETCH_PROXY",
        "",
        _proxy,
        "http://HOST:PORT",
        "A proxy that all photos come through, by CONNECT to an address that was checked here; the environment's proxy "
        "variables are not used.",
    )
    keys_file: str = _setting(
        "GATEWAY_KEYS_FILE",
        "",
        _text,
        "file",
        "Keys that clients must send (Authorization: Bearer KEY), a line NAME KEY for each; read again when it "
        "changes. Empty asks for none.",
    )
    rate_photos_per_minute: float = _setting(
        "GATEWAY_RATE_PHOTOS_PER_MINUTE",
        "0",
        _rate,
        "photos per minute",
        "What one client may send, by its key's name or else its address (of IPv6 its /64); 0 sets no limit. Each "
        "gateway counts for itself.",
    )
    rate_burst_photos: int = _setting(
        "GATEWAY_RATE_BURST_PHOTOS",
        "20",
        _integer(1, 100000),
        "photos",
        "How many of these may come at once; at least GATEWAY_MAX_PHOTOS.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "GATEWAY_TRUSTED_PROXIES",
        "",
        _networks,
        "list of CIDRs",
        "Load balancers and ingresses, whose X-Forwarded-For is believed; empty believes none, and the client is who "
        "connects.",
    )
    drain_delay_seconds: float = _setting(
        "GATEWAY_DRAIN_DELAY_SECONDS",
        "5",
        _seconds(0),
        "seconds",
        "From SIGTERM to the closed port: not ready and still accepting, until all load balancers have heard. SIGINT "
        "skips it.",
    )
    drain_timeout_seconds: float = _setting(
        "GATEWAY_DRAIN_TIMEOUT_SECONDS",
        "22",
        _seconds(0),
        "seconds",
        "For finishing what was accepted; more than the request timeout. Both drain times must fit in the pod's grace "
        "period: 5 + 22 in Kubernetes's 30.",
    )
    page: bool = _setting(
        "GATEWAY_PAGE",
        "on",
        _switch,
        "on, off",
        "The page at /, on which people drop photos. It does nothing that a client of the same port can't do.",
    )
    log_level: str = _setting(
        "GATEWAY_LOG_LEVEL", "info", _choice(*LOG_LEVELS), ", ".join(LOG_LEVELS), "info has one line for each request."
    )

    @classmethod
    def load(
        cls, environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None
    ) -> tuple[Settings, dict[str, str], list[str]]:
        """The settings, where each came from (flag, environment, default), and warnings; or SettingsError."""
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        problems: list[str] = []
        for entry in fields(cls):
            variable = entry.metadata["variable"]
            text, source, shown = (flags or {}).get(entry.name), "flag", flag_of(variable)
            if not text:
                text, source, shown = environment.get(variable), "environment", variable
            if not text:
                text, source = entry.metadata["default"], "default"
            sources[entry.name] = source
            try:
                derive = entry.metadata["derive"]
                values[entry.name] = derive(values) if derive and not text else entry.metadata["parse"](text)
            except ValueError as error:
                problems.append(f"{shown}={text}: {error}")
        if not problems:
            problems += _contradictions(values)
        if problems:
            raise SettingsError(problems)
        return cls(**values), sources, _unknown(environment)


def flag_of(variable: str) -> str:
    """The flag that stands for a variable: GATEWAY_MODEL_NAME is --model-name."""
    return "--" + variable.removeprefix("GATEWAY_").lower().replace("_", "-")


def shown(value: object) -> str:
    """A setting's value, written as it would be given."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
        return ",".join(value) if not any("," in part for part in value) else json.dumps(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
        return f"http://[{value[0]}]:{value[1]}" if ":" in value[0] else f"http://{value[0]}:{value[1]}"
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        return "x".join(str(part) for part in value)
    if isinstance(value, frozenset | tuple):
        return ",".join(str(part) for part in sorted(value, key=lambda part: (str(type(part)), part)))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    if values["listen_port"] == values["admin_listen_port"] != 0:
        problems.append(
            f"GATEWAY_LISTEN_PORT and GATEWAY_ADMIN_LISTEN_PORT are both {values['listen_port']}: give each its own"
        )
    if values["rate_photos_per_minute"] and values["rate_burst_photos"] < values["max_photos"]:
        problems.append(
            f"GATEWAY_RATE_BURST_PHOTOS={values['rate_burst_photos']} is less than "
            f"GATEWAY_MAX_PHOTOS={values['max_photos']}: such a request would never be within the rate"
        )
    tls = [name for name in values if name.startswith("model_tls_") and values[name]]
    if tls and not values["model_tls"]:
        problems.append(
            f"GATEWAY_{tls[0].upper()} has no effect without TLS: set GATEWAY_MODEL_TLS=on, or leave it out"
        )
    if bool(values["model_tls_certificate_file"]) != bool(values["model_tls_key_file"]):
        problems.append(
            "GATEWAY_MODEL_TLS_CERTIFICATE_FILE and GATEWAY_MODEL_TLS_KEY_FILE belong together: give both or none"
        )
    problems += [
        f"GATEWAY_{which}_VERSION and GATEWAY_{which}_LABEL are both set: keep one"
        for which in ("MODEL", "CANARY")
        if values[f"{which.lower()}_version"] is not None and values[f"{which.lower()}_label"]
    ]
    stable = values["model_version"], values["model_label"]
    canary = values["canary_version"], values["canary_label"]
    if canary == (None, ""):
        if values["canary_percent"]:
            problems.append(
                f"GATEWAY_CANARY_PERCENT={values['canary_percent']:g} of what? "
                "Set GATEWAY_CANARY_VERSION or GATEWAY_CANARY_LABEL"
            )
    elif stable == (None, ""):
        problems.append(
            "there is a canary, and the other requests go to the newest version, which may well be the same: "
            "set GATEWAY_MODEL_VERSION or GATEWAY_MODEL_LABEL"
        )
    elif stable == canary:
        problems.append("GATEWAY_MODEL_… and GATEWAY_CANARY_… name the same version: let them differ")
    if values["max_photos"] > values["max_in_flight"]:
        problems.append(
            f"GATEWAY_MAX_PHOTOS={values['max_photos']} is more than GATEWAY_MAX_IN_FLIGHT={values['max_in_flight']}: "
            "such a request would never find enough places"
        )
    problems += [
        f"GATEWAY_{name.upper()}={values[name]} is more than "
        f"GATEWAY_MAX_BUFFERED_BYTES={values['max_buffered_bytes']}: such a photo would never fit"
        for name in ("max_body_bytes", "fetch_max_bytes")
        if values[name] > values["max_buffered_bytes"]
    ]
    return problems


def _unknown(environment: Mapping[str, str]) -> list[str]:
    known = {entry.metadata["variable"] for entry in fields(Settings)}
    return [
        f"{name} is no setting of the gateway and has no effect; `clothing-gateway serve --print-config` lists all"
        for name, value in sorted(environment.items())
        if name.startswith("GATEWAY_")
        and name not in known
        and not _SERVICE_LINK_NAME.fullmatch(name)
        and not _SERVICE_LINK_VALUE.match(value)
    ]
