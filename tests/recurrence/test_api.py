"""`unroll`: its implementations against each other and against the numpy oracle, under every mix of
resets, lengths and direction; its promises about state, padding and dtypes; its errors."""

import dataclasses
from functools import partial
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrnn import gradient_flow, gru, lstm, network, record, rnn, unroll
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.problem import Dense, Lookup
from tests.support.oracle import TOLERANCES, assert_close, differences, reference, trace, unchecked
from tests.support.problems import (
    BATCH,
    CELLS,
    EVERY,
    FEATURES,
    HIDDEN,
    IMPLEMENTATIONS,
    LENGTHS,
    MASKS,
    RESETS,
    STEPS,
    USUAL,
    Leaky,
    Problem,
    both_ways,
    every_implementation,
    expected,
    few_cells,
    implementations,
    in_float32,
    library,
    on_device,
    problem,
    two_cells,
)


def assert_implementations_agree(cell: Any, exact: Problem, **masks: Any) -> Any:
    """Compare all with scan and scan's values with numpy, in float64. Return what scan gives."""
    with jax.enable_x64(True):
        given = exact.cast("float64")
        reverse = masks.pop("reverse", False)
        scan, *others = (
            library(cell, given, **on_device(masks), reverse=reverse, implementation=implementation)
            for implementation in IMPLEMENTATIONS
        )
    for other in others:
        assert_close(other, scan, TOLERANCES["float64"])
    want = reference(cell, *exact.inputs, **masks, reverse=reverse)
    assert_close(scan[0], want, TOLERANCES["float64"])
    return scan


# --- values and gradients -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "batch", "features", "hidden"), [(0, 2, 3, 4), (1, 1, 1, 1), (7, 1, 5, 3)]
)
@two_cells
def test_odd_sizes(name: str, steps: int, batch: int, features: int, hidden: int) -> None:
    """No step, one step, one row, one feature, odd widths: values and gradients against numpy."""
    cell = dataclasses.replace(CELLS[name], hidden_size=hidden)
    given = problem(cell, steps, batch, features)
    _, gradients = assert_implementations_agree(cell, given)
    assert_close(gradients, expected(cell, given)[1], TOLERANCES["differences"])


