"""Test lines as separate sequences: which are for validation, and which tokens a batch has."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrnn import InputError, Vocabulary
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.lines import LineBatches, as_lines

pytestmark = pytest.mark.once

MANY = hypothesis.settings(max_examples=40)
NAMES = [f"{'abcdefg'[n % 7] * (n % 5 + 1)}{n}" for n in range(200)]
TEXT = "\n".join(NAMES) + "\n"


def corpus_of(text: str | bytes) -> Corpus:
    return as_lines(make_corpus(text))


def lines_of(corpus: Corpus) -> tuple[list[str], list[str]]:
    """Return the lines for training and those for validation, each with its line break."""
    parts = corpus.tokens[: corpus.split], corpus.tokens[corpus.split :]
    training, validation = (
        corpus.vocabulary.decode(part).splitlines(keepends=True) for part in parts
    )
    return training, validation


# --- the corpus ---


@MANY
@hypothesis.given(
    st.lists(st.text("abc", max_size=4), min_size=25, max_size=60), st.booleans(), st.booleans()
)
def test_every_line_is_for_training_or_validation(
    lines: list[str], ended: bool, by_bytes: bool
) -> None:
    text = "\n".join(lines) + "\n" * ended
    filled = [line + "\n" for line in lines if line]
    hypothesis.assume(len(text) >= 20 and len(filled) >= 10)
    corpus = corpus_of(text.encode() if by_bytes else text)
    training, validation = lines_of(corpus)
    assert sorted(training + validation) == sorted(filled)
    assert len(validation) == -(-len(filled) // 10)
    assert corpus.lines is not None
    assert corpus.lines.training == len(training)
    # A last line that is empty and not ended is not a line.
    assert corpus.lines.empty == (lines if ended or lines[-1] else lines[:-1]).count("")
    ends = np.cumsum([len(line) for line in training + validation])
    np.testing.assert_array_equal(corpus.lines.ends, ends)
    assert corpus.sha256 == make_corpus(text).sha256


def test_validation_lines_are_spread_over_a_sorted_file() -> None:
    training, validation = lines_of(corpus_of(TEXT))
    places = [NAMES.index(line[:-1]) for line in validation]
    assert len(places) == 20 and places == sorted(places)
    assert places[0] < 40 and places[-1] >= 160 and np.diff(places).max() < 60
    assert [NAMES.index(line[:-1]) for line in training] == sorted(set(range(200)) - set(places))
    assert lines_of(corpus_of(TEXT)) == (training, validation)


def test_carriage_returns_stay_in_the_lines() -> None:
    training, _ = lines_of(corpus_of(TEXT.replace("\n", "\r\n").encode()))
    assert "".join(training).count("\r\n") == 180


def test_the_entropy_floor_of_the_running_text_is_dropped() -> None:
    corpus = as_lines(make_corpus(TEXT, np.ones(len(TEXT))))
    assert corpus.floor is None


def test_mapped_tokens_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    plain = make_corpus(TEXT)
    plain.tokens.tofile(path)
    mapped = plain._replace(tokens=np.memmap(path, plain.tokens.dtype, "r"))
    corpus = as_lines(mapped)
    assert not isinstance(corpus.tokens, np.memmap)
    np.testing.assert_array_equal(corpus.tokens, as_lines(plain).tokens)


@pytest.mark.parametrize(
    "text, message",
    [
        ("abc\n" * 9 + "\n" * 30, r"only 9 lines that are not empty; `lines` needs at least 10"),
        ("abc" * 10, r"no line break; `lines` needs at least 10"),
    ],
)
def test_few_lines_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        corpus_of(text)


def test_newline_is_the_token_of_a_line_break() -> None:
    assert Vocabulary.of("b\na").newline == 0
    assert Vocabulary("ba\n").newline == 2
    assert Vocabulary.of_bytes().newline == 10
    assert Vocabulary.of("ab").newline is None


# --- batches ---


def batches_of(lengths: list[int], batch: int, seq_len: int, seed: int = 0) -> LineBatches:
    """Return batches of lines for training of so many tokens, and of ten lines for validation."""
    text = "".join("x" * (length - 1) + "\n" for length in lengths)
    corpus = as_lines(make_corpus(text))
    assert corpus.lines is not None
    return LineBatches(corpus.lines, batch, seq_len, seed)


def epoch_of(batches: LineBatches, number: int = 0) -> np.ndarray:
    """Return the places of the targets of each row in an epoch, [N T, B]."""
    first = number * batches.per_epoch
    every = [batches.places(first + n) for n in range(batches.per_epoch)]
    return np.concatenate([places[1:] for places in every])


lengths = st.lists(st.integers(2, 12), min_size=20, max_size=80)


@MANY
@hypothesis.given(lengths, st.integers(1, 4), st.integers(1, 9), st.integers(0, 3))
def test_windows_are_whole_lines_one_after_the_other(
    lengths: list[int], batch: int, seq_len: int, seed: int
) -> None:
    """Each input is the token before its target; at the start of a line it is a line break."""
    batches = batches_of(lengths, batch, seq_len, seed)
    ends = batches.lines.ends[: batches.lines.training]
    starts = np.append(0, ends[:-1])
    for step in range(2 * batches.per_epoch):
        places = batches.places(step)
        assert places.shape == (seq_len + 1, batch)
        assert places.min() >= 0 and places.max() < batches.size
        before, target = places[:-1], places[1:]
        begins = np.isin(target, starts)
        assert np.isin(before[begins], ends - 1).all()
        np.testing.assert_array_equal(before[~begins] + 1, target[~begins])
        if step % batches.per_epoch:
            np.testing.assert_array_equal(places[0], batches.places(step - 1)[-1])
        else:
            assert batches.resets_state(step)
            short = max(lengths) <= batches.size / batch
            assert not short or begins[0].all(), "a row begins at a line"


def test_rows_read_every_token_about_once() -> None:
    """Only the lengths of the rows and the rounding to whole batches leave out or repeat tokens."""
    batches = batches_of([2 + n % 11 for n in range(3000)], batch=8, seq_len=16)
    assert batches.per_epoch == round(batches.size / 128)
    for number in range(2):
        read = epoch_of(batches, number)
        counts = np.bincount(read.ravel(), minlength=batches.size)
        assert counts.max() <= 2
        assert (counts == 1).mean() > 0.98


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    lengths = [2 + n % 5 for n in range(100)]
    batches = batches_of(lengths, batch=2, seq_len=10)
    first, second = epoch_of(batches, 0), epoch_of(batches, 1)
    other = epoch_of(batches_of(lengths, batch=2, seq_len=10, seed=1), 0)
    assert not np.array_equal(first, second) and not np.array_equal(first, other)
    starts = np.append(0, batches.lines.ends[: batches.lines.training])
    in_order = first[np.isin(first[:, 0], starts), 0]
    follows = Counter(b > a for a, b in pairwise(in_order))
    assert min(follows.values()) > 10, "the lines are shuffled"


def test_batches_are_a_function_of_the_step() -> None:
    batches = batches_of([2 + n % 5 for n in range(100)], batch=2, seq_len=10)
    steps = list(range(3 * batches.per_epoch))
    in_order = {n: batches.places(n).tolist() for n in steps}
    np.random.default_rng(0).shuffle(steps)
    again = batches_of([2 + n % 5 for n in range(100)], batch=2, seq_len=10)
    assert {n: again.places(n).tolist() for n in steps} == in_order


def test_a_line_longer_than_the_share_of_a_row_is_read_by_several_rows() -> None:
    """If rows only began at line starts, the end of a long line would never be read."""
    batches = batches_of([2] * 20 + [2000] + [2] * 20, batch=8, seq_len=10)
    if batches.size < 2000:
        pytest.fail("the long line is for validation; choose another place for it")
    counts = np.bincount(epoch_of(batches).ravel(), minlength=batches.size)
    assert counts.max() <= 2 and (counts == 1).mean() > 0.9


def test_a_text_too_short_for_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"too short for one batch of 8 rows of 100"):
        batches_of([5] * 20, batch=8, seq_len=100)
