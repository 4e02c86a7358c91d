"""The format of prepared texts: tokens in a file, which training maps into memory.

A folder written by `python -m jaxrnn.prepare` holds

    tokens.bin   the tokens, raw little-endian unsigned integers of the smallest type that holds them
    meta.json    their vocabulary and the files that they were made from

meta.json is written last. An unfinished folder has these files instead, from which the same command
resumes:

    tokens.TYPE.partial
    progress.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxrnn.data import files
from jaxrnn.data.corpus import Corpus, validation_start
from jaxrnn.data.encodings import Reading
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import storage
from jaxrnn.errors import InputError

FORMAT = 1
TOKENS, META, PROGRESS, PARTIAL = "tokens.bin", "meta.json", "progress.json", "tokens.{}.partial"


# The path, size and modification time of a file, as JSON holds them.
Stamp = list[str | int | None]
REMEDY = "choose another `output`, or `overwrite` it"


class Input(NamedTuple):
    """The input of a preparation.

    Attributes:
      sources: the files, as in `Meta`.
      as_bytes: whether the tokens are bytes.
      reading: the fields of the `encodings.Reading`; those that are missing have their defaults.
    """

    sources: list[Stamp]
    as_bytes: bool
    reading: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Meta:
    """The content of meta.json.

    Attributes:
      name: the name of the text, as `sources.name` gives it.
      count: number of tokens.
      vocabulary: the meaning of the tokens.
      sha256: SHA-256 of the text, as in `Corpus`.
      floor: the loss that no model can beat, as in `Corpus`.
      sources: for each file of the text its path, its size in bytes and its modification time in ns;
        size and time are None for anything that is not a file.
      different: number of different tokens in the text; None in a folder of an older version.
      reading: the fields of the `encodings.Reading` of the text; empty in a folder of an older version.
    """

    name: str
    count: int
    vocabulary: Vocabulary
    sha256: str
    floor: float | None
    sources: list[Stamp]
    different: int | None = None
    reading: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """The type of the tokens in tokens.bin."""
        return dtype_of(self.vocabulary)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The content of progress.json besides the sources: how far a preparation is.

    Attributes:
      place: how far the text has been read.
      characters: the characters found in it, in the order of their provisional tokens.
      count: number of tokens in the partial file.
      size: number of bytes of the text that they stand for, in UTF-8 unless they are bytes.
      sha256: SHA-256 of those bytes in hexadecimal digits.
      complete: whether that is the whole text.
      ordered: number of tokens in tokens.bin.
    """

    place: files.Place = dataclasses.field(default_factory=files.Place)
    characters: str = ""
    count: int = 0
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    complete: bool = False
    ordered: int = 0


def dtype_of(vocabulary: Vocabulary) -> np.dtype:
    """Return the type of tokens in a file."""
    return vocabulary.dtype.newbyteorder("<")


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a prepared text, which may be unfinished or damaged."""
    folder = Path(path)
    return folder.is_dir() and ((folder / TOKENS).exists() or is_preparation(folder))


def is_preparation(folder: Path) -> bool:
    """Return whether a file in a folder proves that `prepare` wrote the folder.

    The file tokens.bin alone is no proof: any program may have written it.
    """
    for name, keys in (
        (META, {"format", "vocabulary", "sha256"}),
        (PROGRESS, {"sources", "state"}),
    ):
        try:
            if keys <= read_json(folder / name).keys():
                return True
        except InputError:
            continue
    # Older versions wrote nothing else before they were killed early in a preparation.
    return bool(partials(folder)) and not any((folder / name).exists() for name in (TOKENS, META))


def partials(folder: Path) -> list[Path]:
    """Return the token files of an unfinished preparation."""
    return list(folder.glob(PARTIAL.format("*")))


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """Return the content of meta.json in a prepared folder.

    Raises:
      InputError: if the folder is unfinished, damaged or in an unknown format.
    """
    folder = Path(path)
    if not (folder / META).exists():
        raise InputError(
            f"the preparation in {folder} is unfinished; run the same python -m jaxrnn.prepare "
            "command again to resume it"
        )
    content = read_json(folder / META)
    try:
        if content["format"] != FORMAT:
            raise InputError(
                f"{folder} was prepared in format {content['format']}, and this version reads "
                f"{FORMAT}; update jaxrnn, or prepare it again with `overwrite`"
            )
        vocabulary = Vocabulary(**content["vocabulary"])
        floor = None if content["floor"] is None else float(content["floor"])
        counted = None if vocabulary.by_bytes else len(vocabulary)
        found = Meta(
            name=str(content["name"]),
            count=int(content["count"]),
            vocabulary=vocabulary,
            sha256=str(content["sha256"]),
            floor=floor,
            sources=list(content["sources"]),
            different=content.get("different", counted),
            reading=dict(content.get("reading", {})),
        )
        if content["dtype"] != found.dtype.name or len(vocabulary) == 0:
            raise ValueError(f"dtype {content['dtype']} for {len(vocabulary)} characters")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(folder / META, error) from None
    return found


def load_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Return a prepared text; its tokens are a read-only np.memmap [N] of the vocabulary's dtype.

    Raises:
      InputError: if it is unfinished, damaged, in an unknown format, or cannot be read.
    """
    folder = Path(path)
    meta = read_meta(folder)
    try:
        size = (folder / TOKENS).stat().st_size
        if size != meta.count * meta.dtype.itemsize:
            raise InputError(
                f"{folder / TOKENS} is damaged: {size:,} bytes where there should be "
                f"{meta.count * meta.dtype.itemsize:,}; prepare it again with `overwrite`"
            )
        tokens = np.memmap(folder / TOKENS, meta.dtype, "r")
    except OSError as error:
        raise InputError(f"cannot read {folder / TOKENS}: {error.strerror}") from error
    split = validation_start(meta.count)
    return Corpus(tokens, split, meta.vocabulary, meta.sha256, meta.floor, meta.different)


