"""nnx's recurrent layers on jaxrnn's recurrence, against live nnx, linen and plain loops over cells.

A named `implementation` runs or raises, so a test that names one also shows that flax's loop did not
run.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.errors
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import strategies as st

import jaxrnn
from jaxrnn.interop import nnx as ours
from jaxrnn.interop.flax import from_nnx, to_linen
from tests.support.oracle import TOLERANCES, unchecked

CELLS = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]
# Both sides round sums of float32 in their own order.
FLAX = 1e-5
BATCH, STEPS, FEATURES, HIDDEN = 2, 5, 3, 4

every_cell = pytest.mark.parametrize("name", CELLS)


def drawn(shape: tuple[int, ...], seed: int = 1, dtype: Any = jnp.float32) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


INPUTS = drawn((BATCH, STEPS, FEATURES))


def randomized(module: Any, seed: int = 7) -> Any:
    """Replace all parameters of a module by random numbers: flax's biases begin as zeros."""
    state = nnx.state(module, nnx.Param)
    leaves, structure = jax.tree.flatten(state)
    made = [drawn(leaf.shape, seed + n, leaf.dtype) / 2 for n, leaf in enumerate(leaves)]
    nnx.update(module, jax.tree.unflatten(structure, made))
    return module


def make(
    name: str, features: int = FEATURES, hidden: int = HIDDEN, library: Any = nnx, **options: Any
) -> Any:
    """Return a cell with the initial parameters of seed 0."""
    return getattr(library, name)(features, hidden, rngs=nnx.Rngs(0), **options)


def both(name: str, seed: int = 7, cell: Any = None, **options: Any) -> tuple[Any, Any]:
    """Return flax's RNN and ours with the same random parameters."""
    theirs = nnx.RNN(randomized(make(name, **(cell or {})), seed), **options)
    return theirs, ours.from_flax(theirs)


def carry_of(name: str, batch: tuple[int, ...] = (BATCH,), hidden: int = HIDDEN) -> Any:
    """Return a random carry in flax's form."""
    c, h = (drawn((*batch, hidden), seed) for seed in (2, 3))
    return (c, h) if "LSTM" in name else h


def pure(tree: Any) -> Any:
    """Return the arrays of a state of nnx as a dict."""
    return nnx.to_pure_dict(tree)


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def close(got: Any, want: Any, tolerance: float = FLAX) -> None:
    """Two trees agree in structure, in dtypes, and in numbers of order 1 to `tolerance`."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        # Sums that cancel are small, but their errors are those of the terms.
        scale = max(1.0, np.abs(w).max(initial=0))
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)


def count_of(module: Any) -> list[int]:
    """Return how many keys each of a module's streams has given."""
    return [int(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.RngCount))]


def keys_of(module: Any) -> Any:
    return jax.tree.map(jax.random.key_data, pure(nnx.state(module, nnx.RngKey)))


# --- parity with flax -----------------------------------------------------------------------------


def one_batch_axis(layer: Any, inputs: Any, carry: Any, lengths: Any, **options: Any) -> Any:
    """Call flax's layer with one batch axis, because it selects the carries of one axis only."""
    batch = lengths.shape
    time_major = options["time_major"]
    split = (slice(1, -1), 1) if time_major else (slice(0, -2), 0)
    assert inputs.shape[split[0]] == batch
    axes = (inputs.shape[0], -1) if time_major else (-1, inputs.shape[-2])
    flat = inputs.reshape(*axes, inputs.shape[-1])
    if carry is not None:
        carry = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), carry)
    carry, ys = layer(flat, initial_carry=carry, seq_lengths=lengths.reshape(-1), **options)
    ys = ys.reshape(*inputs.shape[:-1], ys.shape[-1])
    return jax.tree.map(lambda a: a.reshape(*batch, a.shape[-1]), carry), ys


