"""A text as tokens, split for training and validation, and where its batches begin.

The batches of a run are a function of the step number: `batches.starts(n)` gives the places in the
text where the rows of batch n begin. So a resumed run reads exactly what an uninterrupted one would
have read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError

# Bytes looked at in one call.
BLOCK = 1 << 20
# Most tokens that are counted for the frequencies of a text.
COUNTED = 1 << 24


class Lines(NamedTuple):
    """Positions of the lines in a text of which each line is a separate sequence.

    Attributes:
      ends: [L] int64, ascending, the index after the line break of each line.
      training: number of lines for training, which come first; the others are for validation.
      empty: number of empty lines that were left out.
    """

    ends: np.ndarray
    training: int
    empty: int


class Corpus(NamedTuple):
    """A text ready for training: the first part to train on, the rest for validation.

    Attributes:
      tokens: [N] unsigned integers, in memory or memory-mapped.
      split: where validation begins; tokens[:split] are for training.
      vocabulary: the meaning of the tokens.
      sha256: SHA-256 of the text in hexadecimal digits, by which a resumed run recognises its text.
      floor: the loss on the validation part that no model can beat on average, in nats per token;
        None unless the source of the text knows it.
      different: number of different tokens in the text; None if not counted.
      lines: the lines, from `lines.as_lines`; None for a running text.
    """

    tokens: np.ndarray
    split: int
    vocabulary: Vocabulary
    sha256: str
    floor: float | None = None
    different: int | None = None
    lines: Lines | None = None

    @property
    def train_size(self) -> int:
        """Number of tokens for training."""
        return self.split

    @property
    def validation_size(self) -> int:
        """Number of tokens for validation."""
        return len(self.tokens) - self.split

    def token_counts(self) -> np.ndarray:
        """Return how often each token occurs in the training part, [V] int64.

        At most COUNTED tokens are counted, which lie in blocks spread evenly over the text.
        """
        counts = np.zeros(len(self.vocabulary), np.int64)
        blocks = -(-self.split // BLOCK)
        for number in range(0, blocks, -(-blocks * BLOCK // COUNTED)):
            block = self.tokens[number * BLOCK : min((number + 1) * BLOCK, self.split)]
            counts += np.bincount(block, minlength=len(counts))
        return counts


def make_corpus(
    content: str | bytes,
    nats: np.ndarray | None = None,
    vocabulary: Vocabulary | None = None,
    pattern: str = "",
) -> Corpus:
    """Return a text as a `Corpus` whose last tenth is for validation.

    Args:
      content: N characters, or N bytes for a vocabulary of bytes.
      nats: [N], -ln P(character | all characters before it), if the source knows it.
      vocabulary: the vocabulary; None for that of the text.
      pattern: the regular expression of the tokens, as for `Vocabulary.of`; ignored for bytes and with
        a vocabulary, which has its own.

    Raises:
      InputError: for fewer than 20 tokens, for tokens that the vocabulary does not have, and for a
        pattern that `Vocabulary.of` refuses.
    """
    by_bytes = isinstance(content, bytes)
    raw = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    pattern = pattern if vocabulary is None else vocabulary.pattern
    own = Vocabulary.of_bytes() if by_bytes else Vocabulary.of(str(content), pattern)
    vocabulary = own if vocabulary is None else vocabulary
    tokens = vocabulary.encode(content)
    split = validation_start(len(tokens), vocabulary.unit)
    if nats is not None and vocabulary.pattern:
        nats = _per_token(nats, tokens, vocabulary)
    sha256 = hashlib.sha256(raw).hexdigest()
    blocks = (raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK))
    different = count_different_bytes(blocks) if by_bytes else len(own)
    return Corpus(tokens, split, vocabulary, sha256, entropy_floor(nats), different)


def _per_token(nats: np.ndarray, tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return the information of each token [M], the sum over its characters, from that of each [N]."""
    lengths = np.array([len(symbol) for symbol in vocabulary.symbols])[tokens]
    return np.add.reduceat(nats, np.cumsum(lengths) - lengths)


def count_different_bytes(blocks: Iterable[bytes]) -> int:
    """Return how many of the 256 possible bytes occur in the blocks."""
    known = b""
    for block in blocks:
        # bytes.translate is the fastest way to drop the known ones.
        known += bytes(set(block.translate(None, known)))
    return len(known)


