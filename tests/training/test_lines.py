"""Test training on lines: the validation loss against numpy, the batches that the steps read,
resumed runs, and a text that is learned."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError, charlm
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.lines import as_lines
from jaxrnn.training import evaluation, loop, optimizers, stepping
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import device_corpus, gather
from jaxrnn.training.report import Report
from jaxrnn.training.saved_states import rest_of
from tests.support.oracle import reference
from tests.support.runs import CONFIG, assert_same_bits, change, fit, metrics_of, run_of

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]

# Mean of nats, each a float32.
MEAN = dict(rel=2e-6)

NAMES = "".join("abcde"[n % 5] * (n % 7 + 1) + "fg"[n % 2] + "\n" for n in range(150))
CORPUS = as_lines(make_corpus(NAMES))
LINES = change(CONFIG, lines=True, cell="lstm", steps=11)


def nats_of_lines(params: charlm.Params, corpus: Corpus) -> list[float]:
    """Return the nats of every validation token in numpy float64, each line from the zero state."""
    (layer,), cell = params.layers, params.config.make_cell()
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, layer))
    text = corpus.vocabulary.decode(corpus.tokens[corpus.split :])
    found: list[float] = []
    for line in text.splitlines(keepends=True):
        tokens = corpus.vocabulary.encode("\n" + line)
        zero = tuple(np.zeros((1, params.config.hidden_size)) for _ in cell.initial_state(1))
        _, hidden = reference(cell, wide[1], wide[0].embedding[tokens[:-1]][:, None], zero)
        logits = hidden[:, 0] @ wide[0].w_out + wide[0].b_out
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        found += (-logs[np.arange(len(logits)), tokens[1:]]).tolist()
    assert len(found) == corpus.validation_size
    return found


@pytest.mark.first_case
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("batch, seq_len, memory_map", [(1, 8, "never"), (3, 5, "always")])
def test_every_validation_token_counts_once(batch: int, seq_len: int, memory_map: Any) -> None:
    long = as_lines(make_corpus(NAMES * 20))
    rng = np.random.default_rng(0)
    for corpus in (CORPUS, long) if batch > 1 else (CORPUS,):
        params = charlm.init(LINES.model, corpus.vocabulary)
        params = jax.tree.map(lambda a: jnp.float32(rng.standard_normal(a.shape)), params)
        source = device_corpus(corpus.tokens, memory_map)
        got = evaluation.evaluate(params, source, corpus, batch, seq_len)
        assert got == pytest.approx(np.mean(nats_of_lines(params, corpus)), **MEAN)


def test_parts_of_the_validation_text_begin_at_lines() -> None:
    """The lines here are longer than the warm-up of a part of a running text."""
    text = "".join("abcde"[n % 5] * (300 + 40 * (n % 9)) + "\n" for n in range(80))
    corpus = as_lines(make_corpus(text))
    assert corpus.lines is not None
    parts = evaluation._parts(corpus, 3, device_corpus(corpus.tokens).devices)
    ends = corpus.lines.ends[corpus.lines.training - 1 :]
    assert len(set(parts.begin)) == 3 and set(parts.begin) <= set(ends)
    np.testing.assert_array_equal(parts.read, parts.begin - 1)
    np.testing.assert_array_equal(parts.end, [*parts.begin[1:], len(corpus.tokens)])
    assert parts.begin[0] == corpus.split


@pytest.mark.parametrize("memory_map", ["never", "always"])
def test_the_steps_read_the_batches(memory_map: Any) -> None:
    batches = LINES.batches(CORPUS)
    source = device_corpus(CORPUS.tokens, memory_map)
    inputs = loop._inputs(LINES, batches, source, 3)
    assert inputs.windows.shape == (2, LINES.seq_len + 1, LINES.batch)
    for n, window in enumerate(inputs.windows):
        read = gather(source.tokens, window, LINES.seq_len)
        np.testing.assert_array_equal(read, CORPUS.tokens[batches.places(3 + n)])  # type: ignore[union-attr]


@pytest.mark.slow
def test_runs_in_memory_and_from_a_file_are_the_same(tmp_path: Path) -> None:
    one, other = (
        fit(change(LINES, memory_map=where), run_of(tmp_path, where), CORPUS)
        for where in ("never", "always")
    )
    assert_same_bits(one[0], other[0])
    assert one[2] == other[2]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_bit_identical(tmp_path: Path) -> None:
    config = change(LINES, dropout=0.2, seq_len=24, steps=26, log_every=3)
    assert config.batches(CORPUS).per_epoch < 10

    def train(run: Path, stop_at: int | None = None) -> Any:
        run.mkdir(exist_ok=True)
        asked = iter(range(1, 1000))
        report = Report(run, 1, quiet=True)
        _, step, _ = loop.fit(config, CORPUS, run, report, lambda: next(asked) == stop_at)
        shapes = jax.eval_shape(
            lambda: stepping.create(config, optimizers.make_optimizer(config, 1), CORPUS.vocabulary)
        )
        checkpoints = Checkpoints(run)
        found = checkpoints.restore(shapes.model, rest_of(shapes))
        checkpoints.close()
        assert found is not None and found.step == step
        return found.tree

    whole = train(tmp_path / "whole")
    for call in (2, 7):
        run = tmp_path / str(call)
        train(run, call)
        assert_same_bits(whole, train(run))
        assert metrics_of(run) == metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_lines_longer_than_a_window_are_learned(tmp_path: Path) -> None:
    """To predict the end of a line, the state must count letters over two windows."""
    text = "".join("ab"[n % 2] * 6 + "\n" for n in range(300))
    corpus = as_lines(make_corpus(text))
    config = change(LINES, hidden_size=24, seq_len=5, batch=8, steps=400, learning_rate=2e-2)
    config = change(config, eval_every=400, log_every=100)
    params, _, _ = fit(config, run_of(tmp_path), corpus)
    found = evaluation.evaluate(params, device_corpus(corpus.tokens), corpus, 8, 5)
    # Only the first letter is random: ln 2 nats in 7 characters.
    assert np.log(2) / 7 - 0.01 < found < np.log(2) / 7 + 0.03


def test_shuffle_with_lines_is_refused() -> None:
    with pytest.raises(InputError, match=r"`shuffle` is for windows of a running text"):
        TrainingConfig(model=charlm.ModelConfig(lines=True), shuffle=True)
