"""Text as numbers: the vocabulary, the corpus, and batches as a pure function of the step number.

Nothing here remembers anything: batch n of a run is `batches.starts(n)`, the places in the text where
its rows begin, so a resumed run reads exactly what the uninterrupted one would have read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.errors import InputError

BLOCK = 1 << 20  # bytes looked at together


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


class Corpus(NamedTuple):
    """A text ready to train on: its first part to learn from, the rest to be judged by.

    tokens: [N] unsigned integers, in memory or memory-mapped.
    split: where validation begins; tokens[:split] is for training.
    vocabulary: what the tokens mean.
    sha256: of the text, so that a run can be held against the text it was started with.
    floor: the loss on the validation part that no model can beat, nats per character, where the text's
      source knows it; else None.
    different: the number of different tokens in the text; None where it was not counted.
    """

    tokens: np.ndarray
    split: int
    vocabulary: Vocabulary
    sha256: str
    floor: float | None = None
    different: int | None = None

    @property
    def train_size(self) -> int:
        return self.split

    @property
    def validation_size(self) -> int:
        return len(self.tokens) - self.split


def corpus(content: str | bytes, nats: np.ndarray | None = None) -> Corpus:
    """Encode a text and set its last tenth aside.

    Args:
      content: characters, or bytes for a vocabulary of bytes.
      nats: [N] -ln P(character | all before it) where the source knows it.

    Raises:
      InputError: for fewer than 20 characters.
    """
    begin = split(len(content))
    by_bytes = isinstance(content, bytes)
    raw = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    vocabulary = Vocabulary.of_bytes() if by_bytes else Vocabulary.of(str(content))
    tokens = vocabulary.encode(content)
    sha256 = hashlib.sha256(raw).hexdigest()
    blocks = (raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK))
    different = different_bytes(blocks) if by_bytes else len(vocabulary)
    return Corpus(tokens, begin, vocabulary, sha256, floor(nats), different)


def different_bytes(blocks: Iterable[bytes]) -> int:
    """Return how many of the 256 bytes there are in the blocks."""
    known = b""
    for block in blocks:
        known += bytes(set(block.translate(None, known)))  # translate is the fastest way to look
    return len(known)


def split(size: int) -> int:
    """Where the last tenth of a text begins. Raises InputError for a size below 20."""
    if size < 20:
        raise InputError(f"the text has only {size} characters; give at least 20")
    return size * 9 // 10


def floor(nats: np.ndarray | None) -> float | None:
    """The mean information of a text's last tenth, nats per character. nats: [N], or None for None."""
    return None if nats is None else float(np.mean(nats[split(len(nats)) :], dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class Batches:
    """Where the rows of batch n begin in the training text. Each row is seq_len + 1 tokens.

    Streams (the default): the text is cut into `batch` long streams, row b of batch n goes on where
    row b of batch n - 1 ended, so the recurrent state can be carried over (truncated
    backpropagation through time). After a pass the streams begin again, each shifted by the same few
    characters, so that the cuts fall elsewhere.

    Shuffled: windows of seq_len + 1 tokens in a new order each pass, every one from the zero state.
    The last token of a window is the first of the next, so that every token is a target; each pass
    shifts all windows by another number of tokens.

    Attributes:
      size: tokens in the training text.
      batch: rows, B.
      seq_len: tokens predicted per row, T.
      shuffle: windows in random order instead of streams.
      seed: of the order and of the shifts.
      overlap: False gives the shuffled windows of old runs, which lie side by side in the same places
        in each pass, so that the first token of each is never a target.

    Raises:
      InputError: for a text too short for one batch; it says how long it must be.
    """

    size: int
    batch: int
    seq_len: int
    shuffle: bool = False
    seed: int = 0
    overlap: bool = True

    def __post_init__(self) -> None:
        need = self.batch * (self.seq_len + 1)
        if self.size < need:
            whole = -(-need * 10 // 9)  # the last tenth is set aside
            raise InputError(
                f"the text is too short for one batch of {self.batch} rows of {self.seq_len} "
                f"characters: it must have at least {whole} characters; "
                "lower --batch or --seq-len, or give more text"
            )

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the text."""
        if self.shuffle:
            return self._windows // self.batch
        return (self.size // self.batch - 1) // self.seq_len

    def fresh(self, step: int) -> bool:
        """Whether batch `step` begins from the zero state."""
        return self.shuffle or step % self.per_epoch == 0

    def starts(self, step: int) -> np.ndarray:
        """[B] int64: where in the text each row of batch `step` begins."""
        epoch, index = divmod(step, self.per_epoch)
        if self.shuffle:
            order = _order(self._windows, self.seed, epoch)
            rows = order[index * self.batch : (index + 1) * self.batch].astype(np.int64)
            return self._shift(epoch) + rows * (self.seq_len + (not self.overlap))
        stream = self.size // self.batch
        slack = stream - 1 - self.per_epoch * self.seq_len
        shift = np.random.default_rng((self.seed, epoch)).integers(slack + 1)
        return np.arange(self.batch) * stream + shift + index * self.seq_len

    @property
    def _windows(self) -> int:
        """Windows in a pass, of which less than a batch are left out."""
        if not self.overlap:
            return self.size // (self.seq_len + 1)
        # One less than there could be leaves room for any shift; a text that short has no room.
        return max(self.size // self.seq_len - 1, self.batch)

    def _shift(self, epoch: int) -> int:
        """Tokens before the first window of a pass."""
        if not self.overlap:
            return 0
        room = self.size - 1 - self._windows * self.seq_len
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(room + 1))


def _order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The windows of an epoch in their order; int32 [windows], or int64 where their number needs it."""
    key = windows, seed, epoch
    order = _kept.get(key)
    if order is None:
        _kept.clear()  # before the next is made: of 4 GB in windows of 100, each is 160 MB
        order = np.arange(windows, dtype=np.int32 if windows <= 2**31 else np.int64)
        np.random.default_rng((seed, epoch)).shuffle(order)  # the same in either type
        _kept[key] = order
    return order


_kept: dict[tuple[int, int, int], np.ndarray] = {}  # the order in use
