"""The recurrence in plain XLA, transposed: on a CPU the faster of the two for large float32 weights.

The loops and derivatives of `kernels.xla` with a feature after another in memory;
`kernels.layouts.Columns` says why that pays.
"""

from __future__ import annotations

from typing import Any

from jaxrnn.kernels import xla
from jaxrnn.kernels.inputs import Inputs, Masks
from jaxrnn.kernels.layouts import Columns
from jaxrnn.shapes import Array, Float


def obstacle(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why this cannot run such a problem; None where it can."""
    return xla.obstacle(cell, batch, dtype)


def run(
    cell: Any, params: Any, inputs: Inputs, state: Any, masks: Masks, reverse: bool
) -> tuple[Any, Float[Array, "T B H"]]:
    """As `kernels.xla.run`."""
    return xla.run(cell, params, inputs, state, masks, reverse, Columns)