def write_meta(folder: Path, meta: Meta) -> None:
    """Write meta.json in a folder, atomically."""
    content = {"format": FORMAT, **dataclasses.asdict(meta), "dtype": meta.dtype.name}
    write_json(folder / META, content)


def check_same(folder: Path, made_from: Input, now: Input) -> None:
    """Check that a folder was made from the same files, and that they have not changed.

    Raises:
      InputError: if the files, or the ways in which they are read, are not the same.
    """
    if made_from.as_bytes != now.as_bytes:
        kind = "bytes" if made_from.as_bytes else "characters"
        raise InputError(f"{folder} was prepared as {kind}; {REMEDY}")
    for name, value in now.reading.items():
        before = made_from.reading.get(name, getattr(Reading, name))
        if before != value:
            raise InputError(f"{folder} was prepared with `{name}={before}`; keep it, or {REMEDY}")
    if [stamp[0] for stamp in made_from.sources] != [stamp[0] for stamp in now.sources]:
        raise InputError(f"{folder} was prepared from other files; {REMEDY}")
    for old, new in zip(made_from.sources, now.sources, strict=True):
        if old != new:
            raise InputError(f"{new[0]} has changed since {folder} was prepared from it; {REMEDY}")


# --- JSON files ---


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      InputError: if the file is damaged or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise damaged_error(path, error) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object to a JSON file, atomically."""
    storage.atomic_write(path, json.dumps(content))


def damaged_error(path: Path, error: Exception) -> InputError:
    """Return the error for a file whose content is not as it was written."""
    return InputError(f"{path} is damaged ({error!r}); prepare the text again with `overwrite`")


def open_tokens(path: Path, count: int, dtype: np.dtype) -> BinaryIO:
    """Open a file for writing after its first `count` tokens; any others are cut off."""
    file = open(path, "r+b" if path.exists() else "wb", buffering=0)  # noqa: SIM115
    file.truncate(count * dtype.itemsize)
    file.seek(0, os.SEEK_END)
    return file  # type: ignore[return-value]


def write_tokens(file: BinaryIO, new: np.ndarray) -> None:
    """Write all of an array. An unbuffered file may take only a part of it at a time."""
    rest = new.view(np.uint8).data
    while rest:
        rest = rest[file.write(rest) :]


def discard(folder: Path, keep_finished: bool = False) -> None:
    """Remove the files that a preparation wrote, and no others.

    The file that identifies the folder as a preparation is removed last.

    Args:
      folder: the folder of the preparation.
      keep_finished: remove only the files of unfinished work.
    """
    for partial in partials(folder):
        partial.unlink()
    finished = () if keep_finished else (TOKENS, META)
    for name in (*finished, PROGRESS):
        (folder / name).unlink(missing_ok=True)
