"""The TPU kernels, interpreted on the CPU.

Values and gradients are compared with the scan's automatic derivatives and with the numpy oracle, under
every mask and in both directions, padded, tiled and sharded, with the recurrent weights resident and
streamed. Other tests check the tiling and what the kernels refuse. `test_tpu_compile.py` shows that they
compile for real TPUs.
"""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import gru, lstm, rnn
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.kernels import tpu
from jaxrnn.recurrence.kernels.tpu import tiles
from jaxrnn.recurrence.kernels.tpu.tiles import Tiles
from jaxrnn.recurrence.problem import Lookup, Masks
from jaxrnn.recurrence.problem import Problem as Recurrence
from tests.support.conformance import Conformance
from tests.support.oracle import TOLERANCES, assert_close, reference, unchecked
from tests.support.problems import (
    BATCH,
    CELLS,
    FEATURES,
    LENGTHS,
    MASKS,
    RESETS,
    STEPS,
    Leaky,
    Problem,
    as_masks,
    both_ways,
    library,
    problem,
    with_orthogonal,
)

both_kinds = pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])


def run(
    cell: Any,
    params: Any,
    gx: Any,
    state: Any,
    masks: Masks,
    reverse: bool = False,
    interpret: Any = True,
) -> tuple[Any, Any]:
    """Return the final state and the outputs of the TPU kernels."""
    return tpu.run(Recurrence(cell, params, gx, state, masks, reverse), interpret=interpret)


@contextmanager
def tiled(streamed: bool) -> Iterator[None]:
    """Trace with small blocks of rows and of time, with resident or streamed weights."""

    def small(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles:
        return Tiles(min(batch, 16), 1 if streamed else min(steps, 2), 128, streamed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "tiles_for", small)
        yield


@partial(jax.jit, static_argnames=("cell", "reverse", "interpret", "mesh", "check", "streamed"))
def kernel(
    cell: Any,
    given: Problem,
    masks: Masks,
    reverse: bool = False,
    interpret: Any = True,
    mesh: Any = None,
    check: bool = True,
    streamed: bool | None = None,
) -> tuple[Any, Any]:
    """Return what `problems.library` returns, computed by the TPU kernels.

    Args:
      cell: the cell.
      given: the problem.
      masks: the masks.
      reverse: whether to run from the last step to the first.
      interpret: how to interpret the kernels.
      mesh: a mesh over which to divide the rows, or None.
      check: whether `shard_map` checks over which axes arrays vary.
      streamed: as for `tiled`; None for the blocks that a chip would get.
    """
    kernels: Any = partial(run, cell, reverse=reverse, interpret=interpret)
    if mesh is not None:
        rows = jax.tree.map(lambda _: P("data"), given.state)
        kernels = jax.shard_map(
            lambda params, gx, state, masks: run(
                cell, params, gx, state, masks, reverse, interpret
            ),
            mesh=mesh,
            in_specs=(P(), P(None, "data"), rows, P(None, "data")),
            out_specs=(rows, P(None, "data")),
            check_vma=check,
        )

    def loss(params: Any, xs: Any, state: Any) -> Any:
        final, ys = kernels(params, cell.project(params, xs), state, masks)
        results = final, ys.astype(xs.dtype)
        products = jax.tree.map(lambda w, r: (w * r.astype(w.dtype)).sum(), given.weights, results)
        return sum(jax.tree.leaves(products)), results

    with nullcontext() if streamed is None else tiled(streamed):
        (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def scan(cell: Any, given: Problem, reverse: bool = False, **masks: Any) -> tuple[Any, Any]:
    masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **masks, reverse=reverse, implementation="scan")


# --- values and gradients -----------------------------------------------------------------------


class TestResident(Conformance):
    """The kernels whose recurrent weights stay in VMEM; H = 4 is padded to 128."""

    implementation = "tpu"
    exact = "float32"
    # `test_bfloat16` has the tolerance of its products.
    narrow = ()
    streamed = False

    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        steps = given.xs.shape[0]
        return kernel(cell, given, as_masks(steps, **masks), reverse, streamed=self.streamed)


class TestStreamed(TestResident):
    """The kernels that stream the recurrent weights in every step."""

    streamed = True


EVERY_STEP = ["rnn-relu", "lstm", "lstm-peephole", "gru-before", "gru-after"]
# Each cell with one of the directions.
CELL_AND_DIRECTION = [(name, number % 2 == 1) for number, name in enumerate(EVERY_STEP)]


def wide_problem(cell: Any, steps: int, batch: int) -> tuple[Problem, dict[str, np.ndarray]]:
    """Return a problem in float32, and masks for it."""
    rng = np.random.default_rng(0)
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    return given, {
        "resets": rng.random((steps, batch)) < 0.2,
        "lengths": rng.integers(0, steps + 1, batch, np.int32),
    }


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("name, reverse", CELL_AND_DIRECTION)
def test_several_tiles_in_either_direction(name: str, reverse: bool, streamed: bool) -> None:
    """The blocks of rows and of time are small, the last ones not full; a padded H has three tiles."""
    cell, steps, batch = dataclasses.replace(CELLS[name], hidden_size=260), 5, 37
    given, masks = wide_problem(cell, steps, batch)
    got = kernel(cell, given, as_masks(steps, **masks), reverse, streamed=streamed)
    assert_close(got, scan(cell, given, reverse, **masks), TOLERANCES["float32"])


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("name", ["rnn-relu", "lstm-peephole", "gru-before"])
def test_as_in_the_chips_memory(name: str, streamed: bool) -> None:
    """Pallas's TPU interpret mode fills new memory with nan and copies blocks as a chip does.

    There are two tiles and several blocks. Where gx is overwritten the blocks are full ones, since the
    interpreter takes no others there. The cells are those that copy something of their own: peepholes,
    and what the second product of reset="before" takes.
    """
    cell = dataclasses.replace(CELLS[name], hidden_size=130)
    steps, batch = (3, 19) if streamed else (4, 32)
    given, masks = wide_problem(cell, steps, batch)
    how = {"interpret": pltpu.InterpretParams(), "streamed": streamed}
    got = kernel(cell, given, as_masks(steps, **masks), True, **how)
    assert_close(got, scan(cell, given, True, **masks), TOLERANCES["float32"])


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 1), (9, 2, 130)])
def test_odd_sizes(steps: int, batch: int, hidden: int, streamed: bool) -> None:
    cell = gru(hidden, reset="after")
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    got = kernel(cell, given, Masks(), streamed=streamed)
    assert_close(got, scan(cell, given), TOLERANCES["float32"])


