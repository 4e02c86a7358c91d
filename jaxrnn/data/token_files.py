"""A prepared text: the tokens in a file, which training maps into memory instead of reading it.

A folder that `python -m jaxrnn.prepare` wrote holds
    tokens.bin   the tokens, raw little-endian unsigned integers of the smallest type that holds them
    meta.json    what they mean and what they were made from
meta.json is written last: a folder without it is unfinished, and then has
    tokens.TYPE.partial, progress.json      what the same command resumes from
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.data.corpus import Corpus, validation_start
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import storage
from jaxrnn.errors import InputError

FORMAT = 1
TOKENS, META, PROGRESS, PARTIAL = "tokens.bin", "meta.json", "progress.json", "tokens.{}.partial"


@dataclasses.dataclass(frozen=True)
class Meta:
    """What meta.json says.

    name: of the text, as `sources.name` gives it.
    count: tokens.
    vocabulary: what they mean; its dtype is the file's.
    sha256: of the text, as `make_corpus` computes it.
    floor: as in `Corpus`.
    sources: the files it was made from, [path, bytes, time of change in ns] each, null where not a file.
    different: number of different tokens in the text; None in a folder of an older version.
    """

    name: str
    count: int
    vocabulary: Vocabulary
    sha256: str
    floor: float | None
    sources: list[list[Any]]
    different: int | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of tokens.bin."""
        return self.vocabulary.dtype.newbyteorder("<")


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a prepared text, finished or not, sound or damaged."""
    folder = Path(path)
    return folder.is_dir() and ((folder / TOKENS).exists() or is_preparation(folder))


def is_preparation(folder: Path) -> bool:
    """Whether a file of `prepare` says that the rest of the folder is its own.

    A file called tokens.bin alone may be anybody's.
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
    # a preparation that was killed at its beginning by a version that noted nothing there
    return bool(partials(folder)) and not any((folder / name).exists() for name in (TOKENS, META))


def partials(folder: Path) -> list[Path]:
    """The token files of an unfinished preparation."""
    return list(folder.glob(PARTIAL.format("*")))


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """What a prepared folder says of itself.

    Raises:
      InputError: it is unfinished, damaged or of a version that is not known.
    """
    folder = Path(path)
    if not (folder / META).exists():
        raise InputError(
            f"the preparation in {folder} is unfinished; give the same python -m jaxrnn.prepare "
            "command again, it goes on where that stopped"
        )
    said = read_json(folder / META)
    try:
        if said["format"] != FORMAT:
            raise InputError(
                f"{folder} was prepared in format {said['format']}, and this version reads "
                f"{FORMAT}; update jaxrnn, or prepare it again with --overwrite"
            )
        vocabulary = Vocabulary(**said["vocabulary"])
        floor = None if said["floor"] is None else float(said["floor"])
        counted = None if vocabulary.by_bytes else len(vocabulary)
        found = Meta(
            str(said["name"]), int(said["count"]), vocabulary, str(said["sha256"]), floor,
            list(said["sources"]), said.get("different", counted),
        )  # fmt: skip
        if said["dtype"] != found.dtype.name or len(vocabulary) == 0:
            raise ValueError(f"dtype {said['dtype']} for {len(vocabulary)} characters")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(folder / META, error) from None
    return found


def load_corpus(path: str | os.PathLike[str]) -> Corpus:
    """A prepared text, its tokens a read-only np.memmap [N] of the vocabulary's dtype.

    Raises:
      InputError: it is unfinished, damaged, of a version that is not known, or cannot be read.
    """
    folder, said = Path(path), read_meta(path)
    try:
        size = (folder / TOKENS).stat().st_size
        if size != said.count * said.dtype.itemsize:
            raise InputError(
                f"{folder / TOKENS} is damaged: {size:,} bytes where there should be "
                f"{said.count * said.dtype.itemsize:,}; prepare it again with --overwrite"
            )
        tokens = np.memmap(folder / TOKENS, said.dtype, "r")
    except OSError as error:
        raise InputError(f"cannot read {folder / TOKENS}: {error.strerror}") from error
    split = validation_start(said.count)
    return Corpus(tokens, split, said.vocabulary, said.sha256, said.floor, said.different)


def write_meta(folder: Path, found: Meta) -> None:
    """Write meta.json, whole or not at all."""
    said = {"format": FORMAT, **dataclasses.asdict(found), "dtype": found.dtype.name}
    write_json(folder / META, said)


# --- JSON files ---


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises InputError where it is damaged or cannot be read."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise damaged_error(path, error) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return said


def write_json(path: Path, said: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all, whatever the machine does meanwhile."""
    storage.atomic_write(path, json.dumps(said))


def damaged_error(path: Path, error: Exception) -> InputError:
    """What to say of a file that is not as it was written."""
    return InputError(f"{path} is damaged ({error!r}); prepare the text again with --overwrite")
