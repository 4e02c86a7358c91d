"""A text in pieces, from its files to the tokens of a model, at constant memory.

for piece in pieces(chunks, vocabulary):
    nats = scorer.score(piece.tokens)
    of_characters = per_character(vocabulary, piece, nats)
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxrnn.data.vocabulary import Vocabulary, code_points
from jaxrnn.shapes import Float

# Characters without a line break after which a piece ends within a line.
LONGEST = 1 << 20
# Characters at its end that the next piece then begins with if tokens are strings: what follows them may
# change their tokens.
HELD_BACK = 1 << 10


class Piece(NamedTuple):
    """A part of a text that ends where a line does, unless the line is very long.

    Attributes:
      text: its characters. A byte that is not UTF-8 is half of a surrogate pair, as in PEP 383.
      tokens: [N], the same for the model.
      left_out: number of characters that the model has never seen and that `text` does not have.
    """

    text: str
    tokens: np.ndarray
    left_out: int

    @property
    def raw(self) -> bytes:
        """The bytes of the text."""
        return self.text.encode(errors="surrogateescape")


def pieces(
    chunks: Iterable[str | bytes], vocabulary: Vocabulary, skip_unknown: bool = False
) -> Iterator[Piece]:
    """Yield a text in pieces.

    Args:
      chunks: the text, cut anywhere; bytes for a vocabulary of bytes.
      vocabulary: the vocabulary of the model.
      skip_unknown: leave out characters that the vocabulary does not have.

    Raises:
      InputError: for such a character if they are not left out.
    """
    for text in _to_line_ends(_decoded(chunks), vocabulary):
        if skip_unknown:
            kept, tokens = vocabulary.encode_known(text)
        else:
            kept, tokens = text, vocabulary.encode(text)
        yield Piece(kept, tokens, len(text) - len(kept))


def as_lines(found: Iterable[Piece], vocabulary: Vocabulary) -> Iterator[Piece]:
    """Yield a text as a model of lines is trained on it.

    Empty lines are left out, and a line break is added after a last line without one.
    """
    newline = vocabulary.newline
    at_start = True
    for piece in found:
        breaks = piece.tokens == newline
        empty = breaks & np.append(at_start, breaks[:-1])
        text = re.sub("\n+", "\n", piece.text)
        text = text.removeprefix("\n") if at_start else text
        at_start = bool(breaks[-1]) if len(breaks) else at_start
        yield Piece(text, piece.tokens[~empty], piece.left_out)
    if not at_start:
        yield Piece("\n", vocabulary.encode("\n"), 0)


def _decoded(chunks: Iterable[str | bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for chunk in chunks:
        yield decoder.decode(chunk) if isinstance(chunk, bytes) else chunk
    yield decoder.decode(b"", final=True)


def _to_line_ends(chunks: Iterable[str], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the text again, cut after line breaks, and after a token in very long lines.

    The parts have the tokens of the whole line, unless a single token is longer than LONGEST, or the
    pattern of the vocabulary looks behind, or ahead by more than HELD_BACK characters.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        end = rest.rfind("\n") + 1
        if not end and len(rest) >= LONGEST:
            held_back = HELD_BACK if vocabulary.pattern else 0
            end = vocabulary.last_end(rest, len(rest) - held_back) or len(rest)
        if end:
            yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def per_character(
    vocabulary: Vocabulary, piece: Piece, nats: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "K"]:
    """Return the information of each of the K characters of a piece, in nats.

    The bytes of a character are added, and a token of several characters is divided among them.

    Args:
      vocabulary: the vocabulary of the model.
      piece: the piece.
      nats: the information of each of its tokens.
    """
    if vocabulary.by_bytes:
        widths = _utf8_widths(piece.text)
        return np.add.reduceat(nats, np.cumsum(widths) - widths)
    if len(piece.text) == len(piece.tokens):
        return nats
    counts = _lengths(vocabulary)[piece.tokens]
    return np.repeat(nats / counts.astype(nats.dtype), counts)


@functools.lru_cache(maxsize=1)
def _lengths(vocabulary: Vocabulary) -> np.ndarray:
    """Return the number of characters of each token."""
    return np.array([len(vocabulary.decode([token])) for token in range(len(vocabulary))])


def _utf8_widths(text: str) -> np.ndarray:
    """Return the number of bytes of each character; a byte that is not UTF-8 counts as a character."""
    points = code_points(text)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.where((points >= 0xDC80) & (points <= 0xDCFF), 1, widths)
