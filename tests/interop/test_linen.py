"""linen's recurrent layers on jaxrnn's recurrence, against live linen and the RL module that is pasted.

A named `implementation` runs or raises, so a test that names one also shows that flax's loop did not
run.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from hypothesis import strategies as st

from jaxrnn.interop import linen
from tests.support.oracle import TOLERANCES, unchecked

CELLS = {
    "lstm": linen.LSTMCell,
    "optimized": linen.OptimizedLSTMCell,
    "gru": linen.GRUCell,
    "simple": linen.SimpleCell,
}
# Both sides round sums of float32 in their own order.
FLAX = 1e-5
BATCH, STEPS, FEATURES, HIDDEN = 2, 5, 3, 4
KEY = jax.random.key(0)

every_cell = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(autouse=True)
def flax_promotes() -> Iterator[None]:
    """Let flax mix dtypes: its cells multiply a bfloat16 gate with a float32 carry."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def drawn(shape: tuple[int, ...], seed: int = 1, dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def randomized(variables: Any, seed: int = 7) -> Any:
    """Return variables of the same shapes with random numbers: flax's biases begin as zeros."""
    leaves, structure = jax.tree.flatten(variables)
    made = [drawn(leaf.shape, seed + n, leaf.dtype) for n, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, made)


def assert_close(got: Any, want: Any, tolerance: float = FLAX) -> None:
    """Two trees agree, to `tolerance` times the largest entry of a leaf, or times 1 where that is more.

    Few numbers of about 1 are summed here, so that a small result may be all rounding.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g).astype(np.float64), np.asarray(w).astype(np.float64)
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max(initial=1))


def both(layer: Any) -> tuple[Any, Any]:
    """Return flax's layer and ours."""
    return layer, linen.from_flax(layer)


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def with_gradients(apply: Any, *arguments: Any, mask: Any = True) -> Any:
    """Return the results of `apply`, and the gradients of a loss over all of them.

    Args:
      apply: a function that returns (carry, outputs).
      arguments: its arguments, all differentiated.
      mask: false where the values of the outputs are no result: they are replaced by zeros.
    """

    def loss(arguments: Any) -> Any:
        carry, outputs = apply(*arguments)
        outputs = jax.tree.map(lambda y: jnp.where(mask, y, 0), outputs)
        total = 0.0
        for n, leaf in enumerate(jax.tree.leaves((carry, outputs))):
            weights = drawn(leaf.shape, seed=20 + n)
            total += (leaf.astype(jnp.float32) * weights).sum()
        return total, (carry, outputs)

    (_, results), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
    return results, gradients


def lengths_mask(lengths: Any, steps: int, time_major: bool) -> Any:
    """Return true at the real steps and false in the padding, with an axis of one feature at the end."""
    if lengths is None:
        return np.array(True)
    real = np.arange(steps) < np.asarray(lengths)[..., None]
    return (np.moveaxis(real, -1, 0) if time_major else real)[..., None]


def assert_layer_is_flaxs(
    name: str,
    *,
    batch: tuple[int, ...] = (BATCH,),
    steps: int = STEPS,
    features: int = FEATURES,
    hidden: int = HIDDEN,
    dtype: Any = None,
    lengths: Any = None,
    carried: bool = True,
    seed: int = 1,
    **options: Any,
) -> None:
    """Compare parameters, outputs, carry and gradients of our `RNN` with those of flax's."""
    narrow = {}
    if name == "simple" and dtype == jnp.bfloat16:
        # flax cannot scan a SimpleCell whose carry, in the parameters' dtype, is wider than its
        # products, and has no orthogonal bfloat16 weights.
        init = nn.initializers.lecun_normal()
        narrow = {"param_dtype": dtype, "recurrent_kernel_init": init}
    cell = CELLS[name](hidden, dtype=dtype, **narrow)
    theirs, ours = both(nn.RNN(cell, **options))
    time_major = options.get("time_major", False)
    shape = (steps, *batch, features) if time_major else (*batch, steps, features)
    inputs = drawn(shape, seed, dtype or jnp.float32)
    variables = jax.jit(theirs.init)(KEY, inputs)
    assert_same(jax.jit(ours.init)(KEY, inputs), variables)
    variables = randomized(variables, seed)
    carry = None
    if carried:
        zeros = theirs.cell.initialize_carry(KEY, (*batch, features))
        carry = randomized(zeros, seed + 50)
    mask = lengths_mask(lengths, steps, time_major)

    def apply(layer: Any, lengths: Any, variables: Any, inputs: Any, carry: Any) -> Any:
        call = {"initial_carry": carry, "seq_lengths": lengths, "return_carry": True}
        return layer.apply(variables, inputs, **call)

    got = with_gradients(
        functools.partial(apply, ours, lengths), variables, inputs, carry, mask=mask
    )
    call = functools.partial(apply, theirs, lengths)
    if lengths is not None and len(batch) == 2:
        # flax selects the carries of at most one batch axis.
        call = one_batch_axis(functools.partial(apply, theirs), lengths, time_major)
    want = with_gradients(call, variables, inputs, carry, mask=mask)
    low = dtype == jnp.bfloat16
    assert_close(got, want, TOLERANCES["bfloat16"] if low else FLAX)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
    outputs = ours.apply(variables, inputs, initial_carry=carry, seq_lengths=lengths)
    assert not np.any(np.where(mask, 0, np.asarray(outputs, np.float32)))


