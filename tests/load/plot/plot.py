"""Draws the results of make bench: plot.py RESULTS.json PICTURE.png."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

TITLES = {
    "small-url": "Dataset photos by URL",
    "small-upload": "Dataset photos by upload",
    "large-url": "12 MP by URL",
    "large-upload": "12 MP by upload",
}
# Told apart without colour by their order and labels; these five are safe for colour-blind readers.
COLOURS = {"ours": "#0072B2", "before": "#CC79A7", "floor": "#999999", "course": "#E69F00", "peer": "#56B4E9"}


def main(source: Path, picture: Path) -> None:
    """Draw CPU seconds per 1,000 photos, a panel for each kind of load.

    The least is first; the rounds' spread is drawn.
    """
    results = json.loads(source.read_text())
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    for axis, (workload, title) in zip(axes.flat, TITLES.items(), strict=True):
        bars = []
        for name, system in results["systems"].items():
            rounds = results["cells"].get(f"{name} {workload} {system['clients']}", [])
            if rounds:
                cpu = [cell["cpu_ms"] for cell in rounds]
                rate = statistics.median(cell["photos_per_second"] for cell in rounds)
                bars.append((statistics.median(cpu), min(cpu), max(cpu), rate, system))
        bars.sort(key=lambda bar: -bar[0])
        for place, (median, low, high, rate, system) in enumerate(bars):
            axis.barh(place, median, color=COLOURS[system["role"]])
            axis.errorbar(median, place, xerr=[[median - low], [high - median]], color="black", capsize=3, lw=1)
            label = f"  {median:.3g}"
            if system["role"] != "floor":
                label += f"  ({rate:.0f} photos/s)" if rate >= 100 else f"  ({rate:.1f} photos/s)"
            axis.text(high, place, label, va="center", fontsize=8)
        axis.set_yticks(range(len(bars)), [bar[4]["title"].replace(": the bare steps", "") for bar in bars], fontsize=8)
        axis.set_title(title)
        axis.set_xlabel("CPU seconds per 1,000 photos (less is better)", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        if bars:
            axis.set_xlim(0, 1.6 * max(bar[2] for bar in bars))
    machine = results["machine"]
    figure.suptitle(
        f"What a photo costs a gateway's processes: warm, 8 clients, medians\n"
        f"{machine['cpu']}, {machine['cores']} cores, {results['date'][:10]}",
        fontsize=11,
    )
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
