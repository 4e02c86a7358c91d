"""One look for all pictures: a column of panels that can be read on a phone, on light and dark pages.

The background is transparent; text, axes and colours stand out from white and from GitHub's dark grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can distinguish as well. Their yellow and sky
# blue are left out and their orange is darker, because text in these would be too pale on white.
BLUE, RED, GREEN, PINK, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B98000"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE)
# The colour of text, axes and everything that belongs to no contender.
INK = "#7D838A"
# The colours of the cells, the same in all pictures.
CELLS = {"rnn": RED, "lstm": BLUE, "gru": GREEN}

# Inches. At the width of a phone, the text is then about 10 pixels high.
WIDTH = 6.4
DOTS_PER_INCH = 150

# Settings of matplotlib, within which the runner draws and saves.
STYLE = {
    "savefig.transparent": True,
    "savefig.dpi": DOTS_PER_INCH,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "axes.linewidth": 1,
    **dict.fromkeys(
        ["text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color",
         "ytick.color"],
        INK,
    ),
}  # fmt: skip


def figure(rows: int = 1, columns: int = 1, height: float = 3.4, **how: Any) -> tuple[Figure, Any]:
    """Return a figure of WIDTH and its axes, one below the other.

    Args:
      rows: number of panels.
      columns: panels side by side, for small ones only.
      height: inches of each row.
      how: arguments of `Figure.subplots`.
    """
    made = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    return made, made.subplots(rows, columns, **how)


def name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title and the labels of the axes, which include units."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def band(axes: Axes, x: Any, runs: Any, colour: str, **how: Any) -> Any:
    """Draw the median of runs [seeds, points] as a line and their range as a band; return the median."""
    runs = np.asarray(runs)
    axes.fill_between(x, runs.min(0), runs.max(0), color=colour, alpha=0.25, linewidth=0)
    middle = np.median(runs, axis=0)
    axes.plot(x, middle, color=colour, **how)
    return middle


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 0.085) -> None:
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
            fontsize=11,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 0},
        )


def spread(values: Any, form: str = ".3f") -> str:
    """Return the median and the range of some numbers, such as those of the seeds; "" for none."""
    if not len(values):
        return ""
    middle, low, high = (
        format(each, form) for each in (np.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def decades(value: float) -> str:
    """Return a number with three digits, as a power of ten where it is small."""
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
