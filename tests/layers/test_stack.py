"""Stacked layers against loops in numpy, for every option: values, gradients, and one step at a time."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gru, lstm, rnn, unroll
from jaxrnn.layers import Stacked, StackedParams, stacked
from jaxrnn.recurrence import variants
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from tests.support.oracle import TOLERANCES, assert_close, unchecked
from tests.support.problems import EVERY, Leaky
from tests.support.stacks import reference

HIDDEN, INPUTS, STEPS, BATCH = 4, 3, 5, 3
KEY = jax.random.key(7)
# An episode may begin at the first step, at the last, and in the padding.
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
LENGTHS = [STEPS, 0, 3]
BOTH = {"resets": RESETS, "lengths": LENGTHS}

LSTM, GRU = lstm(HIDDEN), gru(HIDDEN)

# What a stack is made with, and what `apply` is called with.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "everything": (
        LSTM,
        dict(
            layers=2,
            bidirectional=True,
            dropout=0.4,
            drop_last=True,
            variational=True,
            zoneout=(0.2, 0.5),
            weight_dropout=0.3,
            residual=True,
            learned_state=True,
            blocks=2,
        ),
        dict(key=KEY, **BOTH),
    ),
    "layers": (LSTM, dict(layers=3), BOTH),
    "bidirectional": (GRU, dict(layers=2, bidirectional=True), {}),
    "episodes": (GRU, dict(layers=2, bidirectional=True), {"resets": RESETS}),
    "episodes and lengths": (LSTM, dict(layers=2, bidirectional=True), BOTH),
    "dropout": (GRU, dict(layers=3, dropout=0.4), {"key": KEY}),
    "dropout of the last": (GRU, dict(layers=2, dropout=0.4, drop_last=True), {"key": KEY}),
    "variational": (GRU, dict(layers=2, dropout=0.4, variational=True), {"key": KEY, **BOTH}),
    "zoneout": (LSTM, dict(layers=2, zoneout=(0.2, 0.5)), {"key": KEY, **BOTH}),
    "zoneout of one rate": (rnn(HIDDEN), dict(zoneout=0.3), {"key": KEY}),
    "zoneout, expected": (LSTM, dict(layers=2, zoneout=0.3), BOTH),
    "weight dropout": (LSTM, dict(layers=2, weight_dropout=0.3), {"key": KEY}),
    "residual": (GRU, dict(layers=2, residual=True), BOTH),
    "residual, both ways": (GRU, dict(layers=2, residual=True, bidirectional=True), {}),
    "learned state": (LSTM, dict(layers=2, learned_state=True), {"lengths": LENGTHS}),
    "learned state, episodes": (LSTM, dict(layers=2, learned_state=True), BOTH),
    "learned state, both ways": (
        GRU,
        dict(learned_state=True, bidirectional=True, zoneout=0.3),
        {"key": KEY, **BOTH},
    ),
    "blocks": (LSTM, dict(layers=2, blocks=2), BOTH),
    "blocks of a gru": (GRU, dict(blocks=4, bidirectional=True), {}),
    "nothing to drop": (GRU, dict(layers=2), {"key": KEY}),
}


def random(like: Any, seed: int) -> Any:
    """Float64 entries, none zero, of the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.6 * rng.standard_normal(a.shape), like)


def given(net: Stacked) -> tuple[Any, np.ndarray, Any]:
    """Random float64 parameters, inputs and states."""
    params = random(net.init(KEY), 1)
    state = random(net.initial_state(net.init(KEY), BATCH), 2)
    return params, random(np.empty((STEPS, BATCH, net.inputs)), 3), state


def make(cell: Any, options: dict[str, Any]) -> Stacked:
    # As many inputs as outputs, so that the first layer is residual, too.
    inputs = HIDDEN if options.get("residual") else INPUTS
    return stacked(cell, inputs, **options)


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: jnp.asarray(v) if k != "key" else v for k, v in arguments.items()}


