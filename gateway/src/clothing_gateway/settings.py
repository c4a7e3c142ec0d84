"""Every setting, one row each, in one frozen dataclass.

A value comes from its flag, else from its environment variable, else from its default; an empty one counts as not
given. Parsing reports the errors of all settings at once.

To add a setting, write one row (a field of ``Settings``) and a test of what it does, then run ``make docs``:

- the field's name in lower case is the setting's: ``max_photos`` is GATEWAY_MAX_PHOTOS and --max-photos;
- ``_setting`` takes the default as an operator writes it, a Kind (how a text becomes the value), the unit, and the
  reason: what the setting does, and why the default is what it is;
- ``chart`` is the path of the chart's value behind it; give that a default (null leaves the gateway's own) and a
  comment in values.yaml. Without one the setting is reached by ``gateway.extraEnv``: right for what nothing turns;
- ``classify=True`` makes it a flag of ``classify --server``, too, which does the preprocessing itself.

``make docs`` (scripts/gateway_settings.py) writes what follows from the rows: the table in gateway/README.md, the
chart's templates/gateway/_env.tpl and the settings' types in values.schema.json. ``doctor`` reads the rows themselves.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from clothing_contract import (
    CHANNELS,
    FITS,
    PREPROCESSINGS,
    RESAMPLINGS,
    SCORES,
    ContractError,
    Input,
    Output,
    contract,
)
from clothing_contract import labels as label_lists
from clothing_gateway.limits import cgroup, memory

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CLOTHING_LABELS = "dress,hat,longsleeve,outwear,pants,shirt,shoes,shorts,skirt,t-shirt"
LOG_LEVELS = ("debug", "info", "warning", "error")
MIB = 1 << 20
MAX_SELECTABLE_VERSIONS = 8
EXTRA_ENV = "gateway.extraEnv"

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
    """Settings that can't be used, one line for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A setting's type: parser, printer, and form of the chart's value."""

    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str
    empty: Any = ""  # the value of an empty text
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})  # JSON Schema of the chart's value
    template: str = "{}"  # the Go template that writes the chart's value, {}, as the variable's text


@dataclass(frozen=True, slots=True)
class Setting:
    """A row: one setting's default, type, unit, reason and chart value."""

    default: str
    kind: Kind
    unit: str
    reason: str
    chart: str = EXTRA_ENV  # the chart's value that changes it
    template: str = ""  # the Go template that gives its text, where the chart derives it from more than that value
    derive: Callable[[Mapping[str, Any]], Any] | None = None  # the value, from those above it, where none is given
    derived: str = ""  # what ``derive`` gives, in words
    environment: str = ""  # the variable, where it is not the name with GATEWAY_
    classify: bool = False  # of the model and its preprocessing: a flag of ``classify --server``, too
    name: str = ""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.environment or f"GATEWAY_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of ``serve``: GATEWAY_MODEL_NAME is --model-name."""
        return "--" + self.name.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default, for people."""
        return self.default or self.derived or "empty"

    def value(self, text: str, above: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a value of any type
        """Parse a value; an empty one is derived from the settings above.

        Raises ValueError.
        """
        if text:
            return self.kind.parse(text)
        return self.derive(above) if self.derive else self.kind.empty


def _integer(low: int, high: int) -> Kind:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"must be at least {low} and at most {high}")
        return number

    return Kind(parse=parse, schema={"type": "integer", "minimum": low, "maximum": high})


def _number(low: float, high: float, *, or_zero: bool = False) -> Kind:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError("must be a number") from None
        if not (low <= number <= high or (or_zero and number == 0)):
            raise ValueError(f"must be {'0, or ' if or_zero else ''}at least {low:.9g} and at most {high:.9g}")
        return number

    return Kind(
        parse=parse,
        show="{:g}".format,
        schema={"type": "number", "minimum": 0 if or_zero else low, "maximum": high},
    )


def _choice(*allowed: str) -> Kind:
    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return value.lower()

    return Kind(parse=parse, schema={"enum": list(allowed)})


def _listed(
    parse: Callable[[str], Any],
    items: Mapping[str, Any],
    *,
    collect: Callable[[list[Any]], Collection[Any]] = tuple,
    most: int = 0,
    **limits: Any,  # noqa: ANN401 - keywords of JSON Schema
) -> Kind:
    """Parts with commas between them."""

    def parse_all(value: str) -> Collection[Any]:
        parts = value.split(",")
        if most and len(parts) > most:
            raise ValueError(f"must name at most {most}")
        return collect([parse(part.strip()) for part in parts])

    return Kind(
        parse=parse_all,
        show=lambda values: ",".join(map(str, sorted(values) if isinstance(values, frozenset) else values)),
        empty=collect([]),
        schema={"type": "array", "items": items} | ({"maxItems": most} if most else {}) | limits,
        template='join "," {}',
    )


def _name(value: str) -> str:
    if not re.fullmatch(r"[^\s/]+", value):
        raise ValueError("must be a name without blanks or slashes")
    return value


def _address(value: str) -> str:
    """HOST:PORT, or a whole gRPC target with its scheme."""
    if re.match(r"(dns|ipv4|ipv6|unix|passthrough):", value):
        return value
    scheme, separator, rest = value.partition("://")
    if separator:
        example = rest.strip("/") or "localhost:8500"
        raise ValueError(f"must be HOST:PORT of gRPC, no URL: leave out the scheme {scheme}://, as in {example}")
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("must be HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("must put an IPv6 address into brackets, as in [::1]:8500")
    return value


def _label(value: str) -> str:
    if not _VERSION_LABEL.fullmatch(value) or value.isdigit():
        raise ValueError("must be letters, digits, dots, dashes and underscores, and not digits alone")
    return value


def _version_or_label(value: str) -> str:
    """A version's number or label, as it is written."""
    return str(_VERSION.parse(value)) if value.isascii() and value.isdigit() else _label(value)


