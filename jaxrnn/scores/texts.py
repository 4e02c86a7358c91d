"""The text that is evaluated: named on the command line, or the validation text of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.scoring import WARM_UP
from jaxrnn.data import files, sources
from jaxrnn.data.encodings import Reading
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.runs import run_text
from jaxrnn.scores.pieces import Piece, as_lines, pieces
from jaxrnn.training import evaluation, feed

# Most bytes of a piece, times the number of parts that are read side by side.
PIECE = 1 << 14


class Text(NamedTuple):
    """A text to evaluate.

    Attributes:
      name: a short name.
      read: returns an iterator over its pieces.
      characters: their number, without those left out; None for a stream, which is read only once.
      prime: what the model reads first; None for the default.
      loss: returns the loss of a model in nats per token, as in training; None if the text is not the
        validation text of the run.
    """

    name: str
    read: Callable[[], Iterator[Piece]]
    characters: int | None
    prime: str | bytes | None = None
    loss: Callable[[charlm.Params], float] | None = None


def named(
    data: Sequence[str],
    glob: str | None,
    vocabulary: Vocabulary,
    skip_unknown: bool,
    parts: int,
    reading: Reading,
    of_lines: bool = False,
) -> Text:
    """Return the text of the words of a command line; several files are joined.

    Files are read once to check them and to count their characters.

    Args:
      data: as for `sources.read`.
      glob: as for `sources.read`.
      vocabulary: the vocabulary of the model.
      skip_unknown: leave out characters that the vocabulary does not have.
      parts: the number of parts that are read side by side.
      reading: as for `sources.read`.
      of_lines: leave out empty lines and end the last one, as in the training of a model of lines.

    Raises:
      InputError: if the text cannot be read, is empty, or has characters that are not left out.
    """
    chosen = sources.find(data, glob)
    by_bytes = vocabulary.by_bytes

    def read() -> Iterator[Piece]:
        chunks = files.stream(chosen, by_bytes, reading, size=min(parts * PIECE, files.CHUNK))
        found = pieces(
            (chunk.raw if by_bytes else chunk.text for chunk in chunks), vocabulary, skip_unknown
        )
        return as_lines(found, vocabulary) if of_lines else found

    stamps = files.stamps(chosen)
    is_stream = any(
        stamp is None and file.label != "play" for file, stamp in zip(chosen, stamps, strict=True)
    )
    return Text(sources.name(data), read, None if is_stream else _count(read()))


def _count(text: Iterator[Piece]) -> int:
    return sum(len(piece.text) for piece in text)


def of_run(run: Path) -> Text:
    """Return the validation text of a run, read from where the training read it.

    Raises:
      InputError: if the path is not a run directory, or the text cannot be found or has changed.
    """
    if run.is_file():
        raise InputError(f"{run} holds a model without its text; name a text")
    try:
        options, name, corpus = run_text.read(run)
    except InputError as error:
        raise InputError(f"{error}; name a text") from None
    vocabulary, training = corpus.vocabulary, options.training
    first = max(0, corpus.split - 1 - WARM_UP)
    before = corpus.tokens[first : corpus.split]

    def read() -> Iterator[Piece]:
        return pieces(_decoded(corpus.tokens[corpus.split :], vocabulary), vocabulary)

    def loss(params: charlm.Params) -> float:
        source = feed.device_corpus(corpus.tokens, training.memory_map)
        return evaluation.evaluate(params, source, corpus, training.batch, training.seq_len)

    prime = next(_decoded(before, vocabulary))
    return Text(f"validation text of {name}", read, _count(read()), prime, loss)


def _decoded(tokens: np.ndarray, vocabulary: Vocabulary) -> Iterator[str | bytes]:
    """Yield the text of tokens in parts."""
    for at in range(0, len(tokens), PIECE):
        part = tokens[at : at + PIECE]
        if vocabulary.by_bytes:
            yield vocabulary.to_bytes(part)
        else:
            yield vocabulary.decode(part)