def results(
    layer: Any,
    inputs: Any,
    carry: Any,
    lengths: Any = None,
    *,
    gradients: bool = True,
    flaxs: bool = False,
    **options: Any,
) -> Any:
    """Return (carry, outputs), with zeros in the padding, and gradients of a loss over both.

    The gradients are those of the parameters, the inputs and the carry.
    """
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    options = {"time_major": False, "return_carry": True, **options}

    def run(params: Any, inputs: Any, carry: Any) -> Any:
        module = nnx.merge(graph, params, rest)
        # flax counts the keys of a zero carry, which must not be those of the trace outside.
        call = {"rngs": nnx.Rngs(0), **options}
        if flaxs and lengths is not None:
            carry, ys = one_batch_axis(module, inputs, carry, lengths, **call)
        else:
            carry, ys = module(inputs, initial_carry=carry, seq_lengths=lengths, **call)
        if lengths is not None:
            time = inputs.ndim - 2
            real = np.arange(inputs.shape[0 if options["time_major"] else time])
            real = real < lengths[..., None]
            real = np.moveaxis(real, -1, 0) if options["time_major"] else real
            ys = jnp.where(real[..., None], ys, 0)
        return carry, ys

    def loss(*arguments: Any) -> Any:
        out = run(*arguments)
        leaves = jax.tree.leaves(out)
        parts = [(a * drawn(a.shape, 20 + n, a.dtype)).sum() for n, a in enumerate(leaves)]
        return sum(parts), out

    if not gradients:
        return jax.jit(run)(params, inputs, carry)
    argnums = (0, 1) if carry is None else (0, 1, 2)
    derived = jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))
    (_, out), (d_params, *others) = derived(params, inputs, carry)
    return out, pure(d_params), others


def compare(
    name: str,
    *,
    batch: tuple[int, ...] = (BATCH,),
    steps: int = STEPS,
    features: int = FEATURES,
    hidden: int = HIDDEN,
    lengths: Any = None,
    carried: bool = True,
    gradients: bool = True,
    seed: int = 1,
    **options: Any,
) -> None:
    """Compare outputs, carry and gradients of our RNN with those of flax's."""
    theirs, layer = both(name, seed, {"features": features, "hidden": hidden})
    layer.implementation = "xla"
    shape = (steps, *batch) if options.get("time_major") else (*batch, steps)
    inputs = drawn((*shape, features), seed)
    carry = carry_of(name, batch, hidden) if carried else None
    call = {"gradients": gradients, **options}
    got = results(layer, inputs, carry, lengths, **call)
    close(got, results(theirs, inputs, carry, lengths, flaxs=True, **call))


@pytest.mark.first_case
@every_cell
def test_initial_values_are_flaxs(name: str) -> None:
    for options in (
        {},
        {"param_dtype": jnp.float16, "recurrent_kernel_init": nnx.initializers.ones},
    ):
        cell, theirs = make(name, library=ours, **options), make(name, **options)
        assert isinstance(cell, getattr(nnx, name))
        assert set(vars(cell)) == set(vars(theirs))
        same(pure(nnx.state(cell)), pure(nnx.state(theirs)))
        same(keys_of(ours.RNN(cell, rngs=nnx.Rngs(3))), keys_of(nnx.RNN(theirs, rngs=nnx.Rngs(3))))


@pytest.mark.first_case
@every_cell
def test_values_and_gradients_are_flaxs(name: str) -> None:
    compare(name, lengths=np.array([5, 2]), reverse=True)


@pytest.mark.parametrize("name", ["GRUCell"])
@hypothesis.settings(max_examples=2)
@hypothesis.given(st.data())
def test_outputs_are_flaxs(name: str, data: st.DataObject) -> None:
    compare(name, gradients=False, **data.draw(problems()))


@pytest.mark.slow
@every_cell
@hypothesis.settings(max_examples=10)
@hypothesis.given(st.data())
def test_values_and_gradients_are_flaxs_everywhere(name: str, data: st.DataObject) -> None:
    compare(name, **data.draw(problems()))


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """Draw shapes and options of `compare`."""
    steps = draw(st.integers(1, 6))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    lengths = None
    if draw(st.booleans()):
        rows = int(np.prod(batch))
        numbers = draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows))
        lengths = np.array(numbers).reshape(batch)
    return {
        "batch": batch,
        "steps": steps,
        "features": draw(st.integers(1, 4)),
        "hidden": draw(st.integers(1, 5)),
        "lengths": lengths,
        "carried": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        **{name: draw(st.booleans()) for name in ("time_major", "reverse", "keep_order")},
    }


@pytest.mark.slow
@every_cell
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_are_flaxs(name: str, dtype: Any, param_dtype: Any) -> None:
    """Also where flax's scan refuses a carry that changes its dtype: then they are those of its step."""
    options = {"dtype": dtype, "param_dtype": param_dtype}
    options["recurrent_kernel_init"] = nnx.initializers.normal(0.3)
    for input_dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32):
        inputs = (2 * INPUTS).astype(input_dtype)
        with jax.numpy_dtype_promotion("standard"):
            theirs, layer = both(name, cell=options)
            got = layer(inputs, return_carry=True)
            carry = theirs.cell.initialize_carry(inputs[:, 0].shape, nnx.Rngs(0))
            one = jax.eval_shape(theirs.cell, carry, inputs[:, 0])
            assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, one)
            try:
                want = theirs(inputs, return_carry=True)
            except TypeError:
                continue
        low = {np.dtype(d).name for d in (dtype or param_dtype, param_dtype, input_dtype)}
        rough = max(TOLERANCES[d] for d in low & set(TOLERANCES))
        close(got, want, rough if low - {"float32", "int32"} else FLAX)


