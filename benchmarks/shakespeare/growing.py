"""Trainings whose batches grow during the run, which `python -m jaxrnn.train` does not offer.

Each stage continues at the same fraction of the pass over the text. The recurrent state is carried into
the next stage if that has as many rows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure
from benchmarks.shakespeare.training import products_per_second
from jaxrnn import charlm
from jaxrnn.data.corpus import make_corpus
from jaxrnn.devices import mesh
from jaxrnn.training import evaluation, feed, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.optimizers import make_optimizer


class Stage(NamedTuple):
    """Steps with batches of one size."""

    steps: int
    batch: int
    seq_len: int


# Stages that read about as many characters in all as the base recipe: 1,500 x 32 x 64.
GROWING: dict[str, Sequence[Stage]] = {
    "BPTT grows 16, 32, 64, 128": [
        Stage(1500, 32, 16),
        Stage(750, 32, 32),
        Stage(375, 32, 64),
        Stage(188, 32, 128),
    ],
    "batch grows 8, 16, 32, 64": [
        Stage(1500, 8, 64),
        Stage(750, 16, 64),
        Stage(375, 32, 64),
        Stage(188, 64, 64),
    ],
}


def train(config: TrainingConfig, stages: Sequence[Stage], text: Path) -> dict[str, Any]:
    """Train through the stages and return the log, with one evaluation after each stage.

    Args:
      config: the settings; those of the batches and the number of steps come from the stages.
      stages: the stages.
      text: the file to train on, whose last tenth is for validation.
    """
    before, began = products_per_second(), time.perf_counter()
    corpus = make_corpus(text.read_text(encoding="utf-8"))
    total = sum(stage.steps for stage in stages)
    optimizer = make_optimizer(config, total)
    devices = mesh.single()
    source = feed.device_corpus(corpus.tokens, devices=devices)
    state = stepping.begin(config, optimizer, corpus.vocabulary, devices, corpus.token_counts())
    seconds, characters = 0.0, 0
    evaluations: list[dict[str, float]] = []
    losses: list[float] = []
    for stage in stages:
        here = dataclasses.replace(config, batch=stage.batch, seq_len=stage.seq_len, steps=total)
        batches = here.batches(corpus)
        first = round(characters / corpus.train_size % 1 * batches.per_epoch)
        if jax.tree.leaves(state.carry)[0].shape[0] != stage.batch:
            state = state.replace(carry=charlm.initial_carry(config.model, stage.batch))
        compiled: Any = None
        for at in range(0, stage.steps, config.log_every):
            numbers = range(first + at, first + at + config.log_every)
            windows = source.windows(np.stack([batches.starts(n) for n in numbers]), stage.seq_len)
            resets = np.array([batches.resets_state(n) for n in numbers])
            count = np.int32(min(config.log_every, stage.steps - at))
            given = state, source.tokens, windows, resets, count
            if compiled is None:
                compiled = stepping.run_steps.lower(here, optimizer, devices, *given).compile()
            now = time.perf_counter()
            state, metrics = compiled(*given)
            losses += np.asarray(metrics.loss)[:count].tolist()
            seconds += time.perf_counter() - now
        characters += stage.steps * stage.batch * stage.seq_len
        nats = evaluation.evaluate(state.model, source, corpus, config.batch, config.seq_len)
        evaluations.append(
            {
                "step": int(state.step),
                "training_seconds": seconds,
                "seconds": time.perf_counter() - began,
                "val_loss": nats,
            }
        )
    return {
        "seed": config.seed,
        "stages": [list(stage) for stage in stages],
        "validation": "last tenth of the training part",
        "evaluations": evaluations,
        "training_loss": float(np.mean(losses[-100:])),
        "start_seconds": 0.0,
        "gflops_of_products": [before, products_per_second()],
        "settings": dataclasses.asdict(config),
        **measure.surroundings(("flax", "optax", "orbax-checkpoint")),
    }
