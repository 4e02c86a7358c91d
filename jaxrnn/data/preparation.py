"""Making a prepared folder (`jaxrnn.data.token_files`) of a text of any size, in little memory.

The text is read once. The vocabulary is not known before the end, so characters get provisional
tokens in the order of first occurrence; afterwards these are mapped to the tokens that
`Vocabulary.of` gives. The state of the work is saved every few seconds, so that after any
interruption, a power cut included, it resumes from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxrnn.data import files, token_files
from jaxrnn.data.corpus import count_different_bytes, validation_start
from jaxrnn.data.encodings import Reading
from jaxrnn.data.token_files import Progress
from jaxrnn.data.vocabulary import Numbering, Vocabulary, code_points
from jaxrnn.errors import InputError
from jaxrnn.progress import Display, Silent

# Seconds between two times that the state is saved.
SAVE_EVERY = 10.0
# Bytes of tokens rewritten at a time.
BLOCK = 1 << 20


class Preparation:
    """The preparation of one folder.

    Args:
      parts: the files of the text, from `sources.find`.
      as_bytes: whether tokens are bytes.
      name: the name of the text, for meta.json.
      output: the folder; it exists, and no other process writes to it.
      floor: the loss that no model can beat, as in `Corpus`.
      display: a display of the progress, in bytes; None shows nothing.
      overwrite: prepare the text even if the folder holds one. Finished tokens stay until the new text
        has been read to its end. Unfinished work is discarded, unless it was itself to overwrite.
      reading: how the bytes are read as text, as in `sources.read`.

    Attributes:
      total: bytes of the files on the disk, or None if unknown.
      resumable: whether the text can be read again, which standard input cannot.
      state: how far the preparation is.
      saved: how far progress.json says that it is.

    Raises:
      InputError: if a file is missing or the text is empty.
    """

    def __init__(
        self,
        parts: Sequence[files.File],
        as_bytes: bool,
        name: str,
        output: Path,
        floor: float | None = None,
        display: Display | None = None,
        overwrite: bool = False,
        reading: Reading | None = None,
    ) -> None:
        self._files = parts
        self._as_bytes = as_bytes
        self._reading = reading or Reading()
        if as_bytes:
            self._reading.check_bytes()
        self._name = name
        self._output = output
        self._floor = floor
        self._display: Display = display or Silent()
        self._overwrite = overwrite
        # Whether the folder still has finished tokens, which are to be overwritten.
        self._keeps_finished = False
        stamps = files.stamps(parts)
        sources: list[token_files.Stamp] = [
            [os.path.abspath(file.path) if file.path else file.label, *(stamp or (None, None))]
            for file, stamp in zip(parts, stamps, strict=True)
        ]
        self._input = token_files.Input(sources, as_bytes, dataclasses.asdict(self._reading))
        known = [stamp[0] for stamp in stamps if stamp is not None]
        self.total = sum(known) if len(known) == len(parts) else None
        self.resumable = all(
            stamp is not None or (file.path is None and file.label == "play")
            for file, stamp in zip(parts, stamps, strict=True)
        )
        self.state = Progress()
        self.saved = Progress()
        # The state one large chunk ago.
        self._previous = Progress()
        self._saved_at = time.monotonic()

    def run(self) -> token_files.Meta:
        """Prepare the text, or the rest of it; finished work is not repeated.

        Raises:
          InputError: if the folder holds something else, or the text cannot be read or decoded.
          OSError: if the files cannot be written; another call resumes from there.
        """
        finished = (self._output / token_files.META).exists()
        if finished and not self._overwrite:
            return self._finished()
        self._keeps_finished = finished
        if not self._overwrite:
            self._resume()
        elif not self._resume_overwriting():
            token_files.discard(self._output, self._keeps_finished)
        try:
            # From now on the folder is known to be a preparation.
            if not (self._output / token_files.PROGRESS).exists():
                self._save()
            self._read()
            self._order()
            return self._finish()
        except BaseException as error:
            bad_text = isinstance(error, InputError) and not isinstance(error.__cause__, OSError)
            # The disk may be full. The files of the previous state are shorter, which makes room.
            if isinstance(error, OSError):
                self.state = self._previous
            # If this fails, too, the progress saved last is still there.
            with contextlib.suppress(OSError):
                if (self._output / token_files.META).exists() and not self._keeps_finished:
                    pass
                elif bad_text or not self.resumable:
                    token_files.discard(self._output, self._keeps_finished)
                else:
                    self._save()
            raise

    # --- the stages ---

    def _finished(self) -> token_files.Meta:
        """Return the content of meta.json, after a check that it is of this text."""
        meta = token_files.read_meta(self._output)
        made_from = token_files.Input(meta.sources, meta.vocabulary.by_bytes, meta.reading)
        token_files.check_same(self._output, made_from, self._input)
        if not self.resumable:
            raise InputError(f"{self._output} was prepared from a stream; {token_files.REMEDY}")
        # This raises an error if the tokens are damaged.
        token_files.load_corpus(self._output)
        return meta

    def _resume_overwriting(self) -> bool:
        """Resume unfinished work that was to overwrite. Return False if there is none."""
        path = self._output / token_files.PROGRESS
        try:
            if not (path.exists() and token_files.read_json(path).get("replaces")):
                return False
            self._resume()
            return True
        except InputError:
            # The unfinished work is of another text, or damaged.
            self.state = Progress()
            return False

    def _resume(self) -> None:
        """Take over the state in which the folder is."""
        path = self._output / token_files.PROGRESS
        if not path.exists():
            # At most the very beginning of a preparation is here.
            token_files.discard(self._output)
            return
        content = token_files.read_json(path)
        try:
            # An older version did not write how it was read.
            reading = dict(content.get("reading", {}))
            made_from = token_files.Input(content["sources"], bool(content["bytes"]), reading)
            fields = {
                field.name: content["state"][field.name] for field in dataclasses.fields(Progress)
            }
            self.state = Progress(**fields | {"place": files.Place(*fields["place"])})
            counts = self.state.count, self.state.ordered, *self.state.place
            if min(counts) < 0:
                raise ValueError("negative")
        except (KeyError, TypeError, ValueError) as error:
            raise token_files.damaged_error(path, error) from None
        token_files.check_same(self._output, made_from, self._input)
        if not self.resumable:
            self._display.line("a stream cannot be read again, so this starts over")
            self.state = Progress()
            token_files.discard(self._output, self._keeps_finished)
            return
        # A file of narrower or wider tokens may be left from just before or after the last save.
        for file in {*token_files.partials(self._output)} - {self._partial()}:
            file.unlink()
        itemsize = self._dtype().itemsize
        partial, final = (
            path.stat().st_size // itemsize if path.exists() else -1
            for path in (self._partial(), self._output / token_files.TOKENS)
        )
        final = -1 if self._keeps_finished else final
        if self.state.complete and partial < 0 and final == self.state.count:
            # Only meta.json is missing.
            self.state = dataclasses.replace(self.state, ordered=final)
        elif max(partial, 0) < self.state.count or max(final, 0) < self.state.ordered:
            raise token_files.damaged_error(self._partial(), ValueError("shorter than saved"))
        self.saved = self._previous = self.state

    def _read(self) -> None:
        """Write the text, from the current state on, to the partial file."""
        if self.state.complete:
            return
        numbering = Numbering(self.state.characters, self._as_bytes)
        chunks = files.stream(self._files, self._as_bytes, self._reading, self.state.place)
        digest, taken = self._read_again(chunks)
        with contextlib.ExitStack() as stack:
            stack.callback(self._display.end)
            self._display.begin("reading", taken, self.total)
            file = stack.enter_context(self._open_partial())
            for chunk in chunks:
                new = numbering.encode(chunk.raw, chunk.text)
                if new.dtype.itemsize > self._dtype().itemsize:
                    self._widen(numbering.vocabulary)
                    file = stack.enter_context(self._open_partial())
                token_files.write_tokens(file, new)
                digest.update(chunk.raw)
                if len(chunk.raw) >= files.CHUNK // 2:
                    self._previous = self.state
                self.state = Progress(
                    chunk.place,
                    numbering.vocabulary.characters,
                    self.state.count + len(new),
                    self.state.size + len(chunk.raw),
                    digest.hexdigest(),
                )
                self._display.reach(chunk.taken)
                self._save_if_due()
        # This raises an error if the text is too short.
        validation_start(self.state.count, "byte" if self._as_bytes else "character")
        self.state = dataclasses.replace(self.state, complete=True)
        self._save()

    def _read_again(self, chunks: Iterator[files.Chunk]) -> tuple[Any, int]:
        """Take the chunks up to the current state, and check that the text has not changed.

        Objects of hashlib cannot be stored on disk, and a compressed file has to be read from its
        beginning.

        Returns:
          (digest, taken): an object of hashlib with the hash of these chunks, and the number of bytes
          taken from the files.
        """
        digest = hashlib.sha256()
        size = taken = 0
        if not self.state.count:
            return digest, taken
        self._display.begin("checking the text read so far", 0, self.state.size)
        try:
            for chunk in chunks:
                digest.update(chunk.raw)
                size += len(chunk.raw)
                taken = chunk.taken
                self._display.reach(size)
                if chunk.place[:2] >= self.state.place[:2]:
                    break
        finally:
            self._display.end()
        if digest.hexdigest() != self.state.sha256:
            raise InputError(
                f"the text has changed since {self._output} was prepared from its beginning; "
                "the same command now starts over"
            )
        return digest, taken

    def _widen(self, vocabulary: Vocabulary) -> None:
        """Rewrite the partial file in the wider type that a vocabulary needs."""
        old = self._partial()
        narrow = self._dtype()
        wide = token_files.dtype_of(vocabulary)
        path = self._output / token_files.PARTIAL.format(wide.name)
        with old.open("rb") as file, token_files.open_tokens(path, 0, wide) as wider:
            for block in iter(lambda: file.read(BLOCK), b""):
                token_files.write_tokens(wider, np.frombuffer(block, narrow).astype(wide))
        self.state = dataclasses.replace(self.state, characters=vocabulary.characters)
        self._previous = self.state
        self._save()
        old.unlink()

    def _order(self) -> None:
        """Write tokens.bin: provisional tokens mapped to those of the sorted vocabulary."""
        if self._keeps_finished:
            # In this order: without meta.json, tokens.bin counts as unfinished.
            for name in (token_files.META, token_files.TOKENS):
                (self._output / name).unlink()
            self._keeps_finished = False
        if self.state.ordered == self.state.count:
            return
        rank = np.argsort(np.argsort(code_points(self.state.characters)))
        path = self._output / token_files.TOKENS
        partial = self._partial()
        dtype = self._dtype()
        if np.array_equal(rank, np.arange(len(rank))):
            partial.replace(path)
            self.state = dataclasses.replace(self.state, ordered=self.state.count)
            self._previous = self.state
            return
        ranks = rank.astype(dtype)
        total = self.state.count * dtype.itemsize
        done = self.state.ordered * dtype.itemsize
        with (
            partial.open("rb") as file,
            token_files.open_tokens(path, self.state.ordered, dtype) as ordered,
        ):
            file.seek(done)
            self._display.begin("sorting the vocabulary", done, total)
            try:
                while done < total:
                    block = np.frombuffer(file.read(min(BLOCK, total - done)), dtype)
                    token_files.write_tokens(ordered, ranks.take(block))
                    done += block.nbytes
                    self._previous = self.state
                    self.state = dataclasses.replace(self.state, ordered=done // dtype.itemsize)
                    self._display.reach(done)
                    self._save_if_due()
            finally:
                self._display.end()
            os.fsync(ordered.fileno())

    def _finish(self) -> token_files.Meta:
        """Write meta.json, and remove the files of unfinished work."""
        state = self.state
        vocabulary = Vocabulary("".join(sorted(state.characters)), self._as_bytes)
        different = len(vocabulary)
        if self._as_bytes:
            with (self._output / token_files.TOKENS).open("rb") as file:
                different = count_different_bytes(iter(lambda: file.read(BLOCK), b""))
        meta = token_files.Meta(
            self._name,
            state.count,
            vocabulary,
            state.sha256,
            self._floor,
            self._input.sources,
            different,
            self._input.reading,
        )
        token_files.write_meta(self._output, meta)
        (self._output / token_files.PROGRESS).unlink(missing_ok=True)
        for partial in token_files.partials(self._output):
            partial.unlink()
        return meta

    # --- the state on disk ---

    def _save_if_due(self) -> None:
        """Save the state, unless that was done less than SAVE_EVERY seconds ago."""
        if time.monotonic() - self._saved_at >= SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        """Write progress.json, after the tokens that it counts are on the disk."""
        dtype = self._dtype()
        for path, count in (
            (self._partial(), self.state.count),
            (self._output / token_files.TOKENS, self.state.ordered),
        ):
            if path.exists() and not (self._keeps_finished and path.name == token_files.TOKENS):
                with path.open("r+b") as file:
                    # This makes room if the disk is full.
                    file.truncate(count * dtype.itemsize)
                    os.fsync(file.fileno())
        content = {
            "bytes": self._as_bytes,
            "sources": self._input.sources,
            "reading": self._input.reading,
            "replaces": self._overwrite,
            "state": dataclasses.asdict(self.state),
        }
        token_files.write_json(self._output / token_files.PROGRESS, content)
        self.saved = self._previous = self.state
        self._saved_at = time.monotonic()

    def _partial(self) -> Path:
        """Return the path of the file of provisional tokens."""
        return self._output / token_files.PARTIAL.format(self._dtype().name)

    def _open_partial(self) -> BinaryIO:
        """Open the file of provisional tokens for writing after those of the current state."""
        return token_files.open_tokens(self._partial(), self.state.count, self._dtype())

    def _dtype(self) -> np.dtype:
        """Return the type of the tokens in both files."""
        return token_files.dtype_of(Vocabulary(self.state.characters, self._as_bytes))
