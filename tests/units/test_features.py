"""Test the features of a text against examples by hand."""

import re

import numpy as np
import pytest

from jaxrnn import InputError
from jaxrnn.units.features import features, matches

pytestmark = pytest.mark.once


def marks(text: str, name: str) -> str:
    """Return the values of a feature as digits, with a space for 0."""
    found = features(text)[name]
    assert found.dtype == np.float32 and found.shape == (len(text),)
    return "".join(" 123456789"[int(value)] for value in found).rstrip()


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('he said "yes, \nno" and left', "        1111111111"),
        ("'no', isn't it", ""),
        ("“one” «two» 「three」", "11111 11111 1111111"),
        (r'f("a\"b", "c\\")', r"  111111  11111"),
        # A character constant is no quote.
        ("""f('"', "a", '\\"')""", "       111"),
        # The first quote is never closed; the next paragraph begins afresh.
        ('a "b\n \n"c" d', "       111"),
        ('"a\n\n"', ""),
        ("“a\n\n”", ""),
        ('""x""', "11 11"),
    ],
)
def test_quotes(text: str, quoted: str) -> None:
    assert marks(text, "in quotes") == quoted.rstrip()


@pytest.mark.parametrize(
    ("name", "text", "open_brackets"),
    [
        ("in parentheses", "a(b(c)d)e) f", " 111111"),
        ("in parentheses", "(a\nb\n\nc)", "11111"),
        ("in square brackets", "x[i[0]] = ]", " 11111"),
        ("depth of braces", "}a{b{c}d}e{ f", "  112211  111"),
    ],
)
def test_brackets(name: str, text: str, open_brackets: str) -> None:
    assert marks(text, name) == open_brackets


def test_braces_stay_open_beyond_a_paragraph() -> None:
    assert features("{a\n\n{b}}")["depth of braces"].tolist() == [1, 1, 1, 1, 2, 2, 1, 0]


def test_lines() -> None:
    found = features("ab\n\t x\ty\n\n z")
    want = [0, 1, 2, 0, 8, 9, 10, 16, 17, 0, 0, 1]
    assert found["position in the line"].tolist() == want
    assert found["indentation"].tolist() == [0, 0, 0, 8, 9, 9, 9, 9, 9, 0, 1, 1]


def test_words_and_capitals() -> None:
    text = "Don't x_1 ÉA, '가나'"
    assert marks(text, "position in the word") == "12345 1   12   12"
    assert marks(text, "upper case") == "1         11"


def test_an_empty_text_has_all_features() -> None:
    assert all(values.shape == (0,) for values in features("").values())


# --- regular expressions ---


def test_matches() -> None:
    found = matches("ab 12 b3\nb4", ["[0-9]+", "^b."])
    assert list(found) == ["[0-9]+", "^b."]
    assert found["[0-9]+"].tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1]
    # ^ matches at every line.
    assert found["^b."].tolist() == [0] * 9 + [1, 1]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "`find` '(' is not a regular expression: missing )"),
        ("a{99999999999999999999}", "is not a regular expression"),
        ("x", "`find` 'x' matches nothing in the 3 characters"),
        ("(?=b)", "matches nothing"),
        ("(?s).", "matches all of the text"),
    ],
)
def test_refused_patterns(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        matches("abc", [pattern])
