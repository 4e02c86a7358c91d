"""Where files are kept from one process to the next: downloaded texts, and the compiled C++.

The environment variable JAXRNN_CACHE names the folder; without it, it is `jaxrnn` in the user's cache
folder (~/.cache on Linux, or what XDG_CACHE_HOME says).
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def folder() -> Path:
    """Return the folder to keep files in."""
    return folders()[0]


def folders() -> list[Path]:
    """Return the folders to try, best first.

    The last is one of the user's own in the folder for temporary files: accounts without a home
    directory have no other, and a home directory may be read-only.
    """
    import platformdirs  # here, because most processes need no cache

    try:
        chosen = Path(os.environ.get("JAXRNN_CACHE") or platformdirs.user_cache_dir("jaxrnn"))
        return [chosen.expanduser().absolute(), _temporary()]
    except RuntimeError:  # there is no home directory
        return [_temporary()]


def make(folder: Path) -> None:
    """Make one of `folders`, where it is not there yet.

    Raises:
      OSError: where it cannot be made, or is one in which another user could put files for this one.
    """
    if folder != _temporary():
        folder.mkdir(parents=True, exist_ok=True)
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    there = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or there.st_mode & others:
        raise PermissionError(f"{folder} is not this user's alone")


def _temporary() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    return Path(tempfile.gettempdir()).absolute() / f"jaxrnn-{user}"
