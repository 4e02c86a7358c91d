"""The score of each line of a text, as a table or as JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrnn import console
from jaxrnn.literals import LineFormat
from jaxrnn.shapes import Float

HEADING = f"{'line':>8}  {'nats':>10}  {'nats/char':>9}  text"


class Line(NamedTuple):
    """A line of a text.

    Attributes:
      line: its number, from 1.
      nats: the information of its characters in nats, the line break included.
      nats_per_character: the same divided by the number of characters, the line break included.
      text: its characters without the line break; bytes that are not UTF-8 are U+FFFD.
    """

    line: int
    nats: float
    nats_per_character: float
    text: str

    def shown(self, form: LineFormat) -> str:
        """Return the line as a row of a table or as an object in JSON."""
        if form == "json":
            return json.dumps(self._asdict())
        text = console.shown(self.text)
        return f"{self.line:>8}  {self.nats:>10.3f}  {self.nats_per_character:>9.4f}  {text}"


class LineScores:
    """The lines of a text that is read in parts."""

    def __init__(self) -> None:
        self._number = 0
        # The parts of the line that has not ended yet.
        self._texts: list[str] = []
        self._nats = 0.0

    def add(self, text: str, nats: Float[np.ndarray, "N"]) -> Iterator[Line]:
        """Yield the lines that end in the next part of the text.

        Args:
          text: N characters.
          nats: the information of each in nats.
        """
        at = 0
        for part in re.findall(r"[^\n]*\n|[^\n]+", text):
            self._texts.append(part)
            self._nats += float(nats[at : at + len(part)].sum(dtype=np.float64))
            at += len(part)
            if part.endswith("\n"):
                yield self._ended()

    def finish(self) -> Iterator[Line]:
        """Yield the last line if it has no line break."""
        if self._texts:
            yield self._ended()

    def _ended(self) -> Line:
        text, nats = "".join(self._texts), self._nats
        self._number += 1
        self._texts, self._nats = [], 0.0
        shown = re.sub("[\ud800-\udfff]", "\ufffd", text.removesuffix("\n"))
        return Line(self._number, nats, nats / len(text), shown)


class LinePrinter:
    """The lines of a text on standard output.

    Args:
      form: a table, or JSON lines.
      is_sorted: print the lines at the end, in the order of their nats per character, the highest
        first. Otherwise each is printed as soon as it is scored.
    """

    def __init__(self, form: LineFormat, is_sorted: bool) -> None:
        self._form = form
        self._kept: list[Line] | None = [] if is_sorted else None
        self._scores = LineScores()
        if form == "table":
            print(HEADING)

    def add(self, text: str, nats: Float[np.ndarray, "N"]) -> None:
        """Take the next part of the text, as `LineScores.add` does."""
        self._take(self._scores.add(text, nats))

    def finish(self) -> None:
        """Print what is left."""
        self._take(self._scores.finish())
        for line in sorted(self._kept or [], key=lambda line: -line.nats_per_character):
            print(line.shown(self._form))
        if self._form == "table":
            print()

    def _take(self, lines: Iterator[Line]) -> None:
        if self._kept is not None:
            self._kept.extend(lines)
            return
        for line in lines:
            print(line.shown(self._form))