@pytest.mark.first_case
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    """The slope along a random direction of each array, against central differences of the loop."""
    cell, options, arguments = CASES[name]
    net = make(cell, options)
    with jax.enable_x64(True):
        arrays = given(net)
        want = reference(net, *arrays, **arguments)
        weights = random(want, 4)

        def loss(results: Any) -> Any:
            pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(results), strict=True)
            return sum((w * r).sum() for w, r in pairs)

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def run(arrays: Any) -> Any:
            params, xs, state = arrays
            got = net.apply(params, xs, state, **on_device(arguments))
            return loss(got), got

        (_, got), gradients = run(jax.tree.map(jnp.asarray, arrays))
        assert_close(got, want, TOLERANCES["float64"])
        leaves, structure = jax.tree.flatten(arrays)
        slopes = jax.tree.leaves(gradients)
        found, wanted = [], []
        for index, direction in enumerate(random(leaves, 5)):
            ends = []
            for epsilon in (1e-5, -1e-5):
                moved = [*leaves]
                moved[index] = leaves[index] + epsilon * direction
                ends.append(
                    loss(reference(net, *jax.tree.unflatten(structure, moved), **arguments))
                )
            wanted.append((ends[0] - ends[1]) / 2e-5)
            found.append(float((slopes[index] * direction).sum()))
    assert_close(np.array(found), np.array(wanted), TOLERANCES["differences"])


@pytest.mark.first_case
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "zeros"])
def test_an_initial_state_is_learned_or_zeros(learned: bool) -> None:
    net = stacked(GRU, INPUTS, layers=2, learned_state=learned)
    params, xs, _ = jax.tree.map(jnp.float32, given(net))
    first = net.initial_state(params, BATCH)
    for number, state in enumerate(first):
        want = np.zeros(HIDDEN) if params.initial is None else params.initial[number].hidden
        np.testing.assert_array_equal(state.hidden, np.tile(want, (BATCH, 1)))
    apply = jax.jit(net.apply)
    assert_close(apply(params, xs), apply(params, xs, first), 0)


def test_a_learned_state_begins_as_zeros() -> None:
    net = stacked(LSTM, INPUTS, layers=2, learned_state=True)
    initial = net.init(KEY).initial
    assert initial is not None and len(initial) == 2
    assert all(leaf.shape == (HIDDEN,) and not leaf.any() for leaf in jax.tree.leaves(initial))


# --- a step, and parts of a sequence ------------------------------------------------------------

STEPPED = ("layers", "zoneout, expected", "residual", "blocks", "learned state")


def in_float32(name: str) -> tuple[Stacked, Any, Any, Any]:
    cell, options, _ = CASES[name]
    net = make(cell, options)
    return (net, *jax.tree.map(jnp.float32, given(net)))


@pytest.mark.first_case
@pytest.mark.parametrize("name", STEPPED)
def test_steps_are_the_sequence(name: str) -> None:
    net, params, xs, state = in_float32(name)
    want = net.apply(params, xs, state)
    step = jax.jit(net.step)
    ys = []
    for x in xs:
        state, y = step(params, state, x)
        ys.append(y)
    assert_close((state, jnp.stack(ys)), want, TOLERANCES["float32"])


@pytest.mark.first_case
@pytest.mark.parametrize("name", [*STEPPED, "variational", "weight dropout"])
def test_parts_are_the_whole(name: str) -> None:
    """With dropout, too, where the mask is the same at all steps."""
    net, params, xs, state = in_float32(name)
    resets = jnp.asarray(RESETS)
    apply = jax.jit(partial(net.apply, key=None if name in STEPPED else KEY))
    want = apply(params, xs, state, resets=resets)
    state, early = apply(params, xs[:2], state, resets=resets[:2])
    state, late = apply(params, xs[2:], state, resets=resets[2:])
    assert_close((state, jnp.concatenate([early, late])), want, TOLERANCES["float32"])


# --- transformations, dtypes, implementations ---------------------------------------------------


def test_equal_stacks_compile_once() -> None:
    apply = jax.jit(lambda net, params, xs: net.apply(params, xs), static_argnums=0)
    with unchecked():
        other = stacked(LSTM, np.int32(INPUTS), layers=np.uint8(2), zoneout=[0.1, 0.1])
    nets = [stacked(lstm(HIDDEN), INPUTS, layers=2, zoneout=0.1), other]
    assert nets[0] == nets[1] and hash(nets[0]) == hash(nets[1])
    params = nets[0].init(KEY)
    for net in nets:
        apply(net, params, jnp.ones((STEPS, BATCH, INPUTS)))
    assert apply._cache_size() == 1
    assert nets[0] != stacked(lstm(HIDDEN), INPUTS, layers=2, zoneout=0.2)