@pytest.mark.slow
@hypothesis.settings(max_examples=6, derandomize=True, database=None)
@hypothesis.given(
    kind=st.sampled_from(sorted(CELLS)),
    sizes=st.tuples(*(st.integers(low, 6) for low in (0, 1, 1, 1))),
    masked=st.tuples(st.booleans(), st.booleans()),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_implementation_is_numpy_for_any_sizes_and_masks(
    kind: str, sizes: tuple[int, ...], masked: tuple[bool, bool], reverse: bool, seed: int
) -> None:
    steps, batch, features, hidden = sizes
    rng = np.random.default_rng(seed)
    masks = {
        "resets": rng.random((steps, batch)) < 0.3,
        "lengths": rng.integers(0, steps + 1, batch, np.int32),
    }
    masks = {name: mask for (name, mask), on in zip(masks.items(), masked, strict=True) if on}
    cell = dataclasses.replace(CELLS[kind], hidden_size=hidden)
    given = problem(cell, steps, batch, features, seed)
    assert_implementations_agree(cell, given, **masks, reverse=reverse)


# --- state, resets, lengths, direction ------------------------------------------------------------


@pytest.mark.slow
@both_ways
@two_cells
def test_chunks_with_the_state_carried_are_the_whole(name: str, reverse: bool) -> None:
    """Chunks of 2 and 3 steps (in reverse the later one first), values and gradients."""
    cell, given = in_float32(name)
    masks = on_device(MASKS["both"])

    def chunked(params: Any, xs: Any, state: Any) -> Any:
        ys: dict[int, Any] = {}
        for start, stop in ((2, 5), (0, 2)) if reverse else ((0, 2), (2, 5)):
            state, ys[start] = unroll(
                cell,
                params,
                xs[start:stop],
                state,
                resets=masks["resets"][start:stop],
                lengths=jnp.clip(masks["lengths"] - start, 0, stop - start),
                reverse=reverse,
            )
        return state, jnp.concatenate([ys[0], ys[2]])

    @jax.jit
    def values_and_gradients(given: Problem) -> Any:
        results, pullback = jax.vjp(chunked, *given.inputs)
        return results, pullback(given.weights)

    whole = library(cell, given, **masks, reverse=reverse)
    assert_close(values_and_gradients(given), whole, TOLERANCES["float32"])


@pytest.mark.slow
@implementations
@two_cells
def test_reverse_with_lengths_reverses_each_row_within_its_length(
    name: str, implementation: str
) -> None:
    """Rows turned round in numpy, run forward and turned back are the reverse run."""
    cell, given = in_float32(name)

    def turn(a: Any) -> np.ndarray:
        a = np.array(a)
        for b, length in enumerate(LENGTHS):
            a[:length, b] = a[:length, b][::-1]
        return a

    run = jax.jit(partial(unroll, cell, implementation=implementation), static_argnames="reverse")
    params, xs, state = given.inputs
    lengths = jnp.asarray(LENGTHS)
    got = run(params, xs, state, resets=jnp.asarray(RESETS), lengths=lengths, reverse=True)
    resets = jnp.asarray(turn(RESETS))
    final, ys = run(params, jnp.asarray(turn(xs)), state, resets=resets, lengths=lengths)
    assert_close(got, (final, turn(ys)), TOLERANCES["float32"])


@pytest.mark.slow
@implementations
@two_cells
def test_a_reset_is_a_new_start_from_zeros(name: str, implementation: str) -> None:
    """Reset at step 2 = steps 0-1 from the given state, then steps 2-4 run on their own."""
    cell, given = in_float32(name)
    params, xs, state = given.inputs
    run = partial(unroll, cell, params, implementation=implementation)
    got = run(xs, state, resets=jnp.zeros((STEPS, BATCH), bool).at[2].set(True))
    (_, first), (final, second) = run(xs[:2], state), run(xs[2:])
    assert_close(got, (final, jnp.concatenate([first, second])), TOLERANCES["float32"])


@pytest.mark.slow
@every_implementation
@both_ways
@two_cells
def test_padding_is_inert(name: str, reverse: bool, implementation: str) -> None:
    """Outputs there are zero, gradients to it exactly zero, and what it holds changes nothing: NaN as
    little as any number, and as little the first state of a row without a step."""
    cell, given = in_float32(name)
    lengths = jnp.asarray(LENGTHS)
    run = partial(library, cell, lengths=lengths, reverse=reverse, implementation=implementation)
    (final, ys), (d_params, d_xs, d_state) = run(given)
    padding = np.arange(STEPS)[:, None] >= LENGTHS
    assert not np.asarray(ys)[padding].any()
    assert np.asarray(ys)[~padding].all()
    assert not np.asarray(d_xs)[padding].any()
    for first, last, d_first, weight in zip(
        given.state, final, d_state, given.weights[0], strict=True
    ):
        assert_close(last[1], first[1], 0)  # the row of length 0
        assert_close(d_first[1], weight[1], 0)
    for held in (1e6, jnp.nan, jnp.inf):
        other = given._replace(xs=jnp.where(jnp.asarray(padding)[..., None], held, given.xs))
        assert_close(run(other), ((final, ys), (d_params, d_xs, d_state)), 0)
    other = given._replace(state=jax.tree.map(lambda s: s.at[1].set(jnp.nan), given.state))
    (_, other_ys), gradients = run(other)
    assert_close((other_ys, gradients), (ys, (d_params, d_xs, d_state)), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "save_every", "implementation"),
    [("array", 1, "scan"), ("dense", 1, USUAL), *(("lookup", 2, name) for name in EVERY)],
)
def test_padding_of_projected_inputs_is_inert(
    kind: str, save_every: int, implementation: str
) -> None:
    """NaN there, and in the rows of a table that only the padding reads."""
    cell, given = in_float32("gru-before")
    active = jnp.asarray(np.arange(STEPS)[:, None] < LENGTHS)
    tokens = jnp.where(active, jnp.arange(STEPS)[:, None] % 3, 7)

    def inputs(held: float) -> Any:
        if kind == "dense":
            xs = jnp.where(active[..., None], given.xs, held)
            return Dense(xs, given.params.w_x, given.params.b)
        gx = cell.project(given.params, given.xs)
        if kind == "array":
            return jnp.where(active[..., None], gx, held)
        return Lookup(gx.reshape(-1, gx.shape[-1])[:9].at[7].set(held), tokens)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), allow_int=True)
    def slopes(params: Any, gx: Any) -> Any:
        how = {"implementation": implementation, "save_every": save_every}
        results = unroll_projected(cell, params, gx, given.state, lengths=LENGTHS, **how)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(results))

    got, want = (slopes(given.params, inputs(held)) for held in (jnp.nan, 0.0))
    if kind == "lookup":  # the gradient of whole numbers is of no dtype
        got, want = ((params, lookup.table) for params, lookup in (got, want))
    assert_close(got, want, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reverse", "implementation"), [(False, "scan"), *((True, name) for name in EVERY)]
)
def test_a_first_state_that_is_reset_is_inert(reverse: bool, implementation: str) -> None:
    """NaN there (of an environment that went wrong, say) changes no value and no gradient."""
    cell, given = in_float32("lstm-peephole")
    lengths = jnp.array([STEPS, 2, 3])
    first = jnp.where(reverse, lengths - 1, 0)
    resets = jnp.arange(STEPS)[:, None] == first[None]
    run = partial(library, cell, reverse=reverse, implementation=implementation)
    other = given._replace(state=jax.tree.map(lambda s: jnp.full_like(s, jnp.nan), given.state))
    assert_close(run(other, resets, lengths), run(given, resets, lengths), 0)
    if implementation == "scan":  # without lengths too
        resets = jnp.zeros((STEPS, BATCH), bool).at[-1 if reverse else 0].set(True)
        assert_close(run(other, resets), run(given, resets), 0)


