"""Vocabularies: the token of each character, or of each string that a regular expression matches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import reprlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from jaxrnn.errors import InputError, UnknownSymbols

# Most unknown and most known tokens that an error message lists.
MOST_UNKNOWN, MOST_KNOWN = 10, 20


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A mapping between the symbols of a text and tokens, the numbers 0 to V - 1.

    Make one with `Vocabulary.of(text)` (the characters of a text, sorted), with
    `Vocabulary.of(text, pattern)` (the strings that a regular expression matches, sorted) or with
    `Vocabulary.of_bytes()` (the 256 bytes, which can encode any text). Vocabularies compare by value and
    are hashable.

    With a pattern, a text is split at its line breaks, which are separate tokens, and each line from
    the left to the right: where the pattern matches, what it matches is a token, and any other character
    is a separate token. So a token never spans two lines, and the tokens joined are the text.

    Attributes:
      characters: the character of each token, in the order of the tokens, each character once.
      by_bytes: whether tokens are bytes; `characters` is then empty.
      tokens: with a pattern, a tuple of the string of each token, each string once; `characters` is then
        empty. A list, as JSON has it, becomes a tuple.
      pattern: the regular expression, in the syntax of Python's `re`; empty without one.

    Raises:
      ValueError: for a character or a string that occurs twice, for arguments that exclude each other,
        and for arguments of the wrong type.
      InputError: for a pattern that is not a regular expression or that matches the empty string.
    """

    characters: str = ""
    by_bytes: bool = False
    tokens: Sequence[str] = ()
    pattern: str = ""

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
        if isinstance(self.tokens, list):
            object.__setattr__(self, "tokens", tuple(self.tokens))
        self._check_tokens()

    def _check_tokens(self) -> None:
        """Check `tokens` and `pattern`."""
        if not isinstance(self.pattern, str):
            raise ValueError(f"pattern must be a str, not {type(self.pattern).__name__}")
        if not isinstance(self.tokens, tuple) or not all(
            isinstance(token, str) and token for token in self.tokens
        ):
            raise ValueError("tokens must be a tuple of strings that are not empty")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(
                "tokens must contain each string once; "
                "make the vocabulary of a text with Vocabulary.of(text, pattern)"
            )
        if self.tokens and not self.pattern:
            raise ValueError("tokens need the pattern that splits a text into them")
        if self.pattern and (self.characters or self.by_bytes):
            raise ValueError("a vocabulary with a pattern has neither characters nor bytes")
        if self.pattern:
            _compiled(self.pattern)

    @classmethod
    def of(cls, text: str, pattern: str = "") -> Vocabulary:
        """Return the vocabulary of a text: each of its characters once, in the order of Unicode.

        Args:
          text: the text.
          pattern: a regular expression; the vocabulary then has each token of the text once, sorted.

        Raises:
          InputError: for a pattern that is not a regular expression or that matches the empty string.
        """
        if not pattern:
            return cls("".join(map(chr, np.unique(code_points(text)))))
        tokens = set(cls(pattern=pattern)._split(text))
        if "" in tokens:
            raise _empty_match_error(pattern)
        return cls(tokens=tuple(sorted(tokens)), pattern=pattern)

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        """Return the vocabulary whose tokens are the 256 bytes."""
        return cls(by_bytes=True)

    def __len__(self) -> int:
        """Return the number of tokens, V."""
        return 256 if self.by_bytes else len(self.characters) + len(self.tokens)

    @property
    def unit(self) -> str:
        """Unit in which texts of this vocabulary are counted: "character", "byte" or "token"."""
        if self.by_bytes:
            return "byte"
        return "token" if self.pattern else "character"

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """The string of each token.

        Raises:
          ValueError: for a vocabulary of bytes, whose tokens are not strings.
        """
        if self.by_bytes:
            raise ValueError("a vocabulary of bytes has no strings for its tokens")
        return tuple(self.tokens if self.pattern else self.characters)

    @property
    def newline(self) -> int | None:
        """The token of a line break, or None if the vocabulary does not have it."""
        if self.by_bytes:
            return ord("\n")
        return self.symbols.index("\n") if "\n" in self.symbols else None

    def extended(self, text: str) -> Vocabulary:
        """Return the vocabulary with the other symbols of a text added after its own tokens.

        The new tokens are in the order of Unicode. A vocabulary of bytes has a token for everything.
        """
        if self.by_bytes:
            return self
        known = set(self.symbols)
        own = Vocabulary.of(text, self.pattern).symbols
        new = tuple(symbol for symbol in own if symbol not in known)
        if self.pattern:
            return dataclasses.replace(self, tokens=(*self.tokens, *new))
        return dataclasses.replace(self, characters=self.characters + "".join(new))

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned integer type that holds every token."""
        return np.min_scalar_type(max(len(self) - 1, 0))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the tokens [N] of a text, of type `dtype`.

        Args:
          text: a str or UTF-8. If tokens are bytes, any bytes; a str is then encoded as UTF-8, and
            surrogates that stand for undecodable bytes, as in a command line (PEP 383), become those
            bytes again.

        Raises:
          UnknownSymbols: for characters or strings that the vocabulary does not have.
          InputError: for bytes that are not UTF-8, for a str that has no bytes, and for a pattern that
            matches the empty string in the text.
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
        return self._encode_strings(text) if self.pattern else self._encode_characters(text)

    def encode_known(self, text: str) -> tuple[str, np.ndarray]:
        """Return a text without the tokens that the vocabulary does not have, and its tokens [N]."""
        if self.pattern:
            known = [symbol for symbol in self._split(text) if symbol in self._numbers]
            tokens = np.fromiter(map(self._numbers.__getitem__, known), self.dtype, len(known))
            return "".join(known), tokens
        if not self.by_bytes:
            points = code_points(text)
            kept = points[np.isin(points, self._points)]
            text = kept.tobytes().decode("utf-32-le", "surrogatepass")
        return text, self.encode(text)

    def _encode_characters(self, text: str) -> np.ndarray:
        points = code_points(text)
        known, ranks = self._sorted_points
        places = np.searchsorted(known, points)
        found = np.zeros(len(points), bool)
        inside = places < len(known)
        found[inside] = known[places[inside]] == points[inside]
        if not found.all():
            self._refuse_unknown(list(map(chr, np.unique(points[~found]))))
        return ranks[places]

    def _encode_strings(self, text: str) -> np.ndarray:
        found = map(self._numbers.get, self._split(text), itertools.repeat(-1))
        numbers = np.fromiter(found, np.int32)
        if (numbers < 0).any():
            unknown = set(self._split(text)) - self._numbers.keys()
            if "" in unknown:
                raise _empty_match_error(self.pattern)
            self._refuse_unknown(sorted(unknown))
        return numbers.astype(self.dtype)

    def _split(self, text: str) -> Iterator[str]:
        """Return an iterator over the tokens of a text as strings."""
        matches = _compiled(self.pattern).finditer
        for number, line in enumerate(text.split("\n")):
            if number:
                yield "\n"
            for match in matches(line):
                yield match[0]

    def last_end(self, text: str, most: int) -> int:
        """Return the last place up to `most` where a token of a text ends; 0 if none does."""
        if not self.pattern:
            return most
        end = 0
        for symbol in self._split(text):
            if end + len(symbol) > most:
                break
            end += len(symbol)
        return end

    def _refuse_unknown(self, unknown: Sequence[str]) -> NoReturn:
        """Raise UnknownSymbols for symbols that the vocabulary does not have."""
        known = repr(self.characters[:200])
        if self.pattern:
            known = " ".join(map(reprlib.repr, self.tokens[:MOST_KNOWN]))
            known += " ..." if len(self) > MOST_KNOWN else ""
        shown = " ".join(map(reprlib.repr, unknown[:MOST_UNKNOWN]))
        shown += f" and {len(unknown) - MOST_UNKNOWN} more" if len(unknown) > MOST_UNKNOWN else ""
        raise UnknownSymbols(
            f"{self.unit}s that the model has never seen: {shown}; it knows {len(self)} {self.unit}s: "
            f"{known}"
        )

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Return the text of integer tokens [N]. Bytes that are not UTF-8 become U+FFFD."""
        tokens = np.asarray(tokens, np.int64)
        if self.by_bytes:
            return self.to_bytes(tokens).decode(errors="replace")
        if self.pattern:
            return "".join(map(self.tokens.__getitem__, tokens.tolist()))
        return self._points[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def to_bytes(self, tokens: npt.ArrayLike) -> bytes:
        """Return the bytes of integer tokens [N], which need not be UTF-8.

        Raises:
          ValueError: for a vocabulary whose tokens are not bytes.
        """
        if not self.by_bytes:
            raise ValueError("the tokens of this vocabulary are not bytes; use decode")
        return np.asarray(tokens).astype(np.uint8).tobytes()

    def whitespace(self) -> np.ndarray:
        """Return whether each token is white space, all characters of it, [V] bool."""
        if self.by_bytes:
            return np.array([chr(b).isspace() and b < 128 for b in range(256)])
        return np.array([symbol.isspace() for symbol in self.symbols])

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        """Token of each string."""
        return {token: number for number, token in enumerate(self.tokens)}

    @functools.cached_property
    def _points(self) -> np.ndarray:
        """Code point of each token, uint32 [V]."""
        return code_points(self.characters)

    @functools.cached_property
    def _sorted_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Code points [V] in ascending order, and the token of each."""
        order = np.argsort(self._points)
        return self._points[order], order.astype(self.dtype)


@functools.lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a regular expression that splits a line: the pattern, or else any single character.

    Raises:
      InputError: for a pattern that is not a regular expression or that matches the empty string.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            alone = re.compile(pattern)
            # A comment of a verbose pattern ends with the line.
            end = "\n" if alone.flags & re.VERBOSE else ""
            either = re.compile(f"{pattern}{end}|(?s:.)")
    except (re.error, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"`pattern` {pattern!r} is not a regular expression: {reason}") from None
    if alone.match(""):
        raise _empty_match_error(pattern)
    return either


def _empty_match_error(pattern: str) -> InputError:
    """Return the error for a pattern that has matched the empty string."""
    return InputError(
        f"`pattern` {pattern!r} matches the empty string, and a token has at least one character: "
        "write + instead of *, or leave the empty alternative out"
    )


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
