"""Test models whose vocabulary grows: old parameters and logits are kept, new ones are initial."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError, ModelConfig, Vocabulary, charlm
from jaxrnn.charlm import extension
from tests.support.readme import lively

pytestmark = pytest.mark.once

OLD = Vocabulary("dcba")
NEW = Vocabulary("dcbaxyz")
COUNTS = np.array([5, 1, 0, 3, 4, 0, 2])
# The same float32 sums in another order, against numpy in float64
LOGITS = dict(rtol=2e-5, atol=2e-6)


def model(**changes: Any) -> charlm.Params:
    """A model of four tokens with output biases that are not zero."""
    params = lively(OLD, **(dict(layers=2, hidden_size=6, embedding_size=3) | changes))
    return params.replace(b_out=jnp.asarray([-4.0, -6.0, -5.5, -9.0]))  # type: ignore[attr-defined]


def on_device(params: charlm.Params) -> charlm.Params:
    return jax.tree.map(jnp.asarray, params)


def leaves(params: charlm.Params) -> dict[str, np.ndarray]:
    """Return a model in which only the first layer and the output depend on the vocabulary."""
    first = params.layers[0]._asdict()
    found = {f"layers.0.{name}": value for name, value in first.items()}
    found |= {name: getattr(params, name) for name in ("embedding", "w_out", "b_out")}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


# The axis of the tokens in the parameters that have one
AXES = {"embedding": 0, "w_out": 1, "b_out": 0, "layers.0.w_x": 0}
KINDS = [dict(), dict(embedding_size=0), dict(tie=True, embedding_size=6)]


@pytest.mark.parametrize("changes", KINDS, ids=["embedding", "one-hot", "tied"])
@pytest.mark.parametrize("seed", [0, 3])
def test_old_parameters_keep_their_bits_and_new_ones_are_initial(
    changes: dict[str, Any], seed: int
) -> None:
    params = model(**changes)
    found = extension.extended(params, NEW, COUNTS, seed)
    assert found.vocabulary == NEW
    assert found.config == params.config
    before, after, fresh = map(leaves, (params, found, charlm.init(params.config, NEW, seed)))
    assert before.keys() == after.keys()
    for name, old in before.items():
        if name in AXES and old.shape != fresh[name].shape:
            assert after[name].shape[AXES[name]] == 7
            kept, new = np.split(after[name], [4], AXES[name])
            if name != "b_out":
                expected = np.split(fresh[name], [4], AXES[name])[1]
                np.testing.assert_array_equal(new, expected, err_msg=name)
        else:
            kept = after[name]
        np.testing.assert_array_equal(kept, old, err_msg=name)
    for kept, old in zip(found.layers[1], params.layers[1], strict=True):
        np.testing.assert_array_equal(kept, old)


@pytest.mark.slow
def test_the_scale_of_new_parameters() -> None:
    """Glorot's bound for the output weights, and a deviation of 1 for the embedding."""
    many = Vocabulary("dcba" + "".join(map(chr, range(0x4E00, 0x4E00 + 996))))
    params = lively(OLD, layers=1, hidden_size=32, embedding_size=16)
    found = extension.extended(params, many, np.ones(1000, int))
    assert np.std(found.embedding[4:]) == pytest.approx(1, rel=0.03)
    bound = math.sqrt(6 / (32 + 1000))
    assert 0.99 * bound < np.abs(found.w_out[:, 4:]).max() <= bound
    one_hot = lively(OLD, layers=1, hidden_size=32, embedding_size=0)
    w_x = extension.extended(one_hot, many, np.ones(1000, int)).layers[0].w_x[4:]
    bound = math.sqrt(6 / (1000 + w_x.shape[1]))
    assert 0.5 * bound < np.abs(w_x).max() < 2 * bound


def test_the_output_bias_alone_gives_new_tokens_their_frequency() -> None:
    """Old tokens keep their biases, and so the ratios of their probabilities."""
    params = model()
    bias = np.asarray(extension.extended(params, NEW, COUNTS).b_out, np.float64)
    probabilities = np.exp(bias) / np.exp(bias).sum()
    smoothed = COUNTS + 0.5
    np.testing.assert_allclose(probabilities[4:], smoothed[4:] / smoothed.sum(), rtol=1e-5)
    np.testing.assert_array_equal(bias[:4], params.b_out)


@pytest.mark.parametrize("changes", KINDS, ids=["embedding", "one-hot", "tied"])
def test_the_logits_of_old_tokens_are_unchanged(changes: dict[str, Any]) -> None:
    """Compare a plain RNN with numpy in float64, from the parameters of the smaller model."""
    params = model(cell="rnn", layers=1, **changes)
    tokens = np.array([0, 3, 1, 1, 2, 0])
    layer = params.layers[0]
    w_x, w_h, b = (np.asarray(a, np.float64) for a in (layer.w_x, layer.w_h, layer.b))
    embedding = np.eye(4) if params.embedding is None else np.asarray(params.embedding, np.float64)
    w_out = embedding.T if params.w_out is None else np.asarray(params.w_out, np.float64)
    hidden, expected = np.zeros(6), []
    for token in tokens:
        hidden = np.tanh(embedding[token] @ w_x + hidden @ w_h + b)
        expected.append(hidden @ w_out + np.asarray(params.b_out, np.float64))
    found = on_device(extension.extended(params, NEW, COUNTS))
    carry = charlm.initial_carry(found.config, 1)
    _, logits = charlm.forward(found, jnp.asarray(tokens[:, None], jnp.int32), carry)
    assert logits.shape == (6, 1, 7)
    np.testing.assert_allclose(logits[:, 0, :4], expected, **LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "layer_norm_lstm", "mogrifier_lstm", "minlstm"])
def test_one_hot_models_of_every_kind_of_cell(cell: str) -> None:
    params = model(cell=cell, embedding_size=0)
    tokens = jnp.asarray([[0], [3], [1], [2], [2]], jnp.int32)
    logits = [
        charlm.forward(p, tokens, charlm.initial_carry(p.config, 1))[1]
        for p in (params, on_device(extension.extended(params, NEW, COUNTS)))
    ]
    np.testing.assert_allclose(logits[1][..., :4], logits[0], **LOGITS)


@pytest.mark.parametrize("vocabulary", [Vocabulary("abcdx"), Vocabulary("dcb")], ids=str)
def test_another_vocabulary_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"must begin with the tokens of the model"):
        extension.extended(model(), vocabulary, np.ones(len(vocabulary), int))
    raw = charlm.init(ModelConfig(hidden_size=2, embedding_size=2), Vocabulary.of_bytes())
    with pytest.raises(InputError, match=r"must begin"):
        extension.extended(raw, vocabulary, np.ones(len(vocabulary), int))
