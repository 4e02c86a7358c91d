"""Files: writing them whole or not at all, and the cache folder that processes share.

The cache folder holds downloaded texts and the compiled C++ library. The environment variable
JAXRNN_CACHE names it; without that variable it is `jaxrnn` in the user's cache folder (~/.cache on
Linux, or $XDG_CACHE_HOME).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the content of a file by `content`; a text is written in UTF-8.

    After a crash or a power cut the file has the old content or the new, never a part of it.

    Raises:
      OSError: if the file cannot be written; it then keeps its old content.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends without an error; for content in pieces.

    Raises:
      OSError: if the file cannot be written; `path` then keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if the system supports that."""
    # Windows opens no folders, and some network file systems do not sync them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- the cache folder ---


def cache_folder() -> Path:
    """Return the preferred cache folder. It may not exist yet."""
    return cache_folders()[0]


def cache_folders() -> list[Path]:
    """Return the possible cache folders, the preferred one first.

    The last one is a private folder in the system's folder for temporary files. It is needed by
    accounts without a home directory and on systems where the home directory is read-only.
    """
    # Imported here because most processes need no cache.
    import platformdirs

    try:
        chosen = Path(os.environ.get("JAXRNN_CACHE") or platformdirs.user_cache_dir("jaxrnn"))
        return [chosen.expanduser().absolute(), _temporary_folder()]
    except RuntimeError:
        # The user has no home directory.
        return [_temporary_folder()]


def make_cache_folder(folder: Path) -> None:
    """Create one of `cache_folders()` unless it exists.

    Raises:
      OSError: if the folder cannot be created.
      PermissionError: if it is the temporary folder and another user could put files into it.
    """
    if folder != _temporary_folder():
        folder.mkdir(parents=True, exist_ok=True)
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & others:
        raise PermissionError(f"other users can write to {folder}")


def _temporary_folder() -> Path:
    """Return the folder of this user in the system's folder for temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    return Path(tempfile.gettempdir()).absolute() / f"jaxrnn-{user}"
