"""What every implementation of the recurrence is given beside the cell, its parameters and the state."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxrnn.cells import add, product, wide
from jaxrnn.shapes import Array, Bool, Float, Int


class Lookup(NamedTuple):
    """Projected inputs that are rows of a table, as those of tokens are.

    table: `cell.project` of every token.
    tokens: which row goes in, at each step of each row.
    """

    table: Float[Array, "V G"]
    tokens: Int[Array, "T B"]

    @property
    def shape(self) -> tuple[int, ...]:
        """[T, B, G], of the projected inputs."""
        return (*self.tokens.shape, self.table.shape[-1])

    @property
    def dtype(self) -> Any:
        return self.table.dtype

    def project(self) -> Float[Array, "T B G"]:
        """The projected inputs themselves."""
        return self.table[self.tokens]


class Dense(NamedTuple):
    """Projected inputs that are still to be computed, x W_x + b, at once or step by step."""

    xs: Float[Array, "T B D"]
    w_x: Float[Array, "D G"]
    b: Float[Array, "G"]

    @property
    def shape(self) -> tuple[int, ...]:
        """[T, B, G], of the projected inputs."""
        return (*self.xs.shape[:-1], self.w_x.shape[-1])

    @property
    def dtype(self) -> Any:
        """Of the projected inputs."""
        return wide(self.w_x.dtype)

    def project(self) -> Float[Array, "T B G"]:
        """The projected inputs themselves."""
        return add(product(self.xs, self.w_x), self.b)


Inputs = Array | Lookup | Dense


class Masks(NamedTuple):
    """Where a row starts afresh and where it stands still; None where no row ever does."""

    reset: Bool[Array, "T B"] | None
    active: Bool[Array, "T B"] | None
