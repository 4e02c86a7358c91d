"""The model and the training whose scaling is predicted and measured."""

from __future__ import annotations

from typing import Any

from jaxrnn.charlm import ModelConfig
from jaxrnn.training.config import TrainingConfig

# Layers, and steps of time.
LAYERS = 2
STEPS = 100
# Rows on each chip or device.
ROWS = 64


def configured(hidden: int, rows: int, dtype: Any = "bfloat16") -> TrainingConfig:
    """Return the settings for a hidden size and a number of rows."""
    shape = ModelConfig("lstm", layers=LAYERS, hidden_size=hidden, embedding_size=64, dtype=dtype)
    return TrainingConfig(shape, batch=rows, seq_len=STEPS, steps=1000, log_every=10)
