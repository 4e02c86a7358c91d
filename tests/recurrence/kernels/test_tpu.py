"""The TPU kernels, interpreted on the CPU: values and gradients against the scan's automatic
derivatives and the numpy oracle, under every mask and direction, padded, tiled, sharded, with the
recurrent weights resident and streamed; how they are tiled, and what they refuse. That they compile
for real TPUs is shown in `test_tpu_compile.py`."""

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
from jaxrnn.recurrence.kernels.tpu import tiles as tpu_tiles
from jaxrnn.recurrence.kernels.tpu.tiles import Tiles
from jaxrnn.recurrence.problem import Lookup, Masks
from tests.support.oracle import TOLERANCES, assert_close, reference, unchecked
from tests.support.problems import (
    BATCH,
    CELLS,
    FEATURES,
    LENGTHS,
    MASKS,
    RESETS,
    STEPS,
    Problem,
    as_masks,
    both_ways,
    expected,
    library,
    problem,
    with_orthogonal,
)

PRODUCT = [(n, m) for n in CELLS for m in MASKS if m == "both" or n == "lstm-peephole"]
both_kinds = pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])


@contextmanager
def tiled(streamed: bool) -> Iterator[None]:
    """What is traced here takes small blocks of rows and of time, the weights resident or streamed."""

    def tiles_for(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles:
        return Tiles(min(batch, 16), 1 if streamed else min(steps, 2), 128, streamed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "tiles_for", tiles_for)
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
    """`oracle.library` by the TPU kernels; over the rows of a mesh where one is given.

    streamed: as for `tiled`; None for the blocks that a chip would get.
    """
    run = partial(tpu.run, cell, reverse=reverse, interpret=interpret)
    if mesh is not None:
        rows = jax.tree.map(lambda _: P("data"), given.state)
        run = jax.shard_map(
            lambda params, gx, state, masks: tpu.run(
                cell, params, gx, state, masks, reverse, interpret=interpret
            ),
            mesh=mesh,
            in_specs=(P(), P(None, "data"), rows, P(None, "data")),
            out_specs=(rows, P(None, "data")),
            check_vma=check,
        )

    def loss(params: Any, xs: Any, state: Any) -> Any:
        final, ys = run(params, cell.project(params, xs), state, masks)
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


@both_kinds
@both_ways
@pytest.mark.parametrize(("name", "mask"), PRODUCT)
def test_kernel_is_scan_is_numpy(name: str, mask: str, reverse: bool, streamed: bool) -> None:
    """H = 4 is padded to 128; gradients against finite differences of the numpy oracle too."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("float32")
    got = kernel(cell, given, as_masks(STEPS, **MASKS[mask]), reverse, streamed=streamed)
    assert_close(got, scan(cell, given, reverse, **MASKS[mask]), TOLERANCES["float32"])
    want = expected(cell, given.exact(), **MASKS[mask], reverse=reverse)
    assert_close(got, want, TOLERANCES["float32"])


EVERY_STEP = ["rnn-relu", "lstm", "lstm-peephole", "gru-before", "gru-after"]
TURNS = [(name, number % 2 == 1) for number, name in enumerate(EVERY_STEP)]  # a direction for each


def wide_problem(cell: Any, steps: int, batch: int) -> tuple[Problem, dict[str, np.ndarray]]:
    """In float32, and some masks."""
    rng = np.random.default_rng(0)
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    return given, {
        "resets": rng.random((steps, batch)) < 0.2,
        "lengths": rng.integers(0, steps + 1, batch, np.int32),
    }


@both_kinds
@pytest.mark.parametrize("name, reverse", TURNS)
def test_several_tiles_in_either_direction(name: str, reverse: bool, streamed: bool) -> None:
    """Small blocks of rows and of time, the last ones not full, three tiles of a padded H."""
    cell, steps, batch = dataclasses.replace(CELLS[name], hidden_size=260), 5, 37
    given, masks = wide_problem(cell, steps, batch)
    got = kernel(cell, given, as_masks(steps, **masks), reverse, streamed=streamed)
    assert_close(got, scan(cell, given, reverse, **masks), TOLERANCES["float32"])


@both_kinds
@pytest.mark.parametrize("name", ["rnn-relu", "lstm-peephole", "gru-before"])
def test_as_the_chips_memory_would_have_it(name: str, streamed: bool) -> None:
    """In Pallas' TPU interpret mode, which gives out memory full of nan and moves blocks by hand.

    Two tiles, several blocks; full ones where gx is overwritten, since it takes no others there. What
    moves differs by cell only here: a peephole's row, and the second product of reset="before".
    """
    cell = dataclasses.replace(CELLS[name], hidden_size=130)
    steps, batch = (3, 19) if streamed else (4, 32)
    given, masks = wide_problem(cell, steps, batch)
    how = {"interpret": pltpu.InterpretParams(), "streamed": streamed}
    got = kernel(cell, given, as_masks(steps, **masks), True, **how)
    assert_close(got, scan(cell, given, True, **masks), TOLERANCES["float32"])


@both_kinds
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 1), (9, 2, 130)])
def test_odd_sizes(steps: int, batch: int, hidden: int, streamed: bool) -> None:
    cell = gru(hidden, reset="after")
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    got = kernel(cell, given, Masks(None, None), streamed=streamed)
    assert_close(got, scan(cell, given), TOLERANCES["float32"])


def test_no_step() -> None:
    cell = lstm(4)
    given = problem(cell, 0, BATCH, FEATURES).cast("float32")
    assert_close(kernel(cell, given, Masks(None, None)), scan(cell, given), 0)


@both_kinds
@pytest.mark.parametrize("name", CELLS)
def test_bfloat16(name: str, streamed: bool) -> None:
    """Operands in bfloat16, state and sums in float32: as scan, and near the exact numbers."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("bfloat16")
    masks = as_masks(STEPS, **MASKS["both"])
    (final, ys), gradients = kernel(cell, given, masks, streamed=streamed)
    want, slopes = scan(cell, given, **MASKS["both"])
    assert_close((final, ys), want, 2.0**-8)  # ys are rounded; the states are those of scan
    assert_close(gradients, slopes, TOLERANCES["bfloat16"])
    exact = reference(cell, *given.exact().inputs, **MASKS["both"])
    assert_close((final, ys), exact, TOLERANCES["bfloat16"])
    assert {s.dtype for s in final} == {jnp.dtype("float32")}
    assert {d.dtype for d in jax.tree.leaves(gradients[0])} == {jnp.dtype("bfloat16")}


@both_kinds
@both_ways
def test_rows_that_stand_still(reverse: bool, streamed: bool) -> None:
    """Their outputs are zeros, their state is kept, and what lies in the padding, even nan, is not
    seen, neither in the values nor in the gradients."""
    cell = lstm(4, peephole=True)
    given = problem(cell, STEPS, BATCH, FEATURES).cast("float32")
    masks = as_masks(STEPS, lengths=LENGTHS)
    padding = np.arange(STEPS)[:, None] >= LENGTHS
    gx = cell.project(given.params, given.xs)

    @jax.jit
    def pulled(gx: Any) -> Any:
        run = partial(tpu.run, cell, given.params, reverse=reverse, interpret=True)
        with tiled(streamed):
            results, back = jax.vjp(lambda g, s: run(gx=g, state=s, masks=masks), gx, given.state)
            return results, back(given.weights)

    (final, ys), (d_gx, d_state) = got = pulled(gx)
    assert not np.asarray(ys)[padding].any() and np.asarray(ys)[~padding].all()
    assert not np.asarray(d_gx)[padding].any()
    nothing = [s[1] for s in (*final, *d_state)]
    assert_close(nothing, [s[1] for s in (*given.state, *given.weights[0])], 0)
    assert_close(pulled(jnp.where(jnp.asarray(padding)[..., None], jnp.nan, gx)), got, 0)


@both_kinds
@pytest.mark.parametrize(("name", "dtype"), [("lstm", "float32"), ("gru-before", "bfloat16")])
def test_looked_up_inputs(name: str, dtype: str, streamed: bool) -> None:
    """Rows of a table, by token: as the scan looks them up, and so is the table's gradient."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast(dtype)
    table = cell.project(given.params, given.xs[:, 0])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4, (STEPS, BATCH), np.int32))
    cotangents = jax.tree.map(lambda w: w.astype(jnp.float32), given.weights)

    @partial(jax.jit, static_argnums=0)
    def pulled(run: Any) -> Any:
        with tiled(streamed):
            results, back = jax.vjp(
                lambda p, table, state: run(p, Lookup(table, tokens), state),
                *(given.params, table, given.state),
            )
            return results, back(cotangents)

    resets, lengths = jnp.asarray(RESETS), jnp.asarray(LENGTHS)
    masks = as_masks(STEPS, **MASKS["both"])
    got = pulled(partial(tpu.run, cell, masks=masks, reverse=True, interpret=True))
    want = pulled(
        lambda *given: unroll_projected(cell, *given, resets, lengths, True, implementation="scan")
    )
    assert_close(got, want, TOLERANCES[dtype])


@both_kinds
def test_these_are_two_kernels(streamed: bool) -> None:
    """Or the tests above would compare one kernel twice."""
    given = problem(lstm(4), STEPS, BATCH, FEATURES).cast("float32")
    traced = kernel.trace(lstm(4), given, Masks(None, None), streamed=streamed)
    end = "_streamed" if streamed else ""
    found = re.findall(r"name=(lstm_\w+)", str(traced.jaxpr))
    assert set(found) == {f"lstm_forward{end}", f"lstm_backward{end}"}


# --- JAX's transformations ----------------------------------------------------------------------


def test_vmap_is_a_loop() -> None:
    cell = CELLS["lstm-peephole"]
    first, second = (problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32") for seed in (0, 1))
    masks = as_masks(STEPS, **MASKS["both"])
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    got = jax.vmap(kernel, in_axes=(None, 0, None))(cell, stack(first, second), masks)
    want = stack(kernel(cell, first, masks), kernel(cell, second, masks))
    assert_close(got, want, TOLERANCES["float32"])


def compare_sharded(devices: int) -> None:
    """Rows of the batch over a mesh, the weights everywhere: values, and their summed gradient.

    In 9 steps, for two blocks the last of which is not full: only then does Pallas' interpreter take
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


def test_sharded_over_one_device() -> None:
    compare_sharded(1)


def test_sharded_over_four_devices() -> None:
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    code = "import jax; from tests import conftest; from tests.recurrence.kernels import test_tpu; "
    code += "assert len(jax.devices()) == 4; test_tpu.compare_sharded(4)"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


# --- what fits, and what cannot run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("vmem", "cell", "batch", "dtype", "tiles"),
    [
        (16, lstm(512), 160, "bfloat16", Tiles(160, 1, 512)),
        (16, lstm(1024), 160, "bfloat16", Tiles(32, 1, 1024)),
        (16, lstm(1024), 160, "float32", Tiles(160, 1, 128, streamed=True)),
        (16, lstm(2048), 160, "bfloat16", Tiles(160, 1, 128, streamed=True)),
        (16, lstm(2048), 1000, "bfloat16", Tiles(128, 1, 128, streamed=True)),
        (16, gru(2048), 160, "bfloat16", Tiles(160, 1, 128, streamed=True)),
        (16, gru(1500), 64, "float32", Tiles(64, 1, 256, streamed=True)),  # 1536 of them
        (64, lstm(2048), 160, "bfloat16", Tiles(80, 1, 1024)),
        (64, lstm(2048), 160, "float32", Tiles(160, 1, 512, streamed=True)),
        (64, lstm(4096), 160, "bfloat16", Tiles(160, 1, 512, streamed=True)),
        (64, rnn(4096), 160, "bfloat16", Tiles(80, 1, 1024)),
        (128, lstm(2048), 160, "bfloat16", Tiles(160, 2, 1024)),
        (128, lstm(4096), 160, "bfloat16", Tiles(160, 1, 1024, streamed=True)),
    ],
)
def test_weights_are_streamed_where_they_do_not_fit(
    vmem: int, cell: Any, batch: int, dtype: str, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpu_tiles, "vmem", lambda: vmem)
    assert tpu_tiles.tiles_for(cell, 40, batch, jnp.dtype(dtype)) == tiles


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
    """On the CPU, which counts as the TPU with the least memory."""
    reason = tpu.unsupported_reason(cell, batch, jnp.dtype(dtype))
    if message is None:
        assert reason is None
        return
    assert reason is not None and re.search(message, reason), reason


def test_by_name_what_does_not_fit_is_refused() -> None:
    cell = lstm(8192)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    gx, state = jax.ShapeDtypeStruct((2, 64, 4 * 8192), jnp.float32), cell.initial_state(64)
    run = partial(tpu.run, cell, masks=Masks(None, None), reverse=False)
    with unchecked(), pytest.raises(ValueError, match=r"cannot run this: w_h of H = 8192"):
        jax.eval_shape(run, params, gx, state)
