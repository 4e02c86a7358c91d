"""The parameters and states of the cells, and the check that parameters belong to a cell."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.shapes import Array, Float


class RNNParams(NamedTuple):
    """Parameters of a plain RNN: input weights, recurrent weights, bias."""

    w_x: Float[Array, "D H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, "H"]


class RNNState(NamedTuple):
    """State of a plain RNN."""

    hidden: Float[Array, "B H"]


class LSTMParams(NamedTuple):
    """Parameters of an LSTM, with the columns of the gates in the order i, f, g, o.

    w_c holds the peepholes of the gates i, f and o, in this order; None without peepholes.
    """

    w_x: Float[Array, "D 4*H"]
    w_h: Float[Array, "H 4*H"]
    b: Float[Array, 4 * H]
    w_c: Float[Array, "3 H"] | None = None


class LSTMState(NamedTuple):
    """State of an LSTM: h and c."""

    hidden: Float[Array, "B H"]
    cell: Float[Array, "B H"]


class GRUParams(NamedTuple):
    """Parameters of a GRU, with the columns of the gates in the order z, r, n.

    b_h is the recurrent bias of the candidate n; only with reset="after", otherwise None.
    """

    w_x: Float[Array, "D 3*H"]
    w_h: Float[Array, "H 3*H"]
    b: Float[Array, 3 * H]
    b_h: Float[Array, "H"] | None = None


class GRUState(NamedTuple):
    """State of a GRU."""

    hidden: Float[Array, "B H"]


def by_value(cell: Any) -> bool:
    """Return whether a cell is hashable and compares by value, so that results can be cached for it."""
    try:
        hash(cell)
    except TypeError:
        return False
    return type(cell).__eq__ is not object.__eq__


def check_params(cell: Any, params: Any, *, builtin: bool, projected: bool = False) -> None:
    """Raise ValueError where parameters are not as `cell.init` makes them.

    They must agree in structure, in the shape and dtype of each array, and in which are None. The check
    is left out for a cell without an `init` or with one that JAX cannot evaluate abstractly, and for
    parameters without a w_x [D, ...], from which the number of inputs is known.

    Args:
      cell: the cell.
      params: its parameters.
      builtin: whether the cell is one of this library's, whose `init` can be evaluated abstractly.
      projected: whether the inputs are projected already; then w_x and b may be None.

    Raises:
      ValueError: where they do not agree; the message names what is expected and what was given.
    """
    w_x: Any = getattr(params, "w_x", None)
    # The dtype of the parameters: that of w_h, or of w_x in a cell without recurrent weights.
    w_h: Any = getattr(params, "w_h", w_x)
    known = getattr(w_x, "ndim", 0) == 2
    if not known and not builtin:
        return
    size = w_x.shape[0] if known else 1
    make = _cached_shapes if by_value(cell) else _shapes
    dtype = jnp.dtype(getattr(w_h, "dtype", jnp.float32))
    expected = make(cell, max(size, 1), dtype, _x64(), builtin)
    if expected is None:
        return
    if not size:
        # No init draws weights for inputs without a feature, yet such inputs have a projection: b.
        expected = expected._replace(
            w_x=jax.ShapeDtypeStruct((0, *expected.w_x.shape[1:]), w_x.dtype)
        )
    if projected and builtin:
        unused = {name: None for name in ("w_x", "b") if getattr(params, name, 0) is None}
        expected = expected._replace(**unused)
    want, structure = jax.tree.flatten_with_path(expected, is_leaf=_is_none)
    got, found = jax.tree.flatten(params, is_leaf=_is_none)
    if found != structure:  # type: ignore[operator]
        raise ValueError(
            f"params must be {type(expected).__name__}, as the init of {cell} makes them, not "
            f"{type(params).__name__}"
            + ("" if type(params) is not type(expected) else " of another structure")
        )
    for (path, like), leaf in zip(want, got, strict=True):
        if _described(leaf) != _described(like) and not _same_but_cast(leaf, like, w_h):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be {_described(like)}, as the init of {cell} "
                f"makes it, not {_described(leaf)}"
            )


def _shapes(cell: Any, input_size: int, dtype: Any, x64: bool, builtin: bool) -> Any:
    """Return the shapes and dtypes of the parameters of `cell.init`, or None if it cannot be traced."""
    try:
        return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, dtype))
    except Exception:
        # A user's own init may need numbers, or raise anything.
        if builtin:
            raise
        return None


_cached_shapes = lru_cache(maxsize=1024)(_shapes)


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(float) == np.float64


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _described(leaf: Any) -> str:
    if leaf is None:
        return "None"
    dtype = getattr(leaf, "dtype", None)
    return f"{type(leaf).__name__}" if dtype is None else f"{dtype} of shape {jnp.shape(leaf)}"


def _same_but_cast(leaf: Any, like: Any, w_h: Any) -> bool:
    """Return whether only the dtype differs and equals w_h's. A user's init may support float32 only."""
    return (
        leaf is not None
        and like is not None
        and jnp.shape(leaf) == like.shape
        and getattr(leaf, "dtype", None) == getattr(w_h, "dtype", None)
    )
