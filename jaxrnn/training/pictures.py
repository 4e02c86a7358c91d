"""The picture of the losses of a run. Importing this module needs matplotlib."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

from jaxrnn.training.metrics import BLUE, GREY, ORANGE, Points, bits, nats

# Dots per inch of loss.png, and of a picture in a notebook.
DPI, NOTEBOOK_DPI = 120, 80


class Picture(Figure):
    """A figure that notebooks show as it is, without pyplot."""

    def _repr_png_(self) -> bytes:
        """Return the PNG that IPython shows."""
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=NOTEBOOK_DPI)
        return png.getvalue()


def draw_losses(
    losses: Points, val_losses: Points, floor: float | None, unit: str = "character"
) -> Picture:
    """Return a picture of training and validation loss against the step.

    Args:
      losses: training losses (step, nats per token), at least one.
      val_losses: validation losses, perhaps none.
      floor: the validation loss that no model can beat, if it is known.
      unit: what a token is, as `Vocabulary.unit` says it.
    """
    figure = Picture(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    values = [loss for _, loss in losses]
    axes.plot(*zip(*losses, strict=True), color=BLUE, linewidth=1)
    names = [(f"training {values[-1]:.3f}", BLUE)]
    if val_losses:
        axes.plot(*zip(*val_losses, strict=True), color=ORANGE, marker="o", markersize=3)
        names.insert(0, (f"validation {val_losses[-1][1]:.3f}", ORANGE))
    if floor is not None:
        axes.axhline(floor, color=GREY, linestyle="--", linewidth=1)
        names.append((f"entropy of the text {floor:.3f}", GREY))
    lowest = min([*values, *([] if floor is None else [floor])])
    # The losses of the first steps, drawn in full, would flatten all others.
    highest = min(max(values), 1.5 + 1.5 * lowest)
    margin = 0.1 * (highest - lowest) + 1e-3
    axes.set_ylim(lowest - margin, highest + margin)
    # Losses fall, so the upper right corner is free.
    for line, (name, color) in enumerate(names):
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
    axes.set_ylabel(f"loss, nats per {unit}")
    conversions: Any = (bits, nats)
    axes.secondary_yaxis("right", conversions).set_ylabel(f"bits per {unit}")
    axes.spines["top"].set_visible(False)
    return figure