def _show_labels(labels: tuple[str, ...]) -> str:
    text = ",".join(labels)
    return text if "," not in "".join(labels) and text[:1] not in ("[", "{") else json.dumps(labels)


def _host(value: str) -> str:
    host = value.lower().removesuffix(".")
    try:
        if ":" in host and host == ipaddress.IPv6Address(host).compressed:
            return host
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or ".." in host:
        raise ValueError(
            f'has {host!r}, which is no host: "example.com" is one host, "*.example.com" all below it; '
            "names with other letters than a to z are written as xn--…"
        )
    return host


def _own_host(value: str) -> str:
    """A host as in a Host header: an IPv6 address in brackets, and no port."""
    if ":" not in value:
        return _host(value)
    try:
        if value.startswith("[") and value.endswith("]"):
            return f"[{ipaddress.IPv6Address(value[1:-1])}]"
    except ValueError:
        pass
    raise ValueError(f"has {value!r}: leave out the port, and put an IPv6 address into brackets, as [::1]")


def _proxy(value: str) -> tuple[str, int]:
    match = re.fullmatch(r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})/?", value)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("must be http://HOST:PORT, with no user name")
    return match[1].strip("[]"), int(match[2])


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", value):
        raise ValueError(
            f'has {value!r}, which is no origin: "https://shop.example" is one, with no path, in small letters'
        )
    return value


