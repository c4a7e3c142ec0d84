"""The files that flags name: protobuf messages in text form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from clothing_model.errors import ModelError
from clothing_model.server import batching
from clothing_model.server.errors import RequestError
from clothing_model.server.flags import Flags
from clothing_model.server.metrics import DEFAULT_PATH

PLATFORM = "tensorflow"
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class Ssl:
    """An SSLConfig's PEM texts, and whether clients need a certificate."""

    key: bytes
    certificate: bytes
    authority: bytes | None
    client_verify: bool


def parse_text(path: str, message: _M) -> _M:
    """Read a file into a protobuf message.

    Raises:
        ModelError: no such file, or not such a message.

    """
    try:
        text_format.Parse(Path(path).read_text("utf-8"), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ModelError(f"{path}: not a {message.DESCRIPTOR.name} in protobuf's text form: {error}") from error
    return message


def models(flags: Flags) -> Any:
    """The ModelServerConfig that the flags describe."""
    config = model_server_config_pb2.ModelServerConfig()
    if flags.model_config_file:
        return parse_text(flags.model_config_file, config)
    config.model_config_list.config.add(name=flags.model_name, base_path=flags.model_base_path, model_platform=PLATFORM)
    return config


def metrics_path(file: str) -> str | None:
    """Path of the metrics page; None where monitoring is off."""
    if not file:
        return None
    prometheus = parse_text(file, _message("MonitoringConfig")).prometheus_config
    return (prometheus.path or DEFAULT_PATH) if prometheus.enable else None


def batching_parameters(file: str) -> batching.Parameters:
    """A BatchingParameters file; without one, TensorFlow Serving's defaults."""
    if not file:
        return batching.Parameters(thread_pool_name="model_server_batch_threads")
    message = parse_text(file, _message("BatchingParameters"))
    try:
        return batching.Parameters.of(message)
    except RequestError as error:
        raise ModelError(f"{file}: {error}") from error


def ssl(file: str) -> Ssl:
    """Read an SSLConfig file.

    Raises:
        ModelError: it can't be read, or lacks key or certificate.

    """
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
    """An empty message of a type that TensorFlow Serving's Python package lacks.

    MonitoringConfig, SSLConfig and BatchingParameters (monitoring_config.proto, ssl_config.proto,
    session_bundle_config.proto). The text form knows fields by their names, so their numbers don't matter.
    """
    text, switch, number, numbers = "string", "bool", ".google.protobuf.Int64Value", "int64"
    fields = {
        "PrometheusConfig": {"enable": switch, "path": text},
        "MonitoringConfig": {"prometheus_config": ".tensorflow.serving.PrometheusConfig"},
        "SSLConfig": {"server_key": text, "server_cert": text, "custom_ca": text, "client_verify": switch},
        "BatchingParameters": {
            "max_batch_size": number,
            "batch_timeout_micros": number,
            "max_enqueued_batches": number,
            "num_batch_threads": number,
            "thread_pool_name": ".google.protobuf.StringValue",
            "allowed_batch_sizes": numbers,
            "pad_variable_length_inputs": switch,
            "enable_large_batch_splitting": ".google.protobuf.BoolValue",
            "max_execution_batch_size": number,
        },
    }
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": kinds.TYPE_STRING, "bool": kinds.TYPE_BOOL, "int64": kinds.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for each, types in fields.items():
        described = file.message_type.add(name=each)
        for position, (field, kind) in enumerate(types.items(), start=1):
            label = kinds.LABEL_REPEATED if kind == numbers else kinds.LABEL_OPTIONAL
            added = described.field.add(name=field, number=position, label=label)
            added.type = scalars.get(kind, kinds.TYPE_MESSAGE)
            if kind not in scalars:
                added.type_name = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()
