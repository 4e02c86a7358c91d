"""Test stop strings: the search against `str.find`, and the texts that end with one against the same
texts without a stop string, cut by hand."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrnn import (
    InputError,
    ModelConfig,
    Params,
    SamplingOptions,
    Vocabulary,
    init,
    sample,
    sample_bytes,
    sample_bytes_many,
    sample_many,
    stream,
    stream_bytes,
)
from jaxrnn.charlm.decoder import STREAM_CHUNK, Decoder
from jaxrnn.charlm.stopping import Search, stop_strings
from tests.support.oracle import unchecked

LETTERS = Vocabulary.of("ab€\n")
WORDS = Vocabulary.of("quick brown fox", r"\w+")
BYTES = Vocabulary.of_bytes()
CONFIG = ModelConfig("gru", hidden_size=3, embedding_size=2)
# Random weights, so the characters are about equally likely.
MODEL = init(CONFIG, LETTERS)
MODEL_OF_BYTES = init(CONFIG, BYTES)
PRIME = "ab€"
LENGTH = 3 * STREAM_CHUNK + 5


def cut(text: Any, stops: Any) -> Any:
    """Return the text up to the occurrence of a stop string that ends first."""
    found = [(text.find(stop), len(stop)) for stop in stops]
    ends = [start + length for start, length in found if start >= 0]
    return text[: min(ends)] if ends else text


# --- the search ---


@given(
    st.text("ab€\n", max_size=60),
    st.lists(st.text("ab€\n", min_size=1, max_size=7), min_size=1, max_size=3),
    st.lists(st.integers(0, 60), max_size=12),
    st.booleans(),
)
def test_the_search_is_find(text: str, stops: list[str], cuts: list[int], by_bytes: bool) -> None:
    """The pieces may have any length, and those of bytes may cut characters."""
    vocabulary = BYTES if by_bytes else LETTERS
    tokens = vocabulary.encode(text)
    search = Search(vocabulary, stop_strings(vocabulary, stops))
    for begin, end in itertools.pairwise(
        [0, *sorted(min(c, len(tokens)) for c in cuts), len(text) * 3]
    ):
        if search.end is None:
            search.feed(tokens[begin:end])
    expected = cut(text, stops)
    if all(stop not in text for stop in stops):
        assert search.end is None
    else:
        assert search.end == len(vocabulary.encode(expected))


def test_without_stop_strings_nothing_is_found() -> None:
    search = Search(LETTERS, stop_strings(LETTERS, None))
    search.feed(LETTERS.encode("abab"))
    assert search.end is None


# --- texts ---


def some_stops(text: Any) -> list[Any]:
    """Return parts of a drawn text: short ones, at its ends, and longer than a piece of a stream."""
    places = [(0, 1), (0, 2), (3, 9), (14, 18), (16, 17), (10, 32), (8, 45), (-3, None)]
    return [text[begin:end] for begin, end in places]


@pytest.mark.slow
@pytest.mark.parametrize("params", [MODEL, MODEL_OF_BYTES], ids=["letters", "bytes"])
def test_texts_end_with_the_first_occurrence(params: Params) -> None:
    by_bytes = params.vocabulary.by_bytes
    whole: Any = sample_bytes(params, PRIME, LENGTH) if by_bytes else sample(params, PRIME, LENGTH)
    prime = PRIME.encode() if by_bytes else PRIME
    drawn = whole[len(prime) :]
    one: Any = sample_bytes if by_bytes else sample
    pieces: Any = stream_bytes if by_bytes else stream
    for stop in some_stops(drawn):
        expected = prime + cut(drawn, [stop])
        assert one(params, PRIME, LENGTH, stop=stop) == expected
        assert one(params, PRIME, LENGTH, stop=[stop, stop]) == expected
        assert prime[:0].join(pieces(params, PRIME, LENGTH, stop=[stop])) == expected
        assert prime[:0].join(pieces(params, PRIME, stop=stop)) == expected, "an endless text"
    pair = some_stops(drawn)[2], some_stops(drawn)[4]
    assert one(params, PRIME, LENGTH, stop=pair) == prime + cut(drawn, pair)


@pytest.mark.slow
@pytest.mark.parametrize("params", [MODEL, MODEL_OF_BYTES], ids=["letters", "bytes"])
def test_each_of_many_texts_ends_on_its_own(params: Params) -> None:
    many: Any = sample_bytes_many if params.vocabulary.by_bytes else sample_many
    prime: Any = PRIME.encode() if params.vocabulary.by_bytes else PRIME
    whole = many(params, PRIME, LENGTH, count=5)
    drawn = [text[len(prime) :] for text in whole]
    stop = drawn[3][20:22]
    expected = [prime + cut(text, [stop]) for text in drawn]
    assert many(params, PRIME, LENGTH, count=5, stop=stop) == expected
    assert len({len(text) for text in expected}) > 1


def test_the_prime_does_not_count() -> None:
    """An occurrence that begins in the prime and ends in the drawn text does not count either."""
    whole = sample(MODEL, PRIME, LENGTH)
    drawn = whole[len(PRIME) :]
    spanning = whole[len(PRIME) - 1 : len(PRIME) + 1]
    assert sample(MODEL, PRIME, LENGTH, stop=[PRIME, spanning]) == PRIME + cut(
        drawn, [PRIME, spanning]
    )
    assert sample(MODEL, PRIME, 1, stop=spanning) == whole[: len(PRIME) + 1]


@pytest.mark.slow
def test_a_model_of_bytes_stops_at_whole_characters() -> None:
    """A text that is a str is searched as UTF-8."""
    whole = sample_bytes(MODEL_OF_BYTES, "é", 2000)
    letter = "é"
    boosted = MODEL_OF_BYTES.replace(
        b_out=MODEL_OF_BYTES.b_out.at[np.frombuffer(letter.encode(), np.uint8)].add(4)
    )
    whole = sample_bytes(boosted, "a", 200)
    end = whole.index(letter.encode(), 1) + 2
    assert sample(boosted, "a", 200, stop=letter) == whole[:end].decode(errors="replace")
    assert sample(boosted, "a", 200, stop=letter.encode()).endswith(letter)
    assert "".join(stream(boosted, "a", stop=letter)).endswith(letter)


# --- the work on the device ---


class Counting(Decoder):
    """A decoder that counts its device calls and the tokens that they draw."""

    lengths: tuple[int, ...] = ()

    def draw(self, length: int) -> np.ndarray:
        self.lengths += (length,)
        return super().draw(length)


def test_little_is_drawn_after_the_stop() -> None:
    whole = sample(MODEL, PRIME, 1000)
    stop = whole[len(PRIME) + 20 : len(PRIME) + 27]
    end = whole.index(stop, len(PRIME)) + 7 - len(PRIME)
    decoder = Counting(MODEL, PRIME, SamplingOptions())
    decoder.texts(1000, stop)
    assert sum(decoder.lengths) < end + STREAM_CHUNK
    decoder = Counting(MODEL, PRIME, SamplingOptions())
    decoder.texts(1000)
    assert decoder.lengths == (1000,), "without a stop string one device call draws the text"


def test_the_decoder_is_where_its_pieces_end() -> None:
    """Drawing more continues directly after the stop string."""
    whole = sample(MODEL, PRIME, LENGTH)
    stop = whole[len(PRIME) + 18 : len(PRIME) + 24]
    decoder = Decoder(MODEL, PRIME, SamplingOptions())
    text = "".join(map(LETTERS.decode, decoder.pieces(None, stop)))
    assert whole.startswith(text) and text.endswith(stop)
    assert int(decoder.state.position) == len(text)
    rest = LETTERS.decode(decoder.draw(LENGTH - len(text))[:, 0])
    assert whole.startswith(text + rest[: len(whole) - len(text)])


# --- errors ---


@pytest.mark.parametrize("write", [sample, stream, partial(sample_many, count=2)])
@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("", "`stop` is empty"),
        (["a", b""], "`stop` is empty"),
        ("Q", "`stop` 'Q': characters that the model has never seen: 'Q'"),
        (b"\xff", "`stop` .*not UTF-8"),
        (3, "stop must be a str, bytes or a sequence of them, not 3"),
        (["a", 3], "stop must be a str, bytes or a sequence of them"),
    ],
)
def test_stop_strings_that_cannot_be_used(write: Any, stop: Any, message: str) -> None:
    with unchecked(), pytest.raises(InputError, match=message):
        write(MODEL, PRIME, 1, stop=stop)


def test_a_stop_string_may_lie_inside_of_tokens() -> None:
    assert stop_strings(WORDS, "ck br") == ("ck br",)
    search = Search(WORDS, stop_strings(WORDS, "ow"))
    search.feed(WORDS.encode("quick brown fox"))
    assert search.end == 3
    with pytest.raises(InputError, match=r"never seen: 'z'"):
        stop_strings(WORDS, "buzz")
