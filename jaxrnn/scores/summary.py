"""The summary of an evaluation: the model beside general compressors, in a table."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrnn import console
from jaxrnn.scores.pieces import Piece
from jaxrnn.shapes import Float

# Names of the rows of the model.
STATIC, DYNAMIC = "model", "model, dynamic"


@dataclasses.dataclass
class Summary:
    """The figures of an evaluation, added up piece by piece.

    Attributes:
      name: the name of the text.
      characters: their number.
      tokens: number of tokens.
      size: the size of the text in bytes.
      left_out: number of characters that the model has never seen, which were left out.
      nats: the information of the text in nats, by the name of the row.
      sizes: the compressed sizes in bytes, by the name of the row.
    """

    name: str
    characters: int = 0
    tokens: int = 0
    size: int = 0
    left_out: int = 0
    nats: dict[str, float] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        """Count the next piece of the text."""
        self.characters += len(piece.text)
        self.tokens += len(piece.tokens)
        self.size += len(piece.raw)
        self.left_out += piece.left_out

    def add_nats(self, row: str, nats: Float[np.ndarray, "N"]) -> None:
        """Add the information of some tokens to a row."""
        self.nats[row] = self.nats.get(row, 0.0) + float(nats.sum(dtype=np.float64))

    def print(self, to_stderr: bool = False) -> None:
        """Print the length of the text, what was left out of it, and the table.

        Raises:
          OSError: if standard output fails. rich itself would end the process.
        """
        to = Console(stderr=to_stderr)
        with to.capture() as shown:
            self._show(to)
        if to_stderr:
            console.message(shown.get().rstrip("\n"))
        else:
            console.write(shown.get())

    def _show(self, to: Console) -> None:
        unknown = "the model knows all of them"
        if self.left_out:
            unknown = f"{self.left_out:,} more that the model has never seen are left out"
        line = f"{self.name}: {self.characters:,} characters, {self.size:,} bytes; {unknown}"
        to.print(console.shown(line), markup=False, highlight=False, soft_wrap=True)
        if self.tokens != self.characters and self.characters:
            per_token = self.nats[STATIC] / self.tokens
            to.print(f"{self.tokens:,} tokens, {per_token:.4f} nats per token", highlight=False)
        to.print(self._table())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        table.add_column("")
        for heading in ("nats/char", "bits/char", "bits/byte", "bytes"):
            table.add_column(heading, justify="right")
        for name, nats in self.nats.items():
            table.add_row(name, *self._figures(nats / math.log(2)))
        for name, size in self.sizes.items():
            table.add_row(name, *self._figures(8.0 * size))
        return table

    def _figures(self, bits: float) -> list[str]:
        return [
            f"{bits * math.log(2) / self.characters:.4f}",
            f"{bits / self.characters:.4f}",
            f"{bits / self.size:.4f}",
            f"{math.ceil(bits / 8):,}",
        ]
