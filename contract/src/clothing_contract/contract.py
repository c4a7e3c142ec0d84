"""A model's contract as dataclasses: reader, writer and error messages.

All programs that read or write a contract use these.

Keys are those of the chart's ``model.*`` values and of assets.extra/model.json: ``imageSize`` is the field
``image_size``, and the gateway's setting GATEWAY_IMAGE_SIZE.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

# How pixels become float32 (scaling.py); Xception, and so the course's model, was trained with tf.
PREPROCESSINGS = ("tf", "caffe", "torch", "none", "rescale")
# Those that leave mean and deviation to the model's author: 0 to 255, and 0 to 1.
PLAIN_PREPROCESSINGS = ("none", "rescale")
CHANNELS = ("rgb", "bgr", "grey")
# Pillow's names, and tf.image.resize's bilinear without and with antialiasing.
RESAMPLINGS = (
    "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "tf-bilinear", "tf-bilinear-antialias"
)  # fmt: skip
# How a photo of another shape becomes the model's: stretched, as keras-image-helper and load_img do.
# crop: the shorter side resized and the centre kept, as torchvision's Resize and CenterCrop; pad: with black borders,
# as ImageOps.pad; keras-crop: the centre kept and then resized, as Keras's crop_to_aspect_ratio; keras-pad: as its
# pad_to_aspect_ratio.
FITS = ("stretch", "crop", "pad", "keras-crop", "keras-pad")

AUTO, SOFTMAX, LOGITS, SIGMOID, INDEPENDENT = "auto", "softmax", "logits", "sigmoid", "independent"
# What a model's numbers are: probabilities that sum to 1; numbers before a softmax (or, one alone, before a sigmoid);
# one probability, of the second of two labels or of the only one; for each label its own.
SCORES = (AUTO, SOFTMAX, LOGITS, SIGMOID, INDEPENDENT)
# Of a label's own probability: more likely than not, as Keras's BinaryAccuracy counts, and the best where both kinds of
# mistakes cost the same.
DEFAULT_THRESHOLD = 0.5


class ContractError(ValueError):
    """A contract that can't be kept; the text names the key and what it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Conversion of a photo to a model's input.

    The layout is no part of it: the signature's shape has it.

    Attributes:
        preprocessing: one of PREPROCESSINGS.
        mean: of each channel, in the model's order of channels, or one for all; subtracted after ``none`` (0 to 255)
            or ``rescale`` (0 to 1).
        std: what is divided by after that: deviations, in the same way.
        channels: one of CHANNELS; ``caffe`` is BGR whatever it is, and an input of one channel is grey.
        image_size: (width, height) in pixels, or None: the signature's.
        fit: one of FITS.
        shorter_side: pixels to which ``crop`` resizes, or None: the longer side of the model's picture.
        resampling: one of RESAMPLINGS.
        exif_orientation: whether photos that cameras stored turned are turned upright first.

    """

    preprocessing: str = "tf"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: str = "rgb"
    image_size: tuple[int, int] | None = None
    fit: str = "stretch"
    shorter_side: int | None = None
    resampling: str = "nearest"
    exif_orientation: bool = True

    def __post_init__(self) -> None:
        choose("preprocessing", self.preprocessing, PREPROCESSINGS)
        choose("channels", self.channels, CHANNELS)
        choose("fit", self.fit, FITS)
        choose("resampling", self.resampling, RESAMPLINGS)
        if problems := input_problems(self.preprocessing, self.mean, self.std, self.channels):
            raise ContractError("; ".join(problems))

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Input:
        """Read the input's keys of model.json or of the chart's values.

        Other keys are ignored.

        Raises:
            ContractError: a value that can't be used.

        """
        return cls(**_read(cls, found))

    def values(self) -> dict[str, Any]:
        """The keys for model.json and the chart's values.

        These are ``preprocessing``, and all that is not the default.
        """
        return {"preprocessing": self.preprocessing} | _values(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Meaning of a model's numbers.

    Attributes:
        scores: one of SCORES.
        threshold: the probability above which a label holds, of ``sigmoid`` and ``independent`` scores; None is
            DEFAULT_THRESHOLD. Of a softmax, the most probable label holds.

    """

    scores: str = AUTO
    threshold: float | None = None

    def __post_init__(self) -> None:
        choose("scores", self.scores, SCORES)
        if self.threshold is None:
            return
        if not 0 < self.threshold < 1:
            raise ContractError(f"threshold is {self.threshold:g}, and must be above 0 and below 1")
        if self.scores in (SOFTMAX, LOGITS):
            raise ContractError(
                f"threshold is for labels with a probability of their own ({SIGMOID}, {INDEPENDENT}), and scores is "
                f"{self.scores}, of which the most probable label holds: leave it out"
            )

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Output:
        """Read the output's keys of model.json or of the chart's values; ContractError."""
        return cls(**_read(cls, found))

    def values(self) -> dict[str, Any]:
        """The keys for model.json and the chart's values that aren't the default."""
        return _values(self)

    @property
    def limit(self) -> float | None:
        """The threshold in use; None for kinds without one."""
        return (self.threshold or DEFAULT_THRESHOLD) if self.scores in (SIGMOID, INDEPENDENT) else None


