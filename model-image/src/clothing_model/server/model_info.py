"""GetModelMetadata and GetModelStatus, by gRPC and by REST."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from clothing_model.server.errors import RequestError, invalid, not_found
from clothing_model.server.manager import Manager

SIGNATURE_DEF = "signature_def"


def metadata(manager: Manager, request: Any) -> Any:
    """Response to GetModelMetadata."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with manager.use(request.model_spec) as servable:
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, signature in servable.signatures.items():
            signatures.signature_def[key].CopyFrom(signature)
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response


def status(manager: Manager, request: Any) -> Any:
    """Response to GetModelStatus: all versions, newest first, or the requested one.

    Unloaded versions (END) are among them. A label is ignored, as by TensorFlow Serving (get_model_status_impl.cc):
    GetModelMetadata tells which version a label names.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    states = manager.states(spec.name)
    if spec.HasField("version"):
        version = spec.version.value
        if version not in states:
            raise not_found(f"Could not find version {version} of model {spec.name}")
        states = {version: states[version]}
    if not states:
        raise not_found(f"Could not find any versions of model {spec.name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state in sorted(states.items(), reverse=True):
        entry = response.model_version_status.add(version=version, state=state.stage.value)
        error: RequestError | None = state.error
        entry.status.error_code = error.code.value[0] if error else 0
        entry.status.error_message = error.message if error else ""
    return response