def one_batch_axis(apply: Any, lengths: Any, time_major: bool) -> Any:
    """Return `apply` for inputs with two batch axes, which it gets as one."""

    def call(variables: Any, inputs: Any, carry: Any) -> Any:
        at = 1 if time_major else 0
        batch = inputs.shape[at : at + 2]
        merge = lambda x, at: x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])  # noqa: E731
        split = lambda x, at: x.reshape(*x.shape[:at], *batch, *x.shape[at + 1 :])  # noqa: E731
        carry = jax.tree.map(lambda x: merge(x, 0), carry)
        carry, outputs = apply(merge(lengths, 0), variables, merge(inputs, at), carry)
        return jax.tree.map(lambda x: split(x, 0), carry), split(outputs, at)

    return call


# --- RNN ------------------------------------------------------------------------------------------


@pytest.mark.first_case
@every_cell
def test_a_layer_is_flaxs(name: str) -> None:
    assert_layer_is_flaxs(name)


@pytest.mark.slow
@every_cell
@hypothesis.settings(max_examples=8, derandomize=True, database=None)
@hypothesis.given(
    sizes=st.tuples(*(st.integers(1, 6) for _ in range(3))),
    batch=st.sampled_from([(), (1,), (3,), (2, 3)]),
    dtype=st.sampled_from([None, None, jnp.float32, jnp.bfloat16]),
    options=st.fixed_dictionaries(
        {name: st.booleans() for name in ("time_major", "reverse", "keep_order")}
    ),
    padded=st.booleans(),
    carried=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_layer_is_flaxs_for_any_shapes_and_options(
    name: str,
    sizes: tuple[int, int, int],
    batch: tuple[int, ...],
    dtype: Any,
    options: dict[str, bool],
    padded: bool,
    carried: bool,
    seed: int,
) -> None:
    steps, features, hidden = sizes
    # flax has no carry for a row of length 0.
    lengths = None
    if padded:
        lengths = jnp.asarray(np.random.default_rng(seed).integers(1, steps + 1, batch), jnp.int32)
    assert_layer_is_flaxs(
        name,
        steps=steps,
        features=features,
        hidden=hidden,
        batch=batch,
        dtype=dtype,
        lengths=lengths,
        carried=carried,
        seed=seed,
        **options,
    )


@pytest.mark.slow
@every_cell
@pytest.mark.parametrize("reverse", [False, True])
def test_options_of_a_call_override_those_of_the_layer(name: str, reverse: bool) -> None:
    theirs, ours = both(
        nn.RNN(CELLS[name](HIDDEN), time_major=True, return_carry=True, reverse=not reverse)
    )
    inputs = drawn((BATCH, STEPS, FEATURES))
    call = {"time_major": False, "return_carry": False, "reverse": reverse, "keep_order": True}
    variables = randomized(theirs.init(KEY, inputs, **call))
    got, want = (layer.apply(variables, inputs, **call) for layer in (ours, theirs))
    assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[0, 3, 5], [5, 5, 5], [1, 1, 2]])
def test_a_row_is_as_if_it_were_alone_without_its_padding(lengths: list[int]) -> None:
    """Padding, even NaN, has no effect; a row of length 0 keeps its carry."""
    layer = linen.RNN(linen.GRUCell(HIDDEN), reverse=True, return_carry=True)
    inputs = np.asarray(drawn((3, STEPS, FEATURES)))
    variables = randomized(layer.init(KEY, inputs))
    first = drawn((3, HIDDEN), seed=4)
    padded = np.where(lengths_mask(lengths, STEPS, False), inputs, np.nan)
    carry, outputs = layer.apply(
        variables, padded, initial_carry=first, seq_lengths=jnp.array(lengths)
    )
    for row, length in enumerate(lengths):
        want, alone = layer.apply(
            variables, inputs[row : row + 1, :length], initial_carry=first[row : row + 1]
        )
        assert_close(carry[row], want[0])
        assert_close(outputs[row, :length], alone[0])
        assert not np.any(outputs[row, length:])


@pytest.mark.slow
def test_a_carry_that_is_drawn_comes_from_init_key() -> None:
    normal = nn.initializers.normal()
    theirs, ours = both(nn.RNN(nn.GRUCell(HIDDEN, carry_init=normal)))
    inputs = drawn((BATCH, 1, FEATURES))
    variables = theirs.init(KEY, inputs)
    drawn_carries = []
    for call in ({}, {"init_key": jax.random.key(5)}):
        got, want = (layer.apply(variables, inputs, **call) for layer in (ours, theirs))
        assert_close(got, want)
        drawn_carries.append(got)
    assert not np.allclose(*drawn_carries)


