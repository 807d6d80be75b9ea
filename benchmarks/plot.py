"""Draw cost against size as SVG, from the kept results: `python -m benchmarks.plot --write`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.fit import fit_power
from benchmarks.frame import Sides
from benchmarks.rows.cost import AXES, METHODS, curve
from benchmarks.table import RESULTS, read_result

COLOURS = dict(zip(METHODS, ("#0072b2", "#009e73", "#d55e00", "#cc79a7"), strict=True))
"""Okabe and Ito's, which can be told apart by everybody."""
LABELS = {"layers": "layers", "width": "weights (by width)", "tokens": "tokens a step"}
TARGET = RESULTS / "cost.svg"


def draw(sides: Sides, path: Path, caption: str) -> None:
    """Draw two rows of three: time, and memory with its prediction, by layers, weights, tokens."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "mudpuppy", "font.size": 9}
    figure, axes = pyplot.subplots(2, len(AXES), figsize=(11, 6.4), layout="constrained")
    for column, axis in enumerate(AXES):
        for method in METHODS:
            points = curve(sides, axis, method)
            if points:
                _draw_curve(axes[0][column], points, method, "cpu_s")
                _draw_curve(axes[1][column], points, method, "held_mb")
        for row, label in enumerate(("processor seconds a step", "MB held at the peak")):
            place = axes[row][column]
            place.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel=label)
            place.grid(visible=True, which="both", linewidth=0.3)
            place.legend(fontsize=7)
    axes[1][0].plot([], [], "k:", label="predicted")
    figure.suptitle(caption, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_curve(
    place: Any, points: list[tuple[float, dict[str, float]]], method: str, key: str
) -> None:
    sizes, costs = [size for size, _ in points], [one[key] for _, one in points]
    label = f"{method}: size^{fit_power(sizes, costs).exponent:.2f}"
    place.plot(sizes, costs, "o-", color=COLOURS[method], label=label, markersize=3, linewidth=1)
    if key == "held_mb":
        predicted = [one["predicted_mb"] for _, one in points]
        place.plot(sizes, predicted, ":", color=COLOURS[method], linewidth=1)


def main() -> int:
    """Draw; 2 where there are no results."""
    result = read_result(RESULTS, "cost", is_quick=False)
    if result is None:
        print("no results yet: python -m benchmarks.table cost", file=sys.stderr)
        return 2
    sides: Sides = {name: side["samples"] for name, side in result["sides"].items()}
    machine = result["machine"]
    caption = (
        "Cost of a training step against size (dotted: predicted by mud-puppy estimate). "
        f"{result['facts']['base']}; {machine['processor'].partition(' (')[0]}, one thread, "
        f"{result['date']}"
    )
    draw(sides, TARGET, caption)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
