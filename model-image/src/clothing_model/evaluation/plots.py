"""Plots for the reports, drawn by matplotlib.

matplotlib is imported only when a command draws one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clothing_model.errors import ModelError
from clothing_model.evaluation import dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from clothing_model.evaluation.metrics import Bin

GREEN, RED, GREY = "#1b7837", "#b2182b", "#555555"


def check(path: Path | None) -> None:
    """Reject an unusable picture path, before the work starts.

    Raises:
        ModelError: it is no .png, or its folder is missing.

    """
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise ModelError(f"--png {path}: must end in .png")
    if not path.parent.is_dir():
        raise ModelError(f"--png {path}: there is no folder {path.parent}; make it first")


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own, without pyplot: no window system, nothing global.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    # Without matplotlib's version in it, the same figures give the same bytes.
    # "tight": captions that reach over an edge of the figure widen it instead of being cut off.
    figure.savefig(path, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.1)


def evaluation(path: Path, title: str, labels: Sequence[str], table: NDArray[np.int64], bins: list[Bin]) -> None:
    """Draw the confusion matrix and the reliability diagram.

    Cells are shaded by the share of their true class.
    """
    side = max(4.5, 1.8 + 0.5 * len(labels))
    figure = _figure(side + 5, side)
    figure.suptitle(title)
    matrix, diagram = figure.subplots(1, 2, width_ratios=(side, 4.5))
    _confusion(matrix, labels, table)
    _reliability(diagram, bins)
    _save(figure, path)


def _confusion(axes: Axes, labels: Sequence[str], table: NDArray[np.int64]) -> None:
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, labels)
    axes.set(xlabel="class found", ylabel="true class", title="photos")
    for row, column in zip(*np.nonzero(table), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(table[row, column]), ha="center", va="center", color=colour)


def _reliability(axes: Axes, bins: list[Bin]) -> None:
    axes.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
    for each in bins:
        axes.bar(
            each.low, each.accuracy, each.high - each.low, align="edge", color="#9ecae1", edgecolor="white", zorder=0
        )
        axes.annotate(
            str(each.photos), ((each.low + each.high) / 2, 0.01), ha="center", va="bottom", fontsize=8, color=GREY
        )
    axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], "o-", color="#08519c")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="best probability", ylabel="share that is right", title="reliability (photos)"
    )
    axes.set_aspect("equal")


def learning_curves(path: Path, history: Sequence[dict[str, float]], chosen: float, title: str) -> None:
    """Draw training loss and validation accuracy by epoch, and the best epoch."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8, 4.5)
    figure.suptitle(title)
    loss = figure.subplots()
    accuracy = loss.twinx()
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(epochs) < 3 else None
    (first,) = loss.plot(epochs, [entry["loss"] for entry in history], color="#08519c", marker=marker)
    (second,) = accuracy.plot(epochs, [entry["accuracy"] for entry in history], color=GREEN, marker=marker)
    line = loss.axvline(chosen, color=GREY, linestyle="--", linewidth=1)
    loss.set(xlabel="epoch", ylabel="training loss")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set(ylabel="validation accuracy", ylim=(0, 1))
    accuracy.legend(
        (first, second, line), ("training loss", "validation accuracy", f"kept: epoch {chosen:.0f}"), loc="center right"
    )
    _save(figure, path)


@dataclass(frozen=True)
class Captioned:
    """A photo for a contact sheet: lines of text with their colours below it."""

    photo: Path
    lines: tuple[tuple[str, str], ...]


def contact_sheet(path: Path, title: str, sheet: Sequence[Captioned], columns: int = 6, pixels: int = 160) -> None:
    """Draw small photos in rows, with their captions."""
    columns = max(3, min(columns, len(sheet)))
    rows = max(1, math.ceil(len(sheet) / columns))
    depth = max((len(each.lines) for each in sheet), default=1)
    figure = _figure(1.9 * columns, (1.75 + 0.17 * depth) * rows + 0.5)
    figure.suptitle(title, fontsize=11)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, each in zip(grid.flat, sheet, strict=False):
        axes.imshow(dataset.thumbnail(each.photo, pixels))
        for number, (text, colour) in enumerate(each.lines):
            axes.annotate(
                text,
                (0.5, 0),
                xytext=(0, -4 - 11 * number),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
                color=colour,
            )
    _save(figure, path)
