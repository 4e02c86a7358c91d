"""Vocabularies: the token of each character."""

from __future__ import annotations

import dataclasses
import functools
import sys

import numpy as np
import numpy.typing as npt

from jaxrnn.errors import InputError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A mapping between characters and tokens, the numbers 0 to V - 1.

    Make one with `Vocabulary.of(text)` (the characters of a text, sorted) or `Vocabulary.of_bytes()`
    (the 256 bytes, which can encode any text). Vocabularies compare by value and are hashable.

    Attributes:
      characters: the character of each token, in the order of the tokens, each character once.
      by_bytes: whether tokens are bytes; `characters` is then empty.

    Raises:
      ValueError: for a character that occurs twice, and for characters together with `by_bytes`.
    """

    characters: str = ""
    by_bytes: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str):
            raise ValueError(f"characters must be a str, not {type(self.characters).__name__}")
        if len(set(self.characters)) < len(self.characters):
            raise ValueError(
                "characters must contain each character once; "
                "make the vocabulary of a text with Vocabulary.of(text)"
            )
        if self.by_bytes and self.characters:
            raise ValueError("a vocabulary of bytes has no characters; use Vocabulary.of_bytes()")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the vocabulary of a text: each of its characters once, in the order of Unicode."""
        return cls("".join(map(chr, np.unique(code_points(text)))))

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        """Return the vocabulary whose tokens are the 256 bytes."""
        return cls(by_bytes=True)

    def __len__(self) -> int:
        """Return the number of tokens, V."""
        return 256 if self.by_bytes else len(self.characters)

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned integer type that holds every token."""
        return np.min_scalar_type(max(len(self) - 1, 0))

    @property
    def newline(self) -> int | None:
        """The token of a line break, or None if the vocabulary does not have one."""
        if self.by_bytes:
            return ord("\n")
        place = self.characters.find("\n")
        return None if place < 0 else place

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the tokens [N] of a text, of type `dtype`.

        Args:
          text: a str or UTF-8. If tokens are bytes, any bytes; a str is then encoded as UTF-8, and
            surrogates that stand for undecodable bytes, as in a command line (PEP 383), become those
            bytes again.

        Raises:
          InputError: for characters that the vocabulary does not have; the message lists them.
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
        points = code_points(text)
        known, ranks = self._sorted_points
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

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Return the text of integer tokens [N]. Bytes that are not UTF-8 become U+FFFD."""
        tokens = np.asarray(tokens, np.int64)
        if self.by_bytes:
            return tokens.astype(np.uint8).tobytes().decode(errors="replace")
        return self._points[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def whitespace(self) -> np.ndarray:
        """Return whether each token is white space, [V] bool."""
        if self.by_bytes:
            return np.array([chr(b).isspace() and b < 128 for b in range(256)])
        return np.array([c.isspace() for c in self.characters])

    @functools.cached_property
    def _points(self) -> np.ndarray:
        """Code point of each token, uint32 [V]."""
        return code_points(self.characters)

    @functools.cached_property
    def _sorted_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Code points [V] in ascending order, and the token of each."""
        order = np.argsort(self._points)
        return self._points[order], order.astype(self.dtype)


def _raw(text: str | bytes) -> bytes:
    """Return the bytes of a text.

    Raises:
      InputError: for a str with half of a surrogate pair.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{text[error.start]!r} is half of a character (a surrogate) and has no bytes"
        ) from None


def code_points(text: str) -> np.ndarray:
    """Return the Unicode code points of the N characters of a text, uint32 [N]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Numbering:
    """A vocabulary that grows while a text is read: tokens in the order of first occurrence.

    Args:
      characters: the characters that have a token already, in the order of their tokens.
      by_bytes: whether tokens are bytes; the vocabulary then never changes.

    Attributes:
      vocabulary: the vocabulary of the text that was read so far.
    """

    def __init__(self, characters: str = "", by_bytes: bool = False) -> None:
        self.vocabulary = Vocabulary(by_bytes=by_bytes)
        self._numbers = np.full(sys.maxunicode + 1, -1, np.int32)
        self._add(code_points(characters))

    def encode(self, raw: bytes, text: str) -> np.ndarray:
        """Return the tokens [N] of the next part of the text, and add its characters.

        Args:
          raw: the part in UTF-8, or any bytes if tokens are bytes.
          text: the same part as characters; ignored if tokens are bytes.

        Returns:
          Tokens of type `vocabulary.dtype`, the type after the part has been added.
        """
        if self.vocabulary.by_bytes:
            return np.frombuffer(raw, np.uint8)
        # Most parts of most texts are ASCII, for which bytes.translate is the fastest way.
        if raw.isascii():
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
        """Give tokens to new characters.

        Args:
          points: their code points, uint32 [N].
        """
        characters = self.vocabulary.characters
        self._numbers[points] = len(characters) + np.arange(len(points), dtype=np.int32)
        characters += "".join(map(chr, points))
        self.vocabulary = Vocabulary(characters, self.vocabulary.by_bytes)
        # For bytes.translate: the token of each ASCII character, valid for up to 256 tokens, and the
        # ASCII characters that have a token.
        self._table = self._numbers[:256].astype(np.uint8).tobytes()
        self._known = np.flatnonzero(self._numbers[:128] >= 0).astype(np.uint8).tobytes()
