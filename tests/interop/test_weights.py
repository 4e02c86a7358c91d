"""Converters of weights: against what PyTorch and Keras computed, and both directions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop import flax, keras, torch
from jaxrnn.recurrence.cells import GRU, LSTM
from tests.golden import make
from tests.support.oracle import TOLERANCES, assert_close, reference

D, H = 3, 4
CELLS = {
    "rnn": jaxrnn.rnn(H),
    "lstm": jaxrnn.lstm(H),
    "gru-before": jaxrnn.gru(H, reset="before"),
    "gru-after": jaxrnn.gru(H, reset="after"),
}


def drawn(cell: Any) -> Any:
    """Return random parameters of a cell as numpy arrays, biases included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes)


def assert_same(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def torch_layer(cell: Any, weights: dict[str, np.ndarray], xs: Any, state: Any) -> np.ndarray:
    """Compute PyTorch's layer from its own arrays, by the formulas of its documentation."""
    w_x, w_h, b, b_h = (np.float64(weights[name]) for name in torch.names())
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    hidden, *rest = state
    ys = []
    for x in xs:
        inputs, recurrent = x @ w_x.T + b, hidden @ w_h.T + b_h
        if isinstance(cell, LSTM):
            i, f, g, o = np.split(inputs + recurrent, 4, axis=-1)
            memory = sigmoid(f) * rest[0] + sigmoid(i) * np.tanh(g)
            hidden, rest = sigmoid(o) * np.tanh(memory), [memory]
        elif isinstance(cell, GRU):
            (r, z, n), (r_h, z_h, n_h) = np.split(inputs, 3, -1), np.split(recurrent, 3, -1)
            z = sigmoid(z + z_h)
            hidden = (1 - z) * np.tanh(n + sigmoid(r + r_h) * n_h) + z * hidden
        else:
            hidden = np.tanh(inputs + recurrent)
        ys.append(hidden)
    return np.stack(ys)


@pytest.mark.first_case
@pytest.mark.parametrize("name", [name for name in make.CASES if name.startswith("torch")])
def test_torch_weights_reproduce_the_stored_outputs(name: str) -> None:
    """Parameters that are converted to PyTorch's arrays and back give what PyTorch computed."""
    cell = make.CASES[name].cell
    given, ((_, ys), _) = make.load(name)
    weights = torch.to_torch(cell, given.params)
    assert_close(
        reference(cell, torch.from_torch(cell, weights), given.xs, given.state)[1], ys, 1e-12
    )
    if name != "torch-rnn-relu":
        got = torch_layer(cell, weights, given.xs, given.state)
        assert_close(got, ys, TOLERANCES["torch"])


@pytest.mark.first_case
@pytest.mark.parametrize("name", [name for name in make.CASES if name.startswith("keras")])
def test_keras_weights_reproduce_the_stored_outputs(name: str) -> None:
    cell = make.CASES[name].cell
    given, ((_, ys), _) = make.load(name)
    params = keras.from_keras(cell, keras.to_keras(cell, given.params))
    assert_close(reference(cell, params, given.xs, given.state)[1], ys, TOLERANCES["keras"])


@pytest.mark.parametrize("name", CELLS)
def test_there_and_back_is_the_same(name: str) -> None:
    cell, params = CELLS[name], drawn(CELLS[name])
    assert_same(keras.from_keras(cell, keras.to_keras(cell, params)), params)
    if torch.unsupported_reason(cell) is None:
        assert_same(torch.from_torch(cell, torch.to_torch(cell, params)), params)
    if flax.unsupported_reason(cell) is None:
        zero = params._replace(b_h=0 * params.b_h) if isinstance(cell, GRU) else params
        assert_same(flax.from_nnx(cell, flax.to_nnx(cell, zero)), zero)
        assert_same(flax.from_linen(cell, flax.to_linen(cell, params)), params)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru-after"])
def test_both_biases_of_a_torch_layer_count(name: str) -> None:
    """A layer that PyTorch trained has numbers in both of its bias vectors."""
    cell, rng = CELLS[name], np.random.default_rng(1)
    weights = torch.to_torch(cell, drawn(cell))
    weights |= {n: rng.standard_normal(weights[n].shape) for n in torch.names()[2:]}
    params = torch.from_torch(cell, weights)
    xs = rng.standard_normal((5, 2, D))
    state = jax.tree.map(lambda a: rng.standard_normal(a.shape), cell.initial_state(2))
    want = torch_layer(cell, weights, xs, state)
    assert_close(reference(cell, params, xs, state)[1], want, TOLERANCES["float64"])


def test_both_rows_of_keras_biases_count() -> None:
    cell, rng = CELLS["gru-after"], np.random.default_rng(1)
    w_x, w_h, _ = keras.to_keras(cell, drawn(cell))
    bias = rng.standard_normal((2, 3 * H))
    params = keras.from_keras(cell, [w_x, w_h, bias])
    np.testing.assert_array_equal(params.b[: 2 * H], bias.sum(0)[: 2 * H])
    np.testing.assert_array_equal(params.b[2 * H :], bias[0, 2 * H :])
    np.testing.assert_array_equal(params.b_h, bias[1, 2 * H :])


def test_the_gate_orders() -> None:
    """A bias of 1 in one gate alone arrives in the place that the other library gives that gate."""
    lstm, gru = CELLS["lstm"], CELLS["gru-after"]
    forget = drawn(lstm)._replace(b=np.repeat([0, 1, 0, 0], H))
    assert list(torch.to_torch(lstm, forget)["bias_ih_l0"][::H]) == [0, 1, 0, 0]
    assert flax.to_linen(lstm, forget)["hf"]["bias"].all()
    assert flax.to_nnx(lstm, forget, "LSTMCell")["hf"]["bias"].all()
    update = drawn(gru)._replace(b=np.repeat([1, 0, 0], H), b_h=np.zeros(H))
    assert list(torch.to_torch(gru, update)["bias_ih_l0"][::H]) == [0, 1, 0]
    assert list(keras.to_keras(gru, update)[2][0, ::H]) == [1, 0, 0]
    assert list(flax.to_nnx(gru, update)["dense_i"]["bias"][::H]) == [0, 1, 0]
    assert flax.to_linen(gru, update)["iz"]["bias"].all()


def test_the_parts_of_a_gated_lstm_of_nnx() -> None:
    lstm, params = CELLS["lstm"], drawn(CELLS["lstm"])
    weights = flax.to_nnx(lstm, params, "LSTMCell")
    assert_same(flax.from_nnx(lstm, weights, "LSTMCell"), params)
    with pytest.raises(ValueError, match="SimpleCell, not LSTMCell"):
        flax.to_nnx(CELLS["rnn"], drawn(CELLS["rnn"]), "LSTMCell")


def test_what_a_library_lacks_is_refused_with_the_reason() -> None:
    peephole, before = jaxrnn.lstm(H, peephole=True), CELLS["gru-before"]
    for convert in (torch.to_torch, keras.to_keras, flax.to_nnx, flax.to_linen):
        with pytest.raises(ValueError, match="peepholes"):
            convert(peephole, drawn(peephole))
    for convert in (torch.to_torch, flax.to_nnx):
        with pytest.raises(ValueError, match="resets after the product"):
            convert(before, drawn(before))
    with pytest.raises(ValueError, match="b_h of these parameters is not zero"):
        flax.to_nnx(CELLS["gru-after"], drawn(CELLS["gru-after"]))
    with pytest.raises(ValueError, match=r"nn\.RNN has no sigmoid"):
        torch.from_torch(jaxrnn.rnn(H, activation="sigmoid"), {})
