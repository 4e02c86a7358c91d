"""A cell over time on a CPU, in C++: every core takes its rows of the batch through all of time by itself.

XLA's loop multiplies small matrices on one core, writes every intermediate of a step to memory, and
packs the weights anew at each step. Here they are packed once a call, gates are applied to a product while
it is in the first cache, and cores do not wait for each other; with too few rows for all of them they
share out the units instead, and meet after each step. The C++ (recurrence.cc, by way of XLA's foreign
function interface and on XLA's threads) is compiled on the machine that runs it, once (`build`).

Residuals are those of `kernels.xla`: the state that entered each step and the activated gates. The way
back runs the recurrent chain alone,

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

and dW_h, dW_x, db and dx are the large products of `kernels.xla`. Second derivatives are those of
`kernels.xla` too: it computes the gradients anew for them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import GRU, LSTM, RNN
from jaxrnn.kernels import xla
from jaxrnn.kernels.cpu import build
from jaxrnn.kernels.inputs import Dense, Inputs, Lookup, Masks
from jaxrnn.shapes import Array, Float

KEPT = {RNN: 1, LSTM: 5}  # arrays [B, H] of a step that the backward pass needs; GRUs 3 or 4


def obstacle(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why this cannot run such a problem; None where it can."""
    reason = xla.obstacle(cell, batch, dtype)
    if reason:
        return reason
    if jnp.dtype(dtype) != jnp.float32:
        return f"its C++ multiplies float32 alone, not {jnp.dtype(dtype)}; use 'xla'"
    return build.why_not()


def run(
    cell: Any, params: Any, inputs: Inputs, state: Any, masks: Masks, reverse: bool
) -> tuple[Any, Float[Array, "T B H"]]:
    """As `kernels.xla.run`."""
    steps, batch, _ = inputs.shape
    if not steps:
        return state, jnp.zeros((0, batch, cell.hidden), inputs.dtype)
    return _run(cell, reverse, params._replace(w_x=None, b=None), inputs, state, masks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array]:
    final, ys, *_ = _forward_call(cell, reverse, weights, inputs, state, masks, keep=False)
    return final, ys


def _forward(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    final, ys, *saved = _forward_call(cell, reverse, weights, inputs, state, masks, keep=True)
    return (final, ys), ((weights, inputs, state, masks), saved)


def _backward(
    cell: Any, reverse: bool, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, ...]:
    given, (entered, kept) = saved
    return (*_gradients(cell, reverse, given, cotangents, entered, kept), Masks(None, None))


_run.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    cell: Any, reverse: bool, given: Any, cotangents: Any, entered: Array, kept: Array
) -> tuple[Any, Any, Any]:
    """Of weights, inputs and state, from what the forward pass kept."""
    weights, inputs, _, masks = given
    d_final, d_ys = cotangents
    d_gx, d_state = _backward_call(cell, reverse, weights, masks, entered, kept, d_final, d_ys)
    previous = states = d_state._replace(hidden=entered)
    gates = tuple(kept[:, :, n] for n in range(kept.shape[2]))
    if isinstance(cell, LSTM):
        *gates, before = gates
        i, f, g, _ = gates
        previous, states = previous._replace(cell=before), states._replace(cell=f * before + i * g)
    d_weights = xla.weight_gradients(cell, weights, previous, states, gates, d_gx)
    return d_weights, xla.input_gradients(inputs, d_gx), d_state


def _gradients_forward(cell: Any, reverse: bool, given: Any, cotangents: Any, *kept: Array) -> Any:
    return _gradients(cell, reverse, given, cotangents, *kept), (given, cotangents)


def _gradients_backward(cell: Any, reverse: bool, saved: Any, cotangents: Any) -> Any:
    """What was kept depends on what was given: all of the derivative goes that way, through XLA."""
    (weights, inputs, state, masks), outer = saved

    def gradients(weights: Any, inputs: Inputs, state: Any, outer: Any) -> Any:
        def forward(weights: Any, inputs: Inputs, state: Any) -> Any:
            return xla.run(cell, weights, inputs, state, masks, reverse)

        return jax.vjp(forward, weights, inputs, state)[1](outer)

    _, transpose = jax.vjp(gradients, weights, inputs, state, outer)
    d_weights, d_inputs, d_state, d_outer = transpose(cotangents)
    return (d_weights, d_inputs, d_state, Masks(None, None)), d_outer, None, None


