"""XLA's loops, transposed: the faster layout on a CPU for large float32 weights.

The loops and derivatives are those of `kernels.xla`; `kernels.xla.layouts.Columns` says why the layout
pays.
"""

from __future__ import annotations

from typing import Any

from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla.layouts import Columns
from jaxrnn.recurrence.kernels.xla.rules import unsupported_cell
from jaxrnn.recurrence.problem import Problem
from jaxrnn.shapes import Array, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return why this cannot run a problem, or None where it can."""
    return unsupported_cell(problem.cell)


def run(problem: Problem) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in the wide dtype."""
    return xla.run(problem, Columns)