def test_batch_first_is_the_same_with_axes_swapped() -> None:
    options = {"zoneout": 0.2, "learned_state": True}
    net, swapped = (stacked(GRU, INPUTS, batch_first=b, **options) for b in (False, True))
    params, xs, state = jax.tree.map(jnp.float32, given(net))
    masks = {"key": KEY, "lengths": jnp.asarray(LENGTHS)}
    final, ys = jax.jit(net.apply)(params, xs, state, resets=RESETS, **masks)
    given_to = params, xs.swapaxes(0, 1), state
    got = jax.jit(swapped.apply)(*given_to, resets=RESETS.T, **masks)
    assert_close(got, (final, ys.swapaxes(0, 1)), 0)


@pytest.mark.skipif(
    LIBRARY.unavailable_reason is not None,
    reason=f"waits for a C++ compiler: {LIBRARY.unavailable_reason}",
)
def test_batch_first_layers_in_both_directions_transpose_nothing() -> None:
    """Neither the outputs nor the gradients of two layers are transposed between them."""
    net = stacked(GRU, INPUTS, layers=2, bidirectional=True, batch_first=True)
    assert {choice.implementation for choice in net.explain((BATCH, 100, INPUTS))} == {"native"}

    def loss(params: Any, xs: Any) -> Any:
        return (net.apply(params, xs, lengths=jnp.array(LENGTHS))[1] ** 2).sum()

    slope = jax.jit(jax.value_and_grad(loss, (0, 1)))
    arguments = net.init(KEY), jnp.ones((BATCH, 100, INPUTS))
    program = slope.lower(*arguments).compile().as_text()
    assert not re.findall(r"= f32\[(?:100,3|3,100),\d+\]\S* (?:transpose|copy)\(", program)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2, "residual": True}], ids=str)
