"""Tests of atomic writes: a file is synced before it gets its name, or it is not replaced."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from jaxrnn.devices.storage import atomic_write

pytestmark = pytest.mark.once


def test_all_of_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    synced, sync = [], os.fsync

    def watched(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    atomic_write(path, "né\n")
    assert synced[0] == (4, "old") and path.read_bytes() == b"n\xc3\xa9\n"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_written_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
