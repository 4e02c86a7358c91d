"""Test the scores of texts against numpy in float64, and dynamic evaluation against a plain loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import InputError, ModelConfig, Params, Vocabulary, charlm, init, sample, score
from jaxrnn.charlm import scoring
from jaxrnn.charlm.dynamic import DynamicOptions, DynamicScorer
from jaxrnn.charlm.scoring import Scorer
from tests.support.oracle import trace

VOCABULARY = Vocabulary("\nabc")
# float32 against float64, for sums of some ten products per unit.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def model(config: ModelConfig, vocabulary: Vocabulary = VOCABULARY, seed: int = 0) -> Params:
    """A model with large random parameters, whose predictions differ from step to step."""
    params = init(config, vocabulary)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.float32(0.7 * rng.standard_normal(a.shape)), params)


def small(vocabulary: Vocabulary = VOCABULARY) -> Params:
    return model(ModelConfig("gru", hidden_size=5, embedding_size=3), vocabulary)


def text_of(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("abc\n"), length))


def by_hand(params: Params, text: str, prime: str) -> np.ndarray:
    """Return the scores, computed in numpy float64 layer by layer."""
    tokens = params.vocabulary.encode(prime + text).astype(int)
    wide: Any = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    embedding = np.eye(len(params.vocabulary)) if wide.embedding is None else wide.embedding
    xs = embedding[tokens[:-1]][:, None]
    cell = params.config.make_cell()
    for weights in wide.layers:
        state = tuple(np.zeros((1, params.config.hidden_size)) for _ in cell.initial_state(1))
        xs = trace(cell, weights, xs, state)[1]["hidden"]
    w_out = wide.embedding.T if wide.w_out is None else wide.w_out
    logits = xs[:, 0] @ w_out + wide.b_out
    peak = logits.max(axis=1)
    total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    nats = total - logits[np.arange(len(logits)), tokens[1:]]
    return nats[len(params.vocabulary.encode(prime)) - 1 :]


@pytest.mark.first_case
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("lstm", layers=2, hidden_size=5, embedding_size=3),
        ModelConfig("lstm", hidden_size=5, embedding_size=0, peephole=True),
        ModelConfig("gru", hidden_size=5, embedding_size=3),
        ModelConfig("gru", hidden_size=5, embedding_size=0),
        ModelConfig("rnn", hidden_size=5, embedding_size=5, tie=True),
        ModelConfig("rnn", hidden_size=5, embedding_size=0),
    ],
    ids=["lstm", "lstm, one-hot", "gru", "gru, one-hot", "rnn, tied", "rnn, one-hot"],
)
@pytest.mark.usefixtures("unchecked")
def test_scores_against_numpy(config: ModelConfig) -> None:
    params = model(config)
    text = text_of(40)
    for prime in (None, "ab"):
        scores = score(params, text, prime)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, by_hand(params, text, prime or "\n"), **TOLERANCE)


@pytest.mark.slow
def test_a_long_text_and_a_long_prime() -> None:
    """The text needs windows of every size, and more than one of the largest."""
    params = small()
    text, prime = text_of(2 * 1024 + 3 * 128 + 2 * 16 + 5), text_of(150, seed=1)
    np.testing.assert_allclose(
        score(params, text, prime), by_hand(params, text, prime), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 16, 100, 1025])
def test_pieces_of_any_size_give_the_same_scores(size: int) -> None:
    params = small()
    tokens = params.vocabulary.encode(text_of(300 if size < 16 else 2500))
    scorer = Scorer(params)
    found = [scorer.score(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    whole = Scorer(params).score(tokens)
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5, atol=1e-5)


def test_few_programs_are_compiled() -> None:
    params = small()
    scoring._score.clear_cache()
    for length in (1, 3, 20, 150):
        assert score(params, text_of(length)).shape == (length,)
    assert scoring._score._cache_size() == 3
    assert score(params, "").shape == (0,)


@pytest.mark.slow
def test_bytes() -> None:
    params = small(Vocabulary.of_bytes())
    assert score(params, "é").shape == (2,)
    np.testing.assert_array_equal(score(params, "é"), score(params, b"\xc3\xa9"))
    assert score(params, b"\xff", b"\xfe").shape == (1,)


@pytest.mark.slow
def test_a_drawn_text_is_more_likely_than_a_shuffled_one() -> None:
    params = model(ModelConfig("rnn", hidden_size=8, embedding_size=4))
    text = sample(params, "\n", 400, seed=3)[1:]
    shuffled = "".join(np.random.default_rng(0).permutation(list(text)))
    assert score(params, text).mean() < score(params, shuffled).mean() - 0.1


@pytest.mark.slow
def test_bfloat16() -> None:
    config = ModelConfig("lstm", hidden_size=8, embedding_size=4)
    params = model(config)
    half = params.replace(
        config=ModelConfig("lstm", hidden_size=8, embedding_size=4, dtype="bfloat16")
    )
    text = text_of(50)
    exact, rounded = score(params, text), score(half, text)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1


def test_errors() -> None:
    params = small()
    with pytest.raises(InputError, match="never seen: 'x'"):
        score(params, "abx")
    with pytest.raises(InputError, match="never seen: 'x'"):
        score(params, "ab", "x")
    with pytest.raises(InputError, match="the `prime` is empty"):
        score(params, "ab", "")
    with pytest.raises(InputError, match="parts must be at least 1"):
        Scorer(params, parts=0)


# --- parts side by side ---


@pytest.mark.slow
def test_parts_begin_with_the_zero_state_256_tokens_earlier() -> None:
    params = small()
    text = text_of(256 + 3 * 700)
    tokens = params.vocabulary.encode(text)
    found = Scorer(params, parts=3).score(tokens)
    # The first part is longer by the 256 tokens that it does not need to warm up.
    exact = score(params, text)
    np.testing.assert_allclose(found[:956], exact[:956], rtol=1e-5, atol=1e-5)
    for begin, end in ((956, 1656), (1656, 2356)):
        read = begin - 257
        warm = score(params, text[read + 1 : end], text[read])[256:]
        np.testing.assert_allclose(found[begin:end], warm, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 511, 512, 1024, 1025, 3000])
def test_parts_score_every_token_once(length: int) -> None:
    """The state fades within 256 tokens here, so parts agree with the exact scores."""
    params = small()
    tokens = params.vocabulary.encode(text_of(length))
    scorer, exact = Scorer(params, parts=4), Scorer(params)
    for _ in range(2):
        np.testing.assert_allclose(scorer.score(tokens), exact.score(tokens), rtol=1e-4, atol=1e-4)


# --- dynamic evaluation ---

OPTIONS = DynamicOptions(segment=7, learning_rate=0.3, decay=0.1)


def plain_loop(params: Params, text: str, prime: str, options: DynamicOptions) -> np.ndarray:
    """Dynamic evaluation without compilation, one segment after the other."""
    tokens = params.vocabulary.encode(prime + text).astype(np.int32)
    carry = charlm.initial_carry(params.config, 1)
    for token in tokens[: len(prime) - 1]:
        carry, _ = charlm.forward(params, jnp.full((1, 1), token), carry)

    def mean(now: Params, at: int, carry: Any) -> tuple[jax.Array, Any]:
        part = jnp.asarray(tokens[at : at + options.segment + 1])[:, None]
        after, logits = charlm.forward(now, part[:-1], carry)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, part[1:])
        return nats.mean(), (after, nats)

    now, found = params, []
    for at in range(len(prime) - 1, len(tokens) - 1, options.segment):
        gradient, (carry, nats) = jax.grad(mean, has_aux=True)(now, at, carry)
        found.append(np.asarray(nats)[:, 0])
        now = jax.tree.map(
            lambda a, then, g: a + options.decay * (then - a) - options.learning_rate * g,
            now,
            params,
            gradient,
        )
    return np.concatenate(found)


def dynamic(params: Params, text: str, options: DynamicOptions, size: int) -> np.ndarray:
    tokens = params.vocabulary.encode(text)
    scorer = DynamicScorer(params, "\n", options)
    found = [scorer.score(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    return np.concatenate([*found, scorer.finish()])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 5])
def test_dynamic_evaluation_against_a_plain_loop(size: int) -> None:
    params = model(ModelConfig("lstm", hidden_size=5, embedding_size=3))
    text = text_of(46)
    found = dynamic(params, text, OPTIONS, size)
    assert len(found) == 46
    want = plain_loop(params, text, "\n", OPTIONS)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    # The first segment is scored before anything is learned.
    np.testing.assert_allclose(found[:7], score(params, text)[:7], rtol=1e-5, atol=1e-5)
    assert np.abs(found - score(params, text)).max() > 1e-2


@pytest.mark.slow
def test_a_learning_rate_of_zero_changes_nothing() -> None:
    params, text = small(), text_of(1000)
    found = dynamic(params, text, DynamicOptions(segment=5, learning_rate=0.0), 300)
    np.testing.assert_allclose(found, score(params, text), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_learns_a_text_that_repeats() -> None:
    params, text = small(), "abcab\n" * 200
    found = dynamic(params, text, DynamicOptions(), 600)
    assert found[-200:].mean() < score(params, text)[-200:].mean() - 0.5


def test_dynamic_options() -> None:
    with pytest.raises(InputError, match="segment must be at least 1"):
        DynamicOptions(segment=0)
    with pytest.raises(InputError, match="learning_rate must be"):
        DynamicOptions(learning_rate=float("nan"))
    with pytest.raises(InputError, match="decay must be from 0 to 1"):
        DynamicOptions(decay=1.5)


@pytest.mark.slow
def test_divergence_is_reported() -> None:
    with pytest.raises(InputError, match="diverged; lower its `learning_rate`"):
        dynamic(small(), text_of(500), DynamicOptions(learning_rate=1e30), 500)