# --- inside of other modules and transformations --------------------------------------------------


class Compact(nn.Module):
    """A parent that makes its layer inside of the call."""

    layers: Any
    hidden: int = HIDDEN
    options: Any = None

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        options = self.options or {}
        inputs = self.layers.RNN(self.layers.OptimizedLSTMCell(self.hidden), **options)(inputs)
        return self.layers.RNN(self.layers.GRUCell(self.hidden, name="last"), **options)(inputs)


class Setup(nn.Module):
    """A parent that makes its layers in `setup`."""

    layers: Any

    def setup(self) -> None:
        self.cell = self.layers.SimpleCell(HIDDEN)
        self.first = self.layers.RNN(self.layers.LSTMCell(HIDDEN), name="one")
        self.second = self.layers.RNN(self.cell, reverse=True)

    def __call__(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("parent", [Compact, Setup])
def test_parents_hold_the_same_parameters_and_give_the_same_outputs(parent: Any) -> None:
    theirs, ours = parent(nn), parent(linen)
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = jax.jit(theirs.init)(KEY, inputs)
    got = jax.jit(ours.init)(KEY, inputs)
    assert_same(got, variables)
    variables = randomized(variables)
    got, want = (jax.jit(parent.apply)(variables, inputs) for parent in (ours, theirs))
    assert_close(got, want)


TRANSFORMS = {
    "vmap": lambda layer: nn.vmap(layer, variable_axes={"params": 0}, split_rngs={"params": True}),
    "vmap over data": lambda layer: nn.vmap(
        layer, variable_axes={"params": None}, split_rngs={"params": False}
    ),
    "scan": lambda layer: nn.scan(
        layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    ),
    "remat": nn.remat,
    "jit": nn.jit,
}


class Block(nn.Module):
    """A layer with the signature that `nn.scan` needs."""

    layers: Any
    options: Any = None

    @nn.compact
    def __call__(self, inputs: Any, _: Any) -> Any:
        options = self.options or {}
        return self.layers.RNN(self.layers.GRUCell(FEATURES), **options)(inputs), None


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_lifted_transforms(name: str) -> None:
    """linen's own transforms of a layer: the same parameters, outputs and gradients as flax's."""
    transform = TRANSFORMS[name]
    theirs = transform(Block)(nn)
    ours = transform(Block)(linen, {"implementation": "xla"})
    inputs = drawn((2, BATCH, STEPS, FEATURES))
    second = None
    if name == "scan":
        inputs = inputs[0]
    elif "vmap" in name:
        second = jnp.zeros(2)
    variables = jax.jit(theirs.init)(KEY, inputs, second)
    assert_same(jax.jit(ours.init)(KEY, inputs, second), variables)
    variables = randomized(variables)
    got, want = (
        with_gradients(
            lambda v, x, parent=parent: (None, parent.apply(v, x, second)[0]), variables, inputs
        )
        for parent in (ours, theirs)
    )
    assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["scan", "xla", "native", None])
def test_vmap_over_stacked_parameters(implementation: Any) -> None:
    """Agents or seeds: `jax.vmap` of `init` and `apply`, values and gradients."""
    theirs, ours = Compact(nn), Compact(linen, options={"implementation": implementation})
    inputs = drawn((2, BATCH, STEPS, FEATURES))
    variables = jax.vmap(ours.init)(jax.random.split(KEY), inputs)
    assert_same(variables, jax.vmap(theirs.init)(jax.random.split(KEY), inputs))
    got, want = (
        with_gradients(lambda v, x, p=parent: (None, jax.vmap(p.apply)(v, x)), variables, inputs)
        for parent in (ours, theirs)
    )
    assert_close(got, want)


@pytest.mark.slow
def test_init_with_output_and_mutable_collections() -> None:
    theirs, ours = Compact(nn), Compact(linen)
    inputs = drawn((BATCH, STEPS, FEATURES))
    (output, variables), want = (p.init_with_output(KEY, inputs) for p in (ours, theirs))
    assert_same(variables, want[1])
    assert_close(output, want[0])
    for mutable in (True, ["params"], ["intermediates"], False):
        got, want = (p.apply(variables, inputs, mutable=mutable) for p in (ours, theirs))
        assert_close(got, want)
    # Parameters that are not there are made where they may be.
    got, want = (
        p.apply({}, inputs, rngs={"params": KEY}, mutable=["params"]) for p in (ours, theirs)
    )
    assert_close(got, want)
    with pytest.raises(Exception, match=r"\bii\b"):
        ours.apply({}, inputs)


