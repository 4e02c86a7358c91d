"""One HTML page that shows a text coloured by its surprisal, without a network connection.

    with surprisal.writing(Path("text.html"), "My text") as page:
        page.add(text, nats)                # piece by piece, at constant memory

Neighbouring characters of equal colour share one element `<i class=LEVEL data-b=BITS>`. BITS has two
digits in base 36 for each character, its surprisal in units of 1/50 bit. The page works without
JavaScript, too, which only shows the bits of single characters (`page.js`).
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxrnn.devices.storage import atomic_file
from jaxrnn.errors import InputError
from jaxrnn.formats import pages
from jaxrnn.shapes import Float

# Surprisal in bits from which each colour on is used, and the class of the colour. The first has none.
LEVELS = {0.5: "a", 1: "b", 2: "c", 3: "d", 4: "e", 6: "f", 8: "g"}
# Units per bit of what the page stores.
UNITS = 50
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# Each stored number, as two digits.
CODES = np.array([a + b for a in DIGITS for b in DIGITS])
# Most characters of an element: the script searches it for the one under the pointer.
LONGEST_RUN = 256
# Characters after which a new block begins at the next line; browsers lay out visible blocks only.
BLOCK = 4096
# Most characters of a page.
LONGEST = 2_000_000


def check_length(characters: int) -> None:
    """Raise InputError for a text that is too long for a page."""
    if characters > LONGEST:
        raise InputError(
            f"the text is too long for a page: it has {characters:,} characters, and browsers are slow "
            f"beyond {LONGEST:,}; give a part of it, for example by head -c {LONGEST}"
        )


@contextlib.contextmanager
def writing(path: Path, title: str) -> Iterator[Page]:
    """Open a page for writing; it replaces the file when the block ends without an error.

    Raises:
      OSError: if the file cannot be written; it then keeps its old content.
    """
    before, after = pages.template(__package__).split("{{text}}")
    parts = {
        "title": html.escape(pages.valid(title)),
        "style": pages.read(__package__, "page.css"),
        "legend": _legend(),
        "script": pages.read(__package__, "page.js"),
    }
    with atomic_file(path) as file:
        page = Page(file, path)
        page.write(pages.filled(before, parts))
        yield page
        page.finish()
        page.write(pages.filled(after, parts | {"summary": page.summary()}))


class Page:
    """The text of a page that is being written."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._characters = 0
        self._bits = 0.0
        # Characters of the block that has been begun; 0 between blocks.
        self._block = 0

    def add(self, text: str, nats: Float[np.ndarray, "N"]) -> None:
        """Write the next part of the text.

        Args:
          text: N characters.
          nats: the surprisal of each in nats.

        Raises:
          InputError: if the text is too long for a page.
        """
        bits = np.asarray(nats, np.float64) / math.log(2)
        self._characters += len(text)
        self._bits += float(bits.sum())
        check_length(self._characters)
        levels = np.searchsorted(list(LEVELS), bits, side="right")
        codes = CODES[np.clip(np.rint(UNITS * bits), 0, len(CODES) - 1).astype(int)]
        at = 0
        while at < len(text):
            # A block ends with the first line that makes it long enough.
            found = text.find("\n", at + max(0, BLOCK - self._block - 1))
            end = found + 1 if found >= 0 else len(text)
            self._add_to_block(text[at:end], levels[at:end], codes[at:end])
            at = end

    def _add_to_block(self, text: str, levels: np.ndarray, codes: np.ndarray) -> None:
        if not self._block:
            self.write("<div>")
        for begin, end in _runs(levels):
            self.write(_run(text[begin:end], int(levels[begin]), "".join(codes[begin:end])))
        self._block += len(text)
        if self._block >= BLOCK and text.endswith("\n"):
            self.finish()

    def finish(self) -> None:
        """End the block that has been begun."""
        if self._block:
            self.write("</div>\n")
        self._block = 0

    def summary(self) -> str:
        """Return a sentence about the whole text."""
        mean = self._bits / max(self._characters, 1)
        return f"{self._characters:,} characters, {mean:.3f} bits per character on average."

    def write(self, html: str) -> None:
        """Write a part of the page."""
        try:
            self._file.write(html.encode())
        except OSError as error:
            raise OSError(f"could not write to {self._path}: {error.strerror}") from error


def _runs(levels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of equal levels, the last excluded."""
    ends = [*(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    begin = 0
    for end in ends:
        while begin < end:
            yield begin, min(begin + LONGEST_RUN, end)
            begin = min(begin + LONGEST_RUN, end)


def _run(text: str, level: int, codes: str) -> str:
    """Return the element of a run."""
    name = f" class={[*LEVELS.values()][level - 1]}" if level else ""
    # A browser would read a carriage return as a line break.
    content = html.escape(pages.valid(text), quote=False).replace("\r", "&#13;")
    return f"<i{name} data-b={codes}>{content}</i>"


def _legend() -> str:
    """Return the legend: a sample of each colour and its range in bits."""
    bounds = [0, *LEVELS, None]
    entries = []
    for name, low, high in zip(["", *LEVELS.values()], bounds, bounds[1:], strict=False):
        label = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
        entries.append(f'<li><i class="{name}" aria-hidden="true">&nbsp;</i> {label}</li>')
    return "\n".join(entries)
