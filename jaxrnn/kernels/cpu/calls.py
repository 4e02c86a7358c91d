"""The C++ of this folder as JAX functions of float32 arrays; one that is not there has no elements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import GRU, LSTM
from jaxrnn.kernels.inputs import Dense, Inputs, Lookup, Masks, vary_like
from jaxrnn.shapes import Array, Float, Int

NONE = (0,)  # the shape of an array that is not there


class Kept(NamedTuple):
    """What the backward pass needs of every step.

    entered: the hidden state before it.
    gates: the activated gates; of a plain network, the output.
    extra: the cell before it of an LSTM, r * h of a reset-before GRU, h W_hn + b_h of a reset-after one.
    """

    entered: Float[Array, "T B H"]
    gates: Float[Array, "T B G"]
    extra: Float[Array, "T B H"] | Float[Array, "0"]


def forward(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks, keep: bool
) -> tuple[Any, Float[Array, "T B H"], Kept]:
    """The state after the last step taken, the outputs, and with `keep` what the way back needs."""
    steps, batch, _ = inputs.shape
    every, last = (steps, batch, cell.hidden), (batch, cell.hidden)
    gated = isinstance(cell, LSTM | GRU)
    results = {
        "ys": every,
        "hidden": last,
        "cell": last if isinstance(cell, LSTM) else NONE,
        "entered": every if keep else NONE,
        "gates": inputs.shape if keep else NONE,
        "extra": every if keep and gated else NONE,
    }
    xs: Any = inputs
    tokens = w_x = b = None
    if isinstance(inputs, Lookup):
        xs, tokens, w_x = None, inputs.tokens.astype(jnp.int32), inputs.table
    elif isinstance(inputs, Dense):
        xs, w_x, b = inputs
    ys, hidden, c, *kept = _call(
        "jaxrnn_forward",
        results.values(),
        *(_there(xs), _there(tokens, jnp.int32), _there(w_x), _there(b)),
        *(weights.w_h, _vectors(weights), *_state(state), *_marks(masks)),
        kind=_kind(cell),
        reverse=reverse,
    )
    return _like(state, hidden, c), ys, Kept(*kept)


def backward(
    cell: Any,
    reverse: bool,
    weights: Any,
    masks: Masks,
    kept: Kept,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Float[Array, "T B G"], Array, Any]:
    """Of the gates' inputs, of a reset-after GRU's q = h W_hn + b_h [T, B, H], of the first state."""
    steps, batch, size = every = d_ys.shape
    results = {
        "d_gx": (steps, batch, weights.w_h.shape[1]),
        "d_q": every if isinstance(cell, GRU) and cell.reset == "after" else NONE,
        "d_hidden": (batch, size),
        "d_cell": (batch, size) if isinstance(cell, LSTM) else NONE,
    }
    d_gx, d_q, hidden, c = _call(
        "jaxrnn_backward",
        results.values(),
        *(weights.w_h, _vectors(weights), *kept, d_ys),
        *(*_state(d_final), *_marks(masks)),
        aliases={3: 0},  # d_gx over the gates, where nobody else wants them
        kind=_kind(cell),
        reverse=reverse,
    )
    return d_gx, d_q, _like(d_final, hidden, c)


def outer(
    x: Float[Array, "T B K"], d: Float[Array, "T B G"], columns: slice = slice(None)
) -> tuple[Float[Array, "K N"], Float[Array, "N"]]:
    """The sum of x d^T over all rows, and that of d, for some N columns of d."""
    first, end, _ = columns.indices(d.shape[-1])
    shapes = [(x.shape[-1], end - first), (end - first,)]
    found, total = _call("jaxrnn_outer", shapes, _flat(x), _flat(d), first=np.int64(first))
    return found, total


def back(d: Float[Array, "T B G"], w: Float[Array, "D G"]) -> Float[Array, "T B D"]:
    """d W^T for all rows."""
    flat = _flat(d)
    (found,) = _call("jaxrnn_back", [(flat.shape[0], w.shape[0])], flat, w)
    return found.reshape(*d.shape[:2], -1)


def sum_equal(tokens: Int[Array, "T B"], d: Float[Array, "T B G"], size: int) -> Array:
    """d summed over equal tokens, [size, G]."""
    (found,) = _call(
        "jaxrnn_sum_equal", [(size, d.shape[-1])], tokens.astype(jnp.int32).reshape(-1), _flat(d)
    )
    return found


def _call(
    name: str,
    shapes: Iterable[tuple[int, ...]],
    *arguments: Array,
    aliases: dict[int, int] | None = None,
    **attributes: Any,
) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential", input_output_aliases=aliases)
    return vary_like(call(*arguments, **attributes), arguments)


def _kind(cell: Any) -> np.int64:
    """The cell's number, as recurrence.h counts them."""
    if isinstance(cell, LSTM):
        return np.int64(3)
    if isinstance(cell, GRU):
        return np.int64(4 + ("before", "after").index(cell.reset))
    return np.int64(("tanh", "relu", "sigmoid").index(cell.activation))


def _there(x: Any, dtype: Any = jnp.float32) -> Array:
    return jnp.zeros(NONE, dtype) if x is None else x


def _vectors(weights: Any) -> Array:
    """Peepholes [3, H] of an LSTM, b_h [H] of a GRU, where there are any."""
    return _there(getattr(weights, "w_c", getattr(weights, "b_h", None)))


def _state(state: Any) -> tuple[Array, Array]:
    return state.hidden, _there(getattr(state, "cell", None))


def _marks(masks: Masks) -> tuple[Array, Array]:
    return _there(masks.reset, jnp.bool_), _there(masks.active, jnp.bool_)


def _like(state: Any, hidden: Array, c: Array) -> Any:
    return state._replace(hidden=hidden, **({"cell": c} if hasattr(state, "cell") else {}))


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