@pytest.mark.first_case
@every_cell
def test_options_of_the_module_are_defaults_of_the_call(name: str) -> None:
    options = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True}
    theirs, layer = both(name, **options, unroll=2)
    inputs = jnp.moveaxis(INPUTS, 1, 0)
    close(layer(inputs), theirs(inputs))
    opposite = dict.fromkeys(options, False)
    close(layer(INPUTS, **opposite), theirs(INPUTS, **opposite))


@pytest.mark.first_case
@every_cell
def test_padding_has_no_effect(name: str) -> None:
    _, layer = both(name, return_carry=True)
    lengths, carry = jnp.array([3, 0]), carry_of(name)
    real = jnp.arange(STEPS)[None, :] < lengths[:, None]
    poisoned = jnp.where(real[..., None], INPUTS, jnp.nan)
    for options in ({}, {"reverse": True}, {"reverse": True, "keep_order": True}):
        call = {"initial_carry": carry, "seq_lengths": lengths, **options}
        after, ys = layer(poisoned, **call)
        same((after, ys), layer(INPUTS, **call))
        assert not ys[~real].any() and ys[0, :3].all()
        # A row without a step keeps its carry.
        same(jax.tree.map(lambda a: a[1], after), jax.tree.map(lambda a: a[1], carry))


# --- the initial carry ----------------------------------------------------------------------------


@every_cell
def test_a_zero_carry_needs_no_keys(name: str) -> None:
    cell, theirs = make(name, library=ours), make(name)
    same(
        cell.initialize_carry((BATCH, FEATURES)),
        theirs.initialize_carry((BATCH, FEATURES), nnx.Rngs(0)),
    )
    with pytest.raises(ValueError, match="RNGs must be provided"):
        theirs.initialize_carry((BATCH, FEATURES))
    # Two arrays, or a call could not take them as donations.
    carry = cell.initialize_carry((BATCH, FEATURES))
    jax.jit(lambda carry: jax.tree.map(lambda a: a + 1, carry), donate_argnums=0)(carry)
    layer = ours.RNN(cell)
    rngs = nnx.Rngs(0)
    layer(INPUTS, rngs=rngs)
    assert count_of(layer) == [0] and count_of(rngs) == [0]


@pytest.mark.first_case
@every_cell
def test_a_drawn_carry_is_flaxs(name: str) -> None:
    shape, init = (BATCH, FEATURES), nnx.initializers.normal()
    with pytest.warns(UserWarning, match="carry_init"):
        cell, theirs = (make(name, library=lib, carry_init=init) for lib in (ours, nnx))
    same(cell.initialize_carry(shape, nnx.Rngs(1)), theirs.initialize_carry(shape, nnx.Rngs(1)))
    ones = nnx.initializers.ones
    same(cell.initialize_carry(shape, nnx.Rngs(1), ones), jax.tree.map(jnp.ones_like, zeros(name)))
    layer, want = ours.RNN(cell, return_carry=True), nnx.RNN(theirs, return_carry=True)
    for seed in (None, 5):
        # Each call draws another carry.
        rngs = [None if seed is None else nnx.Rngs(seed) for _ in range(2)]
        close(layer(INPUTS, rngs=rngs[0]), want(INPUTS, rngs=rngs[1]))
    assert count_of(layer) == count_of(want) != [0]


def zeros(name: str) -> Any:
    return jax.tree.map(jnp.zeros_like, carry_of(name))


def test_jit_over_a_layer_works() -> None:
    """flax's layer counts the keys of its zero carry, which a trace of `jax.jit` must not do."""
    theirs, layer = both("LSTMCell", rngs=nnx.Rngs(0))
    with pytest.raises(flax.errors.TraceContextError):
        jax.jit(theirs)(INPUTS)
    want = theirs(INPUTS)
    close(jax.jit(lambda x: layer(x))(INPUTS), want)
    close(nnx.jit(lambda x: layer(x))(INPUTS), want)
    close(nnx.jit(lambda module, x: module(x))(layer, INPUTS), want)
    graph, state = nnx.split(layer)
    close(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, INPUTS), want)
    assert count_of(layer) == [0]


