"""Words that settings of several modules take, for options that are read without importing JAX."""

from __future__ import annotations

from typing import Literal

# Devices.
Accelerator = Literal["auto", "cpu", "gpu", "tpu"]
MemoryMap = Literal["auto", "always", "never"]

# The cells that the commands offer. `ModelConfig` has options for the first three.
CellName = Literal[
    "rnn",
    "lstm",
    "gru",
    "mgu",
    "coupled_lstm",
    "indrnn",
    "mingru",
    "minlstm",
    "layer_norm_lstm",
    "layer_norm_gru",
    "mogrifier_lstm",
]
Activation = Literal["tanh", "relu", "sigmoid"]
Reset = Literal["before", "after"]
RecurrentInit = Literal["orthogonal", "glorot"]
ProductDType = Literal["auto", "float32", "bfloat16"]

# Texts, checkpoints and files.
Newlines = Literal["keep", "lf"]
LineFormat = Literal["table", "json"]
Which = Literal["best", "latest"]
Weights = Literal["float32", "float16", "int8"]
