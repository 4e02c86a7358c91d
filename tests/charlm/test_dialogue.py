"""Test texts that a person and a model write in turns: against `sample`, and against themselves after
`undo`."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from jaxrnn import (
    InputError,
    ModelConfig,
    Params,
    SamplingOptions,
    Vocabulary,
    init,
    sample,
    sample_bytes,
)
from jaxrnn.charlm.decoder import Decoder
from jaxrnn.charlm.dialogue import Dialogue

CONFIG = ModelConfig("gru", hidden_size=4, embedding_size=3)
LETTERS = init(CONFIG, Vocabulary.of("abcdefg \n"))
BYTES = init(CONFIG, Vocabulary.of_bytes())
OPTIONS = SamplingOptions(temperature=0.9, seed=5)
OTHERS = SamplingOptions(temperature=0.5, top_k=4, seed=6)
HOW: dict[str, Any] = vars(OPTIONS)


def turn(dialogue: Dialogue, text: str, length: int = 20) -> Any:
    """Take a turn and return what it added to the text."""
    added: Any = dialogue.read(text)
    for piece in dialogue.write(length):
        added += piece
    return added


def assert_same_place(one: Dialogue, other: Dialogue) -> None:
    a, b = one._decoder.place, other._decoder.place
    assert one.text == other.text
    np.testing.assert_array_equal(a.unread, b.unread)
    keys = [jax.random.key_data(place.state.keys) for place in (a, b)]
    np.testing.assert_array_equal(*keys)
    rest = [place.state._replace(keys=None) for place in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *rest)


# --- turns ---


@pytest.mark.parametrize("length", [0, 1, 16, 37])
def test_one_turn_is_a_sample(length: int) -> None:
    expected = sample(LETTERS, "fed a", length, **HOW)
    typed, given = Dialogue(LETTERS, OPTIONS), Dialogue(LETTERS, OPTIONS, "fed a")
    assert turn(typed, "fed a", length) == typed.text == expected
    assert given.text == "fed a"
    assert turn(given, "", length) == expected[len("fed a") :]
    assert given.text == expected


@pytest.mark.slow
def test_one_turn_of_a_model_of_bytes_is_a_sample() -> None:
    dialogue = Dialogue(BYTES, OPTIONS)
    assert turn(dialogue, "é\udcff", 30) == sample_bytes(BYTES, b"\xc3\xa9\xff", 30, **HOW)
    assert dialogue.text == sample_bytes(BYTES, b"\xc3\xa9\xff", 30, **HOW)


@pytest.mark.slow
def test_a_model_alone_begins_with_the_default_prime() -> None:
    assert turn(Dialogue(LETTERS, OPTIONS), "") == sample(LETTERS, "\n", 20, **HOW)
    no_breaks = init(CONFIG, Vocabulary.of("ab"))
    assert turn(Dialogue(no_breaks, OPTIONS), "") == sample(no_breaks, "a", 20, **HOW)


@pytest.mark.parametrize("parts", [["ab", "cd"], ["a", "", "bcd"], ["abcd", ""]])
def test_a_text_read_in_parts_is_the_text(parts: list[str]) -> None:
    at_once, in_parts = Decoder(LETTERS, "g", OPTIONS), Decoder(LETTERS, "g", OPTIONS)
    at_once.read("abcd")
    for part in parts:
        in_parts.read(part)
    np.testing.assert_array_equal(at_once.draw(20), in_parts.draw(20))
    jax.tree.map(
        np.testing.assert_array_equal,
        at_once.state._replace(keys=None),
        in_parts.state._replace(keys=None),
    )


@pytest.mark.slow
def test_turns_continue_from_what_was_written() -> None:
    """With argmax, keys have no effect, so many turns give the text of one call."""
    options = SamplingOptions(mode="argmax")
    dialogue = Dialogue(LETTERS, options, "bad")
    text = "bad"
    for typed in ("cafe\n", "", "a"):
        text = sample(LETTERS, text + typed, 17, mode="argmax")
        turn(dialogue, typed, 17)
        assert dialogue.text == text


def test_a_turn_ends_with_the_last_piece_that_was_taken() -> None:
    """If a turn is interrupted, as by Ctrl-C, the state matches the text that was shown."""
    dialogue = Dialogue(LETTERS, OPTIONS)
    shown = dialogue.read("fed")
    shown += "".join(itertools.islice(dialogue.write(None), 2))  # type: ignore[arg-type]
    assert dialogue.text == shown == sample(LETTERS, "fed", 32, **HOW)
    turn(dialogue, "", 9)
    assert dialogue.text == sample(LETTERS, "fed", 41, **HOW)


def test_a_turn_ends_with_a_stop_string() -> None:
    whole = sample(LETTERS, "fed", 60, **HOW)
    stop = whole[24:29]
    dialogue = Dialogue(LETTERS, OPTIONS)
    dialogue.read("fed")
    list(dialogue.write(60, stop))
    text = dialogue.text
    assert text == sample(LETTERS, "fed", 60, stop=stop, **HOW) and len(text) < len(whole)
    turn(dialogue, "", len(whole) - len(text))
    assert dialogue.text == whole


# --- undo ---


def test_undo_returns_to_every_turn_before() -> None:
    dialogue, other = Dialogue(LETTERS, OPTIONS, "bag"), Dialogue(LETTERS, OPTIONS, "bag")
    lines = "cab\n", "", "face"
    added = [turn(dialogue, line) for line in lines]
    final = dialogue.text
    for _ in lines:
        assert dialogue.undo()
    assert not dialogue.undo()
    assert_same_place(dialogue, other)
    assert [turn(dialogue, line) for line in lines] == added
    assert dialogue.text == final
    assert dialogue.undo()
    for line in lines[:2]:
        turn(other, line)
    assert_same_place(dialogue, other)


@pytest.mark.slow
def test_undo_keeps_the_options() -> None:
    """After an undo, writing with other options gives the text that these options would have given."""
    dialogue, other = Dialogue(LETTERS, OPTIONS), Dialogue(LETTERS, OTHERS)
    first = turn(dialogue, "fed")
    dialogue.change(OTHERS)
    assert dialogue.undo() and dialogue.options == OTHERS
    again = turn(dialogue, "fed")
    assert again == turn(other, "fed") == sample(LETTERS, "fed", 20, **vars(OTHERS)) != first


def test_changed_options_count_from_the_next_character() -> None:
    dialogue = Dialogue(LETTERS, OPTIONS)
    first = turn(dialogue, "fed")
    dialogue.change(OTHERS)
    dialogue.change(OPTIONS)
    turn(dialogue, "")
    assert dialogue.text == sample(LETTERS, "fed", 40, **HOW)
    dialogue.undo()
    dialogue.change(OTHERS)
    assert dialogue.text == first
    assert turn(dialogue, "") != sample(LETTERS, "fed", 40, **HOW)[len(first) :]


@pytest.mark.parametrize("prime", [None, "bag"])
def test_reset_begins_a_new_text(prime: str | None) -> None:
    dialogue, new = Dialogue(LETTERS, OPTIONS, prime), Dialogue(LETTERS, OPTIONS)
    turn(dialogue, "fed")
    before = dialogue.text
    dialogue.reset()
    assert_same_place(dialogue, new)
    assert turn(dialogue, "cab") == turn(new, "cab")
    assert dialogue.undo() and dialogue.undo()
    assert dialogue.text == before


@pytest.mark.parametrize("params", [LETTERS, BYTES], ids=["letters", "bytes"])
def test_characters_never_seen_change_nothing(params: Params) -> None:
    dialogue, other = Dialogue(params, OPTIONS, "bag"), Dialogue(params, OPTIONS, "bag")
    with pytest.raises(InputError, match=r"never seen: '\\ud800'|half of a character"):
        dialogue.read("a\ud800")
    assert_same_place(dialogue, other)
    assert not dialogue.undo()
