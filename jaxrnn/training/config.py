"""The settings of a training: the model, the batches, the optimizer, and what is written when."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from tyro.conf import Fixed, Suppress

from jaxrnn import charlm
from jaxrnn.data.corpus import Batches, Corpus
from jaxrnn.errors import InputError
from jaxrnn.recurrence.dispatch import Implementation
from jaxrnn.training import feed

# Per device call, which a signal to stop waits for.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained."""

    model: charlm.ModelConfig = dataclasses.field(default_factory=charlm.ModelConfig)
    batch: int = 64
    """Rows per batch."""
    seq_len: int = 100
    """Characters per row that gradients flow through."""
    steps: int | None = None
    """Length of the run in steps; None leaves it to epochs."""
    epochs: float = 10.0
    """Length of the run in passes over the training text; a pass ends with its last full batch."""
    learning_rate: float = 2e-3
    """Adam's, at its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate after the warm-up: down to 0 by a cosine, or constant."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    beta2: float = 0.99
    """Adam's decay of the squared gradients."""
    clip_norm: float = 1.0
    """Longest gradient, as the global norm over all parameters; 0 does not clip."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    shuffle: bool = False
    """Windows in random order from the zero state, not streams with the state carried over."""
    overlap: Suppress[Fixed[bool | None]] = True
    """Whether shuffled windows share a character with the next and are shifted each pass; None in runs
    that were begun before they did, which keep the order that they had. No flag."""
    seed: int = 0
    """Of the first weights, the dropout and the order of the text."""
    log_every: int = 10
    """Steps per line of metrics.jsonl, at most 1000; evaluations and samples end a line too."""
    eval_every: int = 250
    """Steps between evaluations on the whole validation text, each with a checkpoint."""
    sample_every: int = 500
    """Steps between samples; 0 for none."""
    memory_map: feed.MemoryMap = "auto"
    """Keep the text in a file of the run directory; auto does where the device has no room for it."""
    implementation: Implementation | None = None
    """What runs the recurrence; None takes the fastest that is known here."""

    def __post_init__(self) -> None:
        least = {"batch": 1, "seq_len": 1, "accumulate": 1, "log_every": 1, "eval_every": 1}
        least |= {"steps": 1, "warmup": 0, "clip_norm": 0, "sample_every": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"{_flag(name)} must be at least {low}, not {value}")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{_flag(name)} must be a number above 0, not {value}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be at least 0 and below 1, not {self.beta2}")
        if self.seed >= 2**32:
            raise InputError(f"--seed must be below 2^32, not {self.seed}")
        if self.batch % self.accumulate:
            raise InputError(
                f"--batch {self.batch} cannot be computed in --accumulate {self.accumulate} equal parts"
            )

    @property
    def intervals(self) -> list[int]:
        """Steps after which a call of the device ends, each counted from step 0."""
        samples = [self.sample_every] if self.sample_every else []
        return [self.log_every, self.eval_every, *samples, MOST_STEPS]

    def batches(self, corpus: Corpus) -> Batches:
        """The batches of a text. Raises InputError for a text too short for one."""
        return Batches(
            corpus.train_size, self.batch, self.seq_len, self.shuffle, self.seed, bool(self.overlap)
        )

    def characters_per_epoch(self, corpus: Corpus) -> int:
        """Return how many characters one pass predicts. An incomplete last batch is left out."""
        return self.batches(corpus).per_epoch * self.batch * self.seq_len

    def total_steps(self, batches: Batches) -> int:
        """Length of the run in steps. Raises InputError for more than an int32 counts."""
        steps = self.steps or max(1, round(self.epochs * batches.per_epoch))
        if steps >= 2**31:
            raise InputError(
                f"the run would take {steps} steps, more than an int32 counts (2^31 - 1)"
            )
        return steps


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
