"""Compare converters with the installed libraries: values, states and gradients in float32.

Sizes are random; the seed is the number of the case.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop import equinox, flax, haiku, keras, torch
from jaxrnn.layers import Stacked
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

LIBRARIES = ("torch", "keras", "haiku", "equinox")
missing = [name for name in LIBRARIES if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: pip install jaxrnn[peers]"),
]
# Of the largest entry; sums of a few dozen products in float32.
TOLERANCE = 1e-5
CASES = range(3)


class Sizes(NamedTuple):
    steps: int
    batch: int
    inputs: int
    hidden: int
    layers: int


def sizes(case: int) -> Sizes:
    rng = np.random.default_rng(case)
    return Sizes(*map(int, rng.integers([2, 1, 1, 3, 1], [12, 6, 20, 24, 4])))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(got: Any, want: Any) -> None:
    """Compare trees of arrays, each by its own largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1, float(np.abs(b).max())))


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def ours(net: Stacked, params: Any, xs: Any, states: Any) -> tuple[Any, Any]:
    """Return (final states, ys), and the gradients of the loss below for params, xs and states."""

    def loss(params: Any, xs: Any, states: Any) -> Any:
        final, ys = net.apply(params, xs, states)
        return sum((a**2).sum() for a in jax.tree.leaves((final, ys))), (final, ys)

    arrays = jax.tree.map(jnp.asarray, (params, xs, states))
    (_, results), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return results, gradients


def states_of(net: Stacked, arrays: Any) -> Any:
    """Return the states of each pseudo-layer from arrays [pseudo-layers, B, H]."""
    kind = type(net.cell.initial_state(1))
    return tuple(kind(*(a[n] for a in arrays)) for n in range(net.pseudo_layers))


# --- PyTorch ---

