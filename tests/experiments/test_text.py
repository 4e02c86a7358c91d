"""Test the measures of texts on examples made by hand, and the texts that serve for comparison."""

import itertools
import math

import numpy as np
import pytest

from experiments import _charnn, linux, shakespeare

pytestmark = pytest.mark.once

PLAY = """First Citizen:
We know't, we know't; 'tis well.

MENENIUS:
What work's, my countrymen, in hand?
Hark:

HAMLET:
"""


def test_words_keep_the_apostrophe_inside_and_lose_the_one_outside() -> None:
    assert shakespeare.words("'Tis Well, know't! ' lords'--a 3") == [
        "tis",
        "well",
        "know't",
        "lords",
        "a",
    ]


def test_speakers_are_the_first_lines_of_speeches() -> None:
    assert shakespeare.speakers(PLAY) == ["First Citizen", "MENENIUS", "HAMLET"]
    assert shakespeare.speakers("Hark\nROMEO:\nNo blank line above.\n") == []
    assert shakespeare.speakers("A:\n\nB:\n") == ["A", "B"]


def test_lines_are_the_spoken_ones() -> None:
    assert shakespeare.lines(PLAY) == [
        "We know't, we know't; 'tis well.",
        "What work's, my countrymen, in hand?",
    ]


def test_shakespeare_against_what_was_learned() -> None:
    measure = shakespeare.against("ROMEO:\nO my love.\n\nNURSE:\nMy lord!\n")
    shares = measure(["ROMEO:\nMy love.\nMy lord!\n", "JULIA:\nO xyzzy.\n\nNURSE:\nMy lord!\n"])
    # Of "romeo my love my lord julia o xyzzy nurse my lord", all but julia and xyzzy.
    assert shares[shakespeare.WORDS] == pytest.approx(9 / 11)
    assert shares[shakespeare.NAMES] == pytest.approx(2 / 3)
    assert shares[shakespeare.NEW] == pytest.approx(2 / 4)


def test_without_speakers_there_is_no_share() -> None:
    shares = shakespeare.against(PLAY)(["qq zz"])
    assert math.isnan(shares[shakespeare.NAMES]) and shares[shakespeare.WORDS] == 0
    assert _charnn.percent(np.array([np.nan])) == "none"
    assert _charnn.percent(np.array([0.5, np.nan, 0.7, 1.0])) == "70% (50 to 100)"


C = """static int f(char *s)
{
	/* a ) in a comment */
	if (s[0] == '}' || g("{\\"(", s))
		return 1;
	for (;;) {
		s++;
	}
out:
	return 0;
}
"""  # fmt: skip


def test_brackets_in_comments_strings_and_characters_do_not_count() -> None:
    assert list(linux.brackets(C)) == [True] * 14
    assert list(linux.functions(C)) == [True]


@pytest.mark.parametrize(
    "source, right, all",
    [
        ("()", 2, 2),
        ("(]", 0, 2),
        (")(", 0, 2),
        ("{(}", 2, 3),
        ("{(})", 2, 4),
        ("(([]", 2, 4),
        ("/* ( */ // [\n", 0, 0),
        ("it's (", 0, 1),
    ],
)
def test_brackets(source: str, right: int, all: int) -> None:
    judged = list(linux.brackets(source))
    assert (sum(judged), len(judged)) == (right, all)


def test_functions_end_at_the_left_margin() -> None:
    assert list(linux.functions("int f()\n{\n\tif (x) {\n\t}\n}\n\nint g(\n{\n}\n")) == [
        True,
        False,
    ]
    assert list(linux.functions("int f()\n{\n\tif (x) {\n\ty;\n}\n")) == [False]
    assert list(linux.functions("int f()\n{\n\treturn")) == []
    assert list(linux.functions("struct a {\n\tint b;\n};\nint g;\n}\n")) == [True, False]


def test_comments() -> None:
    assert list(linux.comments("/* a */ x /** b\n * c */")) == [True, True]
    assert list(linux.comments("/* a /* b */ /* c")) == [False, True, False]
    assert list(linux.comments('"/* a" // /* b')) == []
    assert list(linux.comments("/*/ a")) == [False]
    assert list(linux.comments("/**/")) == [True]


def test_names() -> None:
    assert linux.names('if (x1 == 0x1f) y = "z"; /* w */') == ["if", "x1", "y"]


def test_indentation() -> None:
    assert list(linux.indentation(C)) == [True] * 6
    assert list(linux.indentation("{\n\ta;\n b;\n\t\tc;\n}\n")) == [True, False, False, True]
    assert list(linux.indentation("{\n\tf(a,\n      b);\n\tg;\n}\n")) == [True, True, True]
    # Not inside braces.
    assert list(linux.indentation("a;\n\tb;\n")) == []


def test_linux_against_what_was_learned() -> None:
    shares = linux.against("int f(int a)\n{\n\treturn a;\n}\n")(["int f(int b)\n{\n/* x\n}\n", ""])
    assert shares[linux.NAMES] == pytest.approx(3 / 4)
    assert shares[linux.COMMENTS] == 0
    assert math.isnan(linux.against("")([""])[linux.FUNCTIONS])


def test_pieces_begin_after_the_mark_and_end_with_a_line() -> None:
    text = "".join(f"{n}\n\n" for n in range(10_000))
    seeds = _charnn.pieces(text, "\n\n", 3)
    assert [len(each) for each in seeds] == [_charnn.TEXTS] * 3
    for piece in itertools.chain(*seeds):
        assert 0.9 * _charnn.LENGTH < len(piece) <= _charnn.LENGTH and piece.endswith("\n")
        assert "\n\n" + piece in text and piece[0] != "\n"
    assert len({piece for each in seeds for piece in each}) == 3 * _charnn.TEXTS


def test_whole_lines() -> None:
    assert _charnn.whole_lines("a\nb\nc") == "a\nb\n"
    assert _charnn.whole_lines("abc") == "abc"
