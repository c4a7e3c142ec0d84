"""ModelService.GetModelStatus: a model's versions on a server, and their states.

tensorflow-protobuf has these messages (tensorflow_serving/apis/get_model_status.proto), and lacks a file that they
import. So they are described here, by the same numbers; enumerations are numbers on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow_serving.apis import get_model_metadata_pb2

# ModelVersionStatus.State
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
AVAILABLE = 30

_FIELD = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of one version of a model."""

    version: int
    state: int
    error: str

    def __str__(self) -> str:
        state = STATES.get(self.state, str(self.state))
        return f"version {self.version} is {state}" + (f" ({self.error})" if self.error else "")


def ask(channel: grpc.Channel, model_name: str, seconds: float) -> list[VersionStatus]:
    """Get all versions that a server knows of, or raise its RpcError."""
    # The request's one field is the first one of this message, too.
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = model_name
    call: Any = channel.unary_unary(
        "/tensorflow.serving.ModelService/GetModelStatus",
        request_serializer=get_model_metadata_pb2.GetModelMetadataRequest.SerializeToString,
        response_deserializer=message_class().FromString,
    )
    response = call(request, timeout=seconds)
    found = [
        VersionStatus(int(one.version), int(one.state), str(one.status.error_message))
        for one in response.model_version_status
    ]
    return sorted(found, key=lambda one: one.version)


def message_class() -> Any:  # noqa: ANN401 - a class of messages, made here
    """Build GetModelStatusResponse, with the fields that are read."""
    file = descriptor_pb2.FileDescriptorProto(name="model_status.proto", package="doctor", syntax="proto3")
    for message, members in {
        "Status": [("error_message", 2, _FIELD.TYPE_STRING, "")],
        "Version": [
            ("version", 1, _FIELD.TYPE_INT64, ""),
            ("state", 2, _FIELD.TYPE_INT32, ""),
            ("status", 3, _FIELD.TYPE_MESSAGE, ".doctor.Status"),
        ],
        "Response": [("model_version_status", 1, _FIELD.TYPE_MESSAGE, ".doctor.Version")],
    }.items():
        described = file.message_type.add(name=message)
        for name, number, kind, type_name in members:
            label = _FIELD.LABEL_REPEATED if message == "Response" else _FIELD.LABEL_OPTIONAL
            described.field.add(name=name, number=number, type=kind, type_name=type_name or None, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("doctor.Response"))
