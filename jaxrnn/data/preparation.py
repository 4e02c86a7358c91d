"""From a text of any size to a prepared folder (`jaxrnn.data.token_files`), in one pass and little memory.

Characters get numbers in the order in which they come, since the vocabulary is not known before the
end; then the tokens are mapped once to the numbers that `Vocabulary.of` gives. Every few seconds it is
noted how far the work is, so that whatever ends it, a power cut included, it can resume from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxrnn.data import files, token_files
from jaxrnn.data.corpus import count_different_bytes, validation_start
from jaxrnn.data.vocabulary import Numbering, Vocabulary, code_points
from jaxrnn.errors import InputError

NOTE_EVERY = 10.0  # seconds between notes of how far it is
REMEDY = "choose another --output, or --overwrite it"
BLOCK = 1 << 20  # bytes of tokens rewritten at a time


class Screen:
    """Told of the work as it goes on. This one shows nothing."""

    def line(self, text: str) -> None:
        """Something worth a line of its own."""

    def begin(self, what: str, done: int, total: int | None) -> None:
        """A part of the work, in bytes; the total is None where it is not known."""

    def reach(self, done: int) -> None:
        """That part is as far as this."""

    def end(self) -> None:
        """That part is over, finished or not."""


@dataclasses.dataclass(frozen=True)
class State:
    """How far a preparation is: what progress.json holds besides the sources.

    place: of the text that was read.
    characters: found in it, in the order of their numbers.
    count: tokens in the partial file.
    size: bytes of the text that they stand for.
    sha256: of those bytes.
    complete: whether that is the whole text.
    ordered: tokens in tokens.bin.
    """

    place: files.Place = dataclasses.field(default_factory=files.Place)
    characters: str = ""
    count: int = 0
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    complete: bool = False
    ordered: int = 0


class Preparation:
    """The work on one folder.

    Args:
      parts: the files of the text, from `sources.find`.
      as_bytes: tokens are bytes.
      name: of the text, for meta.json.
      output: the folder; it exists, and this process alone writes to it.
      floor: of the text, see `Corpus`.
      screen: told of everything as it happens.
      replace: prepare the text even where the folder holds one. Finished tokens stay until the new
        text has been read to its end; unfinished work that was no such replacement is thrown away.

    Raises:
      InputError: a file is not there or a word is empty.
    """

    def __init__(
        self,
        parts: Sequence[files.File],
        as_bytes: bool,
        name: str,
        output: Path,
        floor: float | None = None,
        screen: Screen | None = None,
        replace: bool = False,
    ) -> None:
        self._files, self._as_bytes, self._name, self._output = parts, as_bytes, name, output
        self._floor, self._screen = floor, screen or Screen()
        self._replace, self._keeps = replace, False  # finished tokens, to be replaced
        stamps = files.stamps(parts)
        self._sources: list[list[Any]] = [
            [os.path.abspath(file.path) if file.path else file.label, *(stamp or (None, None))]
            for file, stamp in zip(parts, stamps, strict=True)
        ]
        known = [stamp[0] for stamp in stamps if stamp is not None]
        self.total = sum(known) if len(known) == len(parts) else None
        self.resumable = all(
            stamp is not None or (file.path is None and file.label == "play")
            for file, stamp in zip(parts, stamps, strict=True)
        )
        self.state = self.noted = self._before = State()  # now, on disk, a large chunk before
        self._when = time.monotonic()  # it was noted

    def run(self) -> token_files.Meta:
        """Do the work, or what is left of it. Finished, it is not done again.

        Raises:
          InputError: the folder holds something else, or the text cannot be read or is no text.
          OSError: nothing can be written; the work resumes from there another time.
        """
        finished = (self._output / token_files.META).exists()
        if finished and not self._replace:
            return self._finished()
        self._keeps = finished
        if not self._replace:
            self._resume()
        elif not self._resume_replacement():
            discard(self._output, self._keeps)
        try:
            if not (self._output / token_files.PROGRESS).exists():
                self._note()  # from now on the folder says whose it is
            self._read()
            self._order()
            return self._finish()
        except BaseException as error:
            bad_text = isinstance(error, InputError) and not isinstance(error.__cause__, OSError)
            if isinstance(error, OSError):
                self.state = self._before  # whose files are shorter: room for the note
            with contextlib.suppress(OSError):  # an older note is there
                if (self._output / token_files.META).exists() and not self._keeps:
                    pass
                elif bad_text or not self.resumable:
                    discard(self._output, self._keeps)  # there is nothing that could be resumed
                else:
                    self._note()
            raise

    # --- the parts of the work ---

    def _finished(self) -> token_files.Meta:
        meta = token_files.read_meta(self._output)
        self._check_same(meta.sources, meta.vocabulary.by_bytes)
        if not self.resumable:
            raise InputError(f"{self._output} was prepared from a stream; {REMEDY}")
        token_files.load_corpus(self._output)  # raises where it is damaged
        return meta

    def _resume_replacement(self) -> bool:
        """Take up unfinished work of `replace`. Return False where none can be resumed."""
        path = self._output / token_files.PROGRESS
        try:
            if not (path.exists() and token_files.read_json(path).get("replaces")):
                return False
            self._resume()
            return True
        except InputError:  # it is of another text, or damaged
            self.state = State()
            return False

    def _resume(self) -> None:
        """Take up the state that the folder is in."""
        path = self._output / token_files.PROGRESS
        if not path.exists():
            return discard(self._output)  # at most a beginning
        said = token_files.read_json(path)
        try:
            same = said["sources"], bool(said["bytes"])
            fields = {field.name: said["state"][field.name] for field in dataclasses.fields(State)}
            self.state = State(**fields | {"place": files.Place(*fields["place"])})
            counts = self.state.count, self.state.ordered, *self.state.place
            if min(counts) < 0:
                raise ValueError("negative")
        except (KeyError, TypeError, ValueError) as error:
            raise token_files.damaged_error(path, error) from None
        self._check_same(*same)
        if not self.resumable:
            self._screen.line("a stream cannot be read again, so this begins again")
            self.state = State()
            return discard(self._output, self._keeps)
        for file in {*token_files.partials(self._output)} - {self._partial()}:
            file.unlink()  # narrower or wider, from just before or after the last note
        itemsize = self._dtype().itemsize
        partial, final = (
            path.stat().st_size // itemsize if path.exists() else -1
            for path in (self._partial(), self._output / token_files.TOKENS)
        )
        final = -1 if self._keeps else final
        if self.state.complete and partial < 0 and final == self.state.count:
            self.state = dataclasses.replace(self.state, ordered=final)  # only meta.json is missing
        elif max(partial, 0) < self.state.count or max(final, 0) < self.state.ordered:
            raise token_files.damaged_error(self._partial(), ValueError("shorter than noted"))
        self.noted = self._before = self.state

    def _check_same(self, stamps: list[list[Any]], as_bytes: bool) -> None:
        """Raises InputError unless the folder was made from the very files that are there now."""
        if as_bytes != self._as_bytes:
            kind = "bytes" if as_bytes else "characters"
            raise InputError(f"{self._output} was prepared as {kind}; {REMEDY}")
        if [stamp[0] for stamp in stamps] != [stamp[0] for stamp in self._sources]:
            raise InputError(f"{self._output} was prepared from other files; {REMEDY}")
        for before, now in zip(stamps, self._sources, strict=True):
            if before != now:
                raise InputError(
                    f"{now[0]} has changed since {self._output} was prepared from it; {REMEDY}"
                )

    def _read(self) -> None:
        """The text, from where the state is to its end, into the partial file."""
        if self.state.complete:
            return
        digest = self._digest()
        numbering = Numbering(self.state.characters, self._as_bytes)
        with contextlib.ExitStack() as stack:
            stack.callback(self._screen.end)
            self._screen.begin("reading", self.state.size, self.total)
            file = stack.enter_context(_at(self._partial(), self.state.count, self._dtype()))
            for chunk in files.stream(self._files, self._as_bytes, self.state.place):
                new = numbering.encode(chunk.raw, chunk.text)
                if new.dtype.itemsize > self._dtype().itemsize:
                    self._widen(numbering.vocabulary)
                    path = self._partial()
                    file = stack.enter_context(_at(path, self.state.count, self._dtype()))
                _write(file, new)
                digest.update(chunk.raw)
                if len(chunk.raw) >= files.CHUNK // 2:
                    self._before = self.state
                self.state = State(
                    chunk.place,
                    numbering.vocabulary.characters,
                    self.state.count + len(new),
                    self.state.size + len(chunk.raw),
                    digest.hexdigest(),
                )
                self._screen.reach(self.state.size)
                self._note_if_due()
        validation_start(self.state.count)  # raises where there is too little
        self.state = dataclasses.replace(self.state, complete=True)
        self._note()

    def _digest(self) -> Any:
        """The hash of the text read so far; no library's can be stored, so it is read again."""
        digest, size = hashlib.sha256(), 0
        if self.state.count:
            self._screen.begin("reading again what was read", 0, self.state.size)
            try:
                for chunk in files.stream(self._files, self._as_bytes, stop=self.state.place):
                    digest.update(chunk.raw)
                    size += len(chunk.raw)
                    self._screen.reach(size)
            finally:
                self._screen.end()
            if digest.hexdigest() != self.state.sha256:
                raise InputError(
                    f"the text has changed since {self._output} was prepared from its beginning; "
                    "the same command now begins again"
                )
        return digest

    def _widen(self, vocabulary: Vocabulary) -> None:
        """Rewrite the partial file in the type that a vocabulary needs."""
        old, narrow, wide = self._partial(), self._dtype(), _little(vocabulary.dtype)
        path = self._output / token_files.PARTIAL.format(wide.name)
        with old.open("rb") as file, _at(path, 0, wide) as wider:
            for block in iter(lambda: file.read(BLOCK), b""):
                _write(wider, np.frombuffer(block, narrow).astype(wide))
        self.state = dataclasses.replace(self.state, characters=vocabulary.characters)
        self._before = self.state
        self._note()
        old.unlink()

    def _order(self) -> None:
        """From numbers in order of arrival to those of the sorted vocabulary, into tokens.bin."""
        if self._keeps:
            for name in (
                token_files.META,
                token_files.TOKENS,
            ):  # without the first the second is unfinished
                (self._output / name).unlink()
            self._keeps = False
        if self.state.ordered == self.state.count:
            return
        rank = np.argsort(np.argsort(code_points(self.state.characters)))
        path, partial, dtype = self._output / token_files.TOKENS, self._partial(), self._dtype()
        if np.array_equal(rank, np.arange(len(rank))):
            partial.replace(path)
            self.state = dataclasses.replace(self.state, ordered=self.state.count)
            self._before = self.state
            return
        ranks, total = rank.astype(dtype), self.state.count * dtype.itemsize
        done = self.state.ordered * dtype.itemsize
        with partial.open("rb") as file, _at(path, self.state.ordered, dtype) as ordered:
            file.seek(done)
            self._screen.begin("sorting the vocabulary", done, total)
            try:
                while done < total:
                    block = np.frombuffer(file.read(min(BLOCK, total - done)), dtype)
                    _write(ordered, ranks.take(block))
                    done += block.nbytes
                    self._before = self.state
                    self.state = dataclasses.replace(self.state, ordered=done // dtype.itemsize)
                    self._screen.reach(done)
                    self._note_if_due()
            finally:
                self._screen.end()
            os.fsync(ordered.fileno())

    def _finish(self) -> token_files.Meta:
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
            self._sources,
            different,
        )
        token_files.write_meta(self._output, meta)
        (self._output / token_files.PROGRESS).unlink(missing_ok=True)
        for partial in token_files.partials(self._output):
            partial.unlink()
        return meta

    # --- notes ---

    def _note_if_due(self) -> None:
        if time.monotonic() - self._when >= NOTE_EVERY:
            self._note()

    def _note(self) -> None:
        """Write progress.json, after what it speaks of is on the disk."""
        dtype = self._dtype()
        for path, count in (
            (self._partial(), self.state.count),
            (self._output / token_files.TOKENS, self.state.ordered),
        ):
            if path.exists() and not (self._keeps and path.name == token_files.TOKENS):
                with path.open("r+b") as file:
                    file.truncate(count * dtype.itemsize)  # where the disk is full this makes room
                    os.fsync(file.fileno())
        said = {
            "bytes": self._as_bytes,
            "sources": self._sources,
            "replaces": self._replace,
        }
        token_files.write_json(
            self._output / token_files.PROGRESS, {**said, "state": dataclasses.asdict(self.state)}
        )
        self.noted = self._before = self.state
        self._when = time.monotonic()

    def _partial(self) -> Path:
        return self._output / token_files.PARTIAL.format(self._dtype().name)

    def _dtype(self) -> np.dtype:
        return _little(Vocabulary(self.state.characters, self._as_bytes).dtype)


def discard(output: Path, keep_finished: bool = False) -> None:
    """Remove what a preparation wrote, and nothing else; perhaps only what is unfinished.

    What says whose the folder is goes last.
    """
    for partial in token_files.partials(output):
        partial.unlink()
    finished = () if keep_finished else (token_files.TOKENS, token_files.META)
    for name in (*finished, token_files.PROGRESS):
        (output / name).unlink(missing_ok=True)


def _little(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("<")


def _at(path: Path, count: int, dtype: np.dtype) -> BinaryIO:
    """A file open to be written from its token number `count` on; what was there after is gone."""
    file = open(path, "r+b" if path.exists() else "wb", buffering=0)  # noqa: SIM115
    file.truncate(count * dtype.itemsize)
    file.seek(0, os.SEEK_END)
    return file  # type: ignore[return-value]


def _write(file: Any, new: np.ndarray) -> None:
    """All of an array, which without a buffer may take several writes."""
    rest = new.view(np.uint8).data
    while rest:
        rest = rest[file.write(rest) :]
