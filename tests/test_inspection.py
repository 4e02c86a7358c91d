"""Looking inside: influence by lag against finite differences, and activations of a char-RNN against
the cells themselves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import CELLS, TOLERANCES, assert_close, problem, trace

from jaxrnn import InputError, ModelConfig, Vocabulary, activations, gradient_flow, init, lstm, rnn

T, B = 5, 2


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-peephole", "gru-before", "gru-after"])
def test_gradient_flow_is_the_norm_of_the_jacobian(name: str) -> None:
    """Every entry of the Jacobian by central differences of the numpy oracle."""
    cell, given = CELLS[name], problem(CELLS[name], T, B)
    params, xs, state = given.inputs
    squares = np.zeros((T, B))
    for at in np.ndindex(xs.shape):
        ends = []
        for change in 1e-5, -1e-5:
            moved = xs.copy()
            moved[at] += change
            ends.append(trace(cell, params, moved, state)[1]["hidden"][-1])
        jacobian = (ends[0] - ends[1]) / 2e-5  # [B, H], zero in the other rows
        squares[at[:2]] += (jacobian[at[1]] ** 2).sum()
    with jax.enable_x64(True):
        flow = gradient_flow(cell, *given.cast("float64").inputs)
    assert_close(np.exp(flow), np.sqrt(squares)[::-1], TOLERANCES["float32"])


def test_what_is_too_small_for_float32_is_still_told() -> None:
    """A linear chain, h^t = x^t + h^{t-1}/10^3, whose influence falls by 1000 a step."""
    cell = rnn(1, "relu")
    params = cell.init(jax.random.key(0), 1)._replace(w_x=jnp.ones((1, 1)))
    params = params._replace(w_h=jnp.full((1, 1), 1e-3))
    flow = gradient_flow(cell, params, jnp.ones((12, 1, 1)))
    want = -np.arange(12) * math.log(1000)
    np.testing.assert_allclose(flow[:, 0], want, rtol=1e-5)  # 1e-33 squared is 0 in float32
    resets = jnp.zeros((12, 1), bool).at[8].set(True)
    flow = gradient_flow(cell, params, jnp.ones((12, 1, 1)), resets=resets)
    assert np.isneginf(flow[4:]).all() and np.isfinite(flow[:4]).all()


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("lstm", layers=2, hidden_size=5, embedding_size=3, peephole=True),
        ModelConfig("gru", layers=2, hidden_size=5, embedding_size=0),
    ],
    ids=["lstm", "gru, one-hot"],
)
def test_activations_are_those_of_the_cells(config: ModelConfig) -> None:
    """Layer by layer in numpy float64, from the embedding upwards."""
    params = init(config, Vocabulary("abc"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.float32(0.6 * rng.standard_normal(a.shape)), params)
    text, cell = "abacabccba", config.make_cell()
    embedding: Any = np.eye(3) if params.embedding is None else params.embedding
    xs = np.asarray(embedding, np.float64)[params.vocabulary.encode(text)][:, None]
    state = tuple(np.zeros((1, 5)) for _ in cell.initial_state(1))
    names = list(trace(cell, jax.tree.map(np.float64, params.layers[0]), xs, state)[1])
    layers = activations(params, text, names)
    assert len(layers) == 2
    for weights, recorded in zip(params.layers, layers, strict=True):
        _, inside = trace(cell, jax.tree.map(np.float64, weights), xs, state)
        assert_close(recorded, {n: a[:, 0] for n, a in inside.items()}, TOLERANCES["float32"])
        xs = inside["hidden"]


def test_bytes_and_errors() -> None:
    params = init(ModelConfig(hidden_size=4, embedding_size=2), Vocabulary.of_bytes())
    assert activations(params, "é")[0]["hidden"].shape == (2, 4)
    assert activations(params, b"\xe9")[0]["hidden"].shape == (1, 4)
    params = init(ModelConfig(hidden_size=4, embedding_size=2), Vocabulary("ab"))
    with pytest.raises(InputError, match="the text is empty"):
        activations(params, "")
    with pytest.raises(InputError, match="never seen: 'c'"):
        activations(params, "abc")
    with pytest.raises(ValueError, match="LSTM cannot record 'z'"):
        activations(params, "ab", ["z"])


def test_gradient_flow_refuses_what_unroll_refuses() -> None:
    cell = lstm(4)
    with pytest.raises(ValueError, match="cannot run this"):
        gradient_flow(
            cell, cell.init(jax.random.key(0), 3), jnp.ones((4, 2, 3)), implementation="pallas"
        )
