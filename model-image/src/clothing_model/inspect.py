"""`clothing-model inspect`: what a SavedModel wants and gives, and the chart's values for it. Needs no TensorFlow."""

import argparse
import json
from pathlib import Path
from typing import Any

from clothing_model import savedmodel
from clothing_model.savedmodel import DEFAULT_SIGNATURE, INIT_SIGNATURE, SavedModel, Signature, Tensor

# The chart's and the gateway's defaults: values that equal them are left out of the snippet.
DEFAULT_NAME = "clothing-model"
DEFAULT_LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
PREPROCESSINGS = ("tf", "caffe", "torch", "none")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "inspect",
        description="Show what a SavedModel wants and gives, what it lacks, and the chart's values for it. "
        "Exits with 1 where the model can't be served.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version folder, or the model's folder around it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    model = savedmodel.read(args.path)
    problems = [*model.problems, *usability_problems(model)]
    if args.json:
        print(json.dumps(as_json(model, problems), indent=2))
    else:
        print(as_text(model, problems))
    return 1 if problems else 0


def photo_signature(model: SavedModel) -> tuple[Tensor, Tensor] | None:
    """The one input and output of the default signature, as the gateway uses them."""
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if signature is None or len(signature.inputs) != 1 or not signature.outputs:
        return None
    return next(iter(signature.inputs.values())), next(iter(signature.outputs.values()))


def usability_problems(model: SavedModel) -> list[str]:
    """Why the gateway could not use it."""
    problems = []
    if "serve" not in model.tags:
        problems.append(
            f"its tags are {', '.join(model.tags) or 'none'}: TensorFlow Serving loads `serve`. "
            "Save it with tf.saved_model.save, or pass --saved_model_tags to the server"
        )
    names = [name for name in model.signatures if name != INIT_SIGNATURE]
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if signature is None:
        problems.append(
            f"it has no signature {DEFAULT_SIGNATURE}; it has {', '.join(names) or 'none'}. "
            "Save it with signatures=…, or name one of these in the gateway's GATEWAY_SIGNATURE_NAME"
        )
        return problems
    if len(signature.inputs) != 1:
        problems.append(f"{DEFAULT_SIGNATURE} has {len(signature.inputs)} inputs: a photo classifier has one")
    if not signature.outputs:
        problems.append(f"{DEFAULT_SIGNATURE} has no output")
    found = photo_signature(model)
    labels = model.description.get("labels")
    if found and labels and (width := _width(found[1])) not in (None, len(labels)):
        problems.append(
            f"{len(labels)} labels are noted in {savedmodel.DESCRIPTION}, but the output has {width} classes"
        )
    return problems


def values(model: SavedModel) -> dict[str, Any]:
    """The chart's values for this model, without those that equal the chart's defaults."""
    result: dict[str, Any] = {"name": model.model_name}
    found = photo_signature(model)
    if found:
        shape = found[0].shape
        if found[0].dtype == "DT_FLOAT":
            result["preprocessing"] = model.description.get("preprocessing", "tf")
        if shape is not None and len(shape) == 4 and -1 in shape[1:3]:
            result["imageSize"] = str(model.description.get("imageSize", ""))
        labels = model.description.get("labels")
        width = _width(found[1])
        if labels:
            result["labels"] = list(labels)
        elif width == len(DEFAULT_LABELS):
            result["labels"] = list(DEFAULT_LABELS)
        elif width is not None:
            result["labels"] = [f"class-{number}" for number in range(width)]
    return {"model": result}


def _width(output: Tensor) -> int | None:
    return output.shape[-1] if output.shape and output.shape[-1] > 0 else None


def as_json(model: SavedModel, problems: list[str]) -> dict[str, Any]:
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
        lines += ["", "# values for charts/clothing-classifier", *_values_lines(model)]
    return "\n".join(lines)


def _signature_lines(signature: Signature) -> list[str]:
    """As `saved_model_cli show --all` prints them."""
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


def _values_lines(model: SavedModel) -> list[str]:
    lines = ["model:"]
    found = values(model)["model"]
    for key, value in found.items():
        if key == "labels":
            lines.append(f"  labels: {json.dumps(value, ensure_ascii=False)}")
            if not model.description.get("labels"):
                lines[-1] += "  # not noted in the model: check names and order"
        elif key == "imageSize" and not value:
            lines.append('  imageSize: ""  # the model leaves it open: set "299", or "WIDTHxHEIGHT"')
        elif key == "preprocessing" and "preprocessing" not in model.description:
            lines.append(
                f"  preprocessing: {value}  # not noted in the model: tf, caffe, torch or none, as in training"
            )
        else:
            lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
    return lines
