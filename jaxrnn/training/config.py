"""The settings of a training: the model, the batches, the optimizer, and what is written when."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from tyro.conf import Fixed, Suppress

from jaxrnn.charlm.config import ModelConfig
from jaxrnn.data.corpus import Batches, Corpus
from jaxrnn.data.lines import LineBatches
from jaxrnn.errors import InputError, one_of
from jaxrnn.literals import MemoryMap
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.settings import nested, rules_of, setting

Optimizer = Literal["adam", "muon"]
Schedule = Literal["cosine", "linear", "constant"]
Average = Literal["none", "ema", "tail"]
OutputBias = Literal["zero", "frequencies"]

# Most training steps of a device call, which a signal to stop waits for.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training."""

    model: ModelConfig = nested(ModelConfig)
    batch: int = 64
    """Rows per batch."""
    seq_len: int = 100
    """BPTT length, in characters."""
    steps: int | None = setting(None, may_change=True)
    """Total number of training steps. None derives it from the epochs."""
    epochs: float = setting(10.0, may_change=True)
    """Passes over the training text; a pass ends with its last full batch."""
    optimizer: Optimizer = "adam"
    """Optimizer. muon updates the weight matrices of the layers with Muon (Jordan et al. 2024), and all
    other parameters with Adam. Each gate's matrix is orthogonalized separately."""
    learning_rate: float = setting(2e-3, may_change=True)
    """Peak learning rate (Adam)."""
    muon_learning_rate: float = setting(2e-2, may_change=True)
    """Peak learning rate of what Muon updates."""
    schedule: Schedule = setting("cosine", may_change=True)
    """Learning rate after the warm-up: cosine or linear decay to 0, or constant."""
    warmup: int = setting(100, may_change=True)
    """Steps over which the learning rate rises linearly from 0."""
    beta1: float = setting(0.9, may_change=True)
    """Adam's decay rate of the gradients."""
    beta2: float = setting(0.99, may_change=True)
    """Adam's decay rate of the squared gradients."""
    weight_decay: float = setting(0.0, may_change=True)
    """Decoupled weight decay (Loshchilov & Hutter 2019): each step takes this fraction, times the
    learning rate, off all parameters."""
    clip_norm: float = setting(1.0, may_change=True)
    """Largest global norm of the gradient; longer gradients are scaled down. 0 disables clipping."""
    average: Average = "none"
    """Average of the weights over the steps, which is then what is evaluated, sampled and loaded: ema
    (exponential moving average) or tail (plain mean over the last steps)."""
    average_decay: float = setting(0.99, may_change=True)
    """Decay rate of the exponential moving average, per step."""
    average_tail: float = setting(0.2, may_change=True)
    """Fraction of the run's steps, at its end, over which tail takes the mean."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by the beginnings of their paths, separated by commas or spaces:
    embedding, layers.0, layers.0.w_h, w_out, b_out. They do not count in the norm for clipping."""
    label_smoothing: float = setting(0.0, may_change=True)
    """Probability that the targets give to all characters alike, from 0 to 1 (Szegedy et al. 2016). The
    training loss includes it, the validation loss does not."""
    accumulate: int = setting(1, may_change=True)
    """Compute each batch in this many parts, one after another, to save memory."""
    shuffle: bool = False
    """Train on windows of the text in random order, each from the zero state. Otherwise the rows read
    the text in order, and each batch continues with the state of the one before."""
    # Runs from before the setting existed keep their own windows.
    overlap: Suppress[Fixed[bool | None]] = setting(True, absent=None)
    """Whether shuffled windows share a character with the next one and are shifted in each pass. None
    in runs from before they did, which keep their windows. No flag."""
    output_bias: OutputBias = setting("zero", may_change=True)
    """Initial bias of the output layer: zero, or the logarithms of the characters' frequencies in the
    training text, which is what a model without any inputs would learn."""
    seed: int = 0
    """Random seed for initial weights, dropout and batch order."""
    log_every: int = setting(10, may_change=True)
    """Training steps per device call; one line of metrics.jsonl each. At most 1000; evaluations and
    samples also end a device call."""
    eval_every: int = setting(250, may_change=True)
    """Steps between evaluations on the whole validation text, each followed by a checkpoint."""
    stop_at: float | None = setting(None, may_change=True)
    """End the run once the validation loss is at or below this, in nats per character."""
    sample_every: int = setting(500, may_change=True)
    """Steps between samples; 0 for none."""
    memory_map: MemoryMap = setting("auto", may_change=True)
    """Whether to keep the text in a file instead of in the memory of the device; auto does if it would
    take more than a quarter of that memory."""
    implementation: Implementation | None = setting(None, may_change=True)
    """Implementation of the recurrence; None takes the fastest that is known for this machine."""

    def __post_init__(self) -> None:
        # In one order and as a tuple, so that equal settings are equal; JSON has lists.
        words = {word.strip() for text in self.freeze for word in text.split(",")} - {""}
        object.__setattr__(self, "freeze", tuple(sorted(words)))
        choices = {"optimizer": Optimizer, "schedule": Schedule}
        choices |= {"average": Average, "output_bias": OutputBias}
        for name, allowed in choices.items():
            try:
                one_of(allowed)(name, getattr(self, name))
            except ValueError as error:
                raise InputError(str(error)) from None
        least = {"batch": 1, "seq_len": 1, "accumulate": 1, "log_every": 1, "eval_every": 1}
        least |= {
            "steps": 1,
            "warmup": 0,
            "clip_norm": 0,
            "weight_decay": 0,
            "sample_every": 0,
            "seed": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"{name} must be at least {low}, not {value}")
        for name in ("learning_rate", "muon_learning_rate", "epochs"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a number above 0, not {value}")
        for name in ("beta1", "beta2", "average_decay", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {value}")
        if not 0 < self.average_tail <= 1:
            raise InputError(f"average_tail must be above 0 and at most 1, not {self.average_tail}")
        if self.stop_at is not None and not self.stop_at > 0:
            raise InputError(f"stop_at must be above 0, not {self.stop_at}")
        if self.seed >= 2**32:
            raise InputError(f"seed must be below 2^32, not {self.seed}")
        if self.shuffle and self.model.lines:
            raise InputError(
                "`shuffle` is for windows of a running text, and `lines` reads whole lines in random "
                "order already; turn one of them off"
            )
        if self.batch % self.accumulate:
            raise InputError(
                f"`batch` {self.batch} cannot be computed in `accumulate` {self.accumulate} equal parts"
            )

    @classmethod
    def of(cls, described: dict[str, Any]) -> TrainingConfig:
        """Return the settings that a config.json describes as `training`, perhaps of an older jaxrnn.

        Raises:
          InputError, TypeError: for settings that are unknown or invalid.
        """
        rules = rules_of(cls())
        absent = {f.name: rules[f.name].absent for f in dataclasses.fields(cls) if f.name in rules}
        model = ModelConfig(**described["model"])
        # JSON holds a list.
        freeze = tuple(described.get("freeze", ()))
        return cls(**absent | described | {"model": model, "freeze": freeze})

    @property
    def intervals(self) -> list[int]:
        """Intervals in steps, from step 0, at whose multiples a device call ends."""
        samples = [self.sample_every] if self.sample_every else []
        return [self.log_every, self.eval_every, *samples, MOST_STEPS]

    def batches(self, corpus: Corpus) -> Batches | LineBatches:
        """Return the batches of a text, which has `lines` if the model is one of lines.

        Raises InputError for a text too short for one batch.
        """
        if corpus.lines is not None:
            return LineBatches(corpus.lines, self.batch, self.seq_len, self.seed)
        return Batches(
            corpus.train_size, self.batch, self.seq_len, self.shuffle, self.seed, bool(self.overlap)
        )

    def characters_per_epoch(self, corpus: Corpus) -> int:
        """Return the number of characters that one pass predicts, without an incomplete last batch."""
        return self.batches(corpus).per_epoch * self.batch * self.seq_len

    def total_steps(self, batches: Batches | LineBatches) -> int:
        """Return the length of the run in steps. Raises InputError if int32 cannot count them."""
        steps = self.steps or max(1, round(self.epochs * batches.per_epoch))
        if steps >= 2**31:
            raise InputError(
                f"the run would take {steps} steps, more than an int32 counts (2^31 - 1)"
            )
        return steps

    def with_steps(self, batches: Batches | LineBatches) -> TrainingConfig:
        """Return the same with the length of the run as `steps`, if that was derived from the epochs."""
        return dataclasses.replace(self, steps=self.total_steps(batches))
