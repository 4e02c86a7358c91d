"""Views through which a step of a TPU kernel reads and writes one tile of the hidden units.

A view stands for an array of one step and one block of rows. Its columns are those of one gate after
the other, or the H columns of an array without gates, which counts as one gate. All views are on VMEM:
either whole rows of the array are there, or only the tile that is being computed.
"""

from __future__ import annotations

import abc
from typing import Any

from jax.experimental import pallas as pl

from jaxrnn.recurrence.kernels.tpu.tiles import LANES
from jaxrnn.recurrence.linalg import product
from jaxrnn.shapes import Array


class View(abc.ABC):
    """A view on one tile of the hidden units."""

    @abc.abstractmethod
    def __getitem__(self, k: int) -> Array:
        """Return the tile of the k-th gate."""

    @abc.abstractmethod
    def __setitem__(self, k: int, x: Array) -> None:
        """Write the tile of the k-th gate, in the array's dtype."""

    @abc.abstractmethod
    def gate(self, k: int) -> Array:
        """Return the k-th gate in whole rows."""

    @abc.abstractmethod
    def first_gates(self, count: int) -> Array:
        """Return the first gates, side by side, in whole rows."""

    def back(self, d_gx: View, count: int) -> Array:
        """Return the first `count` gates of d_gx times those of W_h^T, on which this is a view."""
        first, *others = (product(d_gx.gate(k), self[k]) for k in range(count))
        return sum(others, first)


class WholeInVmem(View):
    """A view on an array whose whole rows are in VMEM.

    Args:
      ref: reference to the array [rows, gates * size].
      size: number of hidden units H.
      width: number of units in a tile.
      j: number of the tile.
    """

    def __init__(self, ref: Any, size: int, width: int, j: Array) -> None:
        self.ref = ref
        self.size = size
        self.width = width
        self.j = j

    def _tile(self, k: int) -> Any:
        start = k * self.size + self.j * self.width
        return pl.ds(pl.multiple_of(start, LANES), self.width)

    def _gate(self, k: int) -> slice:
        return slice(k * self.size, (k + 1) * self.size)

    def __getitem__(self, k: int) -> Array:
        """See `View`."""
        return self.ref[:, self._tile(k)]

    def __setitem__(self, k: int, x: Array) -> None:
        """See `View`."""
        self.ref[:, self._tile(k)] = x.astype(self.ref.dtype)

    def gate(self, k: int) -> Array:
        """See `View`."""
        return self.ref[:, self._gate(k)]

    def first_gates(self, count: int) -> Array:
        """See `View`."""
        return self.ref[:, : count * self.size]


class TransposedInVmem(WholeInVmem):
    """A view on W_h^T [G, H], all of it in VMEM: gates are among its rows, tiles among its columns."""

    def __getitem__(self, k: int) -> Array:
        """See `View`."""
        return self.ref[self._gate(k), self._tile(0)]

    def back(self, d_gx: View, count: int) -> Array:
        """See `View`."""
        # One product takes fewer bundles than one for each gate.
        return product(d_gx.first_gates(count), self.ref[: count * self.size, self._tile(0)])


class TileInVmem(View):
    """A view on an array of which only the tile that is being computed is in VMEM.

    Args:
      refs: references to the tile of each gate, by the gate's number.
      whole: a view on whole rows in VMEM that get a copy of what is written, for an array that a later
        sweep reads; None for other arrays.
    """

    def __init__(self, refs: dict[int, Any], whole: WholeInVmem | None) -> None:
        self.refs = refs
        self.whole = whole

    def __getitem__(self, k: int) -> Array:
        """See `View`."""
        return self.refs[k][...]

    def __setitem__(self, k: int, x: Array) -> None:
        """See `View`."""
        self.refs[k][...] = x.astype(self.refs[k].dtype)
        if self.whole is not None:
            self.whole[k] = x

    def _whole(self) -> WholeInVmem:
        if self.whole is None:
            raise TypeError("whole rows of this array are not in VMEM")
        return self.whole

    def gate(self, k: int) -> Array:
        """See `View`."""
        return self._whole().gate(k)

    def first_gates(self, count: int) -> Array:
        """See `View`."""
        return self._whole().first_gates(count)


class Views:
    """The views of a phase, by the names in `kernels.tpu.steps`, as attributes.

    `name in views` says whether the kernel has such an array.

    Attributes:
      reset: [rows, 1] float32, not zero in rows that are reset at this step; None without masks.
      active: [rows, 1] float32, zero in rows that this step leaves as they are; None without masks.
    """

    def __init__(self, views: dict[str, View], masks_vmem: Any) -> None:
        """Name the views; masks_vmem is a reference to the masks of the step, [rows, 2], or None."""
        self._views = views
        self.reset: Array | None = None
        self.active: Array | None = None
        if masks_vmem is not None:
            self.reset = masks_vmem[:, 0:1]
            self.active = masks_vmem[:, 1:2]

    def __contains__(self, name: str) -> bool:
        """Return whether the kernel has an array of this name."""
        return name in self._views

    def __getattr__(self, name: str) -> View:
        """Return a view by its name."""
        try:
            return self._views[name]
        except KeyError:
            raise AttributeError(f"this kernel has no array {name!r}") from None
