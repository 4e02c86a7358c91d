"""The size of a text under gzip, xz and bzip2, measured in pieces at constant memory."""

from __future__ import annotations

import bz2
import functools
import lzma
import zlib
from collections.abc import Callable
from typing import Any

# Makes a compressor for each name; a window of 31 bits means the gzip container around 15 bits.
COMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip -9": functools.partial(zlib.compressobj, 9, zlib.DEFLATED, 31),
    "xz -9": functools.partial(lzma.LZMACompressor, preset=9),
    "bzip2 -9": functools.partial(bz2.BZ2Compressor, 9),
}


class CompressedSizes:
    """The sizes in bytes of a text that is compressed piece by piece."""

    def __init__(self) -> None:
        self._compressors = {name: make() for name, make in COMPRESSORS.items()}
        self._sizes = dict.fromkeys(COMPRESSORS, 0)

    def add(self, raw: bytes) -> None:
        """Compress the next bytes."""
        for name, compressor in self._compressors.items():
            self._sizes[name] += len(compressor.compress(raw))

    def finish(self) -> dict[str, int]:
        """Return the size of the whole text for each compressor; nothing can be added afterwards."""
        for name, compressor in self._compressors.items():
            self._sizes[name] += len(compressor.flush())
        return self._sizes
