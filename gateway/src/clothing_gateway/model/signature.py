"""A model's input and output, from its signature and the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import unknown_fields, wrappers_pb2

from clothing_contract import ContractError, Input, Output, contract, signature
from clothing_contract.scaling import Scaling
from clothing_gateway.model import tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from clothing_gateway.settings import Settings

_DEFAULTS = 4  # SignatureDef.defaults (meta_graph.proto), newer than the messages of tensorflow-protobuf


class Misfit(Exception):
    """The model does not fit the settings; the text names the setting to change."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that fits the settings."""

    name: str
    version: int
    input_name: str
    input_type: str  # float32: preprocessed; uint8: pixels; string: the photo's file
    size: tuple[int, int] | None  # width, height; None where the model takes the file
    batch_limit: int | None  # 1 where the signature fixes the batch
    output_name: str
    width: int | None  # scores for each photo; None where the signature leaves it open
    scaling: Scaling | None = None  # how float32 is made of pixels; None for the other types
    layout: str = signature.NHWC
    channels: str = "rgb"
    output: Output = field(default_factory=Output)  # what the output's numbers are; auto until the model was asked
    track: str = "stable"  # the name under which this version is requested

    @property
    def scores(self) -> str:
        """The kind of its scores."""
        return self.output.scores

    def arranged(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """RGB pixels (height, width, 3) in the model's channels, scale and layout."""
        scaling = self.scaling or Scaling("none", channels=self.channels)
        ordered = scaling.ordered(pixels)
        return self.laid_out(ordered if self.scaling is None else scaling.scaled(ordered))

    def laid_out(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Numbers (height, width, channels) in the model's layout."""
        return np.ascontiguousarray(numbers.transpose(2, 0, 1) if self.layout == signature.NCHW else numbers)

    def takes_photos_of(self, other: Model) -> bool:
        """Whether photos prepared for another version fit this one.

        The output must have the same name and meaning, too.
        """
        return self is other or self._contract == other._contract

    @property
    def _contract(self) -> tuple[object, ...]:
        took = self.input_name, self.input_type, self.size, self.scaling, self.layout, self.channels
        return *took, self.output_name, self.output.scores

    def payload_bytes(self, photos: int, file_bytes: int) -> int:
        """The size of the input tensor of a number of photos."""
        if self.size is None:
            return photos * file_bytes
        depth = (1 if self.channels == "grey" else 3) * (4 if self.input_type == "float32" else 1)
        return photos * math.prod(self.size) * depth


def describe(
    name: str, version: int, signatures: Mapping[str, Any], settings: Settings, track: str = "stable"
) -> Model:
    """Derive the model from its signatures; Misfit where it does not fit the settings."""
    found = signatures.get(settings.signature_name)
    if found is None:
        raise Misfit(
            f"the model has no signature {settings.signature_name!r}, only {signature.listed(signatures)}: "
            "set GATEWAY_SIGNATURE_NAME"
        )
    others = set(signatures) - {settings.signature_name}
    inputs, outputs = _tensors(found.inputs), _tensors(found.outputs)
    try:
        signature.require_photos(settings.signature_name, found.method_name, others, say)
        input_name = signature.choose("input", settings.input_name, inputs, say)
        output_name = signature.choose("output", settings.output_name, outputs, say)
        signature.require_alone(input_name, inputs, _defaults(found), say)
        photo = signature.photo(input_name, inputs[input_name], settings.input.image_size, settings.input.channels, say)
        scaling = _scaling(photo.channels, settings.input) if photo.type == "float32" else None
        width = signature.width(output_name, outputs[output_name])
    except ContractError as error:
        raise Misfit(str(error)) from None
    if problem := contract.scores_problem(settings.output.scores, width, len(settings.labels), say):
        raise Misfit(f"output {output_name!r} {problem}")
    return Model(
        name=name,
        version=version,
        input_name=input_name,
        input_type=photo.type,
        size=photo.size,
        batch_limit=photo.batch_limit,
        output_name=output_name,
        width=width,
        scaling=scaling,
        layout=photo.layout,
        channels=photo.channels,
        output=settings.output,
        track=track,
    )


def _scaling(channels: str, given: Input) -> Scaling:
    signature.require_scaling(channels, given.preprocessing, given.mean, given.std, say)
    return Scaling.of(replace(given, channels=channels))


def say(name: str) -> str:
    """The setting of a value of the contract: image_size is GATEWAY_IMAGE_SIZE."""
    return f"GATEWAY_{name.upper()}"


def _tensors(there: Mapping[str, Any]) -> dict[str, signature.Tensor]:
    return {name: signature.Tensor(tensor.dtype_name(info.dtype), _shape(info)) for name, info in there.items()}


def _defaults(found: Any) -> set[str]:  # noqa: ANN401
    """Inputs with a default, which a request may omit (TensorFlow Serving 2.14)."""
    unknown: Any = unknown_fields.UnknownFieldSet(found)
    return {
        wrappers_pb2.StringValue.FromString(entry.data).value  # a map's entry: its key is field 1
        for entry in unknown
        if entry.field_number == _DEFAULTS
    }


def _shape(info: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - a TensorInfo, for which there are no types
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(dim.size for dim in info.tensor_shape.dim)
