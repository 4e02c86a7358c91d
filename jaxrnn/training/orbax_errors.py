"""The errors of orbax and tensorstore, turned into errors that say in one line what was wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrnn.devices import processes
from jaxrnn.errors import InputError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells every step of its own there


class Damaged(Exception):
    """The content of a checkpoint differs from what was written; the message says how, in one line."""


# What tensorstore's errors begin with where the content of a file is not to blame.
_CIRCUMSTANCES = (
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED",
    "CANCELLED", "UNIMPLEMENTED",
)  # fmt: skip


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn errors that orbax raises while it reads a checkpoint into Damaged or InputError.

    Raises:
      Damaged: where the content is to blame: it is missing, too short or not what it should be.
      InputError: where something else is: the system does not let us read it, or memory is short.
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
    """Return why the system does not let us read a file in a folder; None where all can be read.

    orbax reports many such files as missing, and those that are missing really are damage.
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


class writing:
    """Turns what orbax and tensorstore raise for a failed write into one OSError with one line."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not processes.is_peer_failure(error):
            raise OSError(
                f"could not save to {self._directory}: {first_line(error)}; "
                "the checkpoints before it are intact"
            ) from error


def quieten_orbax() -> None:
    """Keep off the screen what becomes of orbax's other tasks after one of them met a bad file.

    They end in threads of their own, some after their event loop was closed; the error that matters
    was raised in `save`, `wait` or `restore` already.
    """
    logging.getLogger("asyncio").addFilter(_told_already)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "drop_abandoned_tasks":
        return

    def drop_abandoned_tasks(unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        if not any("asyncio" in frame.filename or "orbax" in frame.filename for frame in frames):
            before(unraisable)

    sys.unraisablehook = drop_abandoned_tasks


def _told_already(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
