"""Options that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
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
from clothing_contract import labels as label_files
from clothing_model.errors import ModelError


def read_labels(argument: str) -> tuple[str, ...]:
    """Read labels from a list, a file, or a folder of training photos.

    A folder's classes are in alphabetical order.
    """
    path = Path(argument)
    if path.is_dir():
        labels = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        if not labels:
            raise ModelError(f"--labels={argument}: the folder has no folder in it; it needs one per class")
        return tuple(labels)
    try:
        return label_files.read_file(path.read_bytes()) if path.is_file() else label_files.read_list(argument)
    except ContractError as error:
        raise ModelError(f"--labels={argument}: {error}") from error


def image_size(argument: str | None) -> tuple[int, int] | None:
    """Parse N or WIDTHxHEIGHT into (height, width)."""
    if argument is None:
        return None
    try:
        width, height = contract.parse_size(argument)
    except ContractError as error:
        raise ModelError(f"--image-size={argument}: {error}") from error
    return height, width


def add_contract_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a model takes of a photo, and what its scores are."""
    add = parser.add_argument_group("what the model was trained with, by the names of the chart's values").add_argument
    add("--preprocessing", choices=PREPROCESSINGS, help="how pixels were scaled")
    add(
        "--mean", metavar="NUMBERS", help="subtracted after none or rescale: one number, or one for each channel, a,b,c"
    )
    add("--std", metavar="NUMBERS", help="divided by after the mean, in the same form")
    add("--channels", choices=CHANNELS, help="the order of channels (default: rgb, or grey where the input is)")
    add("--fit", choices=FITS, help="how photos of another shape were fitted (default: stretch)")
    add("--shorter-side", type=int, metavar="PIXELS", help="what crop resized the shorter side to")
    add("--resampling", choices=RESAMPLINGS, help="the filter that resized photos (default: nearest)")
    add("--exif-orientation", choices=("on", "off"), help="whether turned photos were set upright (default: on)")
    add("--scores", choices=[kind for kind in SCORES if kind != contract.AUTO], help="what the output's numbers are")
    add(
        "--threshold", type=float, metavar="P", help="the probability above which a label holds, where each has its "
        "own (sigmoid, independent; default: 0.5)"
    )  # fmt: skip


def contract_of(args: argparse.Namespace, known: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's keys, as model.json has them: those given, else those known.

    ``known`` are a description's keys; others of it are ignored, and the size, which has an option of its own.

    Raises:
        ModelError: a value that can't be used, or contradicts another.

    """
    given = {contract.key(name): getattr(args, name) for name in ("preprocessing", "channels", "fit", "resampling")}
    given |= {"shorterSide": args.shorter_side, "scores": args.scores, "threshold": args.threshold}
    given["exifOrientation"] = args.exif_orientation and args.exif_orientation == "on"
    try:
        for name in ("mean", "std"):
            given[name] = getattr(args, name) and list(contract.parse_numbers(getattr(args, name)))
        given = {key: value for key, value in given.items() if value is not None}
        replaced = {"mean", "std"} if "preprocessing" in given else set()  # they belong to the one that was known
        replaced |= {"shorterSide"} if "fit" in given else set()
        replaced |= {"threshold"} if "scores" in given else set()
        merged = {key: value for key, value in known.items() if key not in {*replaced, "imageSize"}} | given
        noted = {key: value for key, value in Input.read(merged).values().items() if key in merged}
        noted |= Output.read(merged).values()
    except ContractError as error:
        raise ModelError(f"the model's contract: {error}") from error
    return noted
