"""Test vocabularies: they encode any text and bytes, and name unknown characters and strings."""

import dataclasses
import json
import re
import time
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
SMILES = r"(\[[^\]]+]|Br|Cl|@@|%\d\d)"
PATTERNS = (
    SMILES,
    r"\w+",
    r"\w+|\s+",
    r".+",
    r"(?s).+",
    r"(?i)the|[a-c]{2,3}",
    r"(?x) a+  # a comment",
    r"(a)(b)|(?P<double>[cd])(?P=double)",
    r"(?<=a)b+|^a|c$|\bd",
    r"a+?b|[^a]b",
    "\n|\na",
)
patterns = pytest.mark.parametrize("pattern", PATTERNS)
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
    assert tokens.tobytes() == vocabulary.to_bytes(tokens.astype(np.int32)) == text.encode()
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
        ({"tokens": ("a", "ab", "a"), "pattern": "ab"}, r"each string once; .* Vocabulary\.of\("),
        ({"tokens": ("a", ""), "pattern": "ab"}, "tuple of strings that are not empty"),
        ({"tokens": ("a", 1), "pattern": "ab"}, "tuple of strings that are not empty"),
        ({"tokens": "ab", "pattern": "ab"}, "tuple of strings that are not empty"),
        ({"tokens": ("a", "ab")}, "tokens need the pattern"),
        ({"characters": "ab", "pattern": "ab"}, "neither characters nor bytes"),
        ({"by_bytes": True, "pattern": "ab"}, "neither characters nor bytes"),
        ({"pattern": b"ab"}, "pattern must be a str, not bytes"),
        ({"pattern": re.compile("ab")}, "pattern must be a str, not Pattern"),
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


# --- tokens of several characters ---


def split_by_hand(pattern: str, text: str) -> list[str]:
    """Return the tokens of a text, found by `re.match` at every position of every line."""
    alone, found = re.compile(pattern), list[str]()
    for number, line in enumerate(text.split("\n")):
        found += ["\n"] * (number > 0)
        at = 0
        while at < len(line):
            match = alone.match(line, at)
            found.append(match[0] if match else line[at])
            at += len(found[-1])
    return found


def assert_splits(pattern: str, text: str) -> None:
    pieces = split_by_hand(pattern, text)
    vocabulary = Vocabulary.of(text, pattern)
    assert vocabulary.tokens == vocabulary.symbols == tuple(sorted(set(pieces)))
    assert (vocabulary.characters, vocabulary.by_bytes) == ("", False)
    assert len(vocabulary) == len(vocabulary.tokens)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == vocabulary.dtype
    assert [vocabulary.tokens[token] for token in tokens] == pieces
    assert vocabulary.decode(tokens) == text


@patterns
@hypothesis.settings(max_examples=30)
@hypothesis.given(text=st.text("abcdBrl[]%7 \n") | any_text)
def test_any_text_is_split_and_decoded_to_itself(pattern: str, text: str) -> None:
    assert_splits(pattern, text)


@scripts
def test_every_script_is_split_into_words(text: str) -> None:
    assert_splits(r"\w+", text)


def test_tokens_of_smiles() -> None:
    vocabulary = Vocabulary.of("C[C@@H](Br)Cl\nC%12\n", SMILES)
    assert vocabulary.tokens == ("\n", "%12", "(", ")", "Br", "C", "Cl", "[C@@H]")
    assert vocabulary.encode("CClC\n").tolist() == [5, 6, 5, 0]
    np.testing.assert_array_equal(vocabulary.encode(b"CClC\n"), [5, 6, 5, 0])
    assert vocabulary.decode([7, 4, 0]) == "[C@@H]Br\n"


def test_a_token_never_spans_lines() -> None:
    """Even where the pattern matches line breaks, each of them is a separate token."""
    vocabulary = Vocabulary.of("a  \n\n  b", r"\s+")
    assert vocabulary.tokens == ("\n", "  ", "a", "b")


@pytest.mark.parametrize(
    ("vocabulary", "newline"),
    [
        (Vocabulary.of("b\na"), 0),
        (Vocabulary("ab\n"), 2),
        (Vocabulary.of("ab"), None),
        (Vocabulary.of("\t1\n12", r"\d+"), 1),
        (Vocabulary.of("12", r"\d+"), None),
        (Vocabulary.of_bytes(), 10),
    ],
)
def test_the_token_of_a_line_break(vocabulary: Vocabulary, newline: int | None) -> None:
    assert vocabulary.newline == newline
    if newline is not None:
        assert vocabulary.encode("\n").tolist() == [newline]


def test_symbols_and_units() -> None:
    assert Vocabulary.of("ba").symbols == ("a", "b")
    units = [v.unit for v in (Vocabulary(), Vocabulary(pattern="a"), Vocabulary.of_bytes())]
    assert units == ["character", "token", "byte"]
    with pytest.raises(ValueError, match="are not bytes"):
        Vocabulary("ab").to_bytes([0, 1])
    with pytest.raises(ValueError, match="no strings"):
        Vocabulary.of_bytes().symbols  # noqa: B018


