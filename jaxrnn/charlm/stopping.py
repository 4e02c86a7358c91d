"""Stop strings: where a text that is drawn in pieces ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.shapes import Integer

# Type of the argument `stop` of `sample` and the other sampling functions.
Stop = str | bytes | Sequence[str | bytes] | None


def stop_strings(vocabulary: Vocabulary, stop: Stop) -> tuple[str, ...]:
    """Return the stop strings in the form in which `Search` finds them.

    Raises:
      InputError: for a value of another type, an empty string, and characters that the model has never
        seen, with which the text would never end.
    """
    given = (stop,) if isinstance(stop, str | bytes) else () if stop is None else stop
    if not isinstance(given, Sequence) or not all(isinstance(s, str | bytes) for s in given):
        raise InputError(f"stop must be a str, bytes or a sequence of them, not {stop!r}")
    return tuple(_stop_string(vocabulary, string) for string in given)


def _stop_string(vocabulary: Vocabulary, string: str | bytes) -> str:
    if not string:
        raise InputError("`stop` is empty; give the text at least one character to end with")
    if vocabulary.pattern:
        # A stop string may begin and end inside of tokens.
        text = string.decode(errors="replace") if isinstance(string, bytes) else string
        unknown = sorted(set(text).difference(*vocabulary.symbols))
        if unknown:
            names = " ".join(map(repr, unknown[:10]))
            raise InputError(
                f"`stop` {string!r}: characters that the model has never seen: {names}"
            )
        return text
    try:
        return _searchable(vocabulary, vocabulary.encode(string))
    except InputError as error:
        raise InputError(f"`stop` {string!r}: {error}") from None


def _searchable(vocabulary: Vocabulary, tokens: Integer[np.ndarray, "N"]) -> str:
    """Return the text of tokens; for a model of bytes, the character with the number of each byte."""
    if vocabulary.by_bytes:
        return vocabulary.to_bytes(tokens).decode("latin-1")
    return vocabulary.decode(tokens)


class Search:
    """The search for the first of several strings in tokens that arrive in pieces.

    Attributes:
      fed: number of tokens that have arrived.
      end: number of tokens up to the one in which the first occurrence ends; None before it is found.
    """

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        """Search for `strings`, which come from `stop_strings`. Without any, nothing is found."""
        self.fed = 0
        self.end: int | None = None
        self._vocabulary = vocabulary
        self._strings = strings
        # An occurrence that ends in the next piece begins at most this number of characters before it.
        self._overlap = max(map(len, strings), default=1) - 1
        self._tail = ""

    def feed(self, tokens: Integer[np.ndarray, "N"]) -> None:
        """Search the next tokens together with the end of those before."""
        if not self._strings:
            return
        text = self._tail + _searchable(self._vocabulary, tokens)
        starts = [(text.find(string), len(string)) for string in self._strings]
        ends = [start + length for start, length in starts if start >= 0]
        if ends:
            self.end = self.fed + self._tokens_until(min(ends) - len(self._tail), tokens)
        self.fed += len(tokens)
        self._tail = text[max(len(text) - self._overlap, 0) :]

    def _tokens_until(self, end: int, tokens: Integer[np.ndarray, "N"]) -> int:
        """Return how many of the tokens cover their first `end` characters."""
        lengths = [len(_searchable(self._vocabulary, token)) for token in tokens[:, None]]
        return int(np.searchsorted(np.cumsum(lengths), end)) + 1
