"""Tests of vocabularies: they encode any text and bytes, and name unknown characters."""

import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrnn import InputError, Vocabulary
from tests.support.oracle import unchecked

pytestmark = pytest.mark.once

SCRIPTS = {
    "ascii": "First Citizen:\nBefore we proceed",
    "accents": "àéîõü ß ﬁ",
    "combining": "e\u0301 a\u0308\u0323",  # a letter and its marks are characters of their own
    "emoji": "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 👍🏽",
    "astral": "𝕬 𐍈 🀄",
    "korean": "한국어 \u1112\u1161\u11ab",
    "arabic": "السلام عليكم",
    "controls": "\x00\t\r\n\x85\u2028",
}
MANY = hypothesis.settings(max_examples=60)
any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
utf8_text = st.text()
scripts = pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)


def assert_spells(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    assert vocabulary.characters == "".join(sorted(set(text)))
    assert tokens.tolist() == [vocabulary.characters.index(c) for c in text]
    assert vocabulary.decode(tokens) == text


def assert_spells_bytes(text: str) -> None:
    vocabulary = Vocabulary.of_bytes()
    tokens = vocabulary.encode(text)
    assert tokens.tobytes() == text.encode()
    assert vocabulary.decode(tokens) == text
    np.testing.assert_array_equal(vocabulary.encode(text.encode()), tokens)


@scripts
def test_every_script_is_decoded_to_itself(text: str) -> None:
    assert_spells(text)
    assert_spells_bytes(text)


@MANY
@hypothesis.given(any_text)
def test_any_text_is_decoded_to_itself(text: str) -> None:
    """The characters are in the order of Unicode, each once."""
    assert_spells(text)


@MANY
@hypothesis.given(utf8_text)
def test_bytes_encode_any_text(text: str) -> None:
    assert_spells_bytes(text)


@MANY
@hypothesis.given(st.binary())
def test_bytes_encode_any_bytes(raw: bytes) -> None:
    """Bytes that are not UTF-8 are decoded to U+FFFD."""
    tokens = Vocabulary.of_bytes().encode(raw)
    assert tokens.dtype == np.uint8
    assert tokens.tobytes() == raw
    assert Vocabulary.of_bytes().decode(tokens) == raw.decode(errors="replace")


@scripts
def test_utf8_bytes_are_encoded_as_characters(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    np.testing.assert_array_equal(vocabulary.encode(text.encode()), vocabulary.encode(text))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")],
)
def test_tokens_take_the_smallest_dtype(size: int, dtype: str) -> None:
    text = "".join(map(chr, range(size)))
    vocabulary = Vocabulary.of(text[::-1])
    tokens = vocabulary.encode(text)
    assert len(vocabulary) == size
    assert tokens.dtype == vocabulary.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(tokens, np.arange(size))
    assert vocabulary.decode(tokens) == text


@pytest.mark.parametrize("unknown", ["a", "m", "z", "\n", "é", "👍"])
def test_unknown_characters_are_named(unknown: str) -> None:
    """Unknown characters below, between and above the known ones are named, known ones are not."""
    with pytest.raises(InputError) as error:
        Vocabulary.of("bcdxy").encode("bcd" + unknown + "xy")
    accused, known = str(error.value).split(";")
    assert re.findall(r"'[^']+'", accused) == [repr(unknown)]
    assert "'bcdxy'" in known


def test_several_unknown_characters_are_all_named() -> None:
    with pytest.raises(InputError, match="'X' 'Y' 'Z';"):
        Vocabulary.of("abc").encode("aZXbYZ")


def test_characters_in_any_order() -> None:
    """Tokens follow the given order of the characters, as in a vocabulary of another program."""
    vocabulary = Vocabulary("zaé\n")
    assert vocabulary.encode("a\nzéa").tolist() == [1, 3, 0, 2, 1]
    assert vocabulary.decode([1, 3, 0, 2, 1]) == "a\nzéa"
    with pytest.raises(InputError, match="'b'"):
        vocabulary.encode("ab")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"characters": "hello"}, r"contain each character once; .* Vocabulary\.of\(text\)"),
        ({"characters": ["a", "b"]}, "must be a str, not list"),
        ({"characters": b"ab"}, "must be a str, not bytes"),
        ({"characters": "ab", "by_bytes": True}, "has no characters"),
    ],
)
def test_invalid_vocabularies_are_refused(wrong: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        Vocabulary(**wrong)


@pytest.mark.parametrize("raw", [b"caf\xe9", b"\xff\x00\xed\xa0\x80", "é€".encode() + b"\xc3"])
def test_bytes_of_a_command_line_become_themselves(raw: bytes) -> None:
    """Python decodes bytes that are not UTF-8 to surrogates (PEP 383)."""
    typed = raw.decode(errors="surrogateescape")
    assert Vocabulary.of_bytes().encode(typed).tobytes() == raw


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b", "\udbff\udfff"])
def test_half_a_surrogate_pair_has_no_bytes(text: str) -> None:
    with pytest.raises(InputError, match="surrogate"):
        Vocabulary.of_bytes().encode(text)


def test_vocabularies_compare_by_value() -> None:
    one, same = Vocabulary.of("ab"), Vocabulary.of("baab")
    one.encode("a")  # what an instance has computed is no part of it
    assert one == same and hash(one) == hash(same)
    assert one != Vocabulary.of("abc")
    assert Vocabulary.of_bytes() == Vocabulary.of_bytes()
    assert Vocabulary.of_bytes() != Vocabulary.of("".join(map(chr, range(256))))


def test_whitespace_of_characters() -> None:
    vocabulary = Vocabulary.of("a \t\n\r\u00a0\u2003\u3000\u200b-é")
    assert vocabulary.whitespace().tolist() == [c.isspace() for c in vocabulary.characters]
    assert vocabulary.whitespace().sum() == 7  # neither the letters nor the zero-width space


def test_whitespace_of_bytes() -> None:
    """Only ASCII white space counts, because 0x85 and 0xa0 are parts of other characters."""
    white = np.flatnonzero(Vocabulary.of_bytes().whitespace())
    assert bytes(white.tolist()).decode() == "\t\n\v\f\r\x1c\x1d\x1e\x1f "


# --- extended ---


def test_an_extended_vocabulary_keeps_its_tokens() -> None:
    """What is new comes after the old tokens, in the order of Unicode."""
    vocabulary = Vocabulary("dba")
    wider = vocabulary.extended("zebra, é𝕬a")
    assert wider.characters == "dba" + " ,erzé𝕬"
    assert wider.encode("abd").tolist() == vocabulary.encode("abd").tolist()
    assert wider.symbols == tuple(wider.characters)
    assert vocabulary.extended("abba") == vocabulary
    assert Vocabulary.of_bytes().extended("é") == Vocabulary.of_bytes()