def test_whitespace_of_tokens() -> None:
    """A token is white space if all of it is."""
    vocabulary = Vocabulary.of("a b\t \n  \u3000c,", r"[ab] |\s+")
    assert [
        t
        for t, is_white in zip(vocabulary.tokens, vocabulary.whitespace(), strict=True)
        if is_white
    ] == [
        "\t ",
        "\n",
        "  \u3000",
    ]


@pytest.mark.parametrize("pattern", ["a*", "|a", "(?=x)", r"\b", "x??", "^", "(?x)# all of it"])
def test_patterns_of_the_empty_string_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"`pattern` .* matches the empty string") as error:
        Vocabulary.of("ax", pattern)
    assert "\n" not in str(error.value) and repr(pattern) in str(error.value)


def test_an_empty_match_in_a_later_text_is_refused() -> None:
    vocabulary = Vocabulary.of("ab", "(?=x)|b")
    with pytest.raises(InputError, match="matches the empty string"):
        vocabulary.encode("axb")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a(b", "missing ), unterminated subpattern at position 1"),
        ("ab[", "unterminated character set at position 2"),
        ("a**", "multiple repeat at position 2"),
        ("\\", "bad escape (end of pattern) at position 0"),
        ("a\n(", "missing ), unterminated subpattern at position 2"),
        ("a{99999999999}", "the repetition number is too large"),
    ],
)
def test_invalid_patterns_are_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"not a regular expression: {re.escape(reason)}") as error:
        Vocabulary.of("ab", pattern)
    assert "\n" not in str(error.value)


def test_unknown_tokens_are_listed() -> None:
    known, unknown = range(10, 40), range(40, 80)
    vocabulary = Vocabulary.of(" ".join(map(str, known)), r"\d+")
    with pytest.raises(InputError) as error:
        vocabulary.encode("11 " + " ".join(map(str, unknown)) + " 12")
    accused, knows = str(error.value).split("; it knows ")
    assert accused.startswith("tokens that the model has never seen: ")
    assert re.findall(r"'(\d+)'", accused) == [str(number) for number in unknown][:10]
    assert knows.startswith("31 tokens: ' ' '10' '11' ") and knows.endswith(" '28' ...")


def test_long_unknown_tokens_are_shortened() -> None:
    with pytest.raises(InputError) as error:
        Vocabulary.of("a" * 500, r"\w+").encode("b" * 1000)
    assert len(str(error.value)) < 200


@patterns
def test_a_vocabulary_of_tokens_is_hashable_and_json(pattern: str) -> None:
    one = Vocabulary.of("ab Cl\n", pattern)
    one.encode("ab Cl")
    same = Vocabulary(**json.loads(json.dumps(dataclasses.asdict(one))))
    assert one == same and hash(one) == hash(same) and isinstance(same.tokens, tuple)
    assert one != dataclasses.replace(one, pattern="Q")
    assert one != Vocabulary.of("ab Cl\n")


def test_a_description_without_tokens_is_one_of_characters() -> None:
    """Files of older versions have only these entries."""
    assert Vocabulary(**{"characters": "ab", "by_bytes": False}) == Vocabulary.of("ab")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [r"\w+", "[a-z]"])
def test_a_million_characters_take_a_second(pattern: str, unchecked: None) -> None:
    """Encoding takes 0.3 seconds on an idle core; the limit allows for a busy one."""
    text = "To be, or not to be: that is the question.\n" * 25_000
    vocabulary = Vocabulary.of(text, pattern)
    begin = time.process_time()
    tokens = vocabulary.encode(text)
    assert time.process_time() - begin < 2
    assert vocabulary.decode(tokens) == text


# --- extended ---


def test_an_extended_vocabulary_keeps_its_tokens() -> None:
    """New characters follow the old ones, in Unicode order."""
    vocabulary = Vocabulary("dba")
    wider = vocabulary.extended("zebra, é𝕬a")
    assert wider.characters == "dba" + " ,erzé𝕬"
    assert wider.encode("abd").tolist() == vocabulary.encode("abd").tolist()
    assert wider.symbols == tuple(wider.characters)
    assert vocabulary.extended("abba") == vocabulary
    assert Vocabulary.of_bytes().extended("é") == Vocabulary.of_bytes()


def test_an_extended_vocabulary_of_strings_keeps_its_tokens() -> None:
    vocabulary = Vocabulary.of("CCl", "Cl|Br")
    wider = vocabulary.extended("BrCCl\n")
    assert wider.tokens == ("C", "Cl", "\n", "Br")
    assert wider.pattern == vocabulary.pattern
