"""The recurrence in plain XLA, transposed: on a CPU the faster of the two for large float32 weights.

The loops and derivatives of `kernels.xla` with a feature after another in memory;
`kernels.xla.layouts.Columns` says why that pays.
"""

from __future__ import annotations

from typing import Any

from jaxrnn.recurrence.inputs import Inputs, Masks
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla.layouts import Columns
from jaxrnn.shapes import Array, Float


def unsupported_reason(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why this cannot run such a problem; None where it can."""
    return xla.unsupported_reason(cell, batch, dtype)


def run(
    cell: Any, params: Any, inputs: Inputs, state: Any, masks: Masks, reverse: bool
) -> tuple[Any, Float[Array, "T B H"]]:
    """As `kernels.xla.run`."""
    return xla.run(cell, params, inputs, state, masks, reverse, Columns)
