"""The char-RNN: its model, and text from it."""

from jaxrnn.charlm.model import (
    Carry,
    ModelConfig,
    Params,
    Prepared,
    count,
    forward,
    init,
    initial_carry,
    loss,
    output,
    prepare,
    step,
)

__all__ = [
    "Carry",
    "ModelConfig",
    "Params",
    "Prepared",
    "count",
    "forward",
    "init",
    "initial_carry",
    "loss",
    "output",
    "prepare",
    "step",
]