@pytest.mark.slow
def test_intermediates_and_tabulate_are_those_of_flax() -> None:
    theirs, ours = Compact(nn), Compact(linen)
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = theirs.init(KEY, inputs)
    got, want = (p.apply(variables, inputs, capture_intermediates=True)[1] for p in (ours, theirs))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert_close(got, want)
    got, want = (nn.tabulate(p, KEY)(inputs) for p in (ours, theirs))
    assert got == want


@pytest.mark.slow
def test_parameters_with_metadata_are_unboxed() -> None:
    """Initializers of `nn.with_partitioning` put each kernel in a box."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
    theirs, ours = both(nn.RNN(nn.GRUCell(HIDDEN, kernel_init=init)))
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = theirs.init(KEY, inputs)
    assert isinstance(variables["params"]["cell"]["ir"]["kernel"], meta.AxisMetadata)
    got, want = (layer.apply(variables, inputs) for layer in (ours, theirs))
    assert_close(got, want)


# --- what flax's own loop runs --------------------------------------------------------------------


class Doubled(nn.GRUCell):
    """A cell with equations of its own."""

    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        carry = nn.Dense(self.features, name="d")(inputs) + 2 * carry
        return carry, carry


LOOPED = {
    "subclass": (Doubled(HIDDEN), {}, "Doubled"),
    "other cell": (nn.MGUCell(HIDDEN), {}, "MGUCell"),
    "activation": (nn.LSTMCell(HIDDEN, activation_fn=nn.gelu), {}, "activation_fn"),
    "gate": (nn.GRUCell(HIDDEN, gate_fn=nn.hard_sigmoid), {}, "gate_fn"),
    "residual": (nn.SimpleCell(HIDDEN, residual=True), {}, "residual"),
    "axes": (
        nn.GRUCell(HIDDEN),
        {"variable_axes": {"params": 0}, "variable_broadcast": False},
        "variable_",
    ),
    "rngs": (nn.GRUCell(HIDDEN), {"split_rngs": {"params": False, "dropout": True}}, "split_rngs"),
}


@pytest.mark.parametrize("name", LOOPED)
def test_a_named_implementation_that_does_not_apply_is_refused(name: str) -> None:
    cell, options, reason = LOOPED[name]
    layer = linen.RNN(cell, **options, implementation="xla")
    inputs = drawn((BATCH, STEPS, FEATURES))
    with pytest.raises(ValueError, match=rf"'xla'.*{reason}"):
        layer.init(KEY, inputs)
    explained = linen.explain(linen.RNN(cell, **options), inputs.shape)
    assert reason in str(explained)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPED)
def test_every_other_cell_and_option_runs_as_in_flax(name: str) -> None:
    cell, options, _ = LOOPED[name]
    theirs, ours = both(nn.RNN(cell, **options))
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = theirs.init(KEY, inputs)
    got, want = (
        layer.apply(variables, inputs, capture_intermediates=True) for layer in (ours, theirs)
    )
    assert_same(got, want)


@pytest.mark.slow
def test_a_convolutional_cell_has_spatial_axes() -> None:
    theirs, ours = both(nn.RNN(nn.ConvLSTMCell(HIDDEN, (3, 3)), return_carry=True))
    inputs = drawn((BATCH, STEPS, 6, 6, FEATURES))
    variables = theirs.init(KEY, inputs)
    got, want = (layer.apply(variables, inputs) for layer in (ours, theirs))
    assert_same(got, want)
    assert got[0][0].shape == (BATCH, 6, 6, HIDDEN)


@pytest.mark.slow
def test_options_spelled_out_as_in_flaxs_documentation_are_the_defaults() -> None:
    layer = linen.RNN(
        linen.LSTMCell(HIDDEN),
        unroll=2,
        variable_axes={},
        variable_broadcast="params",
        variable_carry=False,
        split_rngs={"params": False},
        implementation="xla",
    )
    inputs = drawn((BATCH, STEPS, FEATURES))
    assert layer.init_with_output(KEY, inputs)[0].shape == (BATCH, STEPS, HIDDEN)


def test_explain_names_the_implementation() -> None:
    cell = linen.GRUCell(64)
    shape = (32, 100, 16)
    assert linen.explain(linen.RNN(cell, implementation="xla"), shape).implementation == "xla"
    steps_first = linen.explain(linen.RNN(cell, time_major=True), (1, 32, 16))
    assert steps_first.implementation == "scan"
    assert linen.explain(linen.RNN(cell), shape).implementation != "scan"
    assert linen.explain(linen.ScannedRNN(), (1, 32, 16)).implementation == "scan"
    assert linen.explain(linen.RNN(nn.MGUCell(64)), shape).implementation == "flax"
    with pytest.raises(ValueError, match="Dense"):
        linen.explain(nn.Dense(3), shape)


# --- what flax's own tests say of behaviour -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("keep_order", [False, True])
@every_cell
def test_a_layer_is_its_cell_step_by_step(name: str, reverse: bool, keep_order: bool) -> None:
    """Each row alone through the cell's own call: outputs at the right steps, and the last carry."""
    layer = linen.RNN(CELLS[name](6), return_carry=True, reverse=reverse, keep_order=keep_order)
    inputs = drawn((3, 4, 5))
    variables = randomized(layer.init(KEY, inputs))
    carry, outputs = layer.apply(variables, inputs)
    cell = {"params": variables["params"]["cell"]}
    step = jax.jit(layer.cell.apply)
    for row in range(3):
        now = layer.cell.initialize_carry(KEY, (1, 5))
        for n in range(4):
            t = 3 - n if reverse else n
            now, y = step(cell, now, inputs[row : row + 1, t])
            assert_close(outputs[row, t if keep_order else n], y[0])
        assert_close(jax.tree.map(lambda x, row=row: x[row : row + 1], carry), now)