TORCH = {
    "RNN": {},
    "RNN-relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "LSTM-projected": {"proj_size": 2},
    "GRU": {},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("bias", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("name", TORCH)
def test_torch_layers(name: str, bias: bool, both: bool, case: int) -> None:
    import torch as library

    size = sizes(case)
    library.manual_seed(case)
    options = {"num_layers": size.layers, "bidirectional": both, "bias": bias, **TORCH[name]}
    module = getattr(library.nn, name.partition("-")[0])(size.inputs, size.hidden, **options)
    xs = library.tensor(draw(size.steps, size.batch, size.inputs), requires_grad=True)
    widths = [options.get("proj_size", size.hidden), size.hidden][: 2 if "LSTM" in name else 1]
    count = size.layers * (2 if both else 1)
    first = [
        library.tensor(draw(count, size.batch, w, seed=n), requires_grad=True)
        for n, w in enumerate(widths)
    ]
    ys, last = module(xs, tuple(first) if "LSTM" in name else first[0])
    finals = list(last) if "LSTM" in name else [last]
    sum((a**2).sum() for a in (ys, *finals)).backward()

    nonlinearity = {} if "relu" not in name else {"nonlinearity": "relu"}
    net, params = torch.stacked_from_torch(module.state_dict(), **nonlinearity)
    assert (net.layers, net.bidirectional, net.inputs) == (size.layers, both, size.inputs)
    numpy = lambda tensors: [t.detach().numpy() for t in tensors]  # noqa: E731
    got, (d_params, d_xs, d_states) = ours(
        net, params, xs.detach().numpy(), states_of(net, numpy(first))
    )
    assert_near(got, (states_of(net, numpy(finals)), ys.detach().numpy()))
    assert_near(d_xs, xs.grad.numpy())
    assert_near(d_states, states_of(net, [a.grad.numpy() for a in first]))
    slopes = {key: p.grad.numpy() for key, p in module.named_parameters()}
    if bias:
        assert_near(d_params, torch.gradients_from_torch(net, slopes))

    # And back, into a module that computes the same.
    arrays = torch.to_torch(net, params)
    assert_same(torch.from_torch(net, arrays), params)
    again = getattr(library.nn, name.partition("-")[0])(
        size.inputs, size.hidden, **(options | {"bias": True})
    )
    again.load_state_dict({key: library.tensor(a) for key, a in arrays.items()})
    same_ys, _ = again(xs, tuple(first) if "LSTM" in name else first[0])
    assert_near(same_ys.detach().numpy(), ys.detach().numpy())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_torch_cells(name: str, case: int) -> None:
    import torch as library

    size = sizes(case)
    library.manual_seed(case)
    module = getattr(library.nn, name)(size.inputs, size.hidden)
    net, params = torch.stacked_from_torch(module.state_dict())
    assert_same(torch.from_torch(net.cell, module.state_dict()), params.cells[0])
    x, state = draw(size.batch, size.inputs), draw(2, size.batch, size.hidden)
    state = state if name == "LSTMCell" else state[:1]
    tensors = [library.tensor(s) for s in state]
    want = module(library.tensor(x), tuple(tensors) if name == "LSTMCell" else tensors[0])
    _, y = net.step(params, states_of(net, jnp.asarray(state)[:, None]), jnp.asarray(x))
    hidden = want[0] if name == "LSTMCell" else want
    assert_near(y, hidden.detach().numpy())
    module.load_state_dict(
        {k: library.tensor(a) for k, a in torch.to_torch(net, params, kind="cell").items()}
    )


# --- Keras ---

KERAS = {
    "SimpleRNN": {},
    "SimpleRNN-relu": {"activation": "relu"},
    "LSTM": {},
    "GRU": {},
    "GRU-before": {"reset_after": False},
    "LSTM-no-bias": {"use_bias": False},
}


def keras_model(name: str, both: bool, case: int) -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as library

    library.utils.set_random_seed(case)
    size, kind = sizes(case), getattr(library.layers, name.partition("-")[0])
    layers = [
        kind(size.hidden, return_sequences=True, bias_initializer="uniform", **KERAS[name])
        for _ in range(size.layers)
    ]
    if both:
        layers = [library.layers.Bidirectional(layer) for layer in layers]
    return library.Sequential([library.Input((None, size.inputs)), *layers])


# Keras on PyTorch uses what numpy calls deprecated.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@quiet
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("name", KERAS)
def test_keras_models_and_files(name: str, both: bool, case: int, tmp_path: Path) -> None:
    size, model = sizes(case), keras_model(name, both, case)
    xs = draw(size.batch, size.steps, size.inputs)
    net, params = keras.stacked_from_keras(model)
    assert net.batch_first and net.bidirectional == both and net.layers == size.layers
    ys = jax.jit(net.apply)(jax.tree.map(jnp.asarray, params), xs)[1]
    assert_near(np.asarray(ys), np.asarray(model.predict_on_batch(xs)))

    model.save(tmp_path / "model.keras")
    of_file, of_params = keras.stacked_from_keras(tmp_path / "model.keras")
    assert of_file == net
    assert_same(of_params, params)
    if not KERAS[name]:
        # A file of weights does not say which options its layers have.
        model.save_weights(tmp_path / "model.weights.h5")
        of_file, of_params = keras.stacked_from_keras(tmp_path / "model.weights.h5")
        assert of_file == net
        assert_same(of_params, params)

    assert_same(keras.from_keras(net, keras.to_keras(net, params)), params)
    if "no-bias" not in name:
        model.set_weights(keras.to_keras(net, params))
        assert_near(np.asarray(ys), np.asarray(model.predict_on_batch(xs)))


@quiet
@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU", "GRU-before"])
def test_keras_states_and_gradients(name: str) -> None:
    """One layer with an initial state; the gradients of Keras are PyTorch's."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as library
    import torch as backend

    size = sizes(7)
    kind = getattr(library.layers, name.partition("-")[0])
    layer = kind(size.hidden, return_sequences=True, return_state=True, **KERAS[name])
    xs = backend.tensor(draw(size.batch, size.steps, size.inputs), requires_grad=True)
    count = 2 if name == "LSTM" else 1
    first = [
        backend.tensor(draw(size.batch, size.hidden, seed=n), requires_grad=True)
        for n in range(count)
    ]
    ys, *finals = layer(xs, initial_state=first)
    sum((a**2).sum() for a in (ys, *finals)).backward()
    net, params = keras.stacked_from_keras(layer)
    arrays = lambda tensors: [t.detach().numpy()[None] for t in tensors]  # noqa: E731
    got, (d_params, d_xs, d_states) = ours(
        net, params, xs.detach().numpy(), states_of(net, arrays(first))
    )
    assert_near(got, (states_of(net, arrays(finals)), ys.detach().numpy()))
    assert_near(d_xs, xs.grad.numpy())
    assert_near(d_states, states_of(net, [a.grad.numpy()[None] for a in first]))
    slopes = [variable.value.grad.numpy() for variable in layer.trainable_variables]
    assert_near(d_params, keras.gradients_from_keras(net, slopes))


# --- libraries in JAX ---


class Peer(NamedTuple):
    """A library in JAX.

    make: `make(cell, inputs, key)` returns (weights, step) with its own initial weights, where
      `step(weights, state, x)` is one step of rows with a tuple of arrays [B, H] as the state.
    read: converts weights to our parameters.
    slopes: converts gradients.
    write: the inverse of `read`.
    cells: the cells that the library has.
    """

    make: Callable[..., Any]
    read: Callable[..., Any]
    slopes: Callable[..., Any]
    write: Callable[..., Any]
    cells: tuple[str, ...]


def make_haiku(cell: Any, inputs: int, key: Any) -> Any:
    import haiku as library

    kind: Any = {RNN: library.VanillaRNN, LSTM: library.LSTM, GRU: library.GRU}[type(cell)]

    def run(x: Any, state: Any) -> Any:
        state = library.LSTMState(*state) if isinstance(cell, LSTM) else state[0]
        after = kind(cell.hidden_size)(x, state)[1]
        return tuple(after) if isinstance(cell, LSTM) else (after,)

    transformed = library.without_apply_rng(library.transform(run))
    x, state = jnp.ones((1, inputs)), tuple(cell.initial_state(1))
    weights = transformed.init(key, x, state)
    return weights, lambda weights, state, x: transformed.apply(weights, x, state)


def make_equinox(cell: Any, inputs: int, key: Any) -> Any:
    import equinox as library

    kind = library.nn.LSTMCell if isinstance(cell, LSTM) else library.nn.GRUCell

    def step(module: Any, state: Any, x: Any) -> Any:
        after = jax.vmap(module)(x, state if isinstance(cell, LSTM) else state[0])
        return after if isinstance(cell, LSTM) else (after,)

    return kind(inputs, cell.hidden_size, key=key), step


def flax_kind(library: Any, cell: Any) -> Any:
    return {
        RNN: library.SimpleCell,
        LSTM: library.OptimizedLSTMCell,
        GRU: library.GRUCell,
    }[type(cell)]


def as_flax(cell: Any, state: Any) -> Any:
    """Return the carry of flax, (c, h) for an LSTM; and the other way."""
    return tuple(reversed(state)) if isinstance(cell, LSTM) else state[0]


def make_linen(cell: Any, inputs: int, key: Any) -> Any:
    from flax import linen as library

    module = flax_kind(library, cell)(cell.hidden_size)
    carry = as_flax(cell, tuple(cell.initial_state(1)))
    weights = module.init(key, carry, jnp.ones((1, inputs)))["params"]

    def step(weights: Any, state: Any, x: Any) -> Any:
        after = module.apply({"params": weights}, as_flax(cell, state), x)[0]
        return tuple(reversed(after)) if isinstance(cell, LSTM) else (after,)

    return weights, step


def make_nnx(cell: Any, inputs: int, key: Any) -> Any:
    from flax import nnx as library

    module = flax_kind(library, cell)(inputs, cell.hidden_size, rngs=library.Rngs(key))
    graph, state, rest = library.split(module, library.Param, ...)
    weights = library.to_pure_dict(state)

    def step(weights: Any, before: Any, x: Any) -> Any:
        library.replace_by_pure_dict(state, weights)
        after = library.merge(graph, state, rest)(as_flax(cell, before), x)[0]
        return tuple(reversed(after)) if isinstance(cell, LSTM) else (after,)

    return weights, step


PEERS = {
    "haiku": Peer(
        make_haiku,
        haiku.from_haiku,
        haiku.gradients_from_haiku,
        haiku.to_haiku,
        ("relu", "lstm", "before"),
    ),
    "equinox": Peer(
        make_equinox,
        equinox.from_equinox,
        equinox.from_equinox,
        equinox.to_equinox,
        ("lstm", "after"),
    ),
    "linen": Peer(
        make_linen, flax.from_linen, flax.from_linen, flax.to_linen, ("tanh", "lstm", "after")
    ),
    "nnx": Peer(make_nnx, flax.from_nnx, flax.from_nnx, flax.to_nnx, ("tanh", "lstm", "after")),
}
CELLS = {
    "tanh": jaxrnn.rnn,
    "relu": partial(jaxrnn.rnn, activation="relu"),
    "lstm": jaxrnn.lstm,
    "before": partial(jaxrnn.gru, reset="before"),
    "after": partial(jaxrnn.gru, reset="after"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("library", "name"), [(name, cell) for name, peer in PEERS.items() for cell in peer.cells]
)
def test_libraries_in_jax(library: str, name: str, case: int) -> None:
    peer, size = PEERS[library], sizes(case)
    cell = CELLS[name](size.hidden)
    weights, step = peer.make(cell, size.inputs, jax.random.key(case))
    # Biases begin as zeros; random ones show where each goes.
    leaves, structure = jax.tree.flatten(weights)
    leaves = [a + 0.3 * draw(*a.shape, seed=n) for n, a in enumerate(leaves)]
    weights = jax.tree.unflatten(structure, leaves)
    xs = draw(size.steps, size.batch, size.inputs)
    state = tuple(draw(size.batch, size.hidden, seed=n) for n in range(2))
    state = state if isinstance(cell, LSTM) else state[:1]

    def loss(weights: Any, xs: Any, state: Any) -> Any:
        def body(state: Any, x: Any) -> Any:
            after = step(weights, state, x)
            return after, after[0]

        final, ys = jax.lax.scan(body, state, xs)
        return sum((a**2).sum() for a in (*final, ys)), (final, ys)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, (final, ys)), (d_weights, d_xs, d_state) = run(weights, xs, state)

    net = jaxrnn.layers.stacked(cell, size.inputs)
    params = peer.read(cell, weights)
    stacked = jaxrnn.layers.StackedParams((params,))
    kind = type(cell.initial_state(1))
    got, (d_params, got_d_xs, got_d_state) = ours(net, stacked, xs, (kind(*state),))
    assert_near(got, ((kind(*final),), ys))
    assert_near(got_d_xs, d_xs)
    assert_near(got_d_state, (kind(*d_state),))
    slopes = peer.slopes(cell, d_weights)
    if library == "nnx" and name == "after":
        # GRUCell of nnx has no b_h.
        found = d_params.cells[0]._replace(b_h=slopes.b_h)
        d_params = d_params._replace(cells=(found,))
    assert_near(d_params.cells[0], slopes)
    again = peer.read(cell, peer.write(cell, params))
    if library == "haiku" and name == "lstm":
        # b_f is rounded once when 1 is subtracted.
        np.testing.assert_allclose(again.b, params.b, rtol=0, atol=2e-7)
        again = again._replace(b=params.b)
    assert_same(again, params)
