"""The TPU kernels, interpreted on the CPU: values and gradients against the scan's automatic
derivatives and the numpy oracle, under every mask and direction, padded, tiled, sharded; what they
refuse. That they compile for real TPUs is shown in `test_tpu_compile.py`."""

import dataclasses
import os
import re
import subprocess
import sys
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
from oracle import (
    CELLS,
    TOLERANCES,
    Problem,
    assert_close,
    expected,
    library,
    problem,
    reference,
    unchecked,
)

from jaxrnn import gru, lstm
from jaxrnn.kernels import tpu, tpu_tiles
from jaxrnn.kernels.inputs import Lookup, Masks
from jaxrnn.unroll import unroll_projected

STEPS, BATCH, FEATURES = 5, 3, 3
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
LENGTHS = np.array([STEPS, 0, 3], np.int32)  # whole, nothing, and a reset inside the padding
MASKS = {
    "plain": {},
    "resets": {"resets": RESETS},
    "lengths": {"lengths": LENGTHS},
    "both": {"resets": RESETS, "lengths": LENGTHS},
}
PRODUCT = [(n, m) for n in CELLS for m in MASKS if m == "both" or n == "lstm-peephole"]

both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def as_masks(steps: int, resets: Any = None, lengths: Any = None) -> Masks:
    """What `unroll` makes of them: no reset where a row stands still."""
    active = None if lengths is None else np.arange(steps)[:, None] < lengths
    if resets is not None and active is not None:
        resets = resets & active
    return jax.tree.map(jnp.asarray, Masks(resets, active))


@partial(jax.jit, static_argnames=("cell", "reverse", "interpret", "mesh", "check"))
def kernel(
    cell: Any,
    given: Problem,
    masks: Masks,
    reverse: bool = False,
    interpret: Any = True,
    mesh: Any = None,
    check: bool = True,
) -> tuple[Any, Any]:
    """`oracle.library` by the TPU kernels; over the rows of a mesh where one is given."""
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

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def scan(cell: Any, given: Problem, reverse: bool = False, **masks: Any) -> tuple[Any, Any]:
    masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **masks, reverse=reverse, implementation="scan")


def with_orthogonal(cell: Any, given: Problem) -> Problem:
    """The same with w_h as a cell begins; drawn at random, a wide one has far too large a norm."""
    w_h = np.asarray(cell.init(jax.random.key(0), FEATURES).w_h)
    return given._replace(params=given.params._replace(w_h=w_h))


# --- values and gradients -----------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(("name", "mask"), PRODUCT)
def test_kernel_is_scan_is_numpy(name: str, mask: str, reverse: bool) -> None:
    """H = 4 is padded to 128; gradients against finite differences of the numpy oracle too."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("float32")
    got = kernel(cell, given, as_masks(STEPS, **MASKS[mask]), reverse)
    assert_close(got, scan(cell, given, reverse, **MASKS[mask]), TOLERANCES["float32"])
    want = expected(cell, given.exact(), **MASKS[mask], reverse=reverse)
    assert_close(got, want, TOLERANCES["float32"])


@both_ways
@pytest.mark.parametrize("name", ["rnn-relu", "lstm-peephole", "gru-before", "gru-after"])
def test_several_tiles_in_every_direction(
    name: str, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks of rows and of time, the last ones not full, three tiles of a padded H."""
    monkeypatch.setattr(tpu_tiles, "ROWS", (16,))
    monkeypatch.setattr(tpu_tiles, "STEPS", (2,))
    cell = dataclasses.replace(CELLS[name], hidden=260)
    steps, batch = 5, 37
    assert tpu_tiles.tiles_for(cell, steps, batch, jnp.dtype("float32")) == (16, 2, 128)
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    rng = np.random.default_rng(0)
    masks = {
        "resets": rng.random((steps, batch)) < 0.2,
        "lengths": rng.integers(0, steps + 1, batch, np.int32),
    }
    got = kernel(cell, given, as_masks(steps, **masks), reverse)
    assert_close(got, scan(cell, given, reverse, **masks), TOLERANCES["float32"])


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before"])
def test_as_the_chips_memory_would_have_it(name: str) -> None:
    """In Pallas' TPU interpret mode, which gives out memory full of nan and moves blocks by hand."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("float32")
    masks = as_masks(STEPS, **MASKS["both"])
    got = kernel(cell, given, masks, True, pltpu.InterpretParams())
    assert_close(got, scan(cell, given, True, **MASKS["both"]), TOLERANCES["float32"])


@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 1), (9, 2, 130)])
def test_odd_sizes(steps: int, batch: int, hidden: int) -> None:
    cell = gru(hidden, reset="after")
    given = with_orthogonal(cell, problem(cell, steps, batch, FEATURES)).cast("float32")
    assert_close(kernel(cell, given, Masks(None, None)), scan(cell, given), TOLERANCES["float32"])


def test_no_step() -> None:
    cell = lstm(4)
    given = problem(cell, 0, BATCH, FEATURES).cast("float32")
    assert_close(kernel(cell, given, Masks(None, None)), scan(cell, given), 0)


@pytest.mark.parametrize("name", CELLS)
def test_bfloat16(name: str) -> None:
    """Operands in bfloat16, state and sums in float32: as scan, and near the exact numbers."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast("bfloat16")
    (final, ys), gradients = kernel(cell, given, as_masks(STEPS, **MASKS["both"]))
    want, slopes = scan(cell, given, **MASKS["both"])
    assert_close((final, ys), want, 2.0**-8)  # ys are rounded; the states are those of scan
    assert_close(gradients, slopes, TOLERANCES["bfloat16"])
    exact = reference(cell, *given.exact().inputs, **MASKS["both"])
    assert_close((final, ys), exact, TOLERANCES["bfloat16"])
    assert {s.dtype for s in final} == {jnp.dtype("float32")}
    assert {d.dtype for d in jax.tree.leaves(gradients[0])} == {jnp.dtype("bfloat16")}


