"""Activations of a char-RNN against the cells themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError, ModelConfig, Vocabulary, activations, init
from tests.support.oracle import TOLERANCES, assert_close, trace


@pytest.mark.first_case
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


@pytest.mark.slow
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
