"""The presets of `python -m jaxrnn.train --preset NAME`; every other flag overrides one setting."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrnn.charlm import ModelConfig
from jaxrnn.training.config import TrainingConfig

Preset = Literal["small", "lecture", "shakespeare"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a preset.

    training: the model and how it is trained.
    data: the default text, as in `--data`.
    """

    training: TrainingConfig
    data: tuple[str, ...]


# Two minutes on two CPU cores, on a text whose entropy is known.
SMALL = Settings(
    training=TrainingConfig(
        model=ModelConfig(dtype="auto"),
        batch=32,
        epochs=6.0,
        learning_rate=5e-3,
    ),
    data=("play",),
)

# The settings of the lecture's code.
LECTURE = Settings(
    training=TrainingConfig(
        model=ModelConfig(
            hidden_size=1024,
            embedding_size=256,
            recurrent_init="glorot",
            dtype="auto",
        ),
        batch=64,
        seq_len=100,
        shuffle=True,
        epochs=10.0,
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        clip_norm=0.0,
    ),
    data=("shakespeare",),
)

# The lowest loss found on Tiny Shakespeare within 15 minutes on a CPU.
SHAKESPEARE = Settings(
    training=TrainingConfig(
        model=ModelConfig(
            hidden_size=512,
            embedding_size=64,
            dropout=0.4,
            weight_dropout=0.3,
            dtype="auto",
        ),
        learning_rate=3e-3,
        steps=3500,
    ),
    data=("shakespeare",),
)

PRESETS: dict[str, Settings] = {
    "small": SMALL,
    "lecture": LECTURE,
    "shakespeare": SHAKESPEARE,
}
