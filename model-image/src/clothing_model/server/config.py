"""The files that flags name: protobuf messages in text form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from clothing_model.errors import ModelError
from clothing_model.server.flags import Flags
from clothing_model.server.metrics import DEFAULT_PATH

PLATFORM = "tensorflow"
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class Ssl:
    key: bytes
    certificate: bytes
    authority: bytes | None
    client_verify: bool


def parse_text(path: str, message: _M) -> _M:
    try:
        text_format.Parse(Path(path).read_text("utf-8"), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ModelError(f"{path}: not a {message.DESCRIPTOR.name} in protobuf's text form: {error}") from error
    return message


def models(flags: Flags) -> Any:
    """The ModelServerConfig that the flags amount to."""
    config = model_server_config_pb2.ModelServerConfig()
    if flags.model_config_file:
        return parse_text(flags.model_config_file, config)
    config.model_config_list.config.add(name=flags.model_name, base_path=flags.model_base_path, model_platform=PLATFORM)
    return config


def metrics_path(file: str) -> str | None:
    """Where the metrics page is, or None for nowhere."""
    if not file:
        return None
    prometheus = parse_text(file, _message("MonitoringConfig")).prometheus_config
    return (prometheus.path or DEFAULT_PATH) if prometheus.enable else None


def ssl(file: str) -> Ssl:
    config = parse_text(file, _message("SSLConfig"))
    if not config.server_key or not config.server_cert:
        raise ModelError(f"{file}: server_key and server_cert are needed, each the PEM text itself")
    return Ssl(
        key=config.server_key.encode(),
        certificate=config.server_cert.encode(),
        authority=config.custom_ca.encode() or None,
        client_verify=config.client_verify,
    )


def _message(name: str) -> Any:
    """MonitoringConfig and SSLConfig, which TensorFlow Serving's Python package leaves out (tensorflow_serving/config/
    monitoring_config.proto and ssl_config.proto)."""
    text, switch, message = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
        descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
    )
    fields = {
        "PrometheusConfig": {"enable": switch, "path": text},
        "MonitoringConfig": {"prometheus_config": message},
        "SSLConfig": {"server_key": text, "server_cert": text, "custom_ca": text, "client_verify": switch},
    }
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="tensorflow.serving", syntax="proto3")
    for each, types in fields.items():
        described = file.message_type.add(name=each)
        for number, (field, kind) in enumerate(types.items(), start=1):
            added = described.field.add(name=field, number=number, type=kind, label=1)
            if kind == message:
                added.type_name = ".tensorflow.serving.PrometheusConfig"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()
