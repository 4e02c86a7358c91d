"""Reading compressed files as if they were not compressed: gzip, bzip2, xz and zstd.

The format is recognised by the first bytes, not by the name, so that pipes can be compressed, too.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxrnn.errors import InputError

# Bytes of a zstd file that are decompressed at a time. Four bytes can stand for a block of 128 KiB, so
# at most 32 MiB come out.
ZSTD_INPUT = 1 << 10


@runtime_checkable
class Stream(Protocol):
    """An object with the method `read` of a binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, fewer at the end; all that remain for -1."""


class Peekable:
    """A stream whose next bytes can be looked at before they are read.

    Args:
      stream: the stream.

    Attributes:
      count: number of bytes that have been taken from the stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ahead = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end, without moving on."""
        while len(self._ahead) < size:
            more = self._take(size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, fewer at the end; all that remain for -1."""
        if size < 0:
            result = self._ahead + self._take(-1)
            self._ahead = b""
        elif self._ahead or size == 0:
            result = self._ahead[:size]
            self._ahead = self._ahead[size:]
        else:
            result = self._take(size)
        return result

    def _take(self, size: int) -> bytes:
        """Return bytes of the stream."""
        taken = self._stream.read(size)
        self.count += len(taken)
        return taken


class Format(NamedTuple):
    """A compressed format.

    Attributes:
      name: the name of the format.
      start: the pattern of the first bytes.
      command: the command that writes the decompressed content to standard output.
    """

    name: str
    start: re.Pattern[bytes]
    command: str


FORMATS = (
    Format("gzip", re.compile(rb"\x1f\x8b"), "zcat"),
    # Three letters would be a possible text; the numbers are those of pi and of its square root.
    Format("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzcat"),
    Format("xz", re.compile(rb"\xfd7zXZ\0"), "xzcat"),
    Format("zstd", re.compile(rb"\x28\xb5\x2f\xfd"), "zstdcat"),
)


def recognise(head: bytes) -> Format | None:
    """Return the compressed format of a file with these first bytes; None if it is not compressed."""
    for known in FORMATS:
        if known.start.match(head):
            return known
    return None


def decompressed(stream: Stream, known: Format, label: str) -> Stream:
    """Return a stream of the decompressed content of another stream, which may have several members.

    Args:
      stream: the compressed stream.
      known: its format, from `recognise`.
      label: the file, as error messages name it.

    Raises:
      InputError: if the package for the format is not installed; while reading, if the file is
        truncated or damaged.
    """
    return _Checked(_open(stream, known, label), known, label)


def _open(stream: Any, known: Format, label: str) -> Stream:
    """Return the decompressing file of a format, which raises its own errors."""
    if known.name == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if known.name == "bzip2":
        return bz2.BZ2File(stream)
    if known.name == "xz":
        return lzma.LZMAFile(stream)
    try:
        # New in Python 3.14.
        from compression import zstd
    except ImportError:
        return io.BufferedReader(_Zstd(stream, label))
    return zstd.ZstdFile(stream)


class _Checked:
    """A decompressing file whose errors about the content are InputErrors."""

    def __init__(self, stream: Stream, known: Format, label: str) -> None:
        self._stream = stream
        self._name = known.name
        self._label = label

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._stream.read(size)
        except EOFError:
            what = "truncated: its end is missing"
        except OSError as error:
            # With a number it is an error of the file system.
            if error.errno is not None:
                raise
            what = f"damaged: {error}"
        except (zlib.error, lzma.LZMAError) as error:
            what = f"damaged: {error}"
        except Exception as error:
            # zstandard may be missing, so its error has no name here.
            if type(error).__name__ != "ZstdError":
                raise
            what = f"damaged: {error}"
        raise InputError(
            f"{self._label} is compressed by {self._name} and {what}; replace it by a good copy"
        )


class _Zstd(io.RawIOBase):
    """The decompressed content of a zstd stream, by the package zstandard.

    The package's own reader is not used because it takes a truncated file for a complete one.
    """

    def __init__(self, stream: Stream, label: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise InputError(
                f'{label} is compressed by zstd; reading it needs: pip install "jaxrnn[zstd]"'
            ) from None
        self._stream = stream
        self._make = zstandard.ZstdDecompressor().decompressobj
        # The decompressor of a member that has begun and not ended.
        self._member: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._stream.read(ZSTD_INPUT)
            if not self._input:
                break
            self._member = self._member or self._make()
            self._output = memoryview(self._member.decompress(self._input))
            self._input = self._member.unused_data
            if self._member.eof:
                self._member = None
        if not self._output and self._member is not None:
            raise EOFError
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
