"""TensorFlow Serving's protocol: PredictionService over gRPC."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from clothing_gateway.errors import (
    GatewayError,
    ModelAnswerUnusable,
    ModelBusy,
    ModelFailed,
    ModelOutOfMemory,
    ModelQueueFull,
    ModelRefused,
    ModelUnavailable,
    OutOfTime,
    TooManyBytes,
)
from clothing_gateway.model import signature, tensor
from clothing_gateway.model.dialect import OPERATOR_FAULTS, Method
from clothing_gateway.model.signature import Misfit, Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.versions import ModelVersion
from clothing_gateway.settings import Settings

SERVICE = "tensorflow.serving.PredictionService"
_INPUTS: int = predict_pb2.PredictRequest.INPUTS_FIELD_NUMBER
# RESOURCE_EXHAUSTED has many reasons, told apart by their details.
# A server without a free thread refuses a call before it begins: TensorFlow Serving up to 2.19 and the portable server
# with no details, later ones with the second text, and any server on grpcio with the third.
_NO_THREAD = ("", "Server Threadpool Exhausted", "Concurrent RPC limit exceeded!")
# A full batching queue; UNAVAILABLE, as an absent server is, in most versions (shared_batch_scheduler.h).
_QUEUE_FULL = "batch scheduling queue"
# gRPC's limit on a message, of either side.
_TOO_LARGE = "larger than max"
# TensorFlow's allocators: "OOM when allocating tensor with shape…", "Failed to allocate…", "Out of memory while…".
_MEMORY = ("OOM", "memory", "allocat")

# Where a quote begins: after "value: ", or with the first byte that is no text, escaped (\\377, \\xff) or as it is.
_QUOTE = re.compile(r"(?<=value: )'|\\(?:[0-7]{3}|x[0-9a-fA-F]{2})|[^\t\n\x20-\x7e]")
_MOST_WORDS = 400

Code = grpc.StatusCode


class TensorFlowServing:
    """The dialect of TensorFlow Serving and of the portable server."""

    service = SERVICE
    metadata = Method(f"/{SERVICE}/GetModelMetadata", get_model_metadata_pb2.GetModelMetadataResponse.FromString)
    predict = Method(f"/{SERVICE}/Predict", predict_pb2.PredictResponse.FromString)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._heads = functools.lru_cache(maxsize=64)(self._head)

    def metadata_request(self, version: ModelVersion) -> bytes:
        """A GetModelMetadataRequest for the signatures."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request.model_spec, version.version, version.label)
        message: bytes = request.SerializeToString()
        return message

    def describe(self, response: Any, version: ModelVersion) -> Model:  # noqa: ANN401 - protobuf, without types
        """The model by its signatures; Misfit where the configuration does not fit."""
        settings = self._settings
        signatures = get_model_metadata_pb2.SignatureDefMap()
        packed = response.metadata.get("signature_def")
        if packed is None or not packed.Unpack(signatures):
            raise Misfit(f"the model server at {settings.tf_serving_host} answered without signatures")
        number = int(response.model_spec.version.value)
        try:
            return signature.describe(settings.model_name, number, signatures.signature_def, settings, version.name)
        except Misfit as misfit:
            raise Misfit(f"model {settings.model_name!r}, version {number}: {misfit}") from None

    def predict_request(self, model: Model, version: ModelVersion, photos: Sequence[Element]) -> bytes:
        """A PredictRequest."""
        head = self._heads(version.version, version.label, model.output_name)
        return tensor.serialise(head, _INPUTS, model.input_name, photos)

    def scores(self, response: Any, model: Model) -> npt.NDArray[np.floating[Any]]:  # noqa: ANN401
        """The output as an array.

        Raises ModelAnswerUnusable where it is missing or no array of numbers.
        """
        if model.output_name not in response.outputs:
            raise ModelAnswerUnusable(cause=f"no output {model.output_name!r} in {sorted(response.outputs)}")
        try:
            return tensor.read(response.outputs[model.output_name])
        except tensor.TensorError as error:
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r}: {error}") from None

    def version(self, response: Any) -> int | None:  # noqa: ANN401
        """The version that answered."""
        return int(response.model_spec.version.value) or None

    def failure(self, code: grpc.StatusCode, details: str) -> GatewayError:
        """Map a gRPC status to an error; the server's words are for the log only."""
        cause = f"{code.name}: {without_quotes(details)}"
        if code is Code.DEADLINE_EXCEEDED:
            return OutOfTime("The model did not answer within the time allowed for this request.", cause=cause)
        if code is Code.UNAVAILABLE:
            return ModelQueueFull(cause=cause) if _QUEUE_FULL in details else ModelUnavailable(cause=cause)
        if code is Code.RESOURCE_EXHAUSTED:
            return _exhausted(details, cause)
        if code is Code.CANCELLED:
            return ModelUnavailable(cause=cause)
        if code in OPERATOR_FAULTS:
            return ModelRefused(cause=cause)
        return ModelFailed(cause=cause)

    def _head(self, number: int | None, label: str, output_name: str) -> bytes:
        """A PredictRequest without its photos."""
        request = predict_pb2.PredictRequest()
        self._name(request.model_spec, number, label)
        request.model_spec.signature_name = self._settings.signature_name
        request.output_filter.append(output_name)
        head: bytes = request.SerializeToString()
        return head

    def _name(self, spec: Any, number: int | None, label: str) -> None:  # noqa: ANN401 - a ModelSpec, without types
        spec.name = self._settings.model_name
        if label:
            spec.version_label = label
        elif number is not None:
            spec.version.value = number


def without_quotes(details: str) -> str:
    r"""A server's words up to where it quotes what a client sent, 400 at most.

    TensorFlow quotes what it can't parse, as "value: '\377\330…'": a kilobyte of the photo in each log line.
    """
    cut = _QUOTE.search(details)
    if cut:
        details = details[: cut.start()] + "…"
    return details if len(details) <= _MOST_WORDS else details[:_MOST_WORDS] + "…"


def _exhausted(details: str, cause: str) -> GatewayError:
    """The resource that the server ran out of."""
    if details in _NO_THREAD:
        return ModelBusy(cause=cause)
    if _QUEUE_FULL in details:
        return ModelQueueFull(cause=cause)
    if _TOO_LARGE in details:
        return TooManyBytes("The prepared photo is larger than the model server takes.", cause=cause)
    if any(word in details for word in _MEMORY):
        # 502 and no Retry-After: a client that retried would ask the same memory for the same tensors, for ever.
        return ModelOutOfMemory(cause=cause)
    return ModelFailed(cause=cause)
