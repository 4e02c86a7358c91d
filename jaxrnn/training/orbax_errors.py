"""The errors of orbax and tensorstore, turned into errors that say in one line what is wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxrnn.devices import processes
from jaxrnn.errors import InputError, first_line


class Damaged(Exception):
    """The content of a checkpoint differs from what was written; the message says how, in one line."""


# Beginnings of tensorstore's errors that do not mean that the content of a file is wrong.
_CIRCUMSTANCES = (
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED",
    "CANCELLED", "UNIMPLEMENTED",
)  # fmt: skip


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn errors that orbax raises while it reads a checkpoint into Damaged or InputError.

    Args:
      folder: the folder of the checkpoint.

    Raises:
      Damaged: if the content is missing, too short or not what it should be.
      InputError: if there is another reason, such as permissions or too little memory.
    """
    try:
        yield
    except Exception as error:
        if processes.is_peer_failure(error):
            raise
        reason = _unreadable(folder)
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
        failed = isinstance(error, OSError) and error.errno is not None and not missing
        if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)) or failed:
            reason = reason or first_line(error)
        if str(error).startswith(_CIRCUMSTANCES):
            reason = reason or first_line(error)
        if reason:
            raise InputError(f"cannot read the checkpoint {folder}: {reason}") from error
        raise Damaged(first_line(error)) from error


def _unreadable(folder: Path) -> str | None:
    """Return why a file in a folder cannot be read; None if all files can be read.

    orbax reports many unreadable files as missing, and files that really are missing mean damage.
    """

    def stop(error: OSError) -> None:
        raise error

    try:
        for place, _, names in os.walk(folder, onerror=stop):
            for name in names:
                with open(os.path.join(place, name), "rb") as file:
                    while file.read(1 << 24):
                        pass
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn errors that orbax and tensorstore raise for a failed write into an OSError of one line.

    Args:
      directory: the folder of all checkpoints.

    Raises:
      OSError: for every error but the loss of contact with another process.
    """
    try:
        yield
    except Exception as error:
        if processes.is_peer_failure(error):
            raise
        raise OSError(
            f"could not save to {directory}: {first_line(error)}; the earlier checkpoints are intact"
        ) from error
