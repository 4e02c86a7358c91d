"""Features of a text: numbers that plain Python reads off each character.

    features(text)["position in the line"]         # float32 [T]
    matches(text, ["[0-9]+"])                      # 1 inside of a match, 0 outside

A recurrent unit that follows a feature has had to learn it: nothing tells the network about lines,
quotes or brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from jaxrnn.errors import InputError
from jaxrnn.shapes import Float

# Columns from one tab stop to the next.
TAB = 8
# Quoted strings: straight double quotes, with C's escapes, and typographic ones. A string ends at an
# empty line at the latest, so that a quote which is never closed does no harm beyond its paragraph. A
# quote between two apostrophes is a character constant. Apostrophes do not count as quotes,
# because most of them are within words.
_GAP = r"\n[ \t\r]*\n"
_QUOTES = re.compile(
    rf"""(?s:'\\?"'|(?P<quoted>"(?:(?!{_GAP})(?:\\.|[^"\\]))*"|“(?:(?!{_GAP})[^”])*”"""
    rf"""|«(?:(?!{_GAP})[^»])*»|「(?:(?!{_GAP})[^」])*」))"""
)
_EMPTY_LINE = re.compile(_GAP)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def features(text: str) -> dict[str, Float[np.ndarray, "T"]]:
    """Return the features of each of the T characters of a text by their names.

    "position in the line": columns before the character; a tab ends at the next multiple of 8.
    "indentation": the width of the spaces and tabs with which the line begins, as far as it was read.
    "in quotes": 1 from one double quote to the next, 0 outside.
    "in parentheses", "in square brackets": 1 from the opening bracket until it is closed, at the end
      of the paragraph at the latest.
    "depth of braces": number of open braces.
    "position in the word": letters of the word up to the character; 0 outside of words.
    "upper case": 1 for capital letters.
    """
    column, indentation = _columns(text)
    return {
        "position in the line": column,
        "indentation": indentation,
        "in quotes": _marked(text, _QUOTES, "quoted"),
        "in parentheses": _depth(text, "()", by_paragraph=True).clip(max=1),
        "in square brackets": _depth(text, "[]", by_paragraph=True).clip(max=1),
        "depth of braces": _depth(text, "{}", by_paragraph=False),
        "position in the word": _position_in_word(text),
        "upper case": np.fromiter(map(str.isupper, text), np.float32, len(text)),
    }


def compiled(find: Sequence[str]) -> list[re.Pattern[str]]:
    """Return regular expressions compiled; ^ and $ match at every line.

    Raises:
      InputError: for a string that is not a regular expression.
    """
    found = []
    for pattern in find:
        try:
            found.append(re.compile(pattern, re.MULTILINE))
        except (re.error, OverflowError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"`find` {pattern!r} is not a regular expression: {reason}") from None
    return found


def matches(text: str, find: Sequence[str]) -> dict[str, Float[np.ndarray, "T"]]:
    """Return a feature for each regular expression: 1 inside of its matches and 0 outside.

    Raises:
      InputError: for a string that is not a regular expression, and for one that matches no character,
        or every character.
    """
    found = {}
    for pattern in compiled(find):
        inside = _marked(text, pattern, 0)
        if not inside.any():
            raise InputError(
                f"`find` {pattern.pattern!r} matches nothing in the {len(text):,} characters of the "
                "text; give another regular expression, or a longer text"
            )
        if inside.all():
            raise InputError(
                f"`find` {pattern.pattern!r} matches all of the text, so no unit can follow it; give "
                "another regular expression"
            )
        found[pattern.pattern] = inside
    return found


def _marked(text: str, pattern: re.Pattern[str], group: str | int) -> Float[np.ndarray, "T"]:
    """Return 1 inside of a group of a pattern's matches and 0 outside."""
    inside = np.zeros(len(text), np.float32)
    for match in pattern.finditer(text):
        if match[group] is not None:
            inside[match.start(group) : match.end(group)] = 1
    return inside


def _columns(text: str) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """Return the column of each character and the indentation of its line up to there."""
    columns = np.zeros(len(text), np.float32)
    indentations = np.zeros(len(text), np.float32)
    column = indentation = 0
    for place, character in enumerate(text):
        # Nothing but blanks on the line so far.
        blank = character in " \t" and column == indentation
        columns[place] = column
        column += TAB - column % TAB if character == "\t" else 1
        indentation = column if blank else indentation
        indentations[place] = indentation
        if character == "\n":
            column = indentation = 0
    return columns, indentations


def _depth(text: str, brackets: str, by_paragraph: bool) -> Float[np.ndarray, "T"]:
    """Return the number of brackets that are open after each character.

    Args:
      text: T characters.
      brackets: the opening and the closing bracket.
      by_paragraph: close all brackets at an empty line.
    """
    ends = {match.end() - 1 for match in _EMPTY_LINE.finditer(text)} if by_paragraph else set()
    depths = np.zeros(len(text), np.float32)
    depth = 0
    for place, character in enumerate(text):
        depth = max(0, depth + (character == brackets[0]) - (character == brackets[1]))
        depth = 0 if place in ends else depth
        depths[place] = depth
    return depths


def _position_in_word(text: str) -> Float[np.ndarray, "T"]:
    positions = np.zeros(len(text), np.float32)
    for match in _WORD.finditer(text):
        positions[match.start() : match.end()] = np.arange(1, match.end() - match.start() + 1)
    return positions
