"""Folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import errno
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from jaxrnn.errors import InputError

# The name of the lock file in the folder.
LOCK = "lock"


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder if need be.

    Args:
      folder: its path.
      setting: name of the setting that chose the folder, for the message.

    Raises:
      InputError: if no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise not_writable(folder, setting, error) from None


@contextlib.contextmanager
def lock_folder(folder: Path, setting: str, busy: str) -> Iterator[None]:
    """Hold the lock file of a folder.

    Args:
      folder: its path; it exists.
      setting: name of the setting that chose the folder, for the message.
      busy: message for when another process holds the lock.

    Raises:
      InputError: if another process holds the lock, or the lock file cannot be written.
    """
    # The user's umask is subtracted from the mode.
    lock = filelock.FileLock(folder / LOCK, timeout=0, mode=0o666)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise not_writable(folder / LOCK, setting, error) from None
    try:
        yield
    finally:
        lock.release()


def random_mark() -> str:
    """Return a random text that a lock file may hold, so that other hosts recognize it."""
    return secrets.token_hex(8)


def is_foreign_lock(folder: Path) -> bool:
    """Return whether the file with the name of the lock file is something else."""
    lock = folder / LOCK
    return lock.exists() and (not lock.is_file() or lock.stat().st_size > len(random_mark()))


def not_writable(path: Path, setting: str, error: OSError) -> InputError:
    """Return the error for a path that cannot be written; it names the owner if access is denied."""
    owner = ""
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        if error.errno in (errno.EACCES, errno.EPERM):
            owner = f" (it belongs to {path.owner()})"
    return InputError(
        f"cannot write to {path}: {error.strerror}{owner}; "
        f"choose another `{setting}`, or make it writable"
    )
