"""Memory layouts of a step: the rows of the batch as rows, or as columns.

    Rows       state [B, H], gates [B, G]    h W         every platform
    Columns    state [H, B], gates [G, B]    W^T h       float32 on a CPU, large batches and widths
    Units      as Rows, for a part of the units; the others are on other devices of a mesh

Columns are faster on a CPU because its matrix product packs the right-hand operand at every call. In
h W that is the weights, again at every step; in W^T h it is the state, a few hundred rows of B numbers.
Gates are then also whole blocks of memory, and dW is a product of two arrays laid out for it.

The classes have the same members, all static, whose docstrings are in `Rows`. The loops take the class
itself as an argument.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.devices.mesh import MODEL
from jaxrnn.recurrence.linalg import add, product, wide
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup
from jaxrnn.shapes import Array, Float

# Number of tokens beyond which a gather or scatter costs less than one-hot rows.
ONE_HOT_LIMIT = 1024


class Rows:
    """Arrays [B, ...] at each step, [T, B, ...] over time."""

    # The axis of the features.
    axis = -1
    # The axis of time in the array of dgx.
    time = 0

    @staticmethod
    def transposed(w_h: Float[Array, "H G"]) -> Array:
        """Return W_h^T as `times` takes it, laid out once, so that not every step pays for it."""
        return lax.optimization_barrier(w_h.T)

    @staticmethod
    def times(x: Array, w: Array) -> Array:
        """Return the matrix product of a step's array and weights."""
        return product(x, w)

    @staticmethod
    def vector(v: Array) -> Array:
        """Return a vector with one number per feature, broadcastable to the states of a step."""
        return v[None, :].astype(wide(v.dtype))

    @staticmethod
    def per_row(mask: Array) -> Array:
        """Return a mask with one bool per row, broadcastable to the states of a step."""
        return mask[:, None]

    @staticmethod
    def join(parts: list[Array]) -> Array:
        """Return gates side by side."""
        return jnp.concatenate(parts, axis=-1)

    @staticmethod
    def turn(x: Array) -> Array:
        """Return a step's [B, H], or all steps' [T, B, H], converted to or from this layout."""
        return x

    @staticmethod
    def aligned(x: Array) -> Array:
        """Return all steps' states with the axes in the order of the array of dgx."""
        return x

    @staticmethod
    def rows(x: Array) -> Float[Array, "T B H"]:
        """Return an array with the axes of dgx as [T, B, H]."""
        return x

    @staticmethod
    def total(x: Array) -> Array:
        """Return the sum over all but the features, of an array with the axes of dgx."""
        return x.sum((0, 1))

    @staticmethod
    def outer(x: Float[Array, "T B K"], d_gx: Float[Array, "T B N"]) -> Float[Array, "K N"]:
        """Return the sum of x^T dgx over t and b: operands in dgx's dtype, sum in the wide dtype."""
        return lax.platform_dependent(
            x.astype(d_gx.dtype), d_gx, cpu=_outer_cpu, default=_outer_anywhere
        )

    @staticmethod
    def back(d_gx: Float[Array, "T B G"], w: Float[Array, "D G"]) -> Float[Array, "T B D"]:
        """Return dgx W^T for all steps."""
        return product(d_gx, lax.optimization_barrier(w.T))

    @staticmethod
    def sum_equal(lookup: Lookup, d_gx: Float[Array, "T B G"]) -> Float[Array, "V G"]:
        """Return dgx summed over equal tokens."""
        tokens, (size, _), dtype = lookup.tokens, lookup.table.shape, lookup.table.dtype
        if size > ONE_HOT_LIMIT:
            return jnp.zeros_like(lookup.table).at[tokens].add(d_gx.astype(dtype))
        one_hot = jnp.arange(size, dtype=tokens.dtype)[:, None, None] == tokens[None]
        return _contract(one_hot.astype(d_gx.dtype), d_gx, (1, 2), (0, 1)).astype(dtype)

    @staticmethod
    def prepare(weights: Any, inputs: Inputs, joint: bool) -> tuple[Any, Array, Any]:
        """Return the weights as `times` takes them, an array to loop over, and a step's projection.

        The projection is a function (before, part) -> (before, gx) of the state and the step's part of
        the array. Where the cell's gates are one `joint` product of state and input, it may return
        before.hidden with the input attached, and gx without it.
        """
        if isinstance(inputs, Lookup):
            return weights, inputs.tokens, lambda before, t: (before, inputs.table[t])
        if isinstance(inputs, Dense):
            w_x, b = inputs.w_x, inputs.b
            return weights, inputs.xs, lambda before, x: (before, add(product(x, w_x), b))
        return weights, inputs, lambda before, gx: (before, gx)


