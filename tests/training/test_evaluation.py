"""The validation loss counts every character of the validation text once."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.training import evaluation
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import device_corpus
from tests.support.runs import CONFIG, CORPUS, TINY, change, fit, run_of

pytestmark = pytest.mark.usefixtures("without_pictures")

# Mean of nats, each a float32
MEAN = dict(rel=2e-6)


# The state that a part of the validation text begins with has seen 256 characters, not all
FORGOTTEN = dict(rel=1e-5)


# --- evaluation ---


def corpus_of(length: int, seed: int = 0) -> Corpus:
    letters = np.random.default_rng(seed).choice(list("abcdefg"), length, p=[0.4] + 6 * [0.1])
    return make_corpus("".join(letters))


def evaluate(params: charlm.Params, corpus: Corpus, config: TrainingConfig) -> float:
    source = device_corpus(corpus.tokens, config.memory_map)
    return evaluation.evaluate(params, source, corpus, config.batch, config.seq_len)


def by_one_stream(params: charlm.Params, corpus: Corpus, first: int) -> float:
    """The mean loss over the validation text, read from `first` on in one go."""
    tokens = jnp.asarray(corpus.tokens[first:, None], jnp.int32)
    carry = charlm.initial_carry(params.config, 1)
    _, logits = jax.jit(charlm.forward)(params, tokens[:-1], carry)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return float(np.mean(np.asarray(nats)[corpus.split - first - 1 :], dtype=np.float64))


@pytest.mark.slow
@pytest.mark.parametrize("length", [200, 5003, 11777, 20485])
@pytest.mark.parametrize(
    "batch, seq_len, memory_map", [(1, 64, "never"), (4, 100, "always"), (5, 37, "never")]
)
def test_every_validation_character_counts_once(
    length: int, batch: int, seq_len: int, memory_map: Any
) -> None:
    """With the same logits everywhere the loss is the mean of -log p over the characters."""
    corpus = corpus_of(length)
    params = jax.tree.map(jnp.zeros_like, charlm.init(TINY, corpus.vocabulary))
    log_p = np.log(np.arange(1, 8) / 28)
    params = params.replace(b_out=jnp.asarray(log_p, jnp.float32))
    exact = -log_p[corpus.tokens[corpus.split :]].mean()
    config = change(CONFIG, batch=batch, seq_len=seq_len, memory_map=memory_map)
    assert evaluate(params, corpus, config) == pytest.approx(exact, **MEAN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "length, first, tolerance",
    [
        (200, 0, MEAN),  # the training text is shorter than the warm-up
        (5000, 4500 - 1 - evaluation.WARM_UP, MEAN),  # one part
        (25003, 22502 - 1 - evaluation.WARM_UP, FORGOTTEN),  # four parts
        (25003, 15000, FORGOTTEN),
    ],
)
def test_evaluation_is_one_pass_of_the_validation_text(
    length: int, first: int, tolerance: dict[str, float]
) -> None:
    corpus = corpus_of(length)
    params = charlm.init(
        change(CONFIG, cell="lstm", hidden_size=6).model, corpus.vocabulary, seed=3
    )
    params = params.replace(w_out=3 * params.w_out)  # so that the state matters
    ours = evaluate(params, corpus, change(CONFIG, seq_len=50))
    assert ours == pytest.approx(by_one_stream(params, corpus, first), **tolerance)


@pytest.mark.slow
def test_fit_reports_the_validation_loss_of_the_state_it_saves(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    params, _, metrics = fit(CONFIG, run)
    judged = [m["step"] for m in metrics if "val_loss" in m]
    assert judged == [4, 8, 12]
    assert metrics[-1]["val_loss"] == evaluate(params, CORPUS, CONFIG)
