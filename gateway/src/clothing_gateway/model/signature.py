"""A model's input and output, from its signature and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clothing_contract.scaling import Scaling
from clothing_gateway.model import tensor

if TYPE_CHECKING:
    from clothing_gateway.settings import Settings

_INPUT_TYPES = {tensor.DT_FLOAT: "float32", tensor.DT_UINT8: "uint8", tensor.DT_STRING: "string"}


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
    track: str = "stable"  # the name under which this version is requested

    def takes_photos_of(self, other: Model) -> bool:
        """Whether photos prepared for another version fit this one.

        The output must have the same name, too.
        """
        return self._prepared_as == other._prepared_as

    @property
    def _prepared_as(self) -> tuple[object, ...]:
        return self.input_name, self.input_type, self.size, self.scaling, self.output_name

    def payload_bytes(self, photos: int, file_bytes: int) -> int:
        """The size of the input tensor of a number of photos."""
        if self.size is None:
            return photos * file_bytes
        return photos * self.size[0] * self.size[1] * 3 * (4 if self.input_type == "float32" else 1)


def describe(
    name: str, version: int, signatures: Mapping[str, Any], settings: Settings, track: str = "stable"
) -> Model:
    """Derive the model from its signatures; Misfit where it does not fit the settings."""
    signature = signatures.get(settings.signature_name)
    if signature is None:
        raise Misfit(
            f"the model has no signature {settings.signature_name!r}, only {_names(signatures)}: "
            "set GATEWAY_SIGNATURE_NAME"
        )
    input_name = _choose("input", settings.input_name, signature.inputs)
    output_name = _choose("output", settings.output_name, signature.outputs)
    info = signature.inputs[input_name]
    input_type = _INPUT_TYPES.get(info.dtype)
    if input_type is None:
        raise Misfit(
            f"input {input_name!r} is {tensor.dtype_name(info.dtype)}; the gateway sends DT_FLOAT, DT_UINT8, DT_STRING"
        )
    shape = _shape(info)
    if input_type == "string":
        if shape is not None and len(shape) != 1:
            raise Misfit(
                f"input {input_name!r} has the shape {shape}; one of encoded photos has one dimension, the batch"
            )
        size = None
    else:
        size = _size(input_name, shape, settings.image_size)
    output = signature.outputs[output_name]
    if output.dtype not in (tensor.DT_FLOAT, tensor.DT_DOUBLE):
        raise Misfit(f"output {output_name!r} is {tensor.dtype_name(output.dtype)}; scores are DT_FLOAT or DT_DOUBLE")
    return Model(
        name=name,
        version=version,
        input_name=input_name,
        input_type=input_type,
        size=size,
        batch_limit=_batch_limit(input_name, shape),
        output_name=output_name,
        width=_width(output_name, _shape(output), settings.labels),
        scaling=Scaling(settings.preprocessing, settings.mean, settings.std, settings.channels)
        if input_type == "float32"
        else None,
        track=track,
    )


def _choose(kind: str, wanted: str, there: Mapping[str, Any]) -> str:
    setting = f"GATEWAY_{kind.upper()}_NAME"
    if wanted:
        if wanted not in there:
            raise Misfit(f"{setting} is {wanted!r}, and the model's {kind}s are {_names(there)}")
        return wanted
    if len(there) != 1:
        raise Misfit(f"the model has {len(there)} {kind}s, {_names(there)}: choose one with {setting}")
    return next(iter(there))


def _names(there: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in sorted(there)) or "none"


def _shape(info: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - a TensorInfo, for which there are no types
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(dim.size for dim in info.tensor_shape.dim)


def _size(name: str, shape: tuple[int, ...] | None, configured: tuple[int, int] | None) -> tuple[int, int]:
    if shape is None:
        shape = (-1, -1, -1, 3)
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise Misfit(f"input {name!r} has the shape {shape}, channels first; the gateway sends height, width, 3")
    if len(shape) != 4 or shape[3] not in (3, -1):
        raise Misfit(f"input {name!r} has the shape {shape}; the gateway sends (batch, height, width, 3)")
    _, height, width, _ = shape
    if configured is None:
        if height < 1 or width < 1:
            raise Misfit(f"input {name!r} has the shape {shape}, which leaves the size open: set GATEWAY_IMAGE_SIZE")
        return width, height
    if (width > 0 and width != configured[0]) or (height > 0 and height != configured[1]):
        raise Misfit(
            f"GATEWAY_IMAGE_SIZE is {configured[0]}x{configured[1]} (width x height), "
            f"and input {name!r} has the shape {shape} (batch, height, width, 3)"
        )
    return configured


def _batch_limit(name: str, shape: tuple[int, ...] | None) -> int | None:
    if shape is None or shape[0] < 1:
        return None
    if shape[0] > 1:
        raise Misfit(
            f"input {name!r} has the shape {shape}: a batch of exactly {shape[0]}; export it with an open batch"
        )
    return 1


def _width(name: str, shape: tuple[int, ...] | None, labels: tuple[str, ...]) -> int | None:
    if shape is None:
        return None
    if len(shape) != 2:
        raise Misfit(f"output {name!r} has the shape {shape}; scores have two dimensions, batch and labels")
    if shape[1] < 1:
        return None
    if shape[1] != len(labels):
        raise Misfit(f"output {name!r} gives {shape[1]} scores, and GATEWAY_LABELS names {len(labels)} labels")
    return shape[1]
