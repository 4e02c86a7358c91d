"""The vocabulary: which token stands for which character."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import numpy as np

from jaxrnn.errors import InputError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which token stands for which character.

    Make one with `Vocabulary.of(text)` (the characters of a text, sorted) or `Vocabulary.of_bytes()`
    (the 256 bytes, which can spell anything). Compares by value and is hashable.

    Attributes:
      characters: the character of each token, in the order of the tokens, no two alike.
      by_bytes: tokens are bytes; then there are no characters.

    Raises:
      ValueError: for a character that is there twice.
    """

    characters: str = ""
    by_bytes: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str):
            raise ValueError(f"characters must be a str, not {type(self.characters).__name__}")
        if len(set(self.characters)) < len(self.characters):
            raise ValueError(
                "characters must have no character twice; "
                "make the vocabulary of a text with Vocabulary.of(text)"
            )
        if self.by_bytes and self.characters:
            raise ValueError("a vocabulary of bytes has no characters; use Vocabulary.of_bytes()")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The vocabulary of a text: each of its characters once, in the order of Unicode."""
        return cls("".join(map(chr, np.unique(code_points(text)))))

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        """The 256 bytes."""
        return cls(by_bytes=True)

    def __len__(self) -> int:
        return 256 if self.by_bytes else len(self.characters)

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every token."""
        return np.min_scalar_type(max(len(self) - 1, 0))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the tokens [N] of a text, of type `dtype`.

        Where tokens are bytes, a str becomes UTF-8, and bytes that Python could not decode, such as
        those of a command line (PEP 383), become themselves again.

        Raises:
          InputError: for characters that the vocabulary does not have; it says which.
        """
        if self.by_bytes:
            return np.frombuffer(_raw(text), np.uint8)
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"not UTF-8: byte 0x{text[error.start]:02x} at offset {error.start}"
                ) from None
        points, (known, ranks) = code_points(text), self._ordered
        places = np.searchsorted(known, points)
        found = np.zeros(len(points), bool)
        inside = places < len(known)
        found[inside] = known[places[inside]] == points[inside]
        if not found.all():
            unknown = " ".join(repr(chr(p)) for p in np.unique(points[~found])[:10])
            raise InputError(
                f"characters that the model has never seen: {unknown}; it knows "
                f"{len(self)} characters: {self.characters[:200]!r}"
            )
        return ranks[places]

    def decode(self, tokens: Any) -> str:
        """Return the text of tokens [N]. Bytes that are not UTF-8 become U+FFFD."""
        tokens = np.asarray(tokens, np.int64)
        if self.by_bytes:
            return tokens.astype(np.uint8).tobytes().decode(errors="replace")
        return self._known[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def whitespace(self) -> np.ndarray:
        """Return which tokens are white space, [V] bool."""
        if self.by_bytes:
            return np.array([chr(b).isspace() and b < 128 for b in range(256)])
        return np.array([c.isspace() for c in self.characters])

    @functools.cached_property
    def _known(self) -> np.ndarray:
        return code_points(self.characters)

    @functools.cached_property
    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """The code points [V] in ascending order, and the token of each."""
        order = np.argsort(self._known)
        return self._known[order], order.astype(self.dtype)


def _raw(text: str | bytes) -> bytes:
    """The bytes of a text. Raises InputError for a str that stands for none."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{text[error.start]!r} is half of a character (a surrogate) and has no bytes"
        ) from None


def code_points(text: str) -> np.ndarray:
    """The numbers that Unicode gives to the characters of a text [N], uint32 [N]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Numbering:
    """Numbers for the characters of a text that is still coming in, given in the order they come.

    Args:
      characters: that have a number already.
      by_bytes: the text is bytes, which are their own numbers.
    """

    def __init__(self, characters: str = "", by_bytes: bool = False) -> None:
        self.vocabulary = Vocabulary(by_bytes=by_bytes)
        self._numbers = np.full(sys.maxunicode + 1, -1, np.int32)
        self._add(code_points(characters))

    def encode(self, raw: bytes, text: str) -> np.ndarray:
        """Tokens [N] of `vocabulary.dtype`, the vocabulary of all that has come until now.

        Args:
          raw: the next part of the text in UTF-8, or any bytes where tokens are bytes.
          text: the same part as characters; not looked at where tokens are bytes.
        """
        if self.vocabulary.by_bytes:
            return np.frombuffer(raw, np.uint8)
        if raw.isascii():  # of most text, nearly all; bytes.translate is the fastest way there is
            new = raw.translate(None, self._known)
            if new:
                self._add(np.unique(np.frombuffer(new, np.uint8)))
            if len(self.vocabulary) <= 256:
                return np.frombuffer(raw.translate(self._table), np.uint8)
        points = code_points(text)
        tokens = self._numbers.take(points, mode="clip")
        unknown = tokens < 0
        if unknown.any():
            self._add(np.unique(points[unknown]))
            tokens = self._numbers.take(points, mode="clip")
        return tokens.astype(self.vocabulary.dtype)

    def _add(self, points: np.ndarray) -> None:
        characters = self.vocabulary.characters
        self._numbers[points] = len(characters) + np.arange(len(points), dtype=np.int32)
        characters += "".join(map(chr, points))
        self.vocabulary = Vocabulary(characters, self.vocabulary.by_bytes)
        self._table = self._numbers[:256].astype(np.uint8).tobytes()  # right up to 256 characters
        self._known = np.flatnonzero(self._numbers[:128] >= 0).astype(np.uint8).tobytes()