def validation_start(size: int, unit: str = "character") -> int:
    """Return where the last tenth of a text of `size` tokens, each of them a `unit`, begins.

    Raises:
      InputError: for a size below 20.
    """
    if size < 20:
        raise InputError(f"the text has only {size} {unit}s; give at least 20")
    return size * 9 // 10


def entropy_floor(nats: np.ndarray | None) -> float | None:
    """Return the mean information of the last tenth of a text, in nats per character.

    Args:
      nats: [N], the information of each character; None gives None.

    Raises:
      InputError: for fewer than 20 characters.
    """
    if nats is None:
        return None
    return float(np.mean(nats[validation_start(len(nats)) :], dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class Batches:
    """The places in the training text where the rows of each batch begin.

    Each row has seq_len + 1 tokens: the inputs and, shifted by one, the targets.

    Streams (the default): the text is cut into `batch` long streams. Row b of batch n continues where
    row b of batch n - 1 ended, so that the recurrent state can be carried over (truncated
    backpropagation through time). In each pass all streams are shifted by the same random number of
    characters, so that the cuts fall in different places.

    Shuffled: windows of seq_len + 1 tokens in a new random order in each pass, each starting from the
    zero state. The last token of a window is the first of the next, so that every token is a target;
    each pass shifts all windows by a random number of tokens.

    Attributes:
      size: number of tokens in the training text.
      batch: number of rows, B.
      seq_len: number of tokens predicted per row, T.
      shuffle: windows in random order instead of streams.
      seed: random seed of the order and the shifts.
      overlap: False gives the shuffled windows of older runs: they do not share tokens and lie in the
        same places in each pass, so that the first token of each is never a target.

    Raises:
      InputError: for a text too short for one batch; the message says how long it must be.
    """

    size: int
    batch: int
    seq_len: int
    shuffle: bool = False
    seed: int = 0
    overlap: bool = True

    def __post_init__(self) -> None:
        check_size(self.size, self.batch, self.seq_len)

    @property
    def per_epoch(self) -> int:
        """Number of batches in one pass over the text."""
        if self.shuffle:
            return self._windows // self.batch
        return (self.size // self.batch - 1) // self.seq_len

    def resets_state(self, step: int) -> bool:
        """Return whether batch number `step` starts from the zero state."""
        return self.shuffle or step % self.per_epoch == 0

    def starts(self, step: int) -> np.ndarray:
        """Return where each row of batch number `step` begins in the text, [B] int64."""
        epoch, index = divmod(step, self.per_epoch)
        if self.shuffle:
            order = random_order(self._windows, self.seed, epoch)
            rows = order[index * self.batch : (index + 1) * self.batch].astype(np.int64)
            return self._shift(epoch) + rows * (self.seq_len + (not self.overlap))
        stream = self.size // self.batch
        slack = stream - 1 - self.per_epoch * self.seq_len
        shift = np.random.default_rng((self.seed, epoch)).integers(slack + 1)
        return np.arange(self.batch) * stream + shift + index * self.seq_len

    @property
    def _windows(self) -> int:
        """Number of windows in a pass; fewer than `batch` of them are left out."""
        if not self.overlap:
            return self.size // (self.seq_len + 1)
        # One window less than possible leaves room for the shift. A very short text has no room.
        return max(self.size // self.seq_len - 1, self.batch)

    def _shift(self, epoch: int) -> int:
        """Return the number of tokens before the first window of a pass."""
        if not self.overlap:
            return 0
        room = self.size - 1 - self._windows * self.seq_len
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(room + 1))


def check_size(size: int, batch: int, seq_len: int) -> None:
    """Raise InputError for a training text of `size` tokens that is too short for one batch."""
    need = batch * (seq_len + 1)
    if size < need:
        # A tenth of the whole text is set aside for validation.
        whole = -(-need * 10 // 9)
        raise InputError(
            f"the text is too short for one batch of {batch} rows of {seq_len} "
            f"characters: it must have at least {whole} characters; "
            "lower `batch` or `seq_len`, or give more text"
        )


@functools.lru_cache(maxsize=1)
def random_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of the windows, or lines, in the order in which a pass reads them.

    The result is int32 [count], or int64 if int32 is too narrow; both have the same order. It is cached,
    because every step of the pass needs it.
    """
    # Drop the order of the pass before already now: for a text of 4 GB and windows of 100 tokens, each
    # order takes 160 MB, and only one is to be in memory.
    random_order.cache_clear()
    order = np.arange(count, dtype=np.int32 if count <= 2**31 else np.int64)
    np.random.default_rng((seed, epoch)).shuffle(order)
    order.flags.writeable = False
    return order