def test_no_step() -> None:
    cell = lstm(4)
    given = problem(cell, 0, BATCH, FEATURES).cast("float32")
    assert_close(kernel(cell, given, Masks()), scan(cell, given), 0)


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("name", CELLS)
def test_bfloat16(name: str, streamed: bool) -> None:
    """Operands are bfloat16, states and sums float32: as in scan, and near the exact numbers."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("bfloat16")
    masks = as_masks(STEPS, **MASKS["both"])
    (final, ys), gradients = kernel(cell, given, masks, streamed=streamed)
    want, want_gradients = scan(cell, given, **MASKS["both"])
    # The outputs are rounded to bfloat16; the states are those of scan.
    assert_close((final, ys), want, 2.0**-8)
    assert_close(gradients, want_gradients, TOLERANCES["bfloat16"])
    exact = reference(cell, *given.exact().inputs, **MASKS["both"])
    assert_close((final, ys), exact, TOLERANCES["bfloat16"])
    assert {s.dtype for s in final} == {jnp.dtype("float32")}
    assert {d.dtype for d in jax.tree.leaves(gradients[0])} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
@both_kinds
@both_ways
def test_inactive_rows(reverse: bool, streamed: bool) -> None:
    """In the padding outputs are zeros, the state is kept, and inputs, even nan, change no result."""
    cell = lstm(4, peephole=True)
    given = problem(cell, STEPS, BATCH, FEATURES).cast("float32")
    masks = as_masks(STEPS, lengths=LENGTHS)
    padding = np.arange(STEPS)[:, None] >= LENGTHS
    gx = cell.project(given.params, given.xs)

    @jax.jit
    def pulled(gx: Any) -> Any:
        def values(gx: Any, state: Any) -> Any:
            return run(cell, given.params, gx, state, masks, reverse)

        with tiled(streamed):
            results, back = jax.vjp(values, gx, given.state)
            return results, back(given.weights)

    (final, ys), (d_gx, d_state) = got = pulled(gx)
    assert not np.asarray(ys)[padding].any() and np.asarray(ys)[~padding].all()
    assert not np.asarray(d_gx)[padding].any()
    nothing = [s[1] for s in (*final, *d_state)]
    assert_close(nothing, [s[1] for s in (*given.state, *given.weights[0])], 0)
    assert_close(pulled(jnp.where(jnp.asarray(padding)[..., None], jnp.nan, gx)), got, 0)


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize(("name", "dtype"), [("lstm", "float32"), ("gru-before", "bfloat16")])
def test_looked_up_inputs(name: str, dtype: str, streamed: bool) -> None:
    """Inputs that are rows of a table give the results and the table's gradient of the scan."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast(dtype)
    table = cell.project(given.params, given.xs[:, 0])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4, (STEPS, BATCH), np.int32))
    cotangents = jax.tree.map(lambda w: w.astype(jnp.float32), given.weights)

    @partial(jax.jit, static_argnums=0)
    def pulled(unroll: Any) -> Any:
        with tiled(streamed):
            results, back = jax.vjp(
                lambda p, table, state: unroll(p, Lookup(table, tokens), state),
                *(given.params, table, given.state),
            )
            return results, back(cotangents)

    resets, lengths = jnp.asarray(RESETS), jnp.asarray(LENGTHS)
    masks = as_masks(STEPS, **MASKS["both"])
    got = pulled(partial(run, cell, masks=masks, reverse=True))
    want = pulled(
        lambda *given: unroll_projected(
            cell, *given, resets=resets, lengths=lengths, reverse=True, implementation="scan"
        )
    )
    assert_close(got, want, TOLERANCES[dtype])