_gradients.defvjp(_gradients_forward, _gradients_backward)


# --- the two calls ------------------------------------------------------------------------------


def _forward_call(
    cell: Any,
    reverse: bool,
    weights: Any,
    inputs: Inputs,
    state: Any,
    masks: Masks,
    keep: bool,
) -> tuple[Any, Array, Array, Array]:
    """(final state, ys [T, B, H], h before each step [T, B, H], the gates [T, B, kept, H])."""
    steps, batch, _ = inputs.shape
    size = cell.hidden
    xs, tokens, w_x, b = inputs, None, None, None
    if isinstance(inputs, Lookup):
        xs, tokens, w_x = None, inputs.tokens.astype(jnp.int32), inputs.table
    elif isinstance(inputs, Dense):
        xs, w_x, b = inputs
    count = KEPT.get(type(cell)) or (4 if cell.reset == "after" else 3)
    results = {
        "ys": (steps, batch, size),
        "hidden": (batch, size),
        "cell": (batch, size) if isinstance(cell, LSTM) else (0,),
        "entered": (steps, batch, size) if keep else (0,),
        "kept": (steps, batch, count, size) if keep else (0,),
    }
    ys, hidden, c, entered, kept = _call(
        "jaxrnn_forward",
        results,
        *(_given(xs), _given(tokens, jnp.int32), _given(w_x), _given(b)),
        *(weights.w_h, _vectors(weights), state.hidden, _given(getattr(state, "cell", None))),
        *_marks(masks),
        kind=_kind(cell),
        reverse=reverse,
    )
    return _state(state, hidden, c), ys, entered, kept


def _backward_call(
    cell: Any,
    reverse: bool,
    weights: Any,
    masks: Masks,
    entered: Array,
    kept: Array,
    d_final: Any,
    d_ys: Array,
) -> tuple[Array, Any]:
    """(dgx [T, B, G], the gradient of the state before the first step)."""
    steps, batch, size = d_ys.shape
    results = {
        "d_gx": (steps, batch, weights.w_h.shape[1]),
        "d_hidden": (batch, size),
        "d_cell": (batch, size) if isinstance(cell, LSTM) else (0,),
    }
    d_gx, d_hidden, d_cell = _call(
        "jaxrnn_backward",
        results,
        *(weights.w_h, _vectors(weights), entered, kept, d_ys),
        *(d_final.hidden, _given(getattr(d_final, "cell", None))),
        *_marks(masks),
        kind=_kind(cell),
        reverse=reverse,
    )
    return d_gx, _state(d_final, d_hidden, d_cell)


def _call(name: str, results: dict[str, tuple[int, ...]], *arguments: Array, **attributes: Any) -> Any:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results.values()]
    call = jax.ffi.ffi_call(name, shapes, vmap_method="sequential")
    return call(*arguments, **attributes)


def _kind(cell: Any) -> Any:
    """The cell's number in recurrence.h."""
    if isinstance(cell, LSTM):
        return np.int64(3)
    if isinstance(cell, GRU):
        return np.int64(4 + ("before", "after").index(cell.reset))
    return np.int64(("tanh", "relu", "sigmoid").index(cell.activation))


def _given(x: Array | None, dtype: Any = jnp.float32) -> Array:
    """An array without elements for one that is not there."""
    return jnp.zeros((0,), dtype) if x is None else x


def _vectors(weights: Any) -> Array:
    """Peepholes [3, H] of an LSTM, b_h [H] of a GRU, where there are any."""
    return _given(getattr(weights, "w_c" if hasattr(weights, "w_c") else "b_h", None))


def _marks(masks: Masks) -> tuple[Array, Array]:
    return _given(masks.reset, jnp.bool_), _given(masks.active, jnp.bool_)


def _state(like: Any, hidden: Array, c: Array) -> Any:
    return like._replace(hidden=hidden, **({"cell": c} if hasattr(like, "cell") else {}))