@pytest.mark.slow
@every_cell
def test_shapes_of_parameters_carries_and_outputs(name: str) -> None:
    """Any batch axes, any option: one kernel [in, H] per gate, a bias [H], outputs as wide as H."""
    for batch in ((), (3,), (3, 2)):
        for time_major in (False, True):
            layer = linen.RNN(CELLS[name](6), time_major=time_major, unroll=3, return_carry=True)
            shape = (4, *batch, 5) if time_major else (*batch, 4, 5)
            variables = layer.init(KEY, jnp.ones(shape))
            for part in variables["params"]["cell"].values():
                assert part["kernel"].shape in ((5, 6), (6, 6))
                assert part.get("bias", jnp.zeros(6)).shape == (6,)
            carry, outputs = layer.apply(variables, jnp.ones(shape))
            assert outputs.shape == (*shape[:-1], 6)
            for leaf in jax.tree.leaves(carry):
                assert leaf.shape == (*batch, 6)
                assert np.all(leaf != 0)


@pytest.mark.slow
def test_lengths_without_a_carry_and_with_one() -> None:
    layer = linen.RNN(linen.LSTMCell(HIDDEN))
    inputs, lengths = drawn((2, 10, 6)), jnp.array([5, 7])
    variables = layer.init(KEY, inputs)
    alone = layer.apply(variables, inputs, seq_lengths=lengths)
    (c, h), outputs = layer.apply(variables, inputs, seq_lengths=lengths, return_carry=True)
    assert_same(alone, outputs)
    assert c.shape == (2, HIDDEN)
    assert_close(h, outputs[jnp.arange(2), lengths - 1])


# --- Bidirectional --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("merge", [None, lambda a, b: a + b])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
def test_bidirectional_is_flaxs(merge: Any, padded: bool, time_major: bool) -> None:
    options = {} if merge is None else {"merge_fn": merge}
    theirs = nn.Bidirectional(
        nn.RNN(nn.LSTMCell(HIDDEN)), nn.RNN(nn.GRUCell(HIDDEN)), time_major=time_major, **options
    )
    theirs, ours = both(theirs)
    assert type(ours.backward_rnn) is linen.RNN
    inputs = drawn((STEPS, BATCH, FEATURES) if time_major else (BATCH, STEPS, FEATURES))
    lengths = jnp.array([2, 5]) if padded else None
    variables = theirs.init(KEY, inputs)
    assert_same(ours.init(KEY, inputs), variables)
    variables = randomized(variables)
    first = (drawn((BATCH, HIDDEN), 3), drawn((BATCH, HIDDEN), 4)), drawn((BATCH, HIDDEN), 5)
    got, want = (
        with_gradients(
            lambda v, x, carry, layer=layer: layer.apply(
                v, x, initial_carry=carry, seq_lengths=lengths, return_carry=True
            ),
            variables,
            inputs,
            first,
            mask=lengths_mask(lengths, STEPS, time_major),
        )
        for layer in (ours, theirs)
    )
    assert_close(got, want)


@pytest.mark.slow
def test_bidirectional_starts_each_row_at_its_own_end() -> None:
    """A row in a padded batch gives what it gives alone, and zeros in the padding, even beside NaN."""
    layer = linen.Bidirectional(linen.RNN(linen.GRUCell(HIDDEN)), linen.RNN(linen.GRUCell(HIDDEN)))
    inputs = np.asarray(drawn((3, STEPS, FEATURES)))
    variables = randomized(layer.init(KEY, inputs))
    lengths = [0, 2, STEPS]
    padded = np.where(lengths_mask(lengths, STEPS, False), inputs, np.nan)
    outputs = layer.apply(variables, padded, seq_lengths=jnp.array(lengths))
    for row, length in enumerate(lengths):
        alone = layer.apply(variables, inputs[row : row + 1, :length])
        assert_close(outputs[row, :length], alone[0])
        assert not np.any(outputs[row, length:])