# --- which recurrence runs --------------------------------------------------------------------------


def test_explain_names_what_runs() -> None:
    layer = ours.RNN(make("GRUCell", library=ours))
    same_cell = jaxrnn.gru(HIDDEN, reset="after")
    assert ours.explain(layer, (4, 64, FEATURES)) == jaxrnn.explain(same_cell, (64, 4, FEATURES))
    named = ours.RNN(make("GRUCell"), implementation="scan", time_major=True)
    assert ours.explain(named, (4, 64, FEATURES)).implementation == "scan"
    loop = ours.RNN(make("GRUCell", gate_fn=jax.nn.relu))
    assert str(ours.explain(loop, INPUTS.shape)) == "flax: the gate_fn of the cell is not sigmoid"
    scanned = ours.ScannedRNN(FEATURES, HIDDEN, implementation="xla", rngs=nnx.Rngs(0))
    assert ours.explain(scanned, (9, 4, FEATURES)).implementation == "xla"
    with pytest.raises(ValueError, match="not Linear"):
        ours.explain(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), INPUTS.shape)


class Doubled(nnx.GRUCell):
    """A cell with a step of its own."""

    def __call__(self, carry: Any, inputs: Any) -> Any:
        return super().__call__(carry, 2 * inputs)


class Renamed(nnx.GRUCell):
    """A cell with flax's step."""


class OwnCell(nnx.Module):
    """A cell that shares nothing with flax's."""

    num_feature_axes = 1

    def __init__(self, rngs: Any) -> None:
        self.dense = nnx.Linear(FEATURES + HIDDEN, HIDDEN, rngs=rngs)

    def __call__(self, carry: Any, inputs: Any) -> Any:
        hidden = jnp.tanh(self.dense(jnp.concatenate([carry, inputs], axis=-1)))
        return hidden, hidden

    def initialize_carry(self, input_shape: Any, rngs: Any) -> Any:
        return jnp.ones((*input_shape[:-1], HIDDEN))


def double_promotion(arguments: Any, **options: Any) -> Any:
    return nnx.nn.dtypes.promote_dtype(arguments, **options)


LOOPS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "gate_fn": (lambda: make("GRUCell", gate_fn=jax.nn.relu), {}, "gate_fn"),
    "activation_fn": (lambda: make("LSTMCell", activation_fn=jax.nn.elu), {}, "activation_fn"),
    "residual": (lambda: make("SimpleCell", residual=True), {}, "residual"),
    "promote_dtype": (
        lambda: make("OptimizedLSTMCell", promote_dtype=double_promotion),
        {},
        "dense_i of the cell is not an nnx.Linear",
    ),
    "state_axes": (
        lambda: make("GRUCell"),
        {"state_axes": nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})},
        "state_axes",
    ),
    "broadcast_rngs": (lambda: make("GRUCell"), {"broadcast_rngs": "noise"}, "broadcast_rngs"),
    "own step": (
        lambda: Doubled(FEATURES, HIDDEN, rngs=nnx.Rngs(0)),
        {},
        "step of the cell Doubled",
    ),
    "own cell": (lambda: OwnCell(nnx.Rngs(0)), {}, "step of the cell OwnCell"),
}


@pytest.mark.first_case
@pytest.mark.parametrize("option", LOOPS)
def test_other_options_run_in_flaxs_loop(option: str) -> None:
    cell, options, why = LOOPS[option]
    layer, theirs = ours.RNN(cell(), **options), nnx.RNN(cell(), **options)
    for call in ({}, {"reverse": True, "return_carry": True}):
        same(layer(INPUTS, **call), theirs(INPUTS, **call))
    assert ours.explain(layer, INPUTS.shape).implementation == "flax"
    layer.implementation = "xla"
    with pytest.raises(ValueError, match=f"'xla' cannot run this, only flax's loop can: .*{why}"):
        layer(INPUTS)


def test_a_changed_layer_of_a_cell_runs_in_flaxs_loop() -> None:
    cell = make("GRUCell")
    cell.dense_i = nnx.LoRALinear(FEATURES, 3 * HIDDEN, lora_rank=2, rngs=nnx.Rngs(3))
    same(ours.RNN(cell)(INPUTS), nnx.RNN(cell)(INPUTS))


