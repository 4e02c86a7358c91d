"""The presets of `python -m jaxrnn.train --preset NAME`; every other flag overrides one setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from jaxrnn.charlm import ModelConfig
from jaxrnn.training.config import TrainingConfig

Preset = Literal["small", "shakespeare", "sprint", "lecture"]

# Length in characters of the training part of Tiny Shakespeare.
SHAKESPEARE_LENGTH = 1_003_854


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a preset.

    training: the model and how it is trained; if that depends on the length of the text, for Tiny
      Shakespeare.
    data: the default text, as in `--data`.
    size: returns the settings for a training part of so many characters; None for settings that do not
      depend on it.
    """

    training: TrainingConfig
    data: tuple[str, ...]
    size: Callable[[int], TrainingConfig] | None = None

    def for_length(self, characters: int) -> TrainingConfig:
        """Return the settings for a training part of so many characters."""
        return self.training if self.size is None else self.size(characters)


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

# nanoGPT's validation loss on Tiny Shakespeare (1.4697) in the fewest seconds on two CPU cores.
SPRINT = Settings(
    training=TrainingConfig(
        model=ModelConfig(hidden_size=448, embedding_size=64),
        batch=32,
        seq_len=48,
        steps=1100,
        learning_rate=1.2e-2,
        schedule="linear",
        warmup=20,
        beta1=0.85,
        beta2=0.98,
        weight_decay=0.05,
        output_bias="frequencies",
        eval_every=100,
        sample_every=0,
        stop_at=1.4697,
    ),
    data=("shakespeare",),
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
    "shakespeare": SHAKESPEARE,
    "sprint": SPRINT,
    "lecture": LECTURE,
}
