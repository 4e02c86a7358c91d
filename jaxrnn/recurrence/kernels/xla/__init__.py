"""Loops of XLA with a hand-written backward pass, and with a generic one for cells of other kinds."""

from __future__ import annotations

from typing import Any

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import is_builtin
from jaxrnn.recurrence.kernels.xla import generic, loops
from jaxrnn.recurrence.kernels.xla.layouts import Layout, Rows
from jaxrnn.recurrence.kernels.xla.loops import (
    Loop,
    backward_scan,
    before_each_step,
    forward_scan,
    outputs,
    to_inputs,
    trajectory,
    weight_gradients,
)
from jaxrnn.recurrence.problem import Problem
from jaxrnn.shapes import Array, Float

__all__ = [
    "Loop",
    "backward_scan",
    "before_each_step",
    "forward_scan",
    "outputs",
    "run",
    "to_inputs",
    "trajectory",
    "unsupported_reason",
    "weight_gradients",
]

# Time steps per iteration on a GPU. More saves little, and the program takes longer to compile.
GPU_UNROLL = 8


def unsupported_reason(problem: Problem) -> str | None:
    """Return why this cannot run a problem, or None where it can."""
    return None if is_builtin(problem.cell) else generic.unsupported_reason(problem)


def run(
    problem: Problem, layout: Layout = Rows, unroll: int | None = None
) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H], of a cell of this library in the wide dtype.

    Args:
      problem: of any cell that `unsupported_reason` accepts.
      layout: how a step lies in memory inside the loops; only for an RNN, LSTM or GRU.
      unroll: number of time steps in one iteration of the loops; None for what suits the device.
    """
    if not problem.steps:
        return problem.no_steps()
    unroll = unroll or _steps_per_iteration()
    if is_builtin(problem.cell):
        return loops.run(problem, layout, Loop(problem.reverse, unroll))
    return generic.run(problem, unroll)


def _steps_per_iteration() -> int:
    """Return how many time steps one iteration of a loop should take.

    On a GPU each operation of an iteration is a kernel launch. For several steps XLA writes the states
    and gates with one launch each, increments its counter once, and launches the iteration as a whole (a
    command buffer), which it does not do with one step of the forward pass:
    `benchmarks/ahead_of_time` counts the launches.
    """
    return GPU_UNROLL if accelerator.device().platform == "gpu" else 1
