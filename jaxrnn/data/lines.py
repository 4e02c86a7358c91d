"""Lines as separate sequences: names, SMILES, passwords, recipes.

    corpus = as_lines(make_corpus(text))            # the lines for validation come last
    batches = LineBatches(corpus.lines, batch=64, seq_len=100)
    corpus.tokens[batches.places(n)]                # batch n, [T + 1, B]

In each epoch the training lines are one stream in a new random order, of which each row of a batch reads
a part. Nothing is padded, and a line that is longer than a window continues in the next one.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from jaxrnn.data.corpus import Corpus, Lines, check_size, random_order
from jaxrnn.errors import InputError

# Fewest lines of a text, and the seed that chooses those for validation, whatever the seed of a run.
FEWEST = 10
VALIDATION_SEED = 0


def as_lines(corpus: Corpus) -> Corpus:
    """Return a text whose lines are sequences of their own, each with a line break at its end.

    Empty lines are left out. A tenth of the lines is for validation. These are chosen at random, since
    many files of lines are sorted, but always the same for a text. They come last, and otherwise the
    lines keep their order. The tokens are copied into memory.

    Args:
      corpus: the text, from `make_corpus` or `token_files.load_corpus`.

    Raises:
      InputError: for fewer than FEWEST lines.
    """
    newline = corpus.vocabulary.newline
    if newline is None:
        raise InputError(f"the text has no line break; `lines` needs at least {FEWEST} lines")
    tokens = np.asarray(corpus.tokens)
    ends = np.flatnonzero(tokens == newline) + 1
    if tokens[-1] != newline:
        tokens = np.append(tokens, tokens.dtype.type(newline))
        ends = np.append(ends, len(tokens))
    lengths = np.diff(ends, prepend=0)
    filled = lengths > 1
    count = int(filled.sum())
    if count < FEWEST:
        raise InputError(
            f"the text has only {count} lines that are not empty; `lines` needs at least {FEWEST}"
        )
    for_validation = np.zeros(len(ends), bool)
    chosen = np.random.default_rng(VALIDATION_SEED).permutation(count)[count * 9 // 10 :]
    for_validation[np.flatnonzero(filled)[chosen]] = True
    for_training = filled & ~for_validation
    parts = [tokens[np.repeat(which, lengths)] for which in (for_training, for_validation)]
    ordered = np.concatenate([lengths[for_training], lengths[for_validation]])
    lines = Lines(np.cumsum(ordered), int(for_training.sum()), len(ends) - count)
    # The information of each character is known for the running text only.
    return corpus._replace(
        tokens=np.concatenate(parts), split=len(parts[0]), floor=None, lines=lines
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LineBatches:
    """The places in the text of the tokens of each batch of lines.

    Each row has seq_len + 1 tokens: the inputs and, shifted by one, the targets. The first input of a
    line is the line break before it.

    In each epoch the N tokens of the training lines form a stream, in an order of the lines that follows
    from the seed and the epoch. Row b begins at the start of the line that is nearest to place b N / B,
    and row b of batch n continues where row b of batch n - 1 ended. A row begins inside of a line
    only if no line starts within half of a row's share of the stream.

    Attributes:
      lines: the lines of the text.
      batch: number of rows, B.
      seq_len: number of tokens predicted per row, T.
      seed: random seed of the orders.

    Raises:
      InputError: for a text too short for one batch; the message says how long it must be.
    """

    lines: Lines
    batch: int
    seq_len: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.size, self.batch, self.seq_len)

    @property
    def size(self) -> int:
        """Number of tokens of the training lines, N."""
        return int(self.lines.ends[self.lines.training - 1])

    @property
    def per_epoch(self) -> int:
        """Number of batches in one pass over the lines, rounded to the nearest."""
        return round(self.size / (self.batch * self.seq_len))

    def resets_state(self, step: int) -> bool:
        """Return whether batch number `step` starts from the zero state."""
        return step % self.per_epoch == 0

    def places(self, step: int) -> np.ndarray:
        """Return where the tokens of batch number `step` are in the text, [T + 1, B] int64."""
        epoch, index = divmod(step, self.per_epoch)
        stream = _stream(self, epoch)
        # The inputs of a row begin with the token before its first target.
        window = np.arange(self.seq_len + 1) - 1 + index * self.seq_len
        return stream.places((stream.rows + window[:, None]) % self.size)


class _Stream(NamedTuple):
    """The training lines in the order of an epoch, as one stream of N tokens.

    ends: [L] int64, where each line ends in the stream.
    shifts: [L] int64, what is added to a place in the stream of each line for the place in the text.
    rows: [B] int64, where each row of the batches begins in the stream.
    """

    ends: np.ndarray
    shifts: np.ndarray
    rows: np.ndarray

    def places(self, positions: np.ndarray) -> np.ndarray:
        """Return the places in the text of places in the stream, which are from 0 to N - 1."""
        return positions + self.shifts[np.searchsorted(self.ends, positions, side="right")]


@functools.lru_cache(maxsize=1)
def _stream(batches: LineBatches, epoch: int) -> _Stream:
    """Return the stream of an epoch. It is cached, because every step of the epoch needs it."""
    text_ends = batches.lines.ends[: batches.lines.training]
    order = random_order(len(text_ends), batches.seed, epoch)
    ends = np.cumsum(np.diff(text_ends, prepend=0)[order])
    share = batches.size / batches.batch
    targets = np.floor(share * np.arange(batches.batch)).astype(np.int64)
    starts = np.concatenate([[0], ends])
    nearest = starts[_nearest(starts, targets)]
    rows = np.where(np.abs(nearest - targets) <= share / 2, nearest, targets)
    return _Stream(ends, text_ends[order] - ends, rows)


def _nearest(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index of the number that is nearest to each value, all within the range."""
    after = np.searchsorted(ascending, values)
    before = np.maximum(after - 1, 0)
    return np.where(values - ascending[before] <= ascending[after] - values, before, after)
