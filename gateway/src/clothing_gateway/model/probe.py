"""Readiness probe of a model: whether it scores a photo, and what its scores are.

A signature tells neither: a string input may take a key or a tf.Example, and numbers may be logits or probabilities.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin  # noqa: F401 - the plugin writes the file

from clothing_contract import ContractError, contract, scores
from clothing_gateway.model.signature import Misfit, Model, say
from clothing_gateway.model.tensor import Element

# Of a picture for a model that takes files: any, as it has a size of its own in the graph.
_FILE_SIZE = (64, 64)

Ask = Callable[[Element], npt.NDArray[np.floating[Any]]]


def examine(model: Model, labels: int, ask: Ask) -> Model:
    """The model with the kind of its scores, from its answers to pictures.

    Misfit where they can't be used. ``ask`` gives the output for one picture, (1, width). A kind that is configured
    takes one picture, auto up to three, as a single one may sum to 1 by chance, and extreme numbers where the model
    takes float32: with photos alone a small logit can't be told from a sigmoid.
    """
    rows: list[npt.NDArray[np.floating[Any]]] = []
    for pixels in _pictures(model.size or _FILE_SIZE):
        found = ask(_file(pixels) if model.size is None else model.arranged(pixels))
        output = f"output {model.output_name!r}"
        if found.ndim != 2 or len(found) != 1:
            raise Misfit(f"{output} has the shape {found.shape} for one photo; scores are (1, labels)")
        if not np.isfinite(found).all():
            raise Misfit(f"{output} holds numbers that are not finite, for a picture of {model.size or _FILE_SIZE}")
        if problem := contract.scores_problem(model.output.scores, found.shape[1], labels, say):
            raise Misfit(f"{output} {problem}")
        rows.append(found)
        if model.output.scores != contract.AUTO:
            if problem := scores.contradiction(found, model.output.scores):
                raise Misfit(f"{output} {problem}: change GATEWAY_SCORES, which is {model.output.scores}")
            return model
        if scores.decide(found, labels) == contract.LOGITS:
            return _decided(model, contract.LOGITS)
    seen = np.concatenate(rows)
    kind = scores.decide(seen, labels, _asked_extremes(model, ask))
    if kind is None:
        raise Misfit(f"output {model.output_name!r} {scores.undecided(seen)}: set GATEWAY_SCORES to what they are")
    return _decided(model, kind)


def _decided(model: Model, kind: str) -> Model:
    try:
        return replace(model, output=replace(model.output, scores=kind))
    except ContractError as error:  # a threshold that the kind has not
        raise Misfit(f"output {model.output_name!r} gives {kind}: {error} (GATEWAY_THRESHOLD)") from None


def _asked_extremes(model: Model, ask: Ask) -> npt.NDArray[np.floating[Any]] | None:
    """Scores of inputs that no photo has; None where there are none."""
    if model.size is None or model.scaling is None:
        return None
    rows = []
    for numbers in scores.extremes(model.arranged(np.zeros((*model.size[::-1], 3), np.uint8)).shape):
        try:
            found = ask(numbers)
        except Misfit:  # the graph checks its input
            return None
        if np.isfinite(found).all():  # not where the network's own numbers overflow
            rows.append(found)
    return np.concatenate(rows) if rows else None


def _pictures(size: tuple[int, int]) -> Iterator[npt.NDArray[np.uint8]]:
    """RGB pixels (height, width, 3): a gradient, black, white."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    yield np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8)
    for value in (0, 255):
        yield np.full((height, width, 3), value, np.uint8)


def _file(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