@pytest.mark.slow
@pytest.mark.parametrize("names", [None, ["f", "cell"]])
def test_padding_is_inert_in_what_is_recorded_and_for_a_users_own_cell(names: Any) -> None:
    cell = CELLS["lstm"] if names else Leaky(HIDDEN)
    params, padding = cell.init(jax.random.key(0), FEATURES), np.arange(STEPS)[:, None] >= LENGTHS

    def loss(params: Any, xs: Any) -> Any:
        if names:
            results: Any = record(cell, params, xs, lengths=LENGTHS, names=names)
        else:
            results = unroll(cell, params, xs, lengths=LENGTHS)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(results))

    def slopes(held: float) -> Any:
        xs = jnp.where(jnp.asarray(padding)[..., None], held, jnp.ones((STEPS, BATCH, FEATURES)))
        return jax.value_and_grad(loss, (0, 1))(params, xs)

    assert_close(slopes(jnp.nan), slopes(0.0), 0)


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"])
def test_lengths_of_any_integer_dtype(dtype: str) -> None:
    """Longer than a narrow dtype can count: 300 steps, of which up to 120 are real."""
    cell = rnn(1)
    params, xs = cell.init(jax.random.key(0), 1), jnp.ones((300, 3, 1))
    numbers = [120, 0, 7]
    want = unroll(cell, params, xs, lengths=np.array(numbers, np.int32))
    for lengths in (np.array(numbers, dtype), jnp.asarray(np.array(numbers, dtype)), numbers):
        with unchecked():
            assert_close(unroll(cell, params, xs, lengths=lengths), want, 0)
    traced = jax.jit(lambda lengths: unroll(cell, params, xs, lengths=lengths))
    with jax.enable_x64(dtype.endswith("64")):
        assert_close(traced(np.array(numbers, dtype)), want, 0)


@pytest.mark.slow
def test_traced_lengths_out_of_range_are_the_nearest_in_it() -> None:
    """Whatever their dtype; outside of jit they are refused."""
    cell = rnn(2)
    params, xs = cell.init(jax.random.key(0), 1), jnp.ones((5, 2, 1))
    run = jax.jit(lambda lengths: unroll(cell, params, xs, lengths=lengths))
    want = run(jnp.array([0, 5]))
    assert_close(run(jnp.array([-3, 100], jnp.int8)), want, 0)
    assert_close(run(jnp.array([0, 2**32 - 1], jnp.uint32)), want, 0)


