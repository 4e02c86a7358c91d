"""The metrics of a run: metrics.jsonl, the curves of the losses, and loss.png."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

METRICS, PICTURE = "metrics.jsonl", "loss.png"

# Most points of a curve; a picture has fewer columns.
LIMIT = 4000

# Colours that colour-blind people can distinguish, too.
BLUE, ORANGE, GREY = "#4a90c2", "#d95f02", "#444444"

Points = list[tuple[float, float]]
Number = TypeVar("Number", float, np.ndarray)


class Metric(NamedTuple):
    """A line of metrics.jsonl.

    step: the number of training steps taken.
    loss: mean training loss since the line before, in nats per character.
    val_loss: loss on the validation text, in nats per character; None if it was not computed here.
    grad_norm: mean global norm of the gradient before clipping, since the line before.
    chars_per_second: training speed in tokens, which are characters, bytes or the strings of a pattern,
      since the line before, evaluations and samples included.
    seconds: time that the run has taken so far, in all processes that it was resumed in.
    training_seconds: the part of it that the training steps took, without compilation, evaluations,
      samples and checkpoints.
    """

    step: int
    loss: float
    val_loss: float | None
    grad_norm: float
    chars_per_second: float
    seconds: float
    training_seconds: float

    def as_line(self) -> str:
        """Return the line of metrics.jsonl, which leaves out what is None."""
        values = {name: value for name, value in self._asdict().items() if value is not None}
        return json.dumps(values) + "\n"


class MetricLines(NamedTuple):
    """The content of a metrics.jsonl: its good lines, and the number of damaged ones."""

    lines: list[dict[str, Any]]
    damaged: int


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without damaged ones; none if there is no such file."""
    return check_metrics(path).lines


def check_metrics(path: Path) -> MetricLines:
    """Return the lines of a metrics.jsonl that are as they were written, and count the others."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    good = []
    for line in lines:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if line.endswith(b"\n") and _is_metric(values):
                good.append(values)
    return MetricLines(good, len(lines) - len(good))


def _is_metric(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    losses = [line.get("loss"), line.get("val_loss", 0.0)]
    return isinstance(line.get("step"), int) and all(
        isinstance(loss, int | float) and math.isfinite(loss) for loss in losses
    )


class Curve:
    """The points of a curve, at most LIMIT of them.

    When there would be more, each pair of neighbours is replaced by its mean, and from then on each new
    point is the mean of twice as many added ones.
    """

    def __init__(self) -> None:
        self._points: Points = []
        # The points that the next one is the mean of, and how many there will be.
        self._part: Points = []
        self._size = 1

    def add(self, x: float, y: float) -> None:
        """Add a point; x is larger than before."""
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
        """The points (x, y), in the order in which they were added."""
        return [*self._points, _mean(self._part)] if self._part else self._points


def _mean(points: Points) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)


def as_arrays(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of a metrics.jsonl by the names in `Metric`.

    `step` is int64 [N], all others are float64 [N], with NaN where a line does not have the value.
    """
    columns = {
        name: np.array([line.get(name, math.nan) for line in lines], np.float64)
        for name in Metric._fields
    }
    return columns | {"step": np.array([line["step"] for line in lines], np.int64)}


def bits(nats: Number) -> Number:
    """Return an amount of information in bits, given in nats."""
    return nats / math.log(2)


def nats(bits: Number) -> Number:
    """Return an amount of information in nats, given in bits."""
    return bits * math.log(2)
