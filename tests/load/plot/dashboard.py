"""Draws the dashboard in Grafana's layout: dashboard.py PANELS.json PICTURE.png."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

# Grafana's units: what a value is divided by, and what its axis says.
UNITS = {
    "reqps": (1, "requests/s"), "percentunit": (0.01, "%"), "s": (1, "s"), "µs": (1000, "ms"), "short": (1, ""),
    "bytes": (1e6, "MB"),
}  # fmt: skip


def main(source: Path, picture: Path) -> None:
    """A chart for each panel, on Grafana's grid of 24 columns."""
    panels = json.loads(source.read_text())
    rows = max(panel["place"]["y"] + panel["place"]["h"] for panel in panels)
    figure = plt.figure(figsize=(13, rows * 0.34), layout="constrained")
    grid = figure.add_gridspec(rows, 24)
    for panel in panels:
        place = panel["place"]
        x, y = place["x"], place["y"]
        axis = figure.add_subplot(grid[y : y + place["h"], x : x + place["w"]])
        divisor, unit = UNITS[panel["unit"]]
        for line in panel["lines"]:
            times = [at for at, _ in line["values"]]
            axis.plot(times, [value / divisor for _, value in line["values"]], label=line["name"], lw=1.2)
        axis.set_title(panel["title"], fontsize=9, loc="left")
        axis.set_ylabel(unit, fontsize=7)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if panel["lines"]:
            axis.legend(fontsize=6, loc="best", framealpha=0.6)
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(picture, dpi=80)
    with Image.open(picture) as drawn:
        few_colours = drawn.convert("RGB").quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few_colours.save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