@pytest.mark.slow
@implementations
@both_ways
def test_a_reset_in_the_padding_leaves_the_state_alone(reverse: bool, implementation: str) -> None:
    """A row keeps its state in the padding: the results are those without that reset."""
    cell, given = in_float32("lstm")
    lengths = jnp.asarray(LENGTHS)
    resets = jnp.asarray(np.arange(STEPS)[:, None] >= LENGTHS)
    run = partial(library, cell, given, reverse=reverse, implementation=implementation)
    assert_close(run(resets, lengths), run(None, lengths), TOLERANCES["float32"])


@pytest.mark.slow
def test_marks_of_first_steps_are_rolled_for_the_reverse_direction() -> None:
    """Episodes of 2 and 3 steps side by side in a row are the same run one by one, both ways."""
    cell, given = in_float32("gru-after")
    first = jnp.zeros((STEPS, BATCH), bool).at[2].set(True)
    run = partial(unroll, cell, given.params)
    for reverse in (False, True):
        resets = jnp.roll(first, -1, axis=0) if reverse else first
        _, together = run(given.xs, resets=resets, reverse=reverse)
        alone = [run(given.xs[part], reverse=reverse)[1] for part in (slice(2), slice(2, None))]
        assert_close(together, jnp.concatenate(alone), TOLERANCES["float32"])


@pytest.mark.first_case
@implementations
@two_cells
def test_no_state_means_zeros(name: str, implementation: str) -> None:
    """The test uses float64, for which zeros of the default dtype would be wrong."""
    cell = CELLS[name]
    with jax.enable_x64(True):
        given = problem(cell).cast("float64")
        run = partial(unroll, cell, given.params, given.xs, implementation=implementation)
        assert_close(run(), run(jax.tree.map(jnp.zeros_like, given.state)), 0)


@pytest.mark.first_case
@implementations
@two_cells
def test_unroll_projected_after_project_is_unroll(name: str, implementation: str) -> None:
    cell, given = in_float32(name)
    params, xs, state = given.inputs
    gx = cell.project(params, xs)
    got = unroll_projected(cell, params, gx, state, implementation=implementation)
    want = unroll(cell, params, xs, state, implementation=implementation)
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@implementations
@two_cells
def test_narrow_products_are_numpy(name: str, implementation: str, dtype: str) -> None:
    """Values and gradients, from parameters rounded alike."""
    given = problem(CELLS[name]).cast(dtype)
    got = library(CELLS[name], given, implementation=implementation)
    assert_close(got, expected(CELLS[name], given.exact()), TOLERANCES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@implementations
@two_cells
def test_narrow_products_keep_the_state_in_float32(
    name: str, implementation: str, dtype: str
) -> None:
    """ys come back in xs' dtype; from `unroll_projected` in gx', which is float32."""
    cell = CELLS[name]
    given = problem(cell).cast(dtype)
    final, ys = unroll(cell, *given.inputs, implementation=implementation)
    assert ys.dtype == dtype
    assert {s.dtype for s in final} == {jnp.dtype("float32")}
    assert any((s != s.astype(dtype).astype(s.dtype)).any() for s in final)
    gx = cell.project(given.params, given.xs)
    _, ys = unroll_projected(cell, given.params, gx, implementation=implementation)
    assert ys.dtype == gx.dtype == jnp.float32


# --- inputs that are projected in the loop ------------------------------------------------------


@pytest.mark.slow
@implementations
@two_cells
def test_lookup_and_dense_are_their_projection(name: str, implementation: str) -> None:
    """Values, and the gradients of what they are made of, against scan with the projected array."""
    cell = CELLS[name]
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 6, (STEPS, BATCH)), jnp.int32)  # some more than once
    with jax.enable_x64(True):
        given = problem(cell, STEPS, BATCH, FEATURES).cast("float64")
        table = jnp.asarray(rng.standard_normal((6, given.params.w_h.shape[1])))

        @partial(jax.jit, static_argnames="how")
        @partial(jax.value_and_grad, argnums=(0, 1, 2))
        def run(table: Any, xs: Any, params: Any, how: str) -> Any:
            total = 0
            for gx in (Lookup(table, tokens), Dense(xs, params.w_x, params.b)):
                gx = gx.project() if how == "scan" else gx
                results = unroll_projected(cell, params, gx, given.state, implementation=how)
                pairs = zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
                total += sum((w * r).sum() for w, r in pairs)
            return total

        got, want = (run(table, given.xs, given.params, how) for how in (implementation, "scan"))
    assert_close(got, want, TOLERANCES["float64"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype", "implementation"),
    [*((5, "int8", name) for name in EVERY), (300, "uint8", "xla"), (300, "uint8", "columns")],
)
def test_tokens_out_of_range_are_the_nearest_in_it(
    size: int, dtype: str, implementation: str
) -> None:
    """Values and the table's gradient agree, also for tokens of a dtype that cannot count its rows."""
    cell = CELLS["gru-after"]
    params = cell.init(jax.random.key(0), FEATURES)
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((size, 3 * HIDDEN)), jnp.float32)
    low, high = (0, 255) if dtype == "uint8" else (-100, 100)
    tokens = rng.integers(low, high, (STEPS, BATCH)).astype(dtype)
    tokens[0] = np.array([0, high, size - 1 if size < 255 else 44]).astype(dtype)

    @partial(jax.jit, static_argnums=2)
    @partial(jax.value_and_grad, argnums=(0, 1))
    def run(params: Any, table: Any, how: str) -> Any:
        gx: Any = Lookup(table, jnp.asarray(tokens))
        if how == "numpy":
            gx, how = table[np.clip(tokens.astype(int), 0, size - 1)], "scan"
        return (unroll_projected(cell, params, gx, implementation=how)[1] ** 2).sum()

    assert_close(run(params, table, implementation), run(params, table, "numpy"), 3e-6)


