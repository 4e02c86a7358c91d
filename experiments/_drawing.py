"""Drawing for all experiments: colours, axes, medians with a band over the seeds, labels of lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can distinguish as well. Their yellow is left
# out, because it is too pale for lines on white.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#777777"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)


def figure(
    columns: int, width: float = 11, height: float = 4.5, rows: int = 1, **how: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes, `columns` side by side in each of `rows`."""
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, **how)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title, flush left, and the labels of the axes, which include units."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def band(axes: Axes, x: Any, runs: Any, colour: str, **how: Any) -> Any:
    """Draw the median of runs [seeds, points] as a line and their range as a band; return the median."""
    runs = np.asarray(runs)
    axes.fill_between(x, runs.min(0), runs.max(0), color=colour, alpha=0.2, linewidth=0)
    middle = np.median(runs, axis=0)
    axes.plot(x, middle, color=colour, **{"linewidth": 1.8} | how)
    return middle


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 0.058) -> None:
    """Write names at the right edge beside the ends of their lines, moved where they would overlap.

    Args:
      axes: the axes, with limits and scale set.
      labels: (y, name, colour) of the end of each line.
      gap: smallest distance between two names, as a share of the height.
    """
    height = axes.transAxes.inverted().transform
    ends = [height(axes.transData.transform((axes.get_xlim()[1], y)))[1] for y, _, _ in labels]
    places = np.clip(ends, 0, 1)
    order = np.argsort(places, kind="stable")
    # Overlapping names move apart a little each time, until all have room.
    for _ in range(200):
        for low, high in pairwise(order):
            missing = gap - (places[high] - places[low])
            if missing > 1e-6:
                places[low] -= missing / 2
                places[high] += missing / 2
    for place, end, (_, name, colour) in zip(places, ends, labels, strict=True):
        axes.annotate(
            name,
            (1, np.clip(end, 0, 1)),
            (1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 0},
        )


def decades(value: float) -> str:
    """Return a number with three digits, as a power of ten where it is small."""
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
