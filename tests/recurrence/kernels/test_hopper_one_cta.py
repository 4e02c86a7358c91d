"""The Hopper kernel for small widths without a GPU: interpreted, lowered, and its division over CTAs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.hopper.report import RIGHT
from jaxrnn import gru, lstm, rnn
from jaxrnn.recurrence.kernels import hopper, xla
from jaxrnn.recurrence.kernels.hopper import cost_model, layer, mosaic, one_cta, search
from jaxrnn.recurrence.kernels.hopper.launch import Arrays
from jaxrnn.recurrence.kernels.hopper.tiles import (
    DIRECTIONS,
    SHARED,
    Alone,
    alone_shared_bytes,
    width,
)
from jaxrnn.recurrence.problem import Masks
from jaxrnn.recurrence.problem import Problem as Recurrence
from tests.support.conformance import Conformance
from tests.support.hopper import (
    BATCH,
    FEATURES,
    MASKS,
    STEPS,
    cell_of,
    check_vmap,
    interpret,
    interpreted,
    lowered,
    random_masks,
    scan,
    values_and_gradients,
)
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import (
    CELLS,
    Problem,
    as_masks,
    expected,
    library,
    problem,
    with_orthogonal,
)

NAMES = tuple(CELLS)
# Two warpgroups, of which the second has padding.
TWO = 100
EVERY = [
    pytest.param(name, dtype, hidden, reverse, id=f"{name}-{dtype}-{hidden}-{reverse}")
    for name in NAMES
    for dtype, hidden, reverse in (
        ("bfloat16", TWO, False),
        ("float16", 20, True),
        ("float32", 20, True),
    )
]


# --- values, gradients and races ----------------------------------------------------------------


@pytest.mark.first_case
@interpreted
@pytest.mark.parametrize(("name", "dtype", "hidden", "reverse"), EVERY)
def test_kernel_is_scan(name: str, dtype: str, hidden: int, reverse: bool) -> None:
    """Test with resets and lengths."""
    cell = cell_of(name, hidden)
    assert isinstance(search.tiling_for(cell, BATCH, dtype), Alone)
    given = problem(cell, STEPS, BATCH, FEATURES).cast(dtype)
    got = interpret(cell, given, as_masks(STEPS, **MASKS), reverse)
    assert_close(got, scan(cell, given, reverse, **MASKS), TOLERANCES[dtype])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
def test_kernel_is_numpy(name: str) -> None:
    """Compare with the values and finite differences of the equations, without masks."""
    cell = cell_of(name, 10)
    given = problem(cell, STEPS, 2, FEATURES).cast("float32")
    got = interpret(cell, given, Masks())
    assert_close(got, expected(cell, given.exact()), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("name", ["lstm", "gru-before", "gru-after"])
def test_errors_of_many_steps_are_near_those_of_xla(name: str) -> None:
    """Inputs, gates and outputs have 16 bits, which at most triples the errors of bfloat16."""
    cell = cell_of(name, 64)
    given = with_orthogonal(cell, problem(cell, 32, BATCH, FEATURES)).cast("bfloat16")
    wide = jax.tree.map(lambda x: np.asarray(x).astype(np.float32), given)
    exact = library(cell, wide, implementation="scan")
    plain = library(cell, given, implementation="xla")
    got = interpret(cell, given, Masks(), detect_races=False)
    # Values and gradients.
    for ours, others, want in zip(got, plain, exact, strict=True):
        assert largest_error(ours, want) <= RIGHT * largest_error(others, want)


def largest_error(got: Any, want: Any) -> float:
    """Return the largest error of any array, in units of the array's largest entry."""
    pairs = zip(*(map(np.float64, jax.tree.leaves(tree)) for tree in (got, want)), strict=True)
    return max(np.abs(g - w).max() / np.abs(w).max() for g, w in pairs)


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("rows", [8, 16, 32])
def test_every_division_is_scan(rows: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CTAs, the last with padding, that have places for the inputs of two to four steps."""
    division = Alone(rows, 2, depth, depth)
    monkeypatch.setattr(layer, "tiling_for", lambda *_: division)
    cell, batch = cell_of("gru-after"), 2 * rows - 3
    masks = random_masks(STEPS, batch)
    given = problem(cell, STEPS, batch, FEATURES).cast("float32")
    got = interpret(cell, given, as_masks(STEPS, **masks))
    assert_close(got, scan(cell, given, **masks), TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
def test_vmap_over_data_is_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three elements of two rows share the parameters: six rows, and one gradient."""
    planned = []

    def recorded(cell: Any, batch: int, dtype: Any) -> Any:
        planned.append(batch)
        return search.tiling_for(cell, batch, dtype)

    monkeypatch.setattr(layer, "tiling_for", recorded)
    cell = cell_of("gru-after")
    given = problem(cell, 2, 6, FEATURES).cast("float32")
    # [3, T, 2, I], and [3, 2, H] for the state.
    xs = jnp.asarray(given.xs).reshape(2, 3, 2, FEATURES).swapaxes(0, 1)
    state = jax.tree.map(lambda s: jnp.asarray(s).reshape(3, 2, -1), given.state)
    how = plgpu.InterpretGPUParams(inline_mgpu="ignore")

    def loss(run: Any, params: Any) -> Any:
        def one(xs: Any, state: Any) -> Any:
            recurrence = Recurrence(cell, params, cell.project(params, xs), state)
            return jnp.sin(run(recurrence)[1]).sum()

        return jax.vmap(one)(xs, state).sum()

    got = jax.value_and_grad(partial(loss, partial(hopper.run, interpret=how)))(given.params)
    assert set(planned) == {2, 6} and planned[-1] == 6
    want = jax.value_and_grad(partial(loss, xla.run))(given.params)
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
@interpreted
def test_vmap_over_parameters_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets with two CTAs each are four CTAs along one axis, which may be longer than 65,535."""
    grids = []
    call_kernel = mosaic.call_kernel

    def recorded(*args: Any, grid: dict[str, int], **options: Any) -> Any:
        grids.append(grid)
        return call_kernel(*args, grid=grid, **options)

    cell = cell_of("gru-after")
    assert search.tiling_for(cell, 10, "float32").blocks == 2
    both = check_vmap(cell, 10)
    monkeypatch.setattr(mosaic, "call_kernel", recorded)
    run = jax.vmap(lambda given: values_and_gradients(cell, given, Masks()))
    program = jax.jit(run).trace(both).lower(lowering_platforms=("cuda",)).as_text()
    # The forward and the backward kernel, and no loop.
    assert program.count("kernel_hash") == 2 and "while" not in program
    assert all(set(grid) == {"cta"} for grid in grids) and grids[-1] == {"cta": 4}


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("missing", ["wait_smem_to_gmem", "barrier_wait"])
def test_the_detector_finds_what_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race detector reports a kernel that lacks one of its waits; the tests above rely on that."""
    monkeypatch.setattr(one_cta.plgpu, missing, lambda *_, **__: None)
    cell = cell_of("rnn-tanh", TWO)
    given = problem(cell, 4, 2, FEATURES).cast("bfloat16")
    with pytest.raises(Exception, match=r"(?i)race|uninitialized|phase|nan"):
        jax.block_until_ready(interpret(cell, given, Masks()))


# --- the same, lowered for a GPU ----------------------------------------------------------------


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(("name", "dtype", "hidden", "reverse"), EVERY)
def test_kernel_lowers(name: str, dtype: str, hidden: int, reverse: bool) -> None:
    cell = cell_of(name, hidden)
    given = problem(cell, STEPS, BATCH, FEATURES).cast(dtype)
    program = lowered(cell, given, as_masks(STEPS, **MASKS), reverse)
    assert program.count("_forward_alone") and program.count("_backward_alone")


# --- the division over CTAs ---------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    ("cell", "batch", "dtype", "rows", "blocks"),
    [
        (gru(128), 4, "bfloat16", 8, 1),
        (gru(128), 1024, "bfloat16", 8, 128),
        (gru(128), 2000, "bfloat16", 16, 125),
        (gru(128), 16384, "bfloat16", 16, 1024),
        (lstm(64), 64, "float32", 8, 8),
        (rnn(256), 64, "bfloat16", 8, 8),
    ],
)
def test_rows_are_divided_over_the_multiprocessors(
    cell: Any, batch: int, dtype: str, rows: int, blocks: int
) -> None:
    found = search.tiling_for(cell, batch, dtype)
    assert isinstance(found, Alone) and found[:2] == (rows, blocks)


