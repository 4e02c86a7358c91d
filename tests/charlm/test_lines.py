"""Test char-RNNs of lines: logits, gradients and records against one line at a time, and the lines
that are drawn against the exact probabilities and against each other."""

import itertools
import logging
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import (
    InputError,
    ModelConfig,
    Params,
    Vocabulary,
    activations,
    charlm,
    init,
    sample,
    sample_lines,
)
from jaxrnn.charlm import lines
from tests.support.oracle import TOLERANCES as ORACLE
from tests.support.oracle import assert_close, reference

VOCABULARY = Vocabulary.of("abc\n")
NEWLINE = VOCABULARY.encode("\n")[0]
# Summed over all characters in float32, as in test_model.
GRADIENT = 2e-5
# Standard deviations of a normal distribution that are exceeded by chance once in 10,000 tests.
SIGMAS = 3.72

CELLS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm", "layers": 2},
    "gru": {"cell": "gru", "embedding_size": 0},
    "rnn": {"cell": "rnn"},
}
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def model(vocabulary: Vocabulary = VOCABULARY, scale: float = 0.7, **config: Any) -> Params:
    """Return random parameters, biases included."""
    sizes = ModelConfig(**{"hidden_size": 5, "embedding_size": 3, "lines": True} | config)
    rng = np.random.default_rng(3)
    params = jax.eval_shape(lambda: init(sizes, vocabulary))
    return jax.tree.map(lambda a: jnp.float32(scale * rng.standard_normal(a.shape)), params)


