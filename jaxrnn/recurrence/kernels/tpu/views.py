"""The arrays of the TPU kernels, and how one tile of the hidden units is read and written in them.

A view stands for an array of one step and one block of rows, whose columns are those of one gate
after the other (of H alone, where there are no gates). `view[k]` is the tile's part of the k-th gate,
to read or to write (in the array's own dtype); `view.gate(k)`, where whole rows are there, is all of
the gate.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from jaxrnn.recurrence.cells import product
from jaxrnn.recurrence.kernels.tpu.tiles import LANES
from jaxrnn.shapes import Array


class Like(NamedTuple):
    """An array to come: [T, B, N] goes out step by step, [B, N] stays in place."""

    shape: tuple[int, ...]
    dtype: Any


class Arrays(NamedTuple):
    """What one kernel is given and makes, by the names in `tpu_cells`.

    by_step: inputs [T, B, N]; gates also as `tpu_stream.call` gives them.
    initial: inputs [B, H], of which the running state starts; outputs of the same names end with it.
    weights: w_h [H, G] or w_t [G, H], and vectors [., H].
    aliases: outputs that may overwrite an input, by the input's name.
    """

    by_step: dict[str, Any]
    initial: dict[str, Array]
    weights: dict[str, Array]
    outputs: dict[str, Like]
    scratch: dict[str, Like]
    aliases: dict[str, str]

    @property
    def matrix(self) -> Array:
        """w_h or w_t."""
        return next(w for name, w in self.weights.items() if name in ("w_h", "w_t"))

    @property
    def in_and_out(self) -> list[Any]:
        """All of them but the scratch."""
        by_step = jax.tree.leaves(self.by_step)
        groups = (self.initial, self.weights, self.outputs)
        return by_step + [x for group in groups for x in group.values()]

    @property
    def steps_and_rows(self) -> tuple[int, int]:
        """T, B."""
        steps, batch, _ = next(x.shape for x in self.outputs.values() if len(x.shape) == 3)
        return steps, batch


def names(views: dict[str, Any], marks: Any) -> SimpleNamespace:
    """`r` of the phases in `tpu_cells`: the views by name, None for what this kernel has not.

    marks: the reference to one step of them, [rows, 2], or None.
    """
    optional = dict.fromkeys(("gates", "previous_cell", "q", "fresh", "active"))
    r = SimpleNamespace(**optional | views)
    if marks is not None:
        r.fresh, r.active = marks[:, 0:1], marks[:, 1:2]
    return r


class Columns:
    """Tile j of an array that is whole in VMEM."""

    def __init__(self, ref: Any, hidden: int, width: int, j: Array) -> None:
        self.ref, self.hidden, self.width, self.j = ref, hidden, width, j

    def _tile(self, k: int) -> Any:
        start = k * self.hidden + self.j * self.width
        return pl.ds(pl.multiple_of(start, LANES), self.width)

    def _gate(self, k: int) -> Any:
        return slice(k * self.hidden, (k + 1) * self.hidden)

    def __getitem__(self, k: int) -> Array:
        return self.ref[:, self._tile(k)]

    def __setitem__(self, k: int, x: Array) -> None:
        self.ref[:, self._tile(k)] = x.astype(self.ref.dtype)

    def gate(self, k: int) -> Array:
        return self.ref[:, self._gate(k)]


class Transposed(Columns):
    """W_h^T [G, H], whole in VMEM: the gates are among its rows, the tile among its columns."""

    def __getitem__(self, k: int) -> Array:
        return self.ref[self._gate(k), self._tile(0)]

    def after(self, d_gx: Columns, gates: int) -> Array:
        """The first gates of dgx times theirs here: as one product, which takes fewer bundles."""
        rows = slice(0, gates * self.hidden)
        return product(d_gx.ref[:, rows], self.ref[rows, self._tile(0)])


class Streamed:
    """An array of which only the tile at hand is in VMEM, each gate by itself.

    tiles: the references, by gate.
    whole: a view on whole rows in VMEM that keeps what is written, for an array that is read again.
    """

    def __init__(self, tiles: dict[int, Any], whole: Columns | None = None) -> None:
        self.tiles, self.whole = tiles, whole

    def __getitem__(self, k: int) -> Array:
        return self.tiles[k][...]

    def __setitem__(self, k: int, x: Array) -> None:
        self.tiles[k][...] = x.astype(self.tiles[k].dtype)
        if self.whole is not None:
            self.whole[k] = x

    def gate(self, k: int) -> Array:
        assert self.whole is not None
        return self.whole.gate(k)

    def after(self, d_gx: Streamed, gates: int) -> Array:
        """The first gates of dgx times theirs here."""
        first, *others = (product(d_gx.gate(k), self[k]) for k in range(gates))
        return sum(others, first)