@pytest.mark.parametrize(
    ("name", "layer", "bias"),
    [
        ("GRUCell", "dense_h", True),
        ("GRUCell", "dense_i", False),
        ("OptimizedLSTMCell", "dense_i", True),
        ("OptimizedLSTMCell", "dense_h", False),
    ],
)
def test_a_cell_with_other_biases_runs_in_flaxs_loop(name: str, layer: str, bias: bool) -> None:
    cell = make(name)
    old = getattr(cell, layer)
    linear = nnx.Linear(old.in_features, old.out_features, use_bias=bias, rngs=nnx.Rngs(3))
    setattr(cell, layer, linear)
    randomized(cell)
    same(ours.RNN(cell)(INPUTS), nnx.RNN(cell)(INPUTS))
    why = ours.explain(ours.RNN(cell), INPUTS.shape).why
    assert f"{layer} of the cell has {'a' if bias else 'no'} bias" in why


class Wide(nnx.GRUCell):
    """A cell whose inputs [B, T, N, D] and carry [B, N, H] have two axes of features."""

    @property
    def num_feature_axes(self) -> int:
        return 2


def test_a_cell_with_other_feature_axes_runs_in_flaxs_loop() -> None:
    cell = randomized(Wide(FEATURES, HIDDEN, rngs=nnx.Rngs(0)))
    inputs = drawn((2, 5, 6, FEATURES))
    same(ours.RNN(cell)(inputs), nnx.RNN(cell)(inputs))
    assert "2 feature axes" in ours.explain(ours.RNN(cell), INPUTS.shape).why


def test_a_carry_may_be_a_parameter() -> None:
    layer = ours.RNN(make("OptimizedLSTMCell"))
    carry = carry_of("OptimizedLSTMCell")
    learned = tuple(nnx.Param(part) for part in carry)
    same(layer(INPUTS, initial_carry=learned), layer(INPUTS, initial_carry=carry))


def test_a_subclass_with_flaxs_step_is_fast() -> None:
    cell = Renamed(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    close(ours.RNN(cell, implementation="xla")(INPUTS), nnx.RNN(cell)(INPUTS))


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.sigmoid])
def test_the_activations_of_a_plain_cell(function: Any) -> None:
    theirs, layer = both("SimpleCell", cell={"activation_fn": function})
    layer.implementation = "xla"
    close(layer(INPUTS), theirs(INPUTS))


def test_recurrent_dropout_takes_one_mask_for_all_steps() -> None:
    """A cell that draws a mask from a stream that the layer broadcasts over time."""

    class Dropped(ours.OptimizedLSTMCell):
        def __init__(self, rngs: Any) -> None:
            super().__init__(FEATURES, HIDDEN, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rng_collection="noise", rngs=rngs)

        def __call__(self, carry: Any, inputs: Any) -> Any:
            (c, h), y = super().__call__(carry, inputs)
            return (c, self.dropout(h)), y

    cell = Dropped(nnx.Rngs(0, noise=1))
    layer = ours.RNN(cell, broadcast_rngs="noise", return_carry=True)
    (_, first), ys = layer(INPUTS)
    (_, second), _ = layer(INPUTS)
    assert int(cell.dropout.rngs.count[...]) == 2
    assert ys.shape == (BATCH, STEPS, HIDDEN)
    assert ((first == 0) != (second == 0)).any()


# --- the bias of the GRU ----------------------------------------------------------------------------


def test_the_recurrent_bias_of_a_gru() -> None:
    """Steps and sequences are those of linen's cell, which has the bias."""
    cell = ours.GRUCell(FEATURES, HIDDEN, recurrent_bias=True, rngs=nnx.Rngs(0))
    assert not cell.b_hn[...].any() and cell.b_hn.shape == (HIDDEN,)
    without = make("GRUCell", library=ours)
    same(cell(carry_of("GRUCell"), INPUTS[:, 0]), without(carry_of("GRUCell"), INPUTS[:, 0]))

    weights = pure(nnx.state(randomized(cell)))
    b_h = weights.pop("b_hn")
    plain = jaxrnn.gru(HIDDEN, reset="after")
    params = {"params": to_linen(plain, from_nnx(plain, weights)._replace(b_h=b_h))}
    theirs = nn.GRUCell(HIDDEN)
    carry = carry_of("GRUCell")
    close(cell(carry, INPUTS[:, 0]), jax.jit(theirs.apply)(params, carry, INPUTS[:, 0]))
    layer, over_time = ours.RNN(cell, implementation="xla"), nn.RNN(theirs)

    def loss(params: Any) -> Any:
        ys = over_time.apply({"params": {"cell": params}}, INPUTS)
        return (ys**2).sum(), ys

    def our_loss(layer: Any) -> Any:
        ys = layer(INPUTS)
        return (ys**2).sum(), ys

    (_, got), gradient = nnx.value_and_grad(our_loss, has_aux=True)(layer)
    (_, want), d_params = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["params"])
    close(got, want)
    close(gradient.cell.b_hn[...], d_params["hn"]["bias"])