@pytest.mark.slow
def test_the_gradient_of_tokens_runs_in_bfloat16() -> None:
    """A regression test of "columns": XLA's CPU lacked its product with one-hot rows on the right."""
    cell = CELLS["lstm"]
    params = cell.init(jax.random.key(0), FEATURES, jnp.bfloat16)
    tokens = jnp.asarray(np.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 7)

    def loss(table: Any, how: str) -> Any:
        return unroll_projected(cell, params, Lookup(table, tokens), implementation=how)[1].sum()

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    table = jnp.ones((7, 4 * HIDDEN))
    assert_close(slope(table, "columns"), slope(table, "scan"), TOLERANCES["bfloat16"])


# --- what numpy gives, and nothing ---------------------------------------------------------------


@pytest.mark.slow
def test_arrays_of_numpy_are_taken_as_jax_takes_them() -> None:
    """float64 as float32: inputs, parameters (of a converted model), state, masks, tokens, tables."""
    cell, exact = CELLS["lstm-peephole"], problem(CELLS["lstm-peephole"], STEPS, BATCH, FEATURES)
    given = exact.cast("float32")
    want = unroll(cell, *given.inputs, **on_device(MASKS["both"]))
    with unchecked():
        assert_close(unroll(cell, *exact.inputs, **MASKS["both"]), want, 0)
        lists = {"resets": RESETS.tolist(), "lengths": LENGTHS.tolist()}
        assert_close(unroll(cell, given.params, exact.xs.tolist(), given.state, **lists), want, 0)
        table, tokens = np.ones((3, 4 * HIDDEN)), np.zeros((STEPS, BATCH), int)
        looked = unroll_projected(cell, exact.params, Lookup(table, tokens))
    assert_close(looked, unroll_projected(cell, given.params, jnp.ones((STEPS, BATCH, 16))), 1e-6)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("implementation", "save_every"), [*((name, 1) for name in EVERY), (None, 2)]
)
def test_no_rows(implementation: Any, save_every: int) -> None:
    """B = 0, as jnp takes it: no outputs, a state without rows, gradients of zero."""
    cell = CELLS["lstm-peephole"]
    params, xs = cell.init(jax.random.key(0), FEATURES), jnp.ones((STEPS, 0, FEATURES))
    how = {"implementation": implementation, "save_every": save_every}

    def loss(params: Any, xs: Any) -> Any:
        masks = {"lengths": jnp.zeros(0, jnp.int32), "resets": jnp.zeros((STEPS, 0), bool)}
        state, ys = unroll(cell, params, xs, **masks, **how)
        assert ys.shape == (STEPS, 0, HIDDEN) and state.hidden.shape == (0, HIDDEN)
        return ys.sum()

    d_params, d_xs = jax.grad(loss, (0, 1))(params, xs)
    assert d_xs.shape == xs.shape
    assert not any(leaf.any() for leaf in jax.tree.leaves(d_params))