@pytest.mark.parametrize("rows", [8, 16, 24, 32])
def test_masks_lie_where_tma_can_write_them(rows: int) -> None:
    """Without swizzle, a destination in shared memory is a multiple of 128 bytes."""
    masks = jax.ShapeDtypeStruct((2, STEPS, rows), jnp.float32)
    tile = jax.ShapeDtypeStruct((STEPS, rows, 64), jnp.bfloat16)
    arrays = Arrays(
        weights=jax.ShapeDtypeStruct((1, 64, 64), jnp.bfloat16),
        initial={"hidden": jax.ShapeDtypeStruct((rows, 64), jnp.float32)},
        inputs={"gx": tile},
        vectors=None,
        masks=masks,
        exchanged={"previous_hidden": tile},
        outputs={},
        overlays={},
    )
    scratch = one_cta.scratch_types(arrays, rows, 2, weights_in_registers=True)
    *_, places, width = scratch["masks_smem"].shape
    assert places >= 2 and places * width * 4 % 128 == 0


@interpreted
def test_the_predicted_time_of_a_gru_of_128() -> None:
    """With 1024 rows, at most 0.8 microseconds per step forward; more rows take no less."""
    cell, predicted = gru(128, reset="after"), []
    for batch in (4, 64, 1024, 2048, 4096, 16384):
        division = search.tiling_for(cell, batch, "bfloat16")
        predicted.append(cost_model.microseconds(cell, division, "bfloat16")["forward"])
    assert predicted == sorted(predicted) and predicted[2] <= 0.8


@interpreted
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_divided_fits(name: str, dtype: str) -> None:
    for hidden in range(1, 400, 37):
        cell = cell_of(name, hidden)
        found = list(search.alones(cell, 1000, dtype))
        assert found or width(hidden) > 64
        for division in found:
            for direction in DIRECTIONS:
                shape = division.rows, getattr(division, direction)
                assert alone_shared_bytes(cell, direction, *shape, dtype) <= SHARED


@interpreted
@pytest.mark.parametrize("cell", [lstm(192), gru(256)])
def test_weights_that_do_not_fit_one_cta_are_divided(cell: Any) -> None:
    assert search.tiling_for(cell, 64, "bfloat16").parts > 1


@interpreted
class TestOneCTA(Conformance):
    implementation = "hopper"
    exact = "float32"
    narrow = ("bfloat16",)

    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        """See `Conformance`. The race detector is left to the tests above."""
        return interpret(cell, given, as_masks(len(given.xs), **masks), reverse, detect_races=False)
