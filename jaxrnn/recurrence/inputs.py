"""What every implementation of the recurrence is given beside the cell, its parameters and the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.cells import add, product, wide
from jaxrnn.shapes import Array, Bool, Float, Int, Integer


class Lookup(NamedTuple):
    """Projected inputs that are rows of a table, as those of tokens are.

    table: `cell.project` of every token.
    tokens: which row goes in, at each step of each row.
    """

    table: Float[Array, "V G"]
    tokens: Integer[Array, "T B"]

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

    def clipped(self) -> Lookup:
        """The same with tokens of int32 that are rows of the table, the nearest where they were not.

        Every implementation takes them so: those that are out of range would mean something else to
        JAX's indexing, to a product with one-hot rows and to C++.
        """
        return self._replace(tokens=clipped(self.tokens, self.table.shape[0] - 1))


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


def clipped(numbers: Integer[Array, "..."], most: int) -> Int[Array, "..."]:
    """Integers of any dtype as int32, those outside of 0 ... most as the nearest in it.

    In their own dtype `most` may not be a number: 300 is none of uint8.
    """
    if numbers.dtype.itemsize < 4:
        numbers = numbers.astype(jnp.int32)
    return jnp.clip(numbers, 0, most).astype(jnp.int32)


class Masks(NamedTuple):
    """Where a row starts afresh and where it stands still; None where no row ever does."""

    reset: Bool[Array, "T B"] | None
    active: Bool[Array, "T B"] | None


def choose_rows(rows: Bool[Array, "B"], yes: Any, no: Any) -> Any:
    """Return a state whose rows come from `yes` where `rows` is True and from `no` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(rows[:, None], a, b), yes, no)


def vary(tree: Any) -> Any:
    """Inside `shard_map`, every array varies over the axes that any of them varies over.

    A kernel's arrays must; the gradient of one that was alike everywhere is then summed by itself.
    """
    return _vary_over(_axes(tree), tree)


def vary_like(tree: Any, others: Any) -> Any:
    """A kernel's results, for which JAX does not see by itself over what they vary."""
    return _vary_over(_axes(others), tree)


def _axes(tree: Any) -> frozenset[Any]:
    axes = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)]
    return frozenset().union(*axes)


def _vary_over(axes: frozenset[Any], tree: Any) -> Any:
    def cast(x: Array) -> Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
