"""Loops of XLA with a hand-written backward pass. `loops` has them."""

from jaxrnn.recurrence.kernels.xla.loops import (
    DERIVATIVES,
    Loop,
    backward_scan,
    before_each_step,
    forward_scan,
    outputs,
    run,
    to_inputs,
    trajectory,
    unsupported_reason,
    weight_gradients,
)

__all__ = [
    "DERIVATIVES",
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
