"""Text as numbers: the vocabulary, the corpus, and batches as a pure function of the step number.

Nothing here remembers anything: batch n of a run is `batches.starts(n)`, the places in the text where
its rows begin, so a resumed run reads exactly what the uninterrupted one would have read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError

BLOCK = 1 << 20  # bytes looked at together


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


def make_corpus(content: str | bytes, nats: np.ndarray | None = None) -> Corpus:
    """Encode a text and set its last tenth aside.

    Args:
      content: characters, or bytes for a vocabulary of bytes.
      nats: [N] -ln P(character | all before it) where the source knows it.

    Raises:
      InputError: for fewer than 20 characters.
    """
    begin = validation_start(len(content))
    by_bytes = isinstance(content, bytes)
    raw = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    vocabulary = Vocabulary.of_bytes() if by_bytes else Vocabulary.of(str(content))
    tokens = vocabulary.encode(content)
    sha256 = hashlib.sha256(raw).hexdigest()
    blocks = (raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK))
    different = count_different_bytes(blocks) if by_bytes else len(vocabulary)
    return Corpus(tokens, begin, vocabulary, sha256, entropy_floor(nats), different)


def count_different_bytes(blocks: Iterable[bytes]) -> int:
    """Return how many of the 256 bytes there are in the blocks."""
    known = b""
    for block in blocks:
        known += bytes(set(block.translate(None, known)))  # translate is the fastest way to look
    return len(known)


def validation_start(size: int) -> int:
    """Where the last tenth of a text begins. Raises InputError for a size below 20."""
    if size < 20:
        raise InputError(f"the text has only {size} characters; give at least 20")
    return size * 9 // 10


def entropy_floor(nats: np.ndarray | None) -> float | None:
    """The mean information of a text's last tenth, nats per character. nats: [N], or None for None."""
    return (
        None
        if nats is None
        else float(np.mean(nats[validation_start(len(nats)) :], dtype=np.float64))
    )


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

    def resets_state(self, step: int) -> bool:
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