@pytest.mark.slow
def test_directions_that_share_a_cell_share_its_parameters() -> None:
    cell = nn.LSTMCell(HIDDEN)
    theirs, ours = both(nn.Bidirectional(nn.RNN(cell), nn.RNN(cell)))
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = theirs.init(KEY, inputs)
    assert_same(ours.init(KEY, inputs), variables)
    got, want = (
        layer.apply(variables, inputs, capture_intermediates=True) for layer in (ours, theirs)
    )
    assert_close(got, want)


def test_bidirectional_refuses_a_direction() -> None:
    layer = linen.Bidirectional(linen.RNN(linen.GRUCell(HIDDEN)), linen.RNN(linen.GRUCell(HIDDEN)))
    with pytest.raises(ValueError, match="reverse"):
        layer.init(KEY, drawn((BATCH, STEPS, FEATURES)), reverse=True)


def test_bidirectional_inside_of_bidirectional_is_flaxs() -> None:
    def pair(library: Any) -> Any:
        return library.Bidirectional(*(library.RNN(nn.GRUCell(HIDDEN)) for _ in range(2)))

    theirs, layer = (library.Bidirectional(pair(library), pair(library)) for library in (nn, linen))
    inputs = drawn((BATCH, STEPS, FEATURES))
    variables = theirs.init(KEY, inputs)
    assert_same(layer.init(KEY, inputs), variables)
    assert_close(layer.apply(variables, inputs), theirs.apply(variables, inputs))