def exact(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def logits_by_hand(params: Params, tokens: np.ndarray) -> np.ndarray:
    """Return the logits [T, V] after each token in numpy float64, read from the zero state."""
    cell = params.config.make_cell()
    embedding = np.eye(len(params.b_out)) if params.embedding is None else exact(params.embedding)
    hidden = embedding[tokens][:, None]
    for layer, state in zip(
        exact(params.layers), exact(charlm.initial_carry(params.config, 1)), strict=True
    ):
        _, hidden = reference(cell, layer, hidden, state)
    return hidden[:, 0] @ exact(params.w_out) + exact(params.b_out)


def log_chances(params: Params, line: str) -> float:
    """Return ln P(line, its line break included), by hand."""
    tokens = params.vocabulary.encode("\n" + line + "\n")
    logits = logits_by_hand(params, tokens[:-1])
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(logs[np.arange(len(logits)), tokens[1:]].sum())


# --- the model ---


# Columns are rows of a batch: lines, which begin and end at different steps.
ROWS = ["\nab\ncab\nb", "\nccba\nba\n", "\nb\n\nb\nabc"]


@pytest.mark.slow
@cells
@pytest.mark.parametrize("implementation", [None, "scan", "xla"])
def test_a_row_of_lines_has_the_logits_of_each_line(cell: Any, implementation: Any) -> None:
    params = model(**cell)
    tokens = np.stack([VOCABULARY.encode(row) for row in ROWS], axis=1)
    carry = jax.tree.map(lambda a: a + 1, charlm.initial_carry(params.config, len(ROWS)))
    _, got = charlm.forward(params, jnp.int32(tokens), carry, implementation=implementation)
    for b, row in enumerate(ROWS):
        parts = ["\n" + line for line in row[1:].split("\n")]
        want = np.concatenate([logits_by_hand(params, VOCABULARY.encode(part)) for part in parts])
        assert_close(got[:, b], want, ORACLE["float32"])


@cells
def test_step_and_record_reset_as_forward_does(cell: Any) -> None:
    params = model(**cell)
    tokens = jnp.stack([jnp.int32(VOCABULARY.encode(row)) for row in ROWS], axis=1)
    carry = charlm.initial_carry(params.config, len(ROWS))
    after, want = charlm.forward(params, tokens, carry)
    weights, logits, now = charlm.step_params(params), [], carry
    for row in tokens:
        now, out = charlm.step(params.config, weights, now, row)
        logits.append(out)
    assert_close((now, jnp.stack(logits)), (after, want), ORACLE["float32"])
    recorded = charlm.record(params, tokens, carry)
    assert_close(recorded[:2], (after, want), ORACLE["float32"])


def test_activations_of_a_line_do_not_depend_on_the_line_before() -> None:
    params = model()
    (alone,), (second,) = activations(params, "\nabc"), activations(params, "\ncc\nabc")
    np.testing.assert_allclose(second["hidden"][-4:], alone["hidden"], rtol=0, atol=1e-6)


@pytest.mark.slow
@cells
def test_gradients_are_those_of_one_line_at_a_time(cell: Any) -> None:
    """Compare a window with the same lines, each read alone from the zero state by an ordinary model."""
    params = model(**cell)
    row = "\nab\ncab\nba\nc"
    tokens = jnp.int32(VOCABULARY.encode(row))
    free = params.replace(config=ModelConfig(**vars(params.config) | {"lines": False}))  # type: ignore[attr-defined]

    def whole(params: Params) -> jax.Array:
        carry = charlm.initial_carry(params.config, 1)
        return charlm.loss(params, tokens[:, None], carry)[0] * (len(row) - 1)

    def one_by_one(params: Params) -> jax.Array:
        total = jnp.float32(0)
        for begin, end in itertools.pairwise([0, 3, 7, 10, len(row) - 1]):
            carry = charlm.initial_carry(params.config, 1)
            part = tokens[begin : end + 1, None]
            total += charlm.loss(params, part, carry, implementation="scan")[0] * (end - begin)
        return total

    assert [row[at] for at in (0, 3, 7, 10)] == ["\n"] * 4
    got, want = jax.value_and_grad(whole)(params), jax.value_and_grad(one_by_one)(free)
    assert_close(jax.tree.leaves(got), jax.tree.leaves(want), GRADIENT)


def test_ordinary_models_have_no_resets() -> None:
    weights = charlm.step_params(model(lines=False))
    assert weights.newline is None
    assert len(jax.tree.leaves(weights)) == len(jax.tree.leaves(charlm.step_params(model()))) - 1


def test_a_vocabulary_without_a_line_break_is_refused() -> None:
    with pytest.raises(InputError, match=r"`lines` needs a line break in the vocabulary"):
        init(ModelConfig(lines=True), Vocabulary.of("abc"))


# --- drawing ---


MODEL = model(scale=1.0)


def test_lines_have_their_exact_probabilities() -> None:
    """Pearson's chi-square test over the lines that are expected often enough, and all others."""
    count = 4000
    observed = Counter(sample_lines(MODEL, count, seed=5))
    short = ["".join(letters) for n in range(5) for letters in itertools.product("abc", repeat=n)]
    chances = {line: np.exp(log_chances(MODEL, line)) for line in short}
    often = {line: p * count for line, p in chances.items() if p * count > 8}
    rest = count - sum(often.values())
    assert len(often) > 20 and rest > 8
    seen = sum(observed[line] for line in often)
    chi = sum((observed[line] - mean) ** 2 / mean for line, mean in often.items())
    chi += (count - seen - rest) ** 2 / rest
    degrees = len(often)
    assert chi < degrees + SIGMAS * np.sqrt(2 * degrees)


@pytest.mark.slow
def test_a_line_depends_on_the_seed_and_its_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    every = sample_lines(MODEL, 300)
    assert len(every) == 300
    for count in (1, 7, 129):
        assert sample_lines(MODEL, count) == every[:count]
    assert sample_lines(MODEL, 300, seed=1) != every
    monkeypatch.setattr(lines, "ROWS", 3)
    monkeypatch.setattr(lines, "STEPS", 5)
    jax.clear_caches()
    assert sample_lines(MODEL, 40) == every[:40]
    jax.clear_caches()


def test_argmax_is_the_most_likely_line() -> None:
    params = model(scale=1.5)
    text = "\n"
    for _ in range(12):
        logits = logits_by_hand(params, VOCABULARY.encode(text))
        text += VOCABULARY.decode([logits[-1].argmax()])
        if text[-1] == "\n":
            break
    limit = len(text) - 1
    want = text[1:].rstrip("\n")
    if text[-1] == "\n":
        assert sample_lines(params, 2, mode="argmax") == [want] * 2
    else:
        with pytest.warns(RuntimeWarning, match=r"2 lines were cut at `length` 12"):
            assert sample_lines(params, 2, length=limit, mode="argmax") == [want] * 2


def test_every_line_begins_with_the_prime() -> None:
    """The next character has the probabilities that the model predicts after the prime."""
    drawn = sample_lines(MODEL, 2000, "ca", seed=2)
    assert all(line.startswith("ca") for line in drawn)
    logits = logits_by_hand(MODEL, VOCABULARY.encode("\nca"))
    weights = np.exp(logits[-1] - logits[-1].max())
    chance = (weights / weights.sum())[NEWLINE]
    found = sum(line == "ca" for line in drawn)
    assert abs(found - 2000 * chance) < SIGMAS * np.sqrt(2000 * chance * (1 - chance))


def test_long_lines_are_cut_and_counted() -> None:
    whole = sample_lines(MODEL, 50)
    longer = sum(len(line) > 2 for line in whole)
    assert 0 < longer < 50
    with pytest.warns(RuntimeWarning, match=rf"{longer} lines were cut at `length` 2"):
        assert sample_lines(MODEL, 50, length=2) == [line[:2] for line in whole]


def test_a_model_of_bytes_draws_text() -> None:
    params = model(Vocabulary.of_bytes(), cell="rnn")
    with pytest.warns(RuntimeWarning, match=r"cut"):
        assert len(sample_lines(params, 2, b"ab", 3)) == 2


def test_other_options_and_counts_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sample_lines(MODEL, 130, top_k=3)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        sample_lines(MODEL, 200, "ab", length=9000, top_k=4, seed=3, temperature=0.9)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_an_ordinary_sample_continues_over_lines() -> None:
    """The state is reset at each line break, so the text before it does not affect the next line."""
    text = sample(MODEL, "\n", 60)
    assert text.count("\n") > 3
    argmax = sample(MODEL, "cc\n", 8, mode="argmax")
    assert argmax[2:] == sample(MODEL, "\n", 8, mode="argmax")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(count=0), r"count must be from 1 to"),
        (dict(count=2**30), r"count must be from 1 to 2\^30 - 1"),
        (dict(length=0), r"length must be from 1 to"),
        (dict(length=2**30), r"length must be from 1 to 2\^30 - 1"),
        (dict(prime="a\nb"), r"the prime has a line break"),
        (dict(prime="x"), r"never seen: 'x'"),
        (dict(temperature=0), r"temperature must be a number above 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_lines(MODEL, **{"count": 1} | changes)


def test_an_ordinary_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"not trained with `lines`"):
        sample_lines(model(lines=False), 3)