# --- JAX's transformations ----------------------------------------------------------------------


@pytest.mark.slow
@implementations
@two_cells
def test_jit_changes_nothing(name: str, implementation: str) -> None:
    """Also with the masks as constants of the jitted function."""
    cell, given = in_float32(name)
    run = partial(unroll, cell, implementation=implementation, **on_device(MASKS["both"]))
    assert_close(jax.jit(run)(*given.inputs), run(*given.inputs), TOLERANCES["float32"])


@pytest.mark.slow
@implementations
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_vmap_is_a_loop(shared: bool, implementation: str) -> None:
    """Over xs and state with the params shared or each its own: values and gradients."""
    cell, first = in_float32("lstm-peephole")
    second = problem(cell, STEPS, BATCH, FEATURES, seed=1).cast("float32")
    if shared:
        second = second._replace(params=first.params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    axes = Problem(0, 0, 0, 0)
    if shared:
        both, axes = both._replace(params=first.params), axes._replace(params=None)
    run = partial(library, cell, implementation=implementation, **on_device(MASKS["both"]))
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), run(first), run(second))
    assert_close(jax.vmap(run, in_axes=(axes,))(both), loop, TOLERANCES["float32"])


@pytest.mark.slow
@two_cells
def test_jvp_and_checkpoint_through_scan(name: str) -> None:
    """Forward mode is the gradient times the direction; rematerialising changes no gradient."""
    exact = problem(CELLS[name])
    with jax.enable_x64(True):
        given, along = exact.cast("float64"), problem(CELLS[name], seed=1).cast("float64")

        def loss(*inputs: Any) -> Any:
            results = unroll(CELLS[name], *inputs, implementation="scan")
            return sum(
                (w * r).sum()
                for w, r in zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
            )

        _, slope = jax.jit(partial(jax.jvp, loss))(given.inputs, along.inputs)
        gradients = library(CELLS[name], given, implementation="scan")[1]
        again = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2)))(*given.inputs)
    pairs = zip(*map(jax.tree.leaves, (gradients, along.inputs)), strict=True)
    assert_close(slope, sum(np.vdot(g, v) for g, v in pairs), 10 * TOLERANCES["float64"])
    assert_close(again, gradients, TOLERANCES["float64"])


@pytest.mark.slow
@two_cells
def test_hessian_through_scan(name: str) -> None:
    """The Hessian in the bias equals finite differences of the hand-written gradient."""
    cell = CELLS[name]
    with jax.enable_x64(True):
        given = problem(cell, steps=3).cast("float64")

        def outputs(b: Any) -> Any:
            params = given.params._replace(b=b)
            _, ys = unroll(cell, params, given.xs, given.state, implementation="scan")
            return (ys * given.weights[1]).sum()

        got = jax.jit(jax.hessian(outputs))(given.params.b)
        only_ys = given._replace(
            weights=(jax.tree.map(jnp.zeros_like, given.weights[0]), given.weights[1])
        )

        def slope(at: int, b: np.ndarray) -> float:
            here = only_ys._replace(params=given.params._replace(b=jnp.asarray(b)))
            return float(library(cell, here, implementation="xla")[1][0].b[at])

        b = np.asarray(given.params.b)
        want = np.stack([differences(partial(slope, at), b) for at in range(0, b.size, 3)])
    assert_close(got[::3], want, TOLERANCES["differences"])


def test_an_equal_cell_compiles_once() -> None:
    """Cells compare by value: an equal cell made later finds the compiled function."""
    traced = []

    @partial(jax.jit, static_argnames="cell")
    def run(cell: Any, params: Any, xs: Any) -> Any:
        traced.append(cell)
        return unroll(cell, params, xs)

    _, given = in_float32("gru-after")
    for _ in range(3):
        run(gru(HIDDEN, reset="after"), given.params, given.xs)
    assert traced == [gru(HIDDEN, reset="after")]
    _, given = in_float32("gru-before")
    run(gru(HIDDEN, reset="before"), given.params, given.xs)
    assert len(traced) == 2


