"""A guess of the encoding of a text from its bytes.

A text that is not UTF-8 is guessed to be UTF-16, UTF-32, Windows-1252 or Latin-1. All of ASCII is the
same in UTF-8, Windows-1252 and Latin-1, so between these the first megabyte with another character
decides.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

# Bytes from which the encoding is guessed.
BLOCK = 1 << 20
# The marks that show an encoding. UTF-32's first, because UTF-16's are their beginning.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# The first bytes of formats that are not text, their description, and a command that converts them.
OTHER_FORMATS = (
    (b"\x1f\x9d", "is compressed by compress", "zcat {}"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "lz4cat {}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "7z x -so {}"),
    (b"PK\x03\x04", "is a zip archive (as .docx, .odt and .epub files are)", "unzip -p {}"),
    (b"%PDF-", "is a PDF", "pdftotext {} -"),
)
# Control characters that a text does not have, which UTF-16 of many scripts is half made of.
CONTROLS = bytes({*range(0x20)} - {*b"\t\n\f\r"})
# The place of the letters "ustar" in the header of a tar archive.
TAR = slice(257, 262)


class Guess(NamedTuple):
    """The encoding that a file seems to have.

    Attributes:
      encoding: its name in Python; "" if the file is not text, although its bytes may be valid UTF-8.
      what: what to say about the file if it cannot be decoded.
      command: the command that converts it; "" if there is none.
      is_text: whether the file is a text that could be read as bytes.
    """

    encoding: str
    what: str = "is UTF-8 except for some bytes, which can be left out"
    command: str = "iconv -c -f utf-8 -t utf-8 {}"
    is_text: bool = True


def guess(block: bytes, before: int, at_end: bool) -> tuple[Guess | None, int]:
    """Return the encoding of a file, or None if the bytes are ASCII, and the number of bytes examined.

    Args:
      block: a part of the file.
      before: number of bytes before it, which are ASCII.
      at_end: whether the file ends with it.
    """
    if before == 0:
        if block[TAR] == b"ustar":
            archive = Guess("", "is a tar archive; extract it with tar", "", False)
            return archive, len(block)
        for mark, name in MARKS.items():
            if block.startswith(mark):
                return Guess(name), len(block)
        if wide := _unmarked(block):
            return Guess(wide), len(block)
    if block.isascii():
        return None, len(block)
    try:
        text, used = codecs.utf_8_decode(block, "strict", at_end)
    except UnicodeDecodeError:
        return _guess_invalid(block, min(before, BLOCK)), len(block)
    # The last character may be cut in two.
    if text.isascii():
        return None, used
    return Guess("utf-8"), len(block)


def _guess_invalid(block: bytes, before: int) -> Guess:
    """Return the encoding of a file that is not UTF-8; if unknown, "utf-8" and what to do.

    Args:
      block: a part of the file that is not valid UTF-8.
      before: number of bytes before it that count as evidence; they are ASCII.
    """
    for start, what, command in OTHER_FORMATS:
        if block.startswith(start):
            return Guess("utf-8", what, command, False)
    if b"\0" in block:
        return Guess("utf-8", "has NUL bytes and is not text", "")
    high = len(block.translate(None, bytes(range(0x80))))
    decoded = block.decode(errors="surrogateescape")
    invalid = len(re.findall("[\udc80-\udcff]", decoded))
    valid = len(decoded) - (len(block) - high) - invalid
    if valid >= invalid:
        return Guess("utf-8")
    if 3 * high >= before + len(block):
        what = "has another encoding, written ENCODING here"
        return Guess("utf-8", what, "iconv -f ENCODING -t utf-8 {}")
    try:
        block.decode("windows-1252")
        return Guess("windows-1252")
    except UnicodeDecodeError:
        return Guess("latin-1")


def _unmarked(block: bytes) -> str | None:
    """Return the variant of UTF-16 or UTF-32 that a file without a mark seems to be."""
    # Long enough to be sure, and a whole number of characters.
    sample = block[: min(len(block), 1 << 12) // 4 * 4]
    if len(sample) < 32 or b"\0" not in sample:
        return None
    controls = len(sample) - len(sample.translate(None, CONTROLS))
    if controls < 0.4 * len(sample) and _is_utf8(sample):
        # UTF-8 with NUL, as between the names in a list.
        return None
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        # A pair of surrogates may be cut at the end.
        decoder = codecs.getincrementaldecoder(name)()
        try:
            text = decoder.decode(sample)
        except UnicodeDecodeError:
            continue
        printable = sum(map(str.isprintable, text)) + len(re.findall(r"[\t\n\f\r]", text))
        common = len(re.findall(r"[\t\n\r -~]", text))
        if printable >= 0.95 * len(text) and common >= 0.05 * len(text):
            return name
    return None


def _is_utf8(block: bytes) -> bool:
    """Return whether bytes are UTF-8, except that the last character may be cut."""
    try:
        codecs.utf_8_decode(block, "strict", False)
        return True
    except UnicodeDecodeError:
        return False