# --- both directions --------------------------------------------------------------------------------


@pytest.mark.slow
@every_cell
@pytest.mark.parametrize("time_major", [False, True])
def test_both_directions_are_flaxs(name: str, time_major: bool) -> None:
    layers = [nnx.RNN(randomized(make(name), seed)) for seed in (1, 50)]
    theirs = nnx.Bidirectional(*layers, time_major=time_major, merge_fn=jnp.add)
    layer = ours.from_flax(theirs)
    assert type(layer) is ours.Bidirectional and type(layer.backward_rnn) is ours.RNN
    inputs = jnp.moveaxis(INPUTS, 1, 0) if time_major else INPUTS
    carry = carry_of(name), carry_of(name)
    for lengths in (None, np.array([5, 3])):
        call = {"time_major": time_major}
        got = results(layer, inputs, carry, lengths, **call)
        close(got, results(theirs, inputs, carry, lengths, flaxs=False, **call))


def test_both_directions_know_no_padding() -> None:
    parts = [ours.RNN(randomized(make("GRUCell", library=ours), seed)) for seed in (1, 50)]
    layer = ours.Bidirectional(*parts)
    lengths = np.array([3, 5])
    got = jax.jit(lambda x: layer(x, seq_lengths=lengths))(INPUTS.at[0, 3:].set(jnp.nan))
    assert got.shape == (BATCH, STEPS, 2 * HIDDEN) and not got[0, 3:].any()
    close(got[0, :3], layer(INPUTS[0, :3]))


def test_both_directions_inside_of_both_directions_are_flaxs() -> None:
    def pair(seed: int) -> Any:
        layers = [nnx.RNN(randomized(make("GRUCell"), seed + n)) for n in (0, 50)]
        return nnx.Bidirectional(*layers)

    theirs = nnx.Bidirectional(pair(1), pair(2))
    layer = ours.from_flax(theirs)
    close(layer(INPUTS), theirs(INPUTS))
    with pytest.raises(ValueError, match="reverse must be None or False, not True"):
        layer(INPUTS, reverse=True)


# --- agents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_agents_layer_is_a_loop_over_flaxs_cell(name: Any) -> None:
    layer = randomized(ours.ScannedRNN(FEATURES, HIDDEN, cell=name, rngs=nnx.Rngs(0)))
    cell = ours.to_flax(layer.cell)
    assert type(cell) in (nnx.GRUCell, nnx.OptimizedLSTMCell)
    ins = drawn((STEPS, BATCH, FEATURES))
    resets = np.array([[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]], bool)
    first = jax.tree.map(
        lambda a: a + 1, ours.ScannedRNN.initialize_carry(BATCH, HIDDEN, cell=name)
    )
    carry, want = first, []
    for x, reset in zip(ins, resets, strict=True):
        carry = jax.tree.map(lambda a: jnp.where(reset[:, None], 0, a), carry)  # noqa: B023
        carry, y = cell(carry, x)
        want.append(y)
    got = layer(first, (ins, resets))
    close(got, (carry, jnp.stack(want)))
    # Environments often mark the ends of episodes by numbers.
    close(layer(first, (ins, resets.astype(np.float32))), got)

    acting, steps = first, []
    for x, reset in zip(ins, resets, strict=True):
        acting, y = layer(acting, (x[None], reset[None]))
        steps.append(y)
    close((acting, jnp.concatenate(steps)), got)


@pytest.mark.slow
def test_agents_with_parameters_of_their_own() -> None:
    """`vmap` over parameter sets equals a loop over the agents."""
    agents = 3

    @nnx.split_rngs(splits=agents)
    @nnx.vmap
    def born(rngs: Any) -> Any:
        return ours.ScannedRNN(FEATURES, HIDDEN, recurrent_bias=True, rngs=rngs)

    together = randomized(born(nnx.Rngs(0)))
    graph, state = nnx.split(together)
    ins = drawn((agents, STEPS, BATCH, FEATURES))
    resets = drawn((agents, STEPS, BATCH), 5) > 0.5
    carry = ours.ScannedRNN.initialize_carry(BATCH, HIDDEN)

    def loss(state: Any, ins: Any, resets: Any) -> Any:
        return nnx.merge(graph, state)(carry, (ins, resets))[1].sum()

    derived = jax.value_and_grad(loss)
    got = jax.jit(jax.vmap(derived))(state, ins, resets)
    for n in range(agents):
        own = jax.tree.map(lambda a: a[n], state)  # noqa: B023
        want = derived(own, ins[n], resets[n])
        close(jax.tree.map(lambda a: a[n], got), want)  # noqa: B023