def test_narrow_parameters_have_wide_states(options: Any) -> None:
    net = stacked(LSTM, HIDDEN, layers=2, bidirectional=True, learned_state=True, **options)
    params = jax.tree.map(jnp.float32, random(net.init(KEY), 1))
    xs = jnp.float32(random(np.empty((STEPS, BATCH, HIDDEN)), 2))
    narrow = partial(jax.tree.map, jnp.bfloat16)
    state, ys = net.apply(narrow(params), narrow(xs), resets=RESETS)
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert_close((state, ys), net.apply(params, xs, resets=RESETS), TOLERANCES["bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("name", ["layers", "blocks", "residual", "variational", "learned state"])
def test_options_of_every_implementation(name: str, implementation: Any) -> None:
    """None of these options changes the step; blocks map the implementation with `jax.vmap`."""
    net, params, xs, state = in_float32(name)

    # Resets to a learned state change the step.
    resets = None if net.learned_state else RESETS

    def loss(implementation: Any, *arrays: Any) -> Any:
        state, ys = net.apply(*arrays, key=KEY, resets=resets, implementation=implementation)
        return (ys**3).sum() + sum((s**2).sum() for s in jax.tree.leaves(state))

    slope = jax.jit(jax.value_and_grad(loss, (1, 2, 3)), static_argnums=0)
    got, want = (slope(i, params, xs, state) for i in (implementation, "scan"))
    assert_close(got, want, 3 * TOLERANCES["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "residual", "learned state, episodes"])
def test_the_padding_has_no_effect(name: str) -> None:
    """NaN there changes no value and no gradient."""
    cell, options, arguments = CASES[name]
    net = make(cell, options)
    params, xs, state = jax.tree.map(jnp.float32, given(net))
    active = np.arange(STEPS)[:, None] < np.asarray(LENGTHS)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(params: Any, xs: Any, state: Any) -> Any:
        got = net.apply(params, xs, state, **on_device(arguments))
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(got)), got

    results = [run(params, jnp.where(active[..., None], xs, p), state) for p in (0, jnp.nan)]
    assert_close(results[1], results[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "batch"), [(0, BATCH), (STEPS, 0), (1, 1)])
@pytest.mark.parametrize("name", ["everything", "episodes and lengths"])
def test_sizes_of_zero_and_one(name: str, steps: int, batch: int) -> None:
    """No step leaves the state as it is."""
    cell, options, _ = CASES[name]
    net = make(cell, options)
    params, xs, state = jax.tree.map(jnp.float32, given(net))
    xs, state = xs[:steps, :batch], jax.tree.map(lambda s: s[:batch], state)
    masks = {"resets": RESETS[:steps, :batch], "lengths": np.full(batch, steps)}
    got, ys = net.apply(params, xs, state, key=KEY, **masks)
    assert ys.shape == (steps, batch, net.width)
    if not steps:
        assert_close(got, state, 0)


@pytest.mark.slow
def test_vmap_over_parameters() -> None:
    net, _, xs, _ = in_float32("episodes")
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(net.init)(keys)
    got = jax.vmap(lambda p: net.apply(p, xs, resets=RESETS)[1])(params)
    want = [net.apply(net.init(key), xs, resets=RESETS)[1] for key in keys]
    assert_close(got, jnp.stack(want), TOLERANCES["float32"])


@pytest.mark.slow
def test_save_every_changes_nothing() -> None:
    net, params, xs, state = in_float32("zoneout")

    def loss(save_every: int, params: Any) -> Any:
        return (net.apply(params, xs, state, key=KEY, save_every=save_every)[1] ** 2).sum()

    slope = jax.value_and_grad(loss, 1)
    assert_close(slope(2, params), slope(1, params), TOLERANCES["float32"])


def test_a_cell_of_ones_own() -> None:
    """Against `unroll`, layer by layer."""
    net = stacked(Leaky(HIDDEN), INPUTS, layers=2, residual=True)
    params, xs, _ = jax.tree.map(jnp.float32, given(net))
    first, hidden = unroll(net.cell, params.cells[0], xs)
    second, ys = unroll(net.cell, params.cells[1], hidden)
    assert_close(net.apply(params, xs), ((first, second), hidden + ys), TOLERANCES["float32"])


VARIANTS = {
    "layer norm": variants.layer_norm_lstm(HIDDEN),
    "mogrifier": variants.mogrifier_lstm(HIDDEN, rank=2),
    "projection": variants.projected_lstm(HIDDEN, 6),
    "minimal": variants.mgu(HIDDEN),
    "independent": variants.indrnn(HIDDEN),
    "linear": variants.mingru(HIDDEN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_other_cells(name: str) -> None:
    """Both directions against `unroll`; zoneout that keeps next to nothing, and steps, against it."""
    cell = VARIANTS[name]
    net = stacked(cell, INPUTS, bidirectional=True)
    params, xs, state = jax.tree.map(jnp.float32, given(net))
    (there, ahead), (back, behind) = (
        unroll(cell, p, xs, s, lengths=LENGTHS, reverse=reverse)
        for p, s, reverse in zip(params.cells, state, (False, True), strict=True)
    )
    want = (there, back), jnp.concatenate([ahead, behind], axis=-1)
    assert_close(net.apply(params, xs, state, lengths=LENGTHS), want, TOLERANCES["float32"])
    # A mask that keeps nothing, and no row that is reset.
    zoned = stacked(cell, INPUTS, bidirectional=True, zoneout=1e-9, learned_state=True)
    learned = params._replace(initial=jax.tree.map(lambda s: s[0], state))
    got = zoned.apply(learned, xs, state, key=KEY, lengths=LENGTHS, resets=np.zeros_like(RESETS))
    assert_close(got, want, TOLERANCES["float32"])
    one = stacked(cell, INPUTS, residual=True)
    _, y = one.step(params._replace(cells=params.cells[:1]), state[:1], xs[0])
    assert_close(y, unroll(cell, params.cells[0], xs[:1], state[0])[1][0], TOLERANCES["float32"])


def test_params_are_those_of_the_cells() -> None:
    net = stacked(LSTM, INPUTS, layers=2, bidirectional=True)
    params = net.init(KEY)
    assert isinstance(params, StackedParams) and params.initial is None
    assert [p.w_x.shape[0] for p in params.cells] == [INPUTS, INPUTS, 2 * HIDDEN, 2 * HIDDEN]
    assert len({float(p.w_h[0, 0]) for p in params.cells}) == 4
    assert net.init(KEY, jnp.bfloat16).cells[3].b.dtype == jnp.bfloat16
    blocks = stacked(LSTM, INPUTS, blocks=2).init(KEY).cells[0]
    assert blocks.w_h.shape == (2, HIDDEN // 2, 2 * HIDDEN) and blocks.w_x.shape[:2] == (2, INPUTS)
    assert not np.array_equal(blocks.w_h[0], blocks.w_h[1])