def test_init_takes_and_refuses_what_apply_does() -> None:
    layer = linen.RNN(linen.GRUCell(HIDDEN), return_carry=True)
    inputs, lengths = drawn((3, BATCH, STEPS, FEATURES)), np.full((3, BATCH), 2)
    results, variables = layer.init_with_output(KEY, inputs, seq_lengths=lengths.tolist())
    assert_same(results, layer.apply(variables, inputs, seq_lengths=lengths))
    assert_same(variables, nn.RNN(nn.GRUCell(HIDDEN)).init(KEY, inputs))
    for options, message in (
        ({"seq_lengths": np.ones(7, int)}, r"\(7,\)"),
        ({"initial_carry": jnp.zeros((BATCH, HIDDEN))}, "initial carry"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.init(KEY, inputs, **options)
    steps: Any = jnp.ones(3)
    for module, given in ((layer, [steps]), (linen.ScannedRNN(), [steps, (steps, steps)])):
        with unchecked(), pytest.raises(ValueError, match=r"not of shape \(3,\)"):
            module.init(KEY, *given)
    with unchecked(), pytest.raises(ValueError, match="must be one of scan, xla"):
        linen.RNN(linen.GRUCell(HIDDEN), implementation="quick").init(KEY, inputs)


# --- from and to flax -----------------------------------------------------------------------------


def test_from_flax_and_back_keeps_every_field() -> None:
    rnn = nn.RNN(
        nn.GRUCell(HIDDEN, name="inner"), time_major=True, reverse=True, unroll=3, name="outer"
    )
    ours = linen.from_flax(rnn)
    assert type(ours) is linen.RNN and isinstance(ours, nn.RNN)
    assert (ours.name, ours.cell.name, ours.unroll, ours.time_major) == ("outer", "inner", 3, True)
    assert linen.to_flax(ours) == rnn and type(linen.to_flax(ours)) is nn.RNN
    pair = nn.Bidirectional(rnn, rnn, merge_fn=jnp.add, return_carry=True)
    ours = linen.from_flax(pair)
    assert ours.forward_rnn is ours.backward_rnn and type(ours.forward_rnn) is linen.RNN
    assert linen.to_flax(ours) == pair
    assert linen.from_flax(ours) is ours and linen.to_flax(pair) is pair
    for cell in CELLS.values():
        assert linen.from_flax(cell(HIDDEN)) == cell(HIDDEN) == linen.to_flax(cell(HIDDEN))


def test_other_modules_are_not_converted() -> None:
    for convert in (linen.from_flax, linen.to_flax):
        for module in (nn.Dense(3), Doubled(3), None):
            with pytest.raises(ValueError, match=r"RNN, Bidirectional.*not"):
                convert(module)

    class Parent(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            return linen.from_flax(nn.RNN(nn.GRUCell(HIDDEN)))(inputs)

    with pytest.raises(ValueError, match="parent=None"):
        Parent().init(KEY, drawn((BATCH, STEPS, FEATURES)))


# --- bad input ------------------------------------------------------------------------------------

BAD = {
    "width": (
        {"inputs": jnp.zeros((BATCH, STEPS, FEATURES + 1))},
        rf"{FEATURES}\b.*{FEATURES + 1}",
    ),
    "rank": ({"inputs": jnp.zeros(FEATURES)}, r"\(3,\)"),
    "carry width": ({"initial_carry": jnp.zeros((BATCH, HIDDEN + 1))}, r"\(2, 4\).*\(2, 5\)"),
    "carry batch": ({"initial_carry": jnp.zeros((BATCH + 1, HIDDEN))}, r"\(2, 4\).*\(3, 4\)"),
    "lengths shape": ({"seq_lengths": jnp.array([1, 2, 3])}, r"\(2,\).*\(3,\)"),
    "lengths dtype": ({"seq_lengths": jnp.array([1.0, 2.0])}, r"whole numbers.*float32"),
    "lengths range": ({"seq_lengths": np.array([1, STEPS + 1])}, rf"{STEPS}.*{STEPS + 1}"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_that_names_both_sides(name: str) -> None:
    changed, message = BAD[name]
    layer = linen.RNN(linen.GRUCell(HIDDEN))
    call = {"inputs": drawn((BATCH, STEPS, FEATURES))}
    shapes = jax.eval_shape(layer.init, KEY, call["inputs"])
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    with unchecked(), pytest.raises(ValueError, match=message) as error:
        layer.apply(variables, **(call | changed))
    assert "\n" not in str(error.value)


def test_an_lstm_needs_both_parts_of_its_carry() -> None:
    layer = linen.RNN(linen.LSTMCell(HIDDEN))
    inputs = drawn((BATCH, STEPS, FEATURES))
    shapes = jax.eval_shape(layer.init, KEY, inputs)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    with pytest.raises(ValueError, match=r"\(c, h\)"):
        layer.apply(variables, inputs, initial_carry=jnp.zeros((BATCH, HIDDEN)))


# --- ScannedRNN -----------------------------------------------------------------------------------


def pasted(cell: str, resets_by_cell: bool | None = None) -> Any:
    """Return the module that RL projects paste, with the name that gives its parameters theirs.

    With `resets_by_cell`, which is usual for a GRU, the carry of a reset comes from a cell that is made
    for it, and then it is the second cell that has the parameters.
    """
    if resets_by_cell is None:
        resets_by_cell = cell == "gru"
    make: Any = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[cell]

    class ScannedRNN(nn.Module):
        @functools.partial(
            nn.scan,
            variable_broadcast="params",
            in_axes=0,
            out_axes=0,
            split_rngs={"params": False},
        )
        @nn.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            ins, resets = x
            batch, hidden = jax.tree.leaves(carry)[0].shape
            fresh = jax.tree.map(jnp.zeros_like, carry)
            if resets_by_cell:
                fresh = make(hidden).initialize_carry(jax.random.key(0), (batch, hidden))
            carry = jax.tree.map(lambda f, s: jnp.where(resets[:, None], f, s), fresh, carry)
            return make(features=hidden)(carry, ins)

    return ScannedRNN()


both_recurrences = pytest.mark.parametrize("cell", ["gru", "lstm"])


def episode(
    cell: str, steps: int = 7, batch: int = 3, width: int = FEATURES, hidden: int = HIDDEN
) -> Any:
    """Return a carry that is not zero, inputs, and resets of which some act at the first step."""
    carry = randomized(linen.ScannedRNN.initialize_carry(batch, hidden, cell=cell))
    resets = jnp.asarray(np.random.default_rng(3).random((steps, batch)) < 0.4)
    return carry, drawn((steps, batch, width)), resets


@pytest.mark.first_case
@both_recurrences
def test_scanned_rnn_is_the_pasted_module(cell: str) -> None:
    """Parameters by key, values, and the gradients of parameters, carry and inputs."""
    theirs, ours = pasted(cell), linen.ScannedRNN(cell)
    carry, ins, resets = episode(cell)
    variables = jax.jit(theirs.init)(KEY, carry, (ins, resets))
    assert set(variables["params"]) == {"gru": {"GRUCell_1"}, "lstm": {"OptimizedLSTMCell_0"}}[cell]
    assert_same(jax.jit(ours.init)(KEY, carry, (ins, resets)), variables)
    variables = randomized(variables)
    got, want = (
        with_gradients(lambda v, c, x, m=m: m.apply(v, c, (x, resets)), variables, carry, ins)
        for m in (ours, theirs)
    )
    assert_close(got, want)


@both_recurrences
def test_the_cell_can_have_another_name(cell: str) -> None:
    """Other projects reset in another way, and so their modules number the cell differently."""
    other = cell == "lstm"
    name = {"gru": "GRUCell_0", "lstm": "OptimizedLSTMCell_1"}[cell]
    carry, ins, resets = episode(cell)
    want = jax.jit(pasted(cell, other).init)(KEY, carry, (ins, resets))
    got = jax.jit(linen.ScannedRNN(cell, cell_name=name).init)(KEY, carry, (ins, resets))
    assert_same(got, want)
    with pytest.raises(ValueError, match=f"are named {name}, not .*: set cell_name to their name"):
        linen.ScannedRNN(cell).apply(got, carry, (ins, resets))


class ActorCritic(nn.Module):
    """The frame around the module in RL code: an embedding as wide as the carry, and a head."""

    scanned: Any
    inside: Any = None

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        observations, resets = x
        embedded = nn.relu(nn.Dense(HIDDEN)(observations))
        carry, y = self.scanned(carry, (embedded, resets))
        return carry, nn.Dense(2)(y)


class Agent(nn.Module):
    """The same, with the recurrent module made inside of the call."""

    make: Any

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        return ActorCritic(self.make())(carry, x)


@pytest.mark.slow
@both_recurrences
@pytest.mark.parametrize("implementation", ["scan", "xla", "native", None])
@pytest.mark.parametrize("over", ["parameters", "data", "both"])
def test_scanned_rnn_under_vmap(cell: str, implementation: Any, over: str) -> None:
    """Agents and seeds are a `jax.vmap` over parameters, environments one over data."""
    carry, ins, resets = episode(cell)
    axes = (None if over == "data" else 0, None if over == "parameters" else 0)
    if over != "parameters":
        stack = lambda a: jnp.stack([a, -a if a.dtype != bool else ~a])  # noqa: E731
        carry, ins, resets = jax.tree.map(stack, (carry, ins, resets))
    theirs = Agent(functools.partial(pasted, cell))
    ours = Agent(functools.partial(linen.ScannedRNN, cell, implementation))
    in_axes = (axes[1], axes[1])
    keys = jax.random.split(KEY) if axes[0] == 0 else KEY
    variables, same = (
        jax.vmap(m.init, (axes[0], *in_axes), axis_size=2)(keys, carry, (ins, resets))
        for m in (theirs, ours)
    )
    assert_same(same, variables)
    if axes[0] is None:
        variables = jax.tree.map(lambda x: x[0], variables)

    def apply(module: Any, variables: Any, carry: Any, ins: Any) -> Any:
        run = jax.vmap(module.apply, (axes[0], *in_axes))
        return run(variables, carry, (ins, resets))

    got, want = (
        with_gradients(functools.partial(apply, m), variables, carry, ins) for m in (ours, theirs)
    )
    assert_close(got, want)


@pytest.mark.slow
@both_recurrences
def test_single_steps_for_acting_are_the_unroll_for_learning(cell: str) -> None:
    module = linen.ScannedRNN(cell)
    carry, ins, resets = episode(cell)
    variables = randomized(module.init(KEY, carry, (ins, resets)))
    want = module.apply(variables, carry, (ins, resets))
    act, ys = jax.jit(module.apply), []
    for t in range(len(ins)):
        carry, y = act(variables, carry, (ins[t : t + 1], resets[t : t + 1]))
        ys.append(y)
    assert_close((carry, jnp.concatenate(ys)), want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_resets_may_be_numbers(dtype: Any) -> None:
    module = linen.ScannedRNN()
    carry, ins, resets = episode("gru", steps=2)
    variables = module.init(KEY, carry, (ins, resets))
    got = module.apply(variables, carry, (ins, resets.astype(dtype)))
    assert_same(got, module.apply(variables, carry, (ins, resets)))


def test_the_first_carry_is_zeros_as_wide_as_asked_for() -> None:
    assert_same(linen.ScannedRNN.initialize_carry(2, 5), jnp.zeros((2, 5)))
    zeros = jnp.zeros((2, 5))
    carry = linen.ScannedRNN.initialize_carry(2, 5, cell="lstm")
    assert_same(carry, (zeros, zeros))
    # The same array could not be donated twice.
    assert carry[0] is not carry[1]
    with unchecked(), pytest.raises(ValueError, match=r"gru, lstm.*rnn"):
        linen.ScannedRNN.initialize_carry(2, 5, cell="rnn")


BAD_EPISODES = {
    "width": (lambda c, x, r: (c, x[..., :2], r), rf"{FEATURES}\b.*2"),
    "carry batch": (lambda c, x, r: (c[:2], x, r), r"\(3, 4\).*\(2, 4\)"),
    "carry kind": (lambda c, x, r: ((c, c), x, r), "initial carry"),
    "resets": (lambda c, x, r: (c, x, r[:, :2]), r"\(7, 3\).*\(7, 2\)"),
}


@pytest.mark.parametrize("name", BAD_EPISODES)
def test_bad_episodes_are_one_error_that_names_both_sides(name: str) -> None:
    change, message = BAD_EPISODES[name]
    module = linen.ScannedRNN()
    carry, ins, resets = episode("gru")
    shapes = jax.eval_shape(module.init, KEY, carry, (ins, resets))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carry, ins, resets = change(carry, ins, resets)
    with unchecked(), pytest.raises(ValueError, match=message) as error:
        module.apply(variables, carry, (ins, resets))
    assert "\n" not in str(error.value)


def test_an_unknown_cell_is_refused() -> None:
    carry, ins, resets = episode("gru")
    with unchecked(), pytest.raises(ValueError, match=r"gru, lstm.*'rnn'"):
        linen.ScannedRNN("rnn").init(KEY, carry, (ins, resets))


def test_without_flax_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jaxrnn.interop.linen")
    message = r"^jaxrnn\.interop\.linen needs flax: pip install flax$"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("jaxrnn.interop.linen")