NETWORK = network(lstm(HIDDEN), FEATURES, FEATURES)
EAGER = {
    "scan": partial(unroll, lstm(HIDDEN), implementation="scan"),
    "xla": partial(unroll, lstm(HIDDEN), implementation="xla"),
    "masked": partial(unroll, gru(HIDDEN), lengths=[STEPS, 2, 1], save_every=2),
    "record": partial(record, lstm(HIDDEN), names=["f"]),
    "a cell of one's own": lambda params, xs: unroll(Leaky(HIDDEN), params, xs),
    "gradient": lambda params, xs: jax.grad(
        lambda params: unroll(gru(HIDDEN), params, xs)[1].sum()
    )(params),
    "gradient by scan": lambda params, xs: jax.grad(
        lambda params: unroll(lstm(HIDDEN), params, xs, implementation="scan")[1].sum()
    )(params),
    "forecast": lambda params, xs: NETWORK.forecast(params, xs, 3),
    "gradient flow": partial(gradient_flow, rnn(HIDDEN)),
    "init": lambda params, xs: lstm(HIDDEN).init(jax.random.key(0), FEATURES),
}


@pytest.mark.first_case
@pytest.mark.parametrize("what", EAGER)
def test_a_second_eager_call_compiles_nothing(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Outside of jit, of the same shapes."""
    cell = {"masked": gru, "gradient": gru, "gradient flow": rnn}.get(what, lstm)(HIDDEN)
    make = NETWORK.init if what == "forecast" else partial(cell.init, input_size=FEATURES)
    if what == "a cell of one's own":
        make = partial(Leaky(HIDDEN).init, input_size=FEATURES)
    params, xs = make(jax.random.key(0)), jnp.ones((STEPS, BATCH, FEATURES))
    compiled = []
    for scale in (1, 2):
        caplog.clear()
        with jax.log_compiles():
            EAGER[what](params, xs * scale)
        compiled.append(sum("Compiling" in record.message for record in caplog.records))
    assert compiled[1] == 0, compiled


# --- what a cell does inside -------------------------------------------------------------------


@pytest.mark.first_case
@both_ways
@few_cells
def test_what_is_recorded_is_numpy(name: str, reverse: bool) -> None:
    """Every gate and state by its name, under resets and lengths; and nothing else changes."""
    cell, exact = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES)
    masks = MASKS["both"] | {"reverse": reverse}
    final, inside = trace(cell, *exact.inputs, **masks)
    with jax.enable_x64(True):
        given = exact.cast("float64").inputs
        how = on_device(MASKS["both"]) | {"reverse": reverse}
        state, ys, recorded = record(cell, *given, **how, names=list(inside))
        plain = unroll(cell, *given, **how, implementation="scan")
    assert set(recorded) == set(inside)
    assert_close(recorded, inside, TOLERANCES["float64"])
    assert_close(state, final, TOLERANCES["float64"])
    assert_close((state, ys), plain, 0)


@pytest.mark.first_case
@few_cells
def test_gradients_flow_through_what_is_recorded(name: str) -> None:
    """Against finite differences: of a gate, and so through every state before it."""
    cell, exact = CELLS[name], problem(CELLS[name], STEPS, BATCH, FEATURES)
    wanted = cell.GATES[0] if cell.GATES[0] != "h" else "hidden"

    def loss(inputs: Any) -> float:
        return float((exact.weights[1] * trace(cell, *inputs)[1][wanted]).sum())

    with jax.enable_x64(True):
        given = exact.cast("float64")
        gradients = jax.grad(
            lambda inputs: (
                given.weights[1] * record(cell, *inputs, names=[wanted])[2][wanted]
            ).sum()
        )(given.inputs)
    assert_close(gradients, differences(loss, exact.inputs), TOLERANCES["differences"])


@pytest.mark.parametrize(
    ("cell", "names", "message"),
    [
        (lstm(4), ["z"], "LSTM cannot record 'z': it has cell, f, g, hidden, i, o"),
        (gru(4), ["z", "cell"], "GRU cannot record 'cell': it has hidden, n, r, z"),
        (lstm(4), "cell", r"a list of names, as in \['cell'\], not a string"),
    ],
)
def test_what_cannot_be_recorded_is_reported(cell: Any, names: Any, message: str) -> None:
    params = cell.init(jax.random.key(0), 3)
    with unchecked(), pytest.raises(ValueError, match=message):
        record(cell, params, jnp.zeros((5, 2, 3)), names=names)
