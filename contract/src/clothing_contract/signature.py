"""Rules of signatures: the input takes a photo, the output gives scores.

One set of rules and messages for the gateway, which reads signatures from the model server, and for the model package,
which reads them from a SavedModel. Each names the value to change by ``say``, as its users know it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from clothing_contract.contract import CHANNELS, ContractError, input_problems

NHWC, NCHW = "nhwc", "nchw"
INPUT_TYPES = {"DT_FLOAT": "float32", "DT_UINT8": "uint8", "DT_STRING": "string"}
SCORE_TYPES = ("DT_FLOAT", "DT_DOUBLE", "DT_HALF", "DT_BFLOAT16")
# tensorflow/core/protobuf: what tf.estimator exports for these takes serialized tf.Example, not photos.
_EXAMPLE_METHODS = ("tensorflow/serving/classify", "tensorflow/serving/regress")

# The name of a value in a message: "image_size" as GATEWAY_IMAGE_SIZE, or as model.imageSize.
Say = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: DT_FLOAT and the like; -1 is open, None an unknown rank."""

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Photo:
    """What an input takes of a photo.

    Attributes:
        type: float32 (preprocessed), uint8 (pixels) or string (the photo's file).
        layout: nhwc or nchw.
        channels: one of CHANNELS.
        size: (width, height); None where the model takes the file.
        batch_limit: 1 where the signature fixes the batch, else None.

    """

    type: str
    layout: str
    channels: str
    size: tuple[int, int] | None
    batch_limit: int | None


def require_photos(name: str, method: str, others: Collection[str], say: Say) -> None:
    """ContractError for a signature whose method takes tf.Example."""
    if method in _EXAMPLE_METHODS:
        raise ContractError(
            f"signature {name!r} is for {method.rpartition('/')[2]} ({method}), which takes tf.Example, not photos: "
            f"name one that takes them with {say('signature_name')} (there are {listed(others)})"
        )


def choose(kind: str, wanted: str, there: Mapping[str, Tensor], say: Say) -> str:
    """The name of the ``input`` or ``output`` to use: the one wanted, or the only one."""
    setting = say(f"{kind}_name")
    if wanted:
        if wanted not in there:
            raise ContractError(f"the model has no {kind} {wanted!r}, only {listed(there)}: change {setting}")
        return wanted
    if len(there) != 1:
        raise ContractError(f"the model has {len(there)} {kind}s, {listed(there)}: choose one with {setting}")
    return next(iter(there))


def require_alone(name: str, inputs: Collection[str], defaults: Collection[str], say: Say) -> None:
    """ContractError for further inputs that have no default."""
    further = set(inputs) - set(defaults) - {name}
    if further:
        raise ContractError(
            f"the signature requires {listed(further)} beside {name!r}, and the gateway sends the photo alone: export "
            f"the model with constants in their place, or name another signature with {say('signature_name')}"
        )


def photo(name: str, tensor: Tensor, size: tuple[int, int] | None, channels: str, say: Say) -> Photo:
    """What an input takes; size and channels are for what it leaves open."""
    if tensor.dtype not in INPUT_TYPES:
        raise ContractError(
            f"input {name!r} is {tensor.dtype}; the gateway sends {', '.join(INPUT_TYPES)}: export the model with a "
            "cast before its first layer"
        )
    kind, shape = INPUT_TYPES[tensor.dtype], tensor.shape
    if kind == "string":
        if shape is not None and len(shape) != 1:
            raise ContractError(
                f"input {name!r} has the shape {shape}; one of encoded photos has one dimension, the batch"
            )
        return Photo(kind, NHWC, CHANNELS[0], None, _batch_limit(name, shape))
    shape = (-1, -1, -1, -1) if shape is None else shape
    if len(shape) != 4 or (shape[3] not in (1, 3) and shape[1] not in (1, 3) and shape[3] != -1):
        raise ContractError(
            f"input {name!r} has the shape {shape}; the gateway sends (batch, height, width, channels) or (batch, "
            "channels, height, width), of 3 channels or 1"
        )
    found = layout(shape[1:])
    count, height, width = (shape[1], *shape[2:]) if found == NCHW else (shape[3], *shape[1:3])
    return Photo(
        kind,
        found,
        _channels(name, shape, count, channels, say),
        _size(name, shape, (width, height), size, say),
        _batch_limit(name, shape),
    )


def layout(shape: Sequence[int | None]) -> str:
    """NHWC or NCHW, of a photo's three dimensions: channels are 3 or 1."""
    return NCHW if shape[2] not in (1, 3) and shape[0] in (1, 3) else NHWC


def require_scaling(
    channels: str, preprocessing: str, mean: tuple[float, ...], std: tuple[float, ...], say: Say
) -> None:
    """ContractError for a preprocessing that does not fit the channels."""
    for problem in input_problems(preprocessing, mean, std, channels):
        raise ContractError(f"{problem}; change {say('preprocessing')}")


def width(name: str, tensor: Tensor) -> int | None:
    """Scores of an output for a photo; None where the signature leaves it open."""
    if tensor.dtype not in SCORE_TYPES:
        raise ContractError(f"output {name!r} is {tensor.dtype}; scores are {', '.join(SCORE_TYPES)}")
    if tensor.shape is None:
        return None
    if len(tensor.shape) != 2:
        raise ContractError(
            f"output {name!r} has the shape {tensor.shape}; scores have two dimensions, batch and labels"
        )
    return tensor.shape[1] if tensor.shape[1] > 0 else None


def listed(names: Collection[str]) -> str:
    """Names for people, in order."""
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def _channels(name: str, shape: tuple[int, ...], count: int, wanted: str, say: Say) -> str:
    if count == 1:
        if wanted == "bgr":
            raise ContractError(f"input {name!r} has the shape {shape}, of one channel: set {say('channels')} to grey")
        return "grey"
    if count == 3 and wanted == "grey":
        raise ContractError(f"input {name!r} has the shape {shape}, of three channels: set {say('channels')} to rgb")
    return wanted


def _size(
    name: str, shape: tuple[int, ...], there: tuple[int, int], configured: tuple[int, int] | None, say: Say
) -> tuple[int, int]:
    setting = say("image_size")
    if configured is None:
        if min(there) < 1:
            raise ContractError(f"input {name!r} has the shape {shape}, which leaves the size open: set {setting}")
        return there
    if any(have > 0 and have != want for have, want in zip(there, configured, strict=True)):
        raise ContractError(
            f"input {name!r} has the shape {shape}, and {setting} is {configured[0]}x{configured[1]} (width x height): "
            "leave it out"
        )
    return configured


def _batch_limit(name: str, shape: tuple[int, ...] | None) -> int | None:
    if shape is None or shape[0] < 1:
        return None
    if shape[0] > 1:
        raise ContractError(
            f"input {name!r} has the shape {shape}: a batch of exactly {shape[0]}; export it with an open batch"
        )
    return 1
