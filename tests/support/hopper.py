"""Problems, tilings and pytest marks that the tests of all Hopper kernels share."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.ahead_of_time import gpu as gpu_static
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiling
from tests.support.fakes import fake
from tests.support.problems import CELLS

STEPS, BATCH, FEATURES = 3, 3, 2
# 20 of 32 units, of which each of two parts has 16.
HIDDEN = 20
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
LENGTHS = np.array([STEPS, 0, 2], np.int32)
MASKS = {"resets": RESETS, "lengths": LENGTHS}
interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "force_gpu_interpret_mode"), reason="waits for JAX 0.11.2, which interprets"
)


# One block of rows in two CTAs, which synchronise at a cluster's barrier; all weights stay, and a ring
# has two chunks.
PLAIN = Tiling(
    parts=2,
    cluster=2,
    rows=8,
    warpgroups=1,
    groups=1,
    turns=1,
    forward=Memory(chunk=16, slots=2, resident=2, depth=1),
    backward=Memory(chunk=16, slots=2, resident=8, depth=1),
    # A race detector reports the rows past the block's own where slots are packed.
    packed=False,
)


def cell_of(name: str, hidden: int = HIDDEN) -> Any:
    """Return a cell of `CELLS` with another width."""
    return dataclasses.replace(CELLS[name], hidden_size=hidden)


def on_gpu(capability: str) -> Any:
    """Return a device that looks like a GPU of this compute capability."""
    return fake("gpu", device_kind="an H100", compute_capability=capability, core_count=132)


gpu_aot = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(gpu_static.missing() is not None, reason=str(gpu_static.missing())),
]
# Bytes of shared memory that a CTA may have.
SHARED = 232_448
