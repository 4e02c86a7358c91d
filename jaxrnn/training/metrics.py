"""The curve of a run: a bounded number of points, however long the run, and the picture of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

LIMIT = 4000  # points, more than a picture has columns

Points = list[tuple[float, float]]


class Curve:
    """Points of a line, at most LIMIT of them: where there would be more, each two become their mean."""

    def __init__(self) -> None:
        self._points: Points = []
        self._part: Points = []  # those that are to become the next point
        self._size = 1  # of a part

    def add(self, x: float, y: float) -> None:
        self._part.append((x, y))
        if len(self._part) < self._size:
            return
        self._points.append(_mean(self._part))
        self._part = []
        if len(self._points) == LIMIT:
            self._points = [_mean(self._points[k : k + 2]) for k in range(0, LIMIT, 2)]
            self._size *= 2

    @property
    def points(self) -> Points:
        """(x, y) each, in the order in which they were added."""
        return [*self._points, _mean(self._part)] if self._part else self._points


def _mean(points: Points) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)


def draw_losses(losses: Points, judged: Points, floor: float | None, path: Path) -> None:
    """Training and validation loss against the step, with the floor where it is known, as a PNG.

    Args:
      losses, judged: (step, nats per character); there is a loss, and perhaps no validation loss.
      floor: the validation loss that no model can beat.
      path: of the picture.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    values = [loss for _, loss in losses]
    axes.plot(*zip(*losses, strict=True), color=BLUE, linewidth=1)
    names = [(f"training {values[-1]:.3f}", BLUE)]
    if judged:
        axes.plot(*zip(*judged, strict=True), color=ORANGE, marker="o", markersize=3)
        names.insert(0, (f"validation {judged[-1][1]:.3f}", ORANGE))
    if floor is not None:
        axes.axhline(floor, color=GREY, linestyle="--", linewidth=1)
        names.append((f"entropy of the text {floor:.3f}", GREY))
    lowest = min([*values, *([] if floor is None else [floor])])
    highest = min(max(values), 1.5 + 1.5 * lowest)  # the first steps would flatten the rest
    margin = 0.1 * (highest - lowest) + 1e-3
    axes.set_ylim(lowest - margin, highest + margin)
    for line, (name, color) in enumerate(names):  # where falling losses leave room
        axes.annotate(
            name,
            (1, 1),
            (-8, -8 - 16 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            color=color,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per character")
    axes.secondary_yaxis("right", (bits, nats)).set_ylabel("bits per character")
    axes.spines["top"].set_visible(False)
    figure.savefig(path, dpi=120)


BLUE, ORANGE, GREY = "#4a90c2", "#d95f02", "#444444"  # told apart by the colour-blind too


def bits(nats: Any) -> Any:
    """Of information, from nats; a number or an array."""
    return nats / math.log(2)


def nats(bits: Any) -> Any:
    return bits * math.log(2)