class Columns:
    """Arrays [..., B] at each step, [T, ..., B] over time; dgx is [G, T, B]."""

    axis = 0
    time = 1

    @staticmethod
    def transposed(w_h: Float[Array, "H G"]) -> Array:
        return w_h

    @staticmethod
    def times(x: Array, w: Array) -> Array:
        return jnp.matmul(w, x.astype(w.dtype), preferred_element_type=wide(w.dtype))

    @staticmethod
    def vector(v: Array) -> Array:
        return v[:, None].astype(wide(v.dtype))

    @staticmethod
    def per_row(mask: Array) -> Array:
        return mask[None, :]

    @staticmethod
    def join(parts: list[Array]) -> Array:
        """Return gates one below the other.

        They are written one by one: XLA's CPU backend is slow to concatenate what it computes.
        """
        height, batch = sum(part.shape[0] for part in parts), parts[0].shape[1]
        joined, at = jnp.zeros((height, batch), parts[0].dtype), 0
        for part in parts:
            joined = lax.dynamic_update_slice(joined, part, (at, 0))
            at += part.shape[0]
        return joined

    @staticmethod
    def turn(x: Array) -> Array:
        return x.swapaxes(-1, -2)

    @staticmethod
    def aligned(x: Float[Array, "T H B"]) -> Float[Array, "H T B"]:
        return x.swapaxes(0, 1)

    @staticmethod
    def rows(x: Float[Array, "H T B"]) -> Float[Array, "T B H"]:
        return x.transpose(1, 2, 0)

    @staticmethod
    def total(x: Float[Array, "N T B"]) -> Float[Array, "N"]:
        return x.sum((1, 2))

    @staticmethod
    def outer(x: Float[Array, "T B K"], d_gx: Float[Array, "N T B"]) -> Float[Array, "K N"]:
        found = _contract(d_gx, x.astype(d_gx.dtype), (1, 2), (0, 1))
        # Without the barrier XLA would transpose the operands instead.
        return lax.optimization_barrier(found).T

    @staticmethod
    def back(d_gx: Float[Array, "G T B"], w: Float[Array, "D G"]) -> Float[Array, "T B D"]:
        return _contract(w.astype(d_gx.dtype), d_gx, (1,), (0,)).transpose(1, 2, 0)

    @staticmethod
    def sum_equal(lookup: Lookup, d_gx: Float[Array, "G T B"]) -> Float[Array, "V G"]:
        size = lookup.table.shape[0]
        if size > ONE_HOT_LIMIT:
            return Rows.sum_equal(lookup, Columns.rows(d_gx))
        one_hot = jax.nn.one_hot(lookup.tokens, size, axis=0, dtype=d_gx.dtype)
        return _contract(one_hot, d_gx, (1, 2), (1, 2)).astype(lookup.table.dtype)

    @staticmethod
    def prepare(weights: Any, inputs: Inputs, joint: bool) -> tuple[Any, Array, Any]:
        if isinstance(inputs, Lookup) and inputs.table.shape[0] <= ONE_HOT_LIMIT:
            # A product with one-hot tokens; the table contains the bias.
            size, table = inputs.table.shape
            zeros = jnp.zeros(table, inputs.dtype)
            one_hot = jax.nn.one_hot(inputs.tokens, size, axis=1, dtype=inputs.dtype)
            return Columns._prepare_dense(weights, one_hot, inputs.table, zeros, joint)
        if isinstance(inputs, Dense):
            return Columns._prepare_dense(
                weights, Columns.turn(inputs.xs), inputs.w_x, inputs.b, joint
            )
        weights = weights._replace(w_h=lax.optimization_barrier(weights.w_h.T))
        if isinstance(inputs, Lookup):
            return weights, inputs.tokens, lambda before, t: (before, inputs.table[t].T)
        return weights, inputs, lambda before, gx: (before, gx.T)

    @staticmethod
    def _prepare_dense(
        weights: Any, xs: Float[Array, "T D B"], w_x: Array, b: Array, joint: bool
    ) -> tuple[Any, Array, Any]:
        b = Columns.vector(b)
        # Beside bfloat16 weights the state is wider than xs, and a table wider than w_h.
        if joint and {xs.dtype, w_x.dtype} == {wide(weights.w_h.dtype), weights.w_h.dtype}:
            both = jnp.concatenate([weights.w_h, w_x]).T
            weights = weights._replace(w_h=lax.optimization_barrier(both))

            def attach(before: Any, x: Array) -> tuple[Any, Array]:
                return before._replace(hidden=jnp.concatenate([before.hidden, x])), b

            return weights, xs, attach
        weights = weights._replace(w_h=lax.optimization_barrier(weights.w_h.T))
        w_x = lax.optimization_barrier(w_x.T)
        return weights, xs, lambda before, x: (before, Columns.times(x, w_x) + b)


