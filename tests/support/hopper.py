"""Problems, tilings and pytest marks that the tests of all Hopper kernels share."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.ahead_of_time import gpu as gpu_static
from jaxrnn.recurrence.kernels import hopper
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiling
from jaxrnn.recurrence.problem import Masks
from jaxrnn.recurrence.problem import Problem as Recurrence
from tests.support.fakes import fake
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import CELLS, Problem, library, problem

STEPS, BATCH, FEATURES = 3, 3, 2
# 20 of 32 units, of which each of two parts has 16.
HIDDEN = 20
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
LENGTHS = np.array([STEPS, 0, 2], np.int32)
MASKS = {"resets": RESETS, "lengths": LENGTHS}
interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "force_gpu_interpret_mode"), reason="waits for JAX 0.11.2, which interprets"
)


# One block of rows in two CTAs, with a ring of two chunks.
PLAIN = Tiling(
    parts=2,
    rows=8,
    warpgroups=1,
    groups=1,
    turns=1,
    forward=Memory(chunk=16, slots=2, depth=1),
    backward=Memory(chunk=16, slots=2, depth=1),
    # A race detector reports the rows past the block's own where slots are packed.
    packed=False,
)


def cell_of(name: str, hidden: int = HIDDEN) -> Any:
    """Return a cell of `CELLS` with another width."""
    return dataclasses.replace(CELLS[name], hidden_size=hidden)


def random_masks(steps: int, rows: int, resets: float = 0.3) -> dict[str, np.ndarray]:
    """Draw resets, a share of all steps, and lengths from 0 to all steps."""
    rng = np.random.default_rng(0)
    return {
        "resets": rng.random((steps, rows)) < resets,
        "lengths": rng.integers(0, steps + 1, rows, np.int32),
    }


def on_gpu(capability: str) -> Any:
    """Return a device that looks like a GPU of this compute capability."""
    return fake("gpu", device_kind="an H100", compute_capability=capability, core_count=132)


def values_and_gradients(
    cell: Any, given: Problem, masks: Masks, reverse: bool = False, interpret: Any = None
) -> tuple[Any, Any]:
    """Return what `library` does, computed by the Hopper kernels."""

    def loss(params: Any, xs: Any, state: Any) -> Any:
        gx = cell.project(params, xs)
        recurrence = Recurrence(cell, params, gx, state, masks, reverse)
        final, ys = hopper.run(recurrence, interpret=interpret)
        results = final, ys.astype(xs.dtype)
        products = jax.tree.map(lambda w, r: (w * r.astype(w.dtype)).sum(), given.weights, results)
        return sum(jax.tree.leaves(products)), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def interpret(
    cell: Any, given: Problem, masks: Masks, reverse: bool = False, detect_races: bool = True
) -> tuple[Any, Any]:
    """Interpret with a race detector, which raises an error where it finds a race."""
    how = plgpu.InterpretGPUParams(detect_races=detect_races, inline_mgpu="ignore")
    run = partial(values_and_gradients, cell, reverse=reverse, interpret=how)
    return jax.jit(run)(given, masks)


def lowered(cell: Any, given: Problem, masks: Masks, reverse: bool = False) -> str:
    """Return the program for a GPU."""
    run = partial(values_and_gradients, cell, reverse=reverse)
    return jax.jit(run).trace(given, masks).lower(lowering_platforms=("cuda",)).as_text()


def scan(cell: Any, given: Problem, reverse: bool = False, **masks: Any) -> tuple[Any, Any]:
    masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **masks, reverse=reverse, implementation="scan")


def check_vmap(cell: Any, batch: int) -> Any:
    """Map over two sets of parameters, inputs and states, and compare with the scan; return the sets."""
    problems = [problem(cell, 2, batch, FEATURES, seed).cast("float32") for seed in (0, 1)]
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    both = stack(*problems)
    got = jax.vmap(lambda given: interpret(cell, given, Masks()))(both)
    assert_close(got, stack(*(scan(cell, given) for given in problems)), TOLERANCES["float32"])
    return both


gpu_aot = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(gpu_static.missing() is not None, reason=str(gpu_static.missing())),
]
# Bytes of shared memory that a CTA may have.
SHARED = 232_448