def _user_agent(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+( [\x21-\x7e]+)*", value):  # RFC 9110 10.1.5, and nothing that ends the line
        raise ValueError("must be visible ASCII characters, with single blanks between words")
    return value


def _show_proxy(proxy: tuple[str, int] | None) -> str:
    if proxy is None:
        return ""
    host, port = proxy
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


_TEXT = Kind(parse=str)
_NAME = Kind(parse=_name)
_ADDRESS = Kind(parse=_address)
_PORT = _integer(0, 65535)
_SWITCH = replace(
    _choice("on", "off"),
    parse=lambda value: _choice("on", "off").parse(value) == "on",
    show=lambda value: "on" if value else "off",
    schema={"type": "boolean"},
    template='ternary "on" "off" {}',
)
# As it stands in the values: toJson writes 20261122 in full, and the quotes of "20261122" are taken off.
_VERSION = replace(
    _integer(0, 2**63 - 1),
    show=lambda value: "" if value is None else str(value),
    empty=None,
    template='{} | toJson | trimAll "\\""',
)
_VERSION_LABEL_NAME = Kind(parse=_label)
_VERSIONS = _listed(_version_or_label, {}, most=MAX_SELECTABLE_VERSIONS)
_SIZE = Kind(parse=contract.parse_size, show=lambda size: "x".join(map(str, size or ())), empty=None)
_CHANNEL_NUMBERS = Kind(
    parse=contract.parse_numbers,
    show=lambda numbers: ",".join(map("{:.9g}".format, numbers)),
    empty=(),
    schema={"type": "array", "items": {"type": "number"}, "maxItems": 3},
    template='join "," {}',
)
_THRESHOLD = replace(
    _number(0, 1),
    show=lambda number: "" if number is None else f"{number:g}",
    empty=None,
    schema={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
)
_SHORTER_SIDE = replace(_integer(1, 16_384), show=lambda side: str(side or ""), empty=None)
_LABELS = Kind(parse=label_lists.read_list, show=_show_labels, template="toJson {}")
_SECONDS, _SECONDS_OR_NONE = _number(0.05, 86400), _number(0, 86400)
_PERCENT = _number(0, 100)
_RATE = _number(0.01, 1_000_000, or_zero=True)
_BYTES, _LARGE_BYTES = _integer(1024, 2**50), _integer(MIB, 2**50)
_PHOTOS = _integer(1, 1024)
_PORTS = _listed(_integer(1, 65535).parse, {"$ref": "#/$defs/port"}, collect=frozenset, minItems=1, uniqueItems=True)
_NETWORKS = _listed(ipaddress.ip_network, {"$ref": "#/$defs/cidr"})
_HOSTS = replace(_listed(_host, {}), schema={"$ref": "#/$defs/hosts"})
_OWN_HOSTS = _listed(_own_host, {})
_ORIGINS = _listed(_origin, {"type": "string"})
_USER_AGENT = Kind(parse=_user_agent)
_PROXY = Kind(parse=_proxy, show=_show_proxy, empty=None, schema={"type": "string"})


def _setting(default: str, kind: Kind, unit: str, reason: str, **more: Any) -> Any:  # noqa: ANN401 - a field of any type
    """A field of Settings, of a row."""
    row = Setting(default, kind, unit, reason, **more)
    return field(default_factory=lambda: row.value(default, {}), metadata={"row": row})


def decode_processes() -> int:
    """Decode processes by default: one for each core, and one for light photos.

    Each takes 8 MiB, and memory for four large photos at a time is more than the default limit leaves.
    """
    return min(cgroup.available_cores(), 4) + 1 if sys.platform == "linux" else 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The gateway's configuration; never changed after the start."""

    tf_serving_host: str = _setting(
        "localhost:8500",
        _ADDRESS,
        "HOST:PORT",
        "The model server's gRPC address. A headless Service's name gives round robin over all pods.",
        template='printf "dns:///%s-server-headless:8500" (include "clothing-classifier.fullname" .)',
        environment="TF_SERVING_HOST",
    )
    model_tls: bool = _setting(
        "off",
        _SWITCH,
        "on, off",
        "TLS to the model server; off is plain text inside a cluster.",
        chart="gateway.serverTls.secretName",
        template='ternary "on" "" $tls',
        classify=True,
    )
    model_tls_ca_file: str = _setting(
        "",
        _TEXT,
        "file",
        "CA certificates (PEM) that the model server's certificate must be signed by; empty trusts the public CAs. All "
        "three files are reloaded when they change.",
        chart="gateway.serverTls.secretName",
        template='ternary "/etc/clothing-gateway/server-tls/ca.crt" "" $tls',
        classify=True,
    )
    model_tls_certificate_file: str = _setting(
        "",
        _TEXT,
        "file",
        "The gateway's client certificate (PEM), for a model server that requires one (mTLS).",
        chart="gateway.serverTls.mutual",
        template='ternary "/etc/clothing-gateway/server-tls/tls.crt" "" (and $tls .Values.gateway.serverTls.mutual)',
        classify=True,
    )
    model_tls_key_file: str = _setting(
        "",
        _TEXT,
        "file",
        "The private key of that certificate (PEM), with no password.",
        chart="gateway.serverTls.mutual",
        template='ternary "/etc/clothing-gateway/server-tls/tls.key" "" (and $tls .Values.gateway.serverTls.mutual)',
        classify=True,
    )
    model_tls_server_name: str = _setting(
        "",
        _TEXT,
        "name",
        "The name in the model server's certificate, where it is not the host of TF_SERVING_HOST.",
        chart="gateway.serverTls.serverName",
        template='ternary (default (printf "%s-server-headless" (include "clothing-classifier.fullname" .)) '
        '.Values.gateway.serverTls.serverName) "" $tls',
        classify=True,
    )
    listen_host: str = _setting(
        "127.0.0.1",
        _TEXT,
        "address",
        "Listen address of both ports. Loopback by default; the image sets ::, all addresses of IPv6 and IPv4.",
    )
    listen_port: int = _setting("9696", _PORT, "port", "Clients' port, the course's number; 0 picks a free one.")
    admin_listen_port: int = _setting(
        "9697",
        _PORT,
        "port",
        "Health and metrics, on threads of their own, so that full load never starves a probe.",
    )
    model_name: str = _setting(
        "clothing-model", _NAME, "name", "The model's name on the server.", chart="model.name", classify=True
    )
    model_version: int | None = _setting(
        "",
        _VERSION,
        "number",
        "Model version to request; empty is the newest that is loaded.",
        chart="model.version",
        template='include "clothing-classifier.modelVersion" .',
        classify=True,
    )
    model_label: str = _setting(
        "",
        _VERSION_LABEL_NAME,
        "name",
        "Model version to request by its label (version_labels of the model server's configuration), in place of its "
        "number: the label can be moved without restarting the gateway.",
        chart="model.versionLabel",
        classify=True,
    )
    canary_version: int | None = _setting(
        "",
        _VERSION,
        "number",
        "Canary: a second version, which gets a part of the requests.",
        chart="model.canary.version",
    )
    canary_label: str = _setting(
        "",
        _VERSION_LABEL_NAME,
        "name",
        "The canary by its label, in place of its number.",
        chart="model.canary.versionLabel",
    )
    canary_percent: float = _setting(
        "0",
        _PERCENT,
        "percent",
        "Share of the requests that the canary gets, chosen by a hash of the request id, so that a retried request "
        "meets the same version.",
        chart="model.canary.weight",
    )
    selectable_versions: tuple[str, ...] = _setting(
        "",
        _VERSIONS,
        "list",
        "Version numbers and labels that a client may request in X-Model-Version, at most 8, as each is polled; empty "
        "allows none.",
        chart="model.selectableVersions",
        template='include "clothing-classifier.gateway.selectableVersions" .',
    )
    signature_name: str = _setting(
        "serving_default",
        _TEXT,
        "name",
        "The signature to call; Keras saves this one.",
        chart="model.signatureName",
        classify=True,
    )
    input_name: str = _setting(
        "", _TEXT, "name", "The signature's input; empty takes the only one.", chart="model.inputName", classify=True
    )
    output_name: str = _setting(
        "", _TEXT, "name", "The signature's output; empty takes the only one.", chart="model.outputName", classify=True
    )
    image_size: tuple[int, int] | None = _setting(
        "",
        _SIZE,
        "pixels",
        'Width and height, "299" or "320x240", for a signature that leaves them open; empty takes the signature\'s.',
        chart="model.imageSize",
        classify=True,
    )
    labels: tuple[str, ...] = _setting(
        CLOTHING_LABELS,
        _LABELS,
        "list",
        "Class names of the scores, in the output's order: a,b,c or a JSON list. As many as the output is wide.",
        chart="model.labels",
        classify=True,
    )
    preprocessing: str = _setting(
        "tf",
        _choice(*PREPROCESSINGS),
        ", ".join(PREPROCESSINGS),
        "How pixels become float32: tf is x/127.5 - 1, rescale x/255, none x; caffe and torch take ImageNet's means. "
        "Xception, and so the course's model, was trained with tf.",
        chart="model.preprocessing",
        classify=True,
    )
    mean: tuple[float, ...] = _setting(
        "",
        _CHANNEL_NUMBERS,
        "numbers",
        "Mean that is subtracted after none or rescale: one for all channels, or three in the model's order, as "
        "torchvision's Normalize has after ToTensor (rescale).",
        chart="model.mean",
        classify=True,
    )
    std: tuple[float, ...] = _setting(
        "",
        _CHANNEL_NUMBERS,
        "numbers",
        "Deviation that is divided by after the mean, in the same way. Keras's Rescaling(scale, offset) is none with "
        "the mean -offset/scale and the deviation 1/scale.",
        chart="model.std",
        classify=True,
    )
    channels: str = _setting(
        "rgb",
        _choice(*CHANNELS),
        ", ".join(CHANNELS),
        "Order of the model's channels; caffe is always BGR, and an input of one channel always grey.",
        chart="model.channels",
        classify=True,
    )
    scores: str = _setting(
        contract.AUTO,
        _choice(*SCORES),
        ", ".join(SCORES),
        "What the output's numbers are: softmax (probabilities that sum to 1), logits, sigmoid (one probability, of "
        "the second label or the only one), independent (each label's own probability). auto asks the model about "
        "three pictures, and about numbers far from a photo's where it takes float32, and decides where it can't be "
        "otherwise; else the gateway is not ready, and says so.",
        chart="model.scores",
        classify=True,
    )
    threshold: float | None = _setting(
        "",
        _THRESHOLD,
        "probability",
        "Probability above which a label holds, where each has its own (sigmoid, independent): /classify lists those. "
        "Empty is 0.5, more likely than not: best where both kinds of mistakes cost the same. Of a softmax or logits "
        "the most probable label holds, and a threshold is refused.",
        chart="model.threshold",
        classify=True,
    )
    fit: str = _setting(
        "stretch",
        _choice(*FITS),
        ", ".join(FITS),
        "How a photo of another shape becomes the model's: stretched, as in the course; crop resizes the shorter side "
        "and keeps the centre, as torchvision's Resize and CenterCrop; pad leaves black borders. keras-crop keeps the "
        "centre and resizes that, as crop_to_aspect_ratio; keras-pad is pad_to_aspect_ratio.",
        chart="model.fit",
        classify=True,
    )
    shorter_side: int | None = _setting(
        "",
        _SHORTER_SIDE,
        "pixels",
        "What crop resizes the shorter side to, as 256 before a crop of 224; empty is the model's longer side.",
        chart="model.shorterSide",
        classify=True,
    )
    resampling: str = _setting(
        "nearest",
        _choice(*RESAMPLINGS),
        ", ".join(RESAMPLINGS),
        "Resize filter that the model was trained with; the course's was trained with nearest. Models trained with "
        "image_dataset_from_directory need tf-bilinear, those of torchvision bilinear.",
        chart="model.resampling",
        classify=True,
    )
    exif_orientation: bool = _setting(
        "on",
        _SWITCH,
        "on, off",
        "Turns photos upright that cameras stored turned, as browsers show them: the demo model's accuracy is 0.88 "
        "upright, 0.26 on the side. Photos without the tag stay as they are, bit for bit.",
        chart="model.exifOrientation",
        classify=True,
    )
    jpeg_scaling: bool = _setting(
        "off",
        _SWITCH,
        "on, off",
        "Decodes large JPEGs at a half, a quarter or an eighth of their size: faster, but with other pixels than in "
        "training.",
        chart="gateway.jpegScaling",
        classify=True,
    )
    model_check_seconds: float = _setting(
        "5",
        _SECONDS,
        "seconds",
        "Poll interval of the model's signature while the gateway is ready, so that a change or a loss is noticed; a "
        "second or less while it is not.",
    )
    request_timeout_seconds: float = _setting(
        "20",
        _SECONDS,
        "seconds",
        "Deadline of a request, from its first byte to its answer: fetch, queue and model. The course's deadline.",
        chart="gateway.requestTimeoutSeconds",
        classify=True,
    )
    max_body_bytes: int = _setting(
        str(20 * MIB),
        _BYTES,
        "bytes",
        "Size limit of a request's body. The largest photos of phones have about 15 MB. JSON has 64 kB.",
        chart="gateway.maxBodyBytes",
    )
    max_buffered_bytes: int = _setting(
        str(128 * MIB),
        _BYTES,
        "bytes",
        "Memory for uploads and downloads in flight, over all requests; above it 503. One client has half.",
    )
    max_connections: int = _setting(
        "1000",
        _integer(1, 60000),
        "connections",
        "Open connections. Above it the longest idle one is closed in favour of a new one; with none idle, new ones "
        "wait in the kernel. waitress's 100 are few behind an ingress with keep-alive.",
    )
    max_connections_per_client: int = _setting(
        "",
        _integer(1, 60000),
        "connections",
        "Open connections of one TCP peer, a client or a load balancer (of IPv6 its /64). Empty is half of all, so "
        "that no address takes them all.",
        derive=lambda values: max(values.get("max_connections", 1000) // 2, 1),
        derived="half of all",
    )
    max_in_flight: int = _setting(
        "32",
        _PHOTOS,
        "photos",
        "Photos in flight of one client; above it 503 at once. All clients together have an eighth more, so that none "
        "takes all. TensorFlow Serving runs 4 calls a core by default, so 32 fill eight cores.",
        chart="gateway.maxInFlight",
    )
    max_photos: int = _setting(
        "8",
        _PHOTOS,
        "photos",
        "Photos in one request; each takes one of the slots above.",
        chart="gateway.maxPhotos",
    )
    max_pixels: int = _setting(
        str(50 * MIB),
        _integer(1, 2**31 - 1),
        "pixels",
        "Width times height of a photo, read before it is decoded; 50 Mi admits 8192x6144 and rejects decompression "
        "bombs.",
        chart="gateway.maxPixels",
    )
    max_side_pixels: int = _setting(
        "16384",
        _integer(1, 65535),
        "pixels",
        "The longer side of a photo. Phones' panoramas have up to 16,382 pixels, and WebP's own maximum is 16,383.",
    )
    decode_slots: int = _setting(
        "",
        _integer(1, 256),
        "photos",
        "Photos decoded concurrently; empty is the number of cores that the process may use, as more only slow each "
        "other.",
        derive=lambda _: cgroup.available_cores(),
        derived="the cores",
    )
    decode_processes: int = _setting(
        "",
        _integer(0, 64),
        "processes",
        "Processes that decode what clothing_jpeg doesn't (PNG, WebP, GIF, BMP, some JPEGs), at most: there a decode "
        "ends at its deadline, and a crash costs one photo. Heavy photos leave one of them to light photos. Empty is "
        "the cores + 1, at most 5, as each takes memory; 0 decodes in the gateway's own process. Linux only.",
        derive=lambda _: decode_processes(),
        derived="the cores + 1, at most 5",
    )
    decode_memory_bytes: int = _setting(
        "",
        _LARGE_BYTES,
        "bytes",
        "Memory of all decoders together; a photo waits until its part is free. 24 MiB, at most a fifth, are for light "
        "photos; one that needs more than the rest gets 413. Empty is what the container's limit leaves, from 128 MiB "
        "to 512 MiB.",
        derive=lambda values: memory.for_decoders(
            values.get("max_buffered_bytes", 128 * MIB),
            values.get("max_in_flight", 32),
            values.get("decode_processes", decode_processes()),
            image_size=values.get("image_size"),
        ),
        derived="by the container's limit",
    )
    predict_batch_size: int = _setting(
        "8",
        _PHOTOS,
        "photos",
        "Photos in one Predict call; at most the max_batch_size of a server that batches.",
        chart="gateway.predictBatchSize",
    )
    fetch_timeout_seconds: float = _setting(
        "10",
        _SECONDS,
        "seconds",
        "Timeout of fetching one photo, redirects included; leaves the rest of the request's time to the model.",
        chart="gateway.fetch.timeoutSeconds",
    )
    fetch_max_bytes: int = _setting(
        str(20 * MIB), _BYTES, "bytes", "Size limit of a fetched photo; as large as an upload may be."
    )
    fetch_max_redirects: int = _setting(
        "5", _integer(0, 20), "redirects", "Redirects followed to a photo. A link shortener needs two or three."
    )
    fetch_allowed_ports: frozenset[int] = _setting(
        "80,443",
        _PORTS,
        "list of ports",
        "Ports that photos may be fetched from: those of the web, as other ports are other services.",
        chart="gateway.fetch.allowedPorts",
    )
    fetch_allowed_networks: tuple[Network, ...] = _setting(
        "",
        _NETWORKS,
        "list of CIDRs",
        "Networks outside the public internet that photos may be fetched from, such as the cluster's pods.",
        chart="gateway.fetch.allowedNetworks",
    )
    fetch_denied_networks: tuple[Network, ...] = _setting(
        "",
        _NETWORKS,
        "list of CIDRs",
        "Networks that no photo may be fetched from, whatever is allowed: public addresses that are used privately, "
        "such as pods with IPv6 addresses of the cloud's.",
        chart="gateway.fetch.deniedNetworks",
    )
    fetch_allowed_hosts: tuple[str, ...] = _setting(
        "",
        _HOSTS,
        "list of hosts",
        "The only hosts that photos may be fetched from, redirects included; *.example.com is every host below "
        "example.com. Empty allows all.",
        chart="gateway.fetch.allowedHosts",
    )
    fetch_denied_hosts: tuple[str, ...] = _setting(
        "",
        _HOSTS,
        "list of hosts",
        "Hosts that no photo may be fetched from, whatever is allowed; written in the same way.",
        chart="gateway.fetch.deniedHosts",
    )
    fetch_proxy: tuple[str, int] | None = _setting(
        "",
        _PROXY,
        "http://HOST:PORT",
        "Proxy that all photos are fetched through, by CONNECT to an address that was checked here; the environment's "
        "proxy variables are not used.",
        chart="gateway.fetch.proxy",
    )
    fetch_user_agent: str = _setting(
        "",
        _USER_AGENT,
        "text",
        "User-Agent that photo servers see, such as `shop/1.0 (https://shop.example; ops@shop.example)`: some, as "
        "Wikimedia's, answer 403 to a name without a contact. Empty sends clothing-gateway/VERSION.",
    )
    keys_file: str = _setting(
        "",
        _TEXT,
        "file",
        "API keys that clients must send (Authorization: Bearer KEY), a line NAME KEY for each; reloaded when the file "
        "changes. Empty requires none.",
        chart="gateway.keys.secretName",
        template='ternary "/etc/clothing-gateway/keys/keys" "" (ne .Values.gateway.keys.secretName "")',
    )
    rate_photos_per_minute: float = _setting(
        "0",
        _RATE,
        "photos per minute",
        "Rate limit of one client, by its key's name or else its address (of IPv6 its /64); 0 sets no limit. Each "
        "gateway counts for itself.",
        chart="gateway.rate.photosPerMinute",
    )
    rate_burst_photos: int = _setting(
        "20",
        _integer(1, 100_000),
        "photos",
        "Burst of the rate limit: photos that may be sent at once; at least GATEWAY_MAX_PHOTOS.",
    )
    rate_megapixels_per_minute: float = _setting(
        "0",
        _RATE,
        "megapixels per minute",
        "Rate limit of one client by what its photos cost to decode: millions of pixels, times the scans of a "
        "progressive JPEG, beside the rate of photos. A minute's worth may come at once, and a larger photo after a "
        "minute of none. 0 sets no limit, as plain photos cost little.",
        chart="gateway.rate.megapixelsPerMinute",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "",
        _ORIGINS,
        "list of origins",
        "Origins of web pages that may send photos from a browser (CORS), as https://shop.example; * is any. Empty "
        "refuses all but the gateway's own page, as a page can make its visitors' browsers send photos (CSRF).",
        chart="gateway.allowedOrigins",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "",
        _OWN_HOSTS,
        "list of hosts",
        "The gateway's own names, as photos.example.com, *.example.com or [::1]; a Host that is none of them is 421 "
        "(DNS rebinding). Empty allows any, as nothing here knows the names of proxies and Services. `GET /ping` and "
        "`GET /` pass, for load balancers.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "",
        _NETWORKS,
        "list of CIDRs",
        "Load balancers and ingresses whose X-Forwarded-For is trusted; empty trusts none, and the client is the TCP "
        "peer.",
        chart="gateway.trustedProxies",
    )
    drain_delay_seconds: float = _setting(
        "5",
        _SECONDS_OR_NONE,
        "seconds",
        "Graceful shutdown, first part: from SIGTERM to the closed port, not ready but still accepting, until all load "
        "balancers have switched. SIGINT skips it.",
        chart="gateway.drain.delaySeconds",
    )
    drain_timeout_seconds: float = _setting(
        "22",
        _SECONDS_OR_NONE,
        "seconds",
        "Graceful shutdown, second part: for finishing accepted requests; more than the request timeout. Both must fit "
        "in the pod's grace period: 5 + 22 in Kubernetes's 30.",
        chart="gateway.requestTimeoutSeconds",
        template='include "clothing-classifier.gateway.drainTimeoutSeconds" .',
    )
    page: bool = _setting(
        "on",
        _SWITCH,
        "on, off",
        "The web page at /, on which people drop photos. It does nothing that a client of the same port can't do.",
        chart="gateway.page",
    )
    log_level: str = _setting(
        "info", _choice(*LOG_LEVELS), ", ".join(LOG_LEVELS), "info logs one line per request.", chart="gateway.logLevel"
    )

    @functools.cached_property
    def input(self) -> Input:
        """What the model takes of a photo: the settings of the contract's names."""
        return _input(vars(self))

    @functools.cached_property
    def output(self) -> Output:
        """What the model's numbers mean: the settings of the contract's names."""
        return _output(vars(self))

    @classmethod
    def load(
        cls, environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None
    ) -> tuple[Settings, dict[str, str], list[str]]:
        """Parse all settings; return them, their sources and warnings.

        A source is flag, environment or default.

        Raises SettingsError with every setting that can't be used.
        """
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        problems: list[str] = []
        for row in ROWS:
            text, source, shown = (flags or {}).get(row.name), "flag", row.flag
            if not text:
                text, source, shown = environment.get(row.variable), "environment", row.variable
            if not text:
                text, source = row.default, "default"
            sources[row.name] = source
            try:
                values[row.name] = row.value(text, values)
            except ValueError as error:
                problems.append(f"{shown}={text}: {error}")
        if not problems:
            problems += _contradictions(values)
        if problems:
            raise SettingsError(problems)
        return cls(**values), sources, _unknown(environment)


def _input(values: Mapping[str, Any]) -> Input:
    return Input(**{entry.name: values[entry.name] for entry in fields(Input)})


def _output(values: Mapping[str, Any]) -> Output:
    return Output(**{entry.name: values[entry.name] for entry in fields(Output)})


def _contract_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, build in (("GATEWAY_PREPROCESSING", _input), ("GATEWAY_THRESHOLD", _output)):
        try:
            build(values)
        except ContractError as error:
            problems.append(f"{name}: {error}")
    return problems


ROWS: tuple[Setting, ...] = tuple(replace(entry.metadata["row"], name=entry.name) for entry in fields(Settings))


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    if values["listen_port"] == values["admin_listen_port"] != 0:
        problems.append(
            f"GATEWAY_LISTEN_PORT and GATEWAY_ADMIN_LISTEN_PORT are both {values['listen_port']}: give each its own"
        )
    if values["rate_photos_per_minute"] and values["rate_burst_photos"] < values["max_photos"]:
        problems.append(
            f"GATEWAY_RATE_BURST_PHOTOS={values['rate_burst_photos']} is less than "
            f"GATEWAY_MAX_PHOTOS={values['max_photos']}: such a request would always exceed the rate limit"
        )
    problems += _contract_problems(values)
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
                "GATEWAY_CANARY_PERCENT is set, and no canary: set GATEWAY_CANARY_VERSION or GATEWAY_CANARY_LABEL"
            )
    elif stable == (None, ""):
        problems.append(
            "several versions are in use, and none is named as stable: set GATEWAY_MODEL_VERSION or GATEWAY_MODEL_LABEL"
        )
    elif stable == canary:
        problems.append("the canary is the stable version: set another GATEWAY_CANARY_VERSION or GATEWAY_CANARY_LABEL")
    if values["max_photos"] > values["max_in_flight"]:
        problems.append(
            f"GATEWAY_MAX_PHOTOS={values['max_photos']} is more than GATEWAY_MAX_IN_FLIGHT={values['max_in_flight']}: "
            "such a request would never get enough slots"
        )
    problems += [
        f"GATEWAY_{name.upper()}={values[name]} is more than "
        f"GATEWAY_MAX_BUFFERED_BYTES={values['max_buffered_bytes']}: such a photo would never fit"
        for name in ("max_body_bytes", "fetch_max_bytes")
        if values[name] > values["max_buffered_bytes"]
    ]
    return problems


def _unknown(environment: Mapping[str, str]) -> list[str]:
    known = {row.variable for row in ROWS}
    return [
        f"{name} is not a setting of the gateway and has no effect; `clothing-gateway serve --print-config` lists all"
        for name, value in sorted(environment.items())
        if name.startswith("GATEWAY_")
        and name not in known
        and not _SERVICE_LINK_NAME.fullmatch(name)
        and not _SERVICE_LINK_VALUE.match(value)
    ]