@both_kinds
def test_these_are_two_kernels(streamed: bool) -> None:
    """Otherwise the tests above would check one kernel twice."""
    given = problem(lstm(4), STEPS, BATCH, FEATURES).cast("float32")
    traced = kernel.trace(lstm(4), given, Masks(), streamed=streamed)
    end = "_streamed" if streamed else ""
    found = re.findall(r"name=(lstm_\w+)", str(traced.jaxpr))
    assert set(found) == {f"lstm_forward{end}", f"lstm_backward{end}"}


# --- JAX's transformations ----------------------------------------------------------------------


@pytest.mark.slow
def test_vmap_is_a_loop() -> None:
    cell = CELLS["lstm-peephole"]
    first, second = (problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32") for seed in (0, 1))
    masks = as_masks(STEPS, **MASKS["both"])
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    got = jax.vmap(kernel, in_axes=(None, 0, None))(cell, stack(first, second), masks)
    want = stack(kernel(cell, first, masks), kernel(cell, second, masks))
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
def test_forward_mode_and_second_derivatives() -> None:
    """They are those of "scan", also through the padding of the units."""
    cell = CELLS["gru-after"]
    given, other = (problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32") for seed in (0, 1))

    def loss(by_kernel: bool, params: Any) -> Any:
        if by_kernel:
            _, ys = run(cell, params, cell.project(params, given.xs), given.state, Masks())
        else:
            gx = cell.project(params, given.xs)
            _, ys = unroll_projected(cell, params, gx, given.state, implementation="scan")
        return (ys**2).sum()

    for derivative in (lambda f: f, jax.grad):
        got, want = (
            jax.jit(partial(jax.jvp, derivative(partial(loss, by_kernel))))(
                (given.params,), (other.params,)
            )
            for by_kernel in (True, False)
        )
        # A second derivative is a sum of more terms than a first one.
        assert_close(got, want, 10 * TOLERANCES["float32"])


def compare_sharded(devices: int) -> None:
    """Compare values and gradients with rows divided over a mesh and weights on every device.

    The 9 steps make two blocks, of which the last is not full: only then does Pallas's interpreter take
    a loop inside a checked `shard_map`. Compiled kernels take any (`test_tpu_compile.py`).
    """
    cell, steps, batch = CELLS["lstm-peephole"], 9, 8
    given = problem(cell, steps, batch, FEATURES).cast("float32")
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    rng = np.random.default_rng(0)
    masks = {
        "resets": rng.random((steps, batch)) < 0.2,
        "lengths": rng.integers(0, steps + 1, batch, np.int32),
    }
    want = scan(cell, given, **masks)
    for check in (True, False):
        got = kernel(cell, given, as_masks(steps, **masks), mesh=mesh, check=check)
        assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
def test_sharded_over_one_device() -> None:
    compare_sharded(1)


@pytest.mark.process
def test_sharded_over_four_devices() -> None:
    """Runs in a process of its own, since the number of devices is fixed when JAX starts."""
    code = "import jax; from tests import conftest; from tests.recurrence.kernels import test_tpu; "
    code += "assert len(jax.devices()) == 4; test_tpu.compare_sharded(4)"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


# --- what fits, and what cannot run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("vmem_mib", "cell", "batch", "dtype", "expected_tiles"),
    [
        (16, lstm(512), 160, "bfloat16", Tiles(160, 1, 512)),
        (16, lstm(1024), 160, "bfloat16", Tiles(32, 1, 1024)),
        (16, lstm(1024), 160, "float32", Tiles(160, 1, 128, streamed=True)),
        (16, lstm(2048), 160, "bfloat16", Tiles(160, 1, 128, streamed=True)),
        (16, lstm(2048), 1000, "bfloat16", Tiles(128, 1, 128, streamed=True)),
        (16, gru(2048), 160, "bfloat16", Tiles(160, 1, 128, streamed=True)),
        (16, gru(1500), 64, "float32", Tiles(64, 1, 256, streamed=True)),
        (64, lstm(2048), 160, "bfloat16", Tiles(80, 1, 1024)),
        (64, lstm(2048), 160, "float32", Tiles(160, 1, 512, streamed=True)),
        (64, lstm(4096), 160, "bfloat16", Tiles(160, 1, 512, streamed=True)),
        (64, rnn(4096), 160, "bfloat16", Tiles(80, 1, 1024)),
        (128, lstm(2048), 160, "bfloat16", Tiles(160, 2, 1024)),
        (128, lstm(4096), 160, "bfloat16", Tiles(160, 1, 1024, streamed=True)),
    ],
)
def test_weights_are_streamed_where_they_do_not_fit(
    vmem_mib: int,
    cell: Any,
    batch: int,
    dtype: str,
    expected_tiles: Tiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "vmem_mib", lambda: vmem_mib)
    assert tiles.tiles_for(cell, 40, batch, jnp.dtype(dtype)) == expected_tiles


def abstract(cell: Any, batch: int, dtype: str) -> Recurrence:
    """Return a problem of shapes alone."""
    with unchecked():
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
        state = jax.eval_shape(lambda: cell.initial_state(batch))
    # float64 exists only where it is switched on, which `eval_shape` would need.
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, np.dtype(dtype)), params)
    gx: Any = jax.ShapeDtypeStruct((2, batch, len(cell.GATES) * cell.hidden_size), jnp.float32)
    return Recurrence(cell, params, gx, state)


