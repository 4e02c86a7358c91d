"""The presets of `python -m jaxrnn.train --preset NAME`; every other flag overrides one setting."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

from jaxrnn.charlm.config import ModelConfig
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
    size: returns the settings for a training part of so many characters and a cell; None for settings
      that do not depend on them.
    """

    training: TrainingConfig
    data: tuple[str, ...]
    size: Callable[[int, str], TrainingConfig] | None = None

    def for_length(self, characters: int, cell: str = "lstm") -> TrainingConfig:
        """Return the settings for a training part of so many characters and a cell."""
        return self.training if self.size is None else self.size(characters, cell)


# --- presets that depend on the length of the text ---

# Characters on which an LSTM of 512 is trained in a minute on two CPU cores, in float32.
PER_MINUTE = 2_700_000
# Most passes over a text, from this length on. Shorter texts allow fewer, because even with dropout they
# are learned by heart, but at least FEWEST_PASSES.
MOST_PASSES, LONG = 60.0, 100_000
FEWEST_PASSES = 15.0
# Width of the hidden state for texts shorter than this, and for longer ones.
SHORT, NARROW, WIDE = 50_000, 256, 512
# Peak learning rates for batches of 32, by cell. Others were not measured.
RATES = {"lstm": 1.2e-2, "gru": 8e-3, "rnn": 8e-3}
OTHER_RATE = 5e-3
# Cells without recurrent weights that could be dropped.
WITHOUT_RECURRENT_WEIGHTS = ("indrnn", "mingru", "minlstm")
# Passes from which outputs, and recurrent weights, are dropped.
FIRST_DROPOUT, FIRST_WEIGHT_DROPOUT = 1.5, 8.0


def for_minutes(minutes: float, characters: int, cell: str = "lstm") -> TrainingConfig:
    """Return the settings for a text of any kind, for so many minutes on two CPU cores.

    The time decides how many passes over the text are made, and a text that is read often is learned by
    heart unless more is dropped. A short text also makes smaller batches and a smaller network.

    Args:
      minutes: the time that an LSTM takes. A short text takes less.
      characters: length of the training part of the text.
      cell: name of the cell.
    """
    most_passes = min(max(MOST_PASSES * characters / LONG, FEWEST_PASSES), MOST_PASSES)
    passes = min(minutes * PER_MINUTE / characters, most_passes)
    batch = min(64 if minutes > 5 else 32, max(1, characters // 500))
    weight_dropout = 0.0
    if cell not in WITHOUT_RECURRENT_WEIGHTS:
        weight_dropout = _growing(passes / FIRST_WEIGHT_DROPOUT, 0.08, 0.15)
    seq_len = min(64, max(1, characters // batch - 1))
    steps = passes * characters / (batch * seq_len)
    return TrainingConfig(
        model=ModelConfig(
            hidden_size=NARROW if characters < SHORT else WIDE,
            embedding_size=64,
            dropout=_growing(passes / FIRST_DROPOUT, 0.2, 0.5),
            weight_dropout=weight_dropout,
            dtype="auto",
        ),
        batch=batch,
        seq_len=seq_len,
        epochs=float(f"{passes:.3g}"),
        learning_rate=float(f"{RATES.get(cell, OTHER_RATE) * math.sqrt(batch / 32):.2g}"),
        schedule="linear",
        warmup=50,
        weight_decay=0.1,
        output_bias="frequencies",
        # Some ten times in a run: the best of these models is the one that is loaded later.
        eval_every=min(max(10 * round(steps / 100), 10), 250),
    )


def _growing(times: float, each: float, most: float) -> float:
    """Return `each` for every time that a number has doubled, at most `most`, rounded."""
    return round(min(max(each * math.log2(times), 0.0), most), 2)


SMALL = Settings(
    training=for_minutes(2.0, SHAKESPEARE_LENGTH),
    data=("play",),
    size=functools.partial(for_minutes, 2.0),
)

SHAKESPEARE = Settings(
    training=for_minutes(11.5, SHAKESPEARE_LENGTH),
    data=("shakespeare",),
    size=functools.partial(for_minutes, 11.5),
)

# --- presets of one text ---

# nanoGPT's validation loss on Tiny Shakespeare (1.4697) in the fewest seconds on two CPU cores.
SPRINT = Settings(
    training=TrainingConfig(
        model=ModelConfig(hidden_size=448, embedding_size=64),
        batch=32,
        seq_len=48,
        epochs=1.7,
        learning_rate=1.2e-2,
        schedule="linear",
        warmup=20,
        beta1=0.85,
        beta2=0.98,
        weight_decay=0.05,
        output_bias="frequencies",
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

PRESETS: dict[str, Settings] = {
    "small": SMALL,
    "shakespeare": SHAKESPEARE,
    "sprint": SPRINT,
    "lecture": LECTURE,
}