def test_the_agents_layer_refuses_what_it_cannot_run() -> None:
    for options, why in (
        ({"cell": "elman"}, "cell must be one of gru, lstm, not 'elman'"),
        ({"gate_fn": jax.nn.relu}, "the gate_fn of the cell is not sigmoid"),
    ):
        with unchecked(), pytest.raises(ValueError, match=why):
            ours.ScannedRNN(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **options)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="no carry_init"):
        warnings.simplefilter("ignore")
        ours.ScannedRNN(FEATURES, HIDDEN, carry_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    layer = ours.ScannedRNN(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"resets must be of shape \(5, 2\) .* not \(2,\)"):
        layer(layer.initialize_carry(2, HIDDEN), (drawn((5, 2, FEATURES)), np.zeros(2, bool)))
    layer.cell.activation_fn = jax.nn.relu
    with pytest.raises(ValueError, match="activation_fn of the cell is not tanh"):
        layer(layer.initialize_carry(2, HIDDEN), (drawn((5, 2, FEATURES)), np.zeros((5, 2), bool)))


# --- modules that flax made -------------------------------------------------------------------------


class Model(nnx.Module):
    """A module with layers in several places, one of them twice."""

    def __init__(self, library: Any, rngs: Any) -> None:
        self.first = library.RNN(library.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=rngs))
        self.layers = nnx.List(
            [library.RNN(library.GRUCell(HIDDEN, HIDDEN, rngs=rngs)) for _ in range(2)]
        )
        self.layers.append(self.layers[0])
        self.out = nnx.Linear(HIDDEN, 1, rngs=rngs)

    def __call__(self, xs: Any) -> Any:
        xs = self.first(xs)
        for layer in self.layers:
            xs = layer(xs)
        return self.out(xs)


def test_a_module_is_converted_and_back() -> None:
    theirs = Model(nnx, nnx.Rngs(0))
    made = ours.from_flax(theirs)
    assert type(theirs.first) is nnx.RNN and type(made.first) is ours.RNN
    assert type(made.first.cell) is ours.OptimizedLSTMCell
    assert made.layers[0] is made.layers[2] is not made.layers[1]
    for got, want in zip(
        jax.tree.leaves(nnx.state(made)), jax.tree.leaves(nnx.state(theirs)), strict=True
    ):
        assert got is want or got.dtype == jax.dtypes.prng_key or (got == want).all()
    run = nnx.jit(lambda model: model(INPUTS))
    want = run(theirs)
    close(run(made), want)
    made.layers[0].cell.dense_i.kernel[...] *= 2
    assert (run(theirs) == want).all() and (run(made) != want).any()

    back = ours.to_flax(ours.from_flax(theirs))
    assert nnx.graphdef(back) == nnx.graphdef(theirs)
    same(run(ours.to_flax(Model(ours, nnx.Rngs(0)))), want)
    named = ours.to_flax(ours.RNN(make("GRUCell", library=ours), implementation="xla"))
    assert type(named) is nnx.RNN and not hasattr(named, "implementation")


def test_what_flax_has_not_is_not_converted() -> None:
    biased = ours.ScannedRNN(FEATURES, HIDDEN, recurrent_bias=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"flax's GRUCell has no b_hn"):
        ours.to_flax(biased)
    kept = ours.from_flax(nnx.RNN(Renamed(FEATURES, HIDDEN, rngs=nnx.Rngs(0))))
    assert type(kept) is ours.RNN and type(kept.cell) is Renamed


# --- transforms -------------------------------------------------------------------------------------


def trained(model: Any) -> Any:
    return nnx.value_and_grad(lambda model: (model(INPUTS) ** 2).mean())(model)


@pytest.mark.slow
def test_gradients_of_a_whole_model() -> None:
    got, want = trained(Model(ours, nnx.Rngs(0))), trained(Model(nnx, nnx.Rngs(0)))
    close(got[0], want[0])
    close(pure(got[1]), pure(want[1]))
    model = Model(ours, nnx.Rngs(0))
    close(pure(nnx.grad(lambda m: (m(INPUTS) ** 2).mean())(model)), pure(want[1]))
    remat = nnx.remat(lambda model, x: model(x))
    close(remat(model, INPUTS), model(INPUTS))
    loss = nnx.jit(nnx.value_and_grad(lambda m: (remat(m, INPUTS) ** 2).mean()))
    close(pure(loss(model)[1]), pure(want[1]))


