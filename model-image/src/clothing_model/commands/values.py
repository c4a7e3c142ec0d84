"""`clothing-model values`: prints the chart's values for a model.

It needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from clothing_contract import ContractError, Input, Output
from clothing_contract.contract import AUTO, show_size
from clothing_model import savedmodel
from clothing_model.commands.options import add_contract_options, contract_of, image_size, read_labels
from clothing_model.errors import ModelError
from clothing_model.savedmodel import (
    DEFAULT_SIGNATURE,
    SavedModel,
    photo_signature,
    score_outputs,
    usability_problems,
    width,
)

# The chart's default: what a model with as many classes has, if nothing else is known of it.
DEFAULT_LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")

# What a model that takes pixels, or files, computes itself is no value.
SCALING_KEYS = ("preprocessing", "mean", "std", "channels")
FITTING_KEYS = ("fit", "shorterSide", "resampling", "exifOrientation")
CONTRACT_KEYS = (*SCALING_KEYS, *FITTING_KEYS)
OUTPUT_KEYS = ("scores", "threshold")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``values`` command."""
    parser = subparsers.add_parser(
        "values",
        description="Print the values of charts/clothing-classifier for a model, for `helm install --values`. What "
        "isn't known of the model is given by the options, or marked in the values.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version folder, or the model's folder around it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML; Helm reads both")
    parser.add_argument("--image", metavar="REPOSITORY:TAG", help="the model image, for server.image")
    parser.add_argument("--labels", metavar="LABELS", help="the labels: a list, a file or a folder of training photos")
    parser.add_argument(
        "--image-size", metavar="N|WxH", help="the photo's size, for a model whose input leaves it open"
    )
    parser.add_argument(
        "--output-name", metavar="NAME", help="the output that gives the scores, of a model that has several"
    )
    add_contract_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the ``values`` command.

    Raises:
        ModelError: no model at the path, or one that can't be served.

    """
    model = savedmodel.read(args.path)
    known = contract_of(args, model.description)
    for key in (*CONTRACT_KEYS, *OUTPUT_KEYS):
        model.description.pop(key, None)
    if args.labels:
        known["labels"] = list(read_labels(args.labels))
    size = image_size(args.image_size)
    if size:
        known["imageSize"] = show_size(size[::-1])
    if args.output_name:
        known["outputName"] = _existing(args.output_name, model)
    model.description.update(known)
    problems = [*model.problems, *usability_problems(model)]
    if problems:
        raise ModelError("\n  ".join([f"{model.path} can't be served:", *problems]))
    image = image_values(args.image) if args.image else None
    if args.json:
        print(json.dumps({**values(model), **({"server": {"image": image}} if image else {})}, indent=2))
    else:
        print("\n".join(values_lines(model)))
        if image:
            print("server:\n  image:")
            print("\n".join(f"    {key}: {json.dumps(value)}" for key, value in image.items()))
    for doubt in doubts(model).values():
        print(f"note: {doubt}", file=sys.stderr)
    return 0


def _existing(name: str, model: SavedModel) -> str:
    """The name of an output that the default signature has."""
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if signature and name not in signature.outputs:
        raise ModelError(f"--output-name={name}: the model has {', '.join(signature.outputs)}")
    return name


def image_values(reference: str) -> dict[str, str]:
    """An image's reference in parts: registry, repository, tag, digest.

    By Docker's rules: the part before the first slash is a registry if it has a dot or a port, or is localhost.

    Raises:
        ModelError: no reference, or one without tag and digest.

    """
    match = re.fullmatch(
        r"(?:(?P<registry>localhost(?::\d+)?|[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::\d+)?|[a-z0-9-]+:\d+)/)?"
        r"(?P<repository>[a-z0-9._/-]+)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
        reference,
    )
    if not match or not (match["tag"] or match["digest"]):
        raise ModelError(f"--image={reference}: give REPOSITORY:TAG, as registry.example.com/kitchen-model:1")
    if match["tag"] == "latest":
        raise ModelError(
            f"--image={reference}: the chart refuses `latest`, which names another image each day: use a tag"
        )
    return {key: value for key, value in match.groupdict().items() if value}


def values(model: SavedModel) -> dict[str, Any]:
    """The chart's values for this model."""
    result: dict[str, Any] = {"name": model.model_name}
    found = photo_signature(model)
    if found:
        shape = found[0].shape
        keys = {"DT_FLOAT": CONTRACT_KEYS, "DT_UINT8": FITTING_KEYS}.get(found[0].dtype, ())
        result |= {key: value for key, value in _input(model).values().items() if key in keys}
        outputs = model.signatures[DEFAULT_SIGNATURE].outputs
        if len(outputs) > 1:
            found_outputs = score_outputs(model)
            result["outputName"] = found_outputs[0] if len(found_outputs) == 1 else ""
        if shape is not None and len(shape) == 4 and -1 in shape[1:3]:
            result["imageSize"] = str(model.description.get("imageSize", ""))
        labels = model.description.get("labels")
        classes = width(found[1])
        output = _output(model).values()
        if "scores" in output or classes == 1:
            result |= {"scores": AUTO} | output
        if labels:
            result["labels"] = list(labels)
        elif classes == len(DEFAULT_LABELS):
            result["labels"] = list(DEFAULT_LABELS)
        elif classes is not None:
            result["labels"] = [f"class-{number}" for number in range(classes)]
    return {"model": result}


def _input(model: SavedModel) -> Input:
    """The contract that the model's description notes."""
    try:
        return Input.read(model.description)
    except ContractError as error:
        raise ModelError(f"{model.path}: {savedmodel.DESCRIPTION}: {error}") from error


def _output(model: SavedModel) -> Output:
    try:
        return Output.read(model.description)
    except ContractError as error:
        raise ModelError(f"{model.path}: {savedmodel.DESCRIPTION}: {error}") from error


def doubts(model: SavedModel) -> dict[str, str]:
    """Warnings: which values are guessed, and what to check."""
    found = values(model)["model"]
    result = {}
    if "preprocessing" in found and "preprocessing" not in model.description:
        result["preprocessing"] = "not noted in the model: tf, caffe, torch, rescale or none, as in training"
    if "scores" in found and "scores" not in model.description:
        result["scores"] = "not noted in the model: one number is a sigmoid's, or a logit (logits), as in training"
    if "outputName" in found and model.description.get("outputName") != found["outputName"]:
        outputs = ", ".join(model.signatures[DEFAULT_SIGNATURE].outputs)
        possible = ", ".join(score_outputs(model))
        if found["outputName"]:
            result["outputName"] = f"the only one of the outputs ({outputs}) that can hold scores"
        elif possible:
            result["outputName"] = f"{possible} can each hold scores: give the right one with --output-name"
        else:
            result["outputName"] = f"none of the outputs ({outputs}) holds floating-point (batch, classes)"
    if found.get("imageSize") == "":
        result["imageSize"] = 'the model leaves it open: set "299", or "WIDTHxHEIGHT"'
    if "labels" in found and not model.description.get("labels"):
        result["labels"] = "not noted in the model: check names and order"
    return result


def values_lines(model: SavedModel) -> list[str]:
    """The values as YAML, with the warnings as comments."""
    doubtful = doubts(model)
    lines = ["model:"]
    for key, value in values(model)["model"].items():
        comment = f"  # {doubtful[key]}" if key in doubtful else ""
        lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}{comment}")
    return lines