def key(name: str) -> str:
    """A field's key in model.json and in the values: ``image_size`` is imageSize."""
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def choose(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value; ContractError unless it is one of those allowed."""
    if value not in allowed:
        raise ContractError(f"{key(name)} is {value!r}, and must be one of {', '.join(allowed)}")
    return value


def input_problems(preprocessing: str, mean: tuple[float, ...], std: tuple[float, ...], channels: str) -> list[str]:
    """What contradicts itself in an input's contract."""
    problems = []
    if (mean or std) and preprocessing not in PLAIN_PREPROCESSINGS:
        problems.append(
            f"mean and std belong to preprocessing none (0 to 255) or rescale (0 to 1), and it is {preprocessing}, "
            "which has its own: leave them out, or change preprocessing"
        )
    if (preprocessing, channels) in (("caffe", "grey"), ("torch", "grey"), ("torch", "bgr")):
        problems.append(
            f"preprocessing {preprocessing} has a mean of each colour, and channels is {channels}: take none or "
            "rescale, with a mean and std of your own"
        )
    width = 1 if channels == "grey" else 3
    problems += [
        f"{name} has {len(given)} numbers: give one for all channels"
        + ("" if width == 1 else ", or one for each of the three")
        for name, given in (("mean", mean), ("std", std))
        if len(given) not in (0, 1, width)
    ]
    if 0 in std:
        problems.append("std has a 0, and is divided by")
    return problems


def scores_problem(kind: str, width: int | None, labels: int, say: Callable[[str], str]) -> str | None:
    """Why an output can't give scores of a kind for the labels; None where it can.

    Its width is None where the signature leaves it open.
    ``say`` names a value as its users know it: "labels" as GATEWAY_LABELS, or as model.labels.
    """
    change = f"change {say('scores')} to {INDEPENDENT}"
    if kind == SIGMOID and labels > 2:
        return f"is one probability by {say('scores')}, for one label or two, and there are {labels} labels: {change}"
    if kind == SIGMOID and width not in (None, 1):
        return f"gives {width} scores, and by {say('scores')} it is one probability (sigmoid): {change} or {SOFTMAX}"
    if width == 1 and labels == 2:
        if kind in (AUTO, LOGITS, SIGMOID):
            return None
        return f"gives 1 score for 2 labels, and {say('scores')} is {kind}: change it to {SIGMOID} or {LOGITS}"
    if width in (None, labels):
        return None
    return f"gives {width} score{'' if width == 1 else 's'}, and {say('labels')} names {labels} labels"


def parse_numbers(value: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, "0.485,0.456,0.406"; raises ValueError."""
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise ContractError("must be numbers with commas between them, as 0.485,0.456,0.406") from None
    if not all(map(math.isfinite, numbers)) or len(numbers) not in (1, 3):
        raise ContractError("must be one number for all channels, or one for each of three")
    return numbers


def parse_size(value: str) -> tuple[int, int]:
    """(width, height) from "299" or "320x240"; ContractError for anything else."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", value)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if 0 in size:
        raise ContractError('must be pixels, as in "299", or WIDTHxHEIGHT, as in "320x240"')
    return size


def show_size(size: tuple[int, int]) -> str:
    """(width, height) as the values write it: 299, or 320x240."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _read(of: type[Input | Output], found: Mapping[str, Any]) -> dict[str, Any]:
    known = {key(field.name): field.name for field in fields(of)}
    return {known[name]: _parsed(known[name], value) for name, value in found.items() if name in known}


def _values(part: Input | Output) -> dict[str, Any]:
    default = type(part)()
    named = {field.name: getattr(part, field.name) for field in fields(part)}
    return {key(name): _written(name, value) for name, value in named.items() if value != getattr(default, name)}


def _parsed(name: str, value: Any) -> Any:  # noqa: ANN401 - a value of JSON
    try:
        if name == "image_size":
            return parse_size(str(value)) if value else None
        if name in ("mean", "std"):
            listed = value if isinstance(value, list) else [value]
            return parse_numbers(",".join(map(str, listed))) if listed else ()
    except ContractError as error:
        raise ContractError(f"{key(name)} is {value!r}, and {error}") from None
    if value is None and name in ("shorter_side", "threshold"):
        return None
    types, words = _TYPES.get(name, ((str,), "a text"))
    if type(value) not in types or (name == "shorter_side" and not 0 < value < 100_000):
        raise ContractError(f"{key(name)} is {value!r}, and must be {words}")
    return value


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "shorter_side": ((int,), "pixels"),
    "threshold": ((int, float), "a number"),
    "exif_orientation": ((bool,), "true or false"),
}


def _written(name: str, value: Any) -> Any:  # noqa: ANN401
    if name == "image_size":
        return show_size(value)
    return list(value) if isinstance(value, tuple) else value