@pytest.mark.slow
@every_cell
def test_stacks_made_by_vmap(name: str) -> None:
    """`nnx.scan` over a stack of layers, and `nnx.vmap` over it, equal flax's layers one by one."""
    depth = 3

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def made(rngs: Any) -> Any:
        return ours.RNN(getattr(ours, name)(HIDDEN, HIDDEN, rngs=rngs), rngs=False)

    stack = randomized(made(nnx.Rngs(0)))
    graph, state = nnx.split(stack)
    inputs = drawn((BATCH, STEPS, HIDDEN))
    parts = [
        ours.to_flax(nnx.merge(graph, jax.tree.map(lambda a: a[n], state)))  # noqa: B023
        for n in range(depth)
    ]
    for part in parts:
        part.rngs = nnx.Rngs(0).carry.fork()

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(layer: Any, xs: Any) -> Any:
        return layer(xs)

    want = inputs
    for part in parts:
        want = part(want)
    close(through(stack, inputs), want)
    gradient = nnx.grad(lambda stack: through(stack, inputs).sum())(stack)
    assert jax.tree.map(jnp.shape, pure(gradient)) == jax.tree.map(
        jnp.shape, pure(nnx.state(stack, nnx.Param))
    )
    side_by_side = nnx.vmap(lambda layer, xs: layer(xs), in_axes=(0, None))(stack, inputs)
    close(side_by_side, jnp.stack([part(inputs) for part in parts]))


def test_shapes_without_numbers() -> None:
    abstract = nnx.eval_shape(lambda: ours.RNN(make("GRUCell", library=ours)))
    assert abstract.cell.dense_i.kernel.shape == (FEATURES, 3 * HIDDEN)
    out = nnx.eval_shape(lambda layer: layer(INPUTS), abstract)
    assert out.shape == (BATCH, STEPS, HIDDEN)


@pytest.mark.slow
def test_checkpoints_of_flaxs_module_are_restored(tmp_path: Path) -> None:
    theirs = Model(nnx, nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(theirs, nnx.Param))
        checkpointer.wait_until_finished()
        model = Model(ours, nnx.Rngs(1))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(model, nnx.Param))
        nnx.update(model, checkpointer.restore(tmp_path / "state", abstract))
    close(model(INPUTS), theirs(INPUTS))


# --- bad input --------------------------------------------------------------------------------------


def test_errors_name_both_sides() -> None:
    lstm, gru = (ours.RNN(make(name)) for name in ("LSTMCell", "GRUCell"))
    wide, zero = drawn((BATCH, STEPS, FEATURES + 1)), jnp.zeros((BATCH, HIDDEN + 1))
    for layer, inputs, options, why in (
        (gru, wide, {}, r"must have 3 features, as the cell has, not 4"),
        (gru, INPUTS[0, 0], {}, r"must be \[\*batch, T, D\], not of shape \(3,\)"),
        (gru, INPUTS, {"initial_carry": zero}, r"array of shape \(2, 4\), not \(2, 5\)"),
        (lstm, INPUTS, {"initial_carry": zero}, r"\(c, h\), each of shape \(2, 4\), not \(2, 5\)"),
        (lstm, INPUTS, {"initial_carry": (zero, zero)}, r"not \(\(2, 5\), \(2, 5\)\)"),
        (gru, INPUTS, {"seq_lengths": np.array([1, 2, 3])}, r"shape \(2,\) .* not \(3,\)"),
        (
            gru,
            INPUTS,
            {"seq_lengths": np.array([1, 9])},
            r"must lie in 0\.\.5 \(T\), not in 1\.\.9",
        ),
        (gru, INPUTS, {"seq_lengths": np.array([1.0, 2.0])}, r"whole numbers .* not float64"),
        (gru, INPUTS.astype(jnp.complex64), {}, r"must be float32, .* not complex64"),
    ):
        with (
            unchecked(),
            jax.numpy_dtype_promotion("standard"),
            pytest.raises(ValueError, match=why) as error,
        ):
            layer(inputs, **options)
        assert "\n" not in str(error.value)
    for name, why in (("tpu", "it runs on a TPU"), ("quick", "must be one of scan, xla")):
        with unchecked(), pytest.raises(ValueError, match=why):
            ours.RNN(make("GRUCell"), implementation=name)(INPUTS)


def test_without_flax_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jaxrnn.interop.nnx")
    with pytest.raises(ImportError, match=r"^jaxrnn\.interop\.nnx needs flax: pip install flax$"):
        importlib.import_module("jaxrnn.interop.nnx")
