"""`clothing-model inspect`: shows a SavedModel's signatures and chart values.

Needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clothing_model import savedmodel
from clothing_model.commands.values import values, values_lines
from clothing_model.savedmodel import SavedModel, Signature, Tensor, usability_problems


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``inspect`` command."""
    parser = subparsers.add_parser(
        "inspect",
        description="Show a SavedModel's inputs and outputs, its problems, and the chart's values for it. "
        "Exits with 1 where the model can't be served.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version folder, or the model's folder around it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the ``inspect`` command.

    Raises:
        ModelError: no SavedModel at the path.

    """
    model = savedmodel.read(args.path)
    problems = [*model.problems, *usability_problems(model)]
    if args.json:
        print(json.dumps(as_json(model, problems), indent=2))
    else:
        print(as_text(model, problems))
    return 1 if problems else 0


def as_json(model: SavedModel, problems: list[str]) -> dict[str, Any]:
    """The model and its problems as one JSON object."""

    def tensors(found: dict[str, Tensor]) -> dict[str, Any]:
        return {key: {"dtype": t.dtype, "shape": t.shape, "name": t.name} for key, t in found.items()}

    return {
        "path": str(model.path),
        "name": model.model_name,
        "version": model.version,
        "tags": list(model.tags),
        "tensorflow": model.tensorflow_version,
        "signatures": {
            key: {"inputs": tensors(s.inputs), "outputs": tensors(s.outputs), "method": s.method}
            for key, s in model.signatures.items()
        },
        "variables": model.has_variables,
        "problems": problems,
        "description": model.description,
        "values": values(model),
    }


def as_text(model: SavedModel, problems: list[str]) -> str:
    """The model and its problems as text, in ``saved_model_cli show --all``'s form."""
    lines = [f"MetaGraphDef with tag-set: '{', '.join(model.tags)}' contains the following SignatureDefs:"]
    for key, signature in model.signatures.items():
        lines += ["", f"signature_def['{key}']:", *_signature_lines(signature)]
    version = "no version folder" if model.version is None else f"version {model.version}"
    lines += [
        "",
        f"{model.path}: model {model.model_name}, {version}, TensorFlow {model.tensorflow_version or 'unknown'}",
    ]
    if model.version is None:
        lines.append(
            "TensorFlow Serving finds it only in a folder named by a number: "
            f"clothing-model convert {model.path} --name {model.model_name} --output DIR"
        )
    lines += [f"PROBLEM: {problem}" for problem in problems]
    if not problems:
        lines += ["", "# values for charts/clothing-classifier", *values_lines(model)]
    return "\n".join(lines)


def _signature_lines(signature: Signature) -> list[str]:
    """A signature's lines as `saved_model_cli show --all` prints them."""
    lines = []
    for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        lines.append(f"  The given SavedModel SignatureDef contains the following {kind}(s):")
        for key, tensor in tensors.items():
            lines += [
                f"    {kind}s['{key}'] tensor_info:",
                f"        dtype: {tensor.dtype}",
                f"        shape: {_shape_text(tensor.shape)}",
                f"        name: {tensor.name}",
            ]
    lines.append(f"  Method name is: {signature.method}")
    return lines


def _shape_text(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "unknown_rank"
    return f"({', '.join(map(str, shape))})"
