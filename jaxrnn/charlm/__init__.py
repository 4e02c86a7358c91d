"""The char-RNN: its model, and text drawn from it."""

from jaxrnn.charlm.config import ModelConfig
from jaxrnn.charlm.model import (
    Carry,
    Params,
    StepParams,
    count,
    forward,
    init,
    initial_carry,
    log_frequencies,
    loss,
    newline_of,
    output,
    record,
    step,
    step_params,
)

__all__ = [
    "Carry",
    "ModelConfig",
    "Params",
    "StepParams",
    "count",
    "forward",
    "init",
    "initial_carry",
    "log_frequencies",
    "loss",
    "newline_of",
    "output",
    "record",
    "step",
    "step_params",
]
