"""Tests of the corpus: its split for validation, and its batches as a function of the step."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrnn import InputError, Vocabulary
from jaxrnn.data import corpus
from jaxrnn.data.corpus import Batches, make_corpus

pytestmark = pytest.mark.once

MANY = hypothesis.settings(max_examples=60)


# --- corpus -------------------------------------------------------------------------------------


@MANY
@hypothesis.given(st.text(min_size=20), st.booleans())
def test_the_last_tenth_is_for_validation(text: str, by_bytes: bool) -> None:
    made = make_corpus(text.encode() if by_bytes else text)
    size = len(text.encode()) if by_bytes else len(text)
    assert made.vocabulary == (Vocabulary.of_bytes() if by_bytes else Vocabulary.of(text))
    assert made.vocabulary.decode(made.tokens) == text
    assert made.validation_size == -(-size // 10)
    assert made.train_size + made.validation_size == len(made.tokens) == size
    assert made.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert made.floor is None


def test_different_characters_and_bytes_are_counted() -> None:
    assert make_corpus("hello" * 5).different == 4
    assert make_corpus(b"hello" * 5).different == 4
    assert make_corpus(bytes(range(256)) * 5000).different == 256


def test_entropy_floor_is_the_mean_of_the_validation_part() -> None:
    nats = np.arange(50.0) ** 2
    assert make_corpus("ab" * 25, nats).floor == np.mean(nats[45:])


@pytest.mark.parametrize(
    ("content", "count"),
    [("x" * 19, "19 characters"), (b"x" * 19, "19 bytes"), ("", "0 characters")],
)
def test_corpus_needs_twenty_characters(content: str | bytes, count: str) -> None:
    with pytest.raises(InputError, match=f"only {count}.*at least 20"):
        make_corpus(content)


def test_corpus_needs_twenty_tokens() -> None:
    assert make_corpus("word " * 10, pattern=r"\w+").train_size == 18
    with pytest.raises(InputError, match=r"only 19 tokens.*at least 20"):
        make_corpus("word " * 9 + "end", pattern=r"\w+")


def test_a_corpus_of_tokens() -> None:
    text = "three words here\n" * 10
    made = make_corpus(text, pattern=r"\w+")
    assert made.vocabulary == Vocabulary.of(text, r"\w+")
    assert made.vocabulary.decode(made.tokens) == text
    assert (len(made.tokens), made.split, made.different) == (60, 54, 5)
    assert made.sha256 == make_corpus(text).sha256
    again = make_corpus("here words " * 7, vocabulary=made.vocabulary, pattern="ignored")
    assert again.vocabulary == made.vocabulary
    assert again.different == 3, "here, the space and words"


def test_the_entropy_floor_of_tokens_is_that_of_their_characters() -> None:
    """The information of the validation part is the same, divided over fewer tokens."""
    nats = np.random.default_rng(0).uniform(size=75)
    made = make_corpus("ab c\n" * 15, nats, pattern=r"\w+")
    # The last 6 of 60 tokens: the last two of 14th line, "c" and the line break, and a line of four.
    assert len(made.tokens) == 60
    np.testing.assert_allclose(made.floor, nats[-7:].sum() / 6, rtol=1e-12)


def test_twenty_characters_are_enough() -> None:
    assert make_corpus("x" * 20).train_size == 18


@MANY
@hypothesis.given(st.text(min_size=20), st.integers(1, 30))
def test_tokens_of_the_training_part_are_counted(text: str, block: int) -> None:
    made = make_corpus(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK", block)
        counts = made.token_counts()
    np.testing.assert_array_equal(
        counts, np.bincount(made.tokens[: made.train_size], minlength=len(made.vocabulary))
    )


def test_a_long_text_is_counted_in_evenly_spread_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BLOCK", 10)
    monkeypatch.setattr(corpus, "COUNTED", 40)
    made = make_corpus("a" * 100 + "b" * 100)
    # Blocks 0, 5, 10 and 15 of the 18 of the training part.
    np.testing.assert_array_equal(made.token_counts(), [20, 20])


# --- batches ------------------------------------------------------------------------------------


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, int]:
    """Sizes of texts for one batch and up to a few batches more."""
    batch, seq_len = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    size = batch * (seq_len + 1) + draw(st.integers(0, 80))
    return {"size": size, "batch": batch, "seq_len": seq_len, "seed": draw(st.integers(0, 9))}


def epoch(batches: Batches, number: int) -> np.ndarray:
    """Return the starts of one pass, [N, B]."""
    first = number * batches.per_epoch
    return np.stack([batches.starts(first + n) for n in range(batches.per_epoch)])


@MANY
@hypothesis.given(sizes())
def test_streams_continue_where_they_ended(given: dict[str, int]) -> None:
    """The last token of a row, a target, is the first input of the next row."""
    batches = Batches(**given)
    for step in range(1, 3 * batches.per_epoch + 1):
        assert batches.resets_state(step) == (step % batches.per_epoch == 0)
        if not batches.resets_state(step):
            ended = batches.starts(step - 1) + batches.seq_len
            np.testing.assert_array_equal(batches.starts(step), ended)
    assert batches.resets_state(0)


@MANY
@hypothesis.given(sizes())
def test_streams_predict_each_token_once(given: dict[str, int]) -> None:
    """No token occurs twice in a pass, and fewer than one batch of tokens are left out."""
    batches = Batches(**given)
    for number in range(3):
        places = epoch(batches, number)[..., None] + 1 + np.arange(batches.seq_len)
        assert np.unique(places).size == places.size
        assert batches.size - places.size < batches.batch * (batches.seq_len + 1)


@MANY
@hypothesis.given(sizes(), st.booleans())
def test_rows_stay_inside_the_text(given: dict[str, int], shuffle: bool) -> None:
    batches = Batches(**given, shuffle=shuffle)
    starts = np.stack([batches.starts(n) for n in range(3 * batches.per_epoch)])
    assert starts.shape == (3 * batches.per_epoch, batches.batch)
    assert starts.dtype == np.int64
    assert starts.min() >= 0
    assert starts.max() + batches.seq_len + 1 <= batches.size


@MANY
@hypothesis.given(sizes(), st.booleans(), st.randoms(use_true_random=False))
def test_batches_are_a_function_of_the_step(given: dict[str, int], shuffle: bool, rng) -> None:
    """The starts of a batch do not depend on earlier calls."""
    steps = list(range(3 * Batches(**given, shuffle=shuffle).per_epoch))
    in_order = {n: Batches(**given, shuffle=shuffle).starts(n).tolist() for n in steps}
    rng.shuffle(steps)
    again = Batches(**given, shuffle=shuffle)
    assert {n: again.starts(n).tolist() for n in steps} == in_order


def test_each_pass_shifts_the_streams() -> None:
    """The shift is the same for all streams, from 0 to the characters left over at their ends."""
    batches = Batches(size=4 * 27, batch=4, seq_len=10)  # 27 = 2 steps of 10 + 1 ahead + 6 over
    firsts = [epoch(batches, number)[0] for number in range(100)]
    for first in firsts:
        assert set(np.diff(first)) == {27}
    assert {first[0] for first in firsts} == set(range(7))
    other = Batches(size=4 * 27, batch=4, seq_len=10, seed=1)
    assert any(a[0] != epoch(other, n)[0, 0] for n, a in enumerate(firsts))


@MANY
@hypothesis.given(sizes())
def test_each_shuffled_window_occurs_once_per_pass(given: dict[str, int]) -> None:
    """Windows begin every seq_len tokens after the shift; nearly all occur, none twice."""
    batches = Batches(**given, shuffle=True)
    possible = (batches.size - 1) // batches.seq_len
    for number in range(3):
        starts = epoch(batches, number).ravel()
        assert len(set(starts % batches.seq_len)) == 1
        assert set(Counter(starts.tolist()).values()) == {1}
        assert starts.size >= max(possible - batches.batch, batches.batch)
    assert all(batches.resets_state(n) for n in range(2 * batches.per_epoch))


@MANY
@hypothesis.given(sizes())
def test_shuffled_windows_make_every_token_a_target(given: dict[str, int]) -> None:
    """The only exception is the first token of the text, which has no input before it."""
    batches = Batches(**given, shuffle=True)
    seen: set[int] = set()
    for number in range(400):
        targets = epoch(batches, number)[..., None] + 1 + np.arange(batches.seq_len)
        seen.update(targets.ravel().tolist())
        if len(seen) == batches.size - 1:
            break
    assert seen == set(range(1, batches.size))


def test_shuffled_windows_treat_all_positions_of_records_alike() -> None:
    """In records of 8 characters, each position is a target equally often, whatever the window."""
    for seq_len in (7, 8, 16):
        batches = Batches(size=8 * 500, batch=5, seq_len=seq_len, shuffle=True)
        starts = np.concatenate([epoch(batches, number).ravel() for number in range(20)])
        targets = starts[:, None] + 1 + np.arange(seq_len)
        often = np.bincount(targets.ravel() % 8, minlength=8)
        assert often.min() > 0.95 * often.max()


def test_shuffled_passes_differ_in_order_and_shift() -> None:
    batches = Batches(size=60 * 10, batch=1, seq_len=10, shuffle=True)
    orders = [epoch(batches, number).ravel() for number in range(100)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order) - order.min(), np.arange(59) * 10)
    assert {order.min() for order in orders} == set(range(10))
    for one, other in pairwise(orders):
        assert (one - one.min() != other - other.min()).any()
    seeded = Batches(size=60 * 10, batch=1, seq_len=10, shuffle=True, seed=1)
    assert any((epoch(seeded, n).ravel() != order).any() for n, order in enumerate(orders[:3]))


def test_windows_of_older_runs_are_unchanged() -> None:
    """They do not overlap and have numpy's order of each pass; older runs resume with them."""
    batches = Batches(size=60 * 11 + 5, batch=4, seq_len=10, shuffle=True, seed=3, overlap=False)
    assert batches.per_epoch == 15
    for number in range(3):
        order = np.random.default_rng((3, number)).permutation(60) * 11
        np.testing.assert_array_equal(epoch(batches, number).ravel(), order)


@MANY
@hypothesis.given(st.integers(1, 90), st.integers(1, 90), st.booleans())
def test_the_error_for_a_short_text_says_how_long_it_must_be(
    batch: int, seq_len: int, shuffle: bool
) -> None:
    """With as many characters as the message asks for, the training part is one batch."""
    hypothesis.assume(batch * (seq_len + 1) > 18)  # a shorter text is refused by `corpus`
    with pytest.raises(InputError, match=f"{batch} rows of {seq_len}") as error:
        Batches(batch * (seq_len + 1) - 1, batch, seq_len, shuffle)
    asked = int(re.search(r"at least (\d+) characters", str(error.value))[1])
    enough = Batches(make_corpus("x" * asked).train_size, batch, seq_len, shuffle)
    assert enough.per_epoch == 1
    with pytest.raises(InputError):
        Batches(make_corpus("x" * (asked - 2)).train_size, batch, seq_len, shuffle)