class Units(Rows):
    """A part of the units, with their gates: [B, H / m] and [B, G / m] on each of m devices.

    A product with W_h first gathers the state, [B, H]. A product with W_h^T is a part of a sum, of
    which each device takes the units that it holds. Both run inside `jax.shard_map`, over its axis
    `model`. The inputs come projected, so `back` and `sum_equal` are never called.
    """

    @staticmethod
    def times(x: Array, w: Array) -> Array:
        if x.shape[-1] != w.shape[0]:
            return product(_gathered(x.astype(w.dtype)), w)
        last = x.ndim - 1
        return lax.psum_scatter(product(x, w), MODEL, scatter_dimension=last, tiled=True)

    @staticmethod
    def outer(x: Float[Array, "T B K"], d_gx: Float[Array, "T B N"]) -> Float[Array, "H N"]:
        return Rows.outer(_gathered(x.astype(d_gx.dtype)), d_gx)


def _gathered(x: Float[Array, "... K"]) -> Float[Array, "... H"]:
    return lax.all_gather(x, MODEL, axis=x.ndim - 1, tiled=True)


Layout = type[Rows] | type[Columns]


def _contract(x: Array, y: Array, of_x: tuple[int, ...], of_y: tuple[int, ...]) -> Array:
    """Return the product of two arrays of one dtype over some axes of each, summed in the wide dtype.

    Time and rows stay two axes. Flattened into one, the rows of an array that is divided over devices
    would lie scattered along it, and XLA would gather them first.
    """
    return lax.dot_general(x, y, ((of_x, of_y), ((), ())), preferred_element_type=wide(x.dtype))


def _outer_anywhere(x: Array, y: Array) -> Array:
    return _contract(x, y, (0, 1), (0, 1))


def _outer_cpu(x: Array, y: Array) -> Array:
    """Return the result of `_outer_anywhere`, with x^T laid out in memory first.

    XLA's CPU product is slow with a transposed left operand. bfloat16 is transposed in two steps, since
    one transpose of [T B, K] strides through memory: first each step's [B, K] in cache, then rows of B
    numbers.
    """
    if x.dtype == jnp.bfloat16:
        x = lax.optimization_barrier(x.swapaxes(1, 2))
        x = lax.optimization_barrier(x.swapaxes(0, 1))
    else:
        x = lax.optimization_barrier(x.transpose(2, 0, 1))
    return _contract(x, y, (1, 2), (0, 1))