@pytest.mark.parametrize(
    ("cell", "batch", "dtype", "message"),
    [
        (lstm(4), 3, "float64", "float32 or bfloat16 weights, not float64"),
        (lstm(4), 3, "float16", "float32 or bfloat16 weights, not float16"),
        (lstm(4), 0, "float32", "a batch of 0 rows"),
        (lstm(8192), 64, "bfloat16", "H = 8192 in bfloat16 takes 512 MiB, .* the 16 MiB of VMEM"),
        (gru(5000), 1, "float32", "H = 5000 in float32 takes 300 MiB, .* a block of 1 rows"),
        (lstm(2048), 64, "bfloat16", None),
        (lstm(1024), 64, "float32", None),
        (lstm(512), 10_000, "float32", None),
    ],
)
def test_what_does_not_fit_is_named(cell: Any, batch: int, dtype: str, message: Any) -> None:
    """A CPU counts as the TPU with the least memory."""
    reason = tpu.unsupported_reason(abstract(cell, batch, dtype))
    if message is None:
        assert reason is None
        return
    assert reason is not None and re.search(message, reason), reason


def test_what_does_not_fit_has_no_tiles() -> None:
    with pytest.raises(ValueError, match=r"w_h of H = 8192"):
        tiles.tiles_for(lstm(8192), 2, 64, jnp.bfloat16)


@pytest.mark.slow
def test_other_cells_are_refused() -> None:
    given = abstract(rnn(4), 3, "float32")
    reason = tpu.unsupported_reason(given._replace(cell=Leaky(4)))
    assert reason is not None and "not those of Leaky" in reason


@pytest.mark.slow
def test_by_name_what_does_not_fit_is_refused() -> None:
    given = abstract(lstm(8192), 64, "float32")
    with unchecked(), pytest.raises(ValueError, match=r"cannot run this: w_h of H = 8192"):
        jax.eval_shape(partial(run, given.cell, masks=Masks()), *given[1:4])
