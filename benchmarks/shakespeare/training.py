"""Train one recipe of Tiny Shakespeare by `python -m jaxrnn.train`, and return its log."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from jaxrnn.data import sources
from jaxrnn.data.corpus import validation_start
from jaxrnn.devices.storage import cache_folder
from jaxrnn.training.metrics import METRICS, read_metrics

# Side and number of the float32 matrix products by which times of different machines are compared.
SIDE, PRODUCTS = 2048, 5


def choosing_text() -> Path:
    """Return a file with the training part of Tiny Shakespeare, whose last tenth is for choosing.

    The train command keeps the last tenth of any text for validation. With this file it is the last
    tenth of the training part, and nothing of the official validation text is read.
    """
    text = str(sources.read(("shakespeare",)).content)
    path = cache_folder() / "tinyshakespeare-training-part.txt"
    path.write_text(text[: validation_start(len(text))], encoding="utf-8", newline="")
    return path


def train(flags: Sequence[str], workdir: Path, seed: int, data: str | Path) -> dict[str, Any]:
    """Train a recipe in a run directory that does not exist yet, and return its log.

    Args:
      flags: of `python -m jaxrnn.train`.
      workdir: the run directory.
      seed: the random seed.
      data: the text, as the train command takes it. Its last tenth is for validation.

    Raises:
      SystemExit: with the status of the train command, if it failed.
    """
    command = ["-m", "jaxrnn.train", *flags, "--seed", str(seed), "--workdir", str(workdir)]
    command += ["--data", str(data)]
    before = products_per_second()
    began = time.perf_counter()
    environment = measure.child_environment()
    status = subprocess.run([sys.executable, *command], env=environment).returncode
    wall = time.perf_counter() - began
    if status:
        sys.exit(status)
    after = products_per_second()
    lines = read_metrics(workdir / METRICS)
    kept = ("step", "training_seconds", "seconds", "val_loss")
    return {
        "flags": list(flags),
        "seed": seed,
        "evaluations": [
            {name: line[name] for name in kept} for line in lines if "val_loss" in line
        ],
        "training_loss": statistics.mean(line["loss"] for line in lines[-10:]),
        # Everything but the loop: imports, compilation, reading the text.
        "start_seconds": wall - lines[-1]["seconds"],
        "gflops_of_products": [before, after],
        "settings": json.loads((workdir / "config.json").read_bytes())["training"],
        **measure.surroundings(("flax", "optax", "orbax-checkpoint")),
    }


def products_per_second() -> float:
    """Return the speed of this machine in float32 matrix products, in GFLOP/s; the median of several."""
    matrix = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    seconds = [
        measure.timed(lambda: product(matrix, matrix).block_until_ready())[0]
        for _ in range(PRODUCTS)
    ]
    return 2 * SIDE**3 / statistics.median(seconds) / 1e9