@both_ways
def test_rows_that_stand_still(reverse: bool) -> None:
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
        results, back = jax.vjp(lambda g, s: run(gx=g, state=s, masks=masks), gx, given.state)
        return results, back(given.weights)

    (final, ys), (d_gx, d_state) = got = pulled(gx)
    assert not np.asarray(ys)[padding].any() and np.asarray(ys)[~padding].all()
    assert not np.asarray(d_gx)[padding].any()
    nothing = [s[1] for s in (*final, *d_state)]
    assert_close(nothing, [s[1] for s in (*given.state, *given.weights[0])], 0)
    assert_close(pulled(jnp.where(jnp.asarray(padding)[..., None], jnp.nan, gx)), got, 0)


@pytest.mark.parametrize(("name", "dtype"), [("lstm", "float32"), ("gru-before", "bfloat16")])
def test_looked_up_inputs(name: str, dtype: str) -> None:
    """Rows of a table, by token: as the scan looks them up, and so is the table's gradient."""
    cell, given = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES).cast(dtype)
    table = cell.project(given.params, given.xs[:, 0])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4, (STEPS, BATCH), np.int32))
    cotangents = jax.tree.map(lambda w: w.astype(jnp.float32), given.weights)

    @partial(jax.jit, static_argnums=0)
    def pulled(run: Any) -> Any:
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
    code = "import conftest, jax, test_tpu; assert len(jax.devices()) == 4; "
    code += "test_tpu.compare_sharded(4)"
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


# --- what cannot run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "batch", "dtype", "message"),
    [
        (lstm(4), 3, "float64", "float32 or bfloat16 weights, not float64"),
        (lstm(4), 3, "float16", "float32 or bfloat16 weights, not float16"),
        (lstm(4), 0, "float32", "a batch of 0 rows"),
        (lstm(2048), 64, "bfloat16", "H = 2048 in bfloat16 takes 32 MiB .* the 16 MiB of VMEM"),
        (lstm(1024), 64, "float32", "H = 1024 in float32 takes 16 MiB"),
        (gru(1500), 64, "float32", "H = 1500 in float32 takes 27 MiB"),  # 1536 of them
        (lstm(1024), 64, "bfloat16", None),
        (gru(1024), 64, "bfloat16", None),
        (lstm(512), 10_000, "float32", None),
    ],
)
def test_what_does_not_fit_is_named(cell: Any, batch: int, dtype: str, message: Any) -> None:
    """On the CPU, which counts as the TPU with the least memory."""
    reason = tpu.obstacle(cell, batch, jnp.dtype(dtype))
    if message is None:
        assert reason is None
        return
    assert reason is not None and re.search(message, reason), reason


def test_by_name_what_does_not_fit_is_refused() -> None:
    cell = lstm(2048)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    gx, state = jax.ShapeDtypeStruct((2, 64, 4 * 2048), jnp.float32), cell.initial_state(64)
    run = partial(tpu.run, cell, masks=Masks(None, None), reverse=False)
    with unchecked(), pytest.raises(ValueError, match=r"cannot run this: w_h of H = 2048"):
        jax.eval_shape(run, params, gx, state)
