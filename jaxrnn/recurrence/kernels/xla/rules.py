"""The derivatives of the cells' equations (`recurrence.cells`), in whichever layout the loop runs.

For each cell, of one step

    forward(layout, cell, weights, before, gx) -> after, gates
    backward(layout, cell, weights, w_t, before, after, gates, d_after) -> d_before, d_gx   w_t = w_h^T

and, of all steps at once,

    gradients(layout, cell, weights, hidden, before, after, gates, d_gx) -> d_weights

where `gates` is a tuple of the activated gates, with all the backward pass needs and no more, `hidden`
is the state before each step as [T, B, H], and before, after and gates are in the order of d_gx' axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.kernels.xla.layouts import Layout
from jaxrnn.shapes import Array


class Rules(NamedTuple):
    forward: Any
    backward: Any
    gradients: Any
    joint: bool  # whether all gates come from one product of state and input


# --- plain RNN ----------------------------------------------------------------------------------


def _rnn_forward(
    layout: Layout, cell: RNN, weights: Any, before: Any, gx: Array
) -> tuple[Any, tuple[Array, ...]]:
    hidden = equations.rnn(cell, gx + layout.times(before.hidden, weights.w_h))
    return before._replace(hidden=hidden), ()


def _rnn_backward(
    layout: Layout,
    cell: RNN,
    weights: Any,
    w_t: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_after: Any,
) -> tuple[Any, Array]:
    d_gx = d_after.hidden * equations.rnn_slope(cell, after.hidden)
    return before._replace(hidden=layout.times(d_gx, w_t)), d_gx


def _rnn_gradients(
    layout: Layout,
    cell: RNN,
    weights: Any,
    hidden: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_gx: Array,
) -> Any:
    return weights._replace(w_h=layout.outer(hidden, d_gx))


# --- LSTM ---------------------------------------------------------------------------------------


def _lstm_forward(
    layout: Layout, cell: LSTM, weights: Any, before: Any, gx: Array
) -> tuple[Any, tuple[Array, ...]]:
    gates = jnp.split(gx + layout.times(before.hidden, weights.w_h), 4, axis=layout.axis)
    now = equations.lstm(gates, before.cell, _peepholes(layout, weights))
    return before._replace(hidden=now.hidden, cell=now.cell), now.gates


def _peepholes(layout: Layout, weights: Any) -> equations.Peepholes:
    if weights.w_c is None:
        return None
    p_i, p_f, p_o = map(layout.vector, weights.w_c)
    return p_i, p_f, p_o


def _lstm_backward(
    layout: Layout,
    cell: LSTM,
    weights: Any,
    w_t: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_after: Any,
) -> tuple[Any, Array]:
    p = _peepholes(layout, weights)
    d_gates, d_c = equations.lstm_back(
        gates, before.cell, after.cell, d_after.hidden, d_after.cell, p
    )
    d_gx = layout.join(list(d_gates))
    return before._replace(hidden=layout.times(d_gx, w_t), cell=d_c), d_gx


def _lstm_gradients(
    layout: Layout,
    cell: LSTM,
    weights: Any,
    hidden: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_gx: Array,
) -> Any:
    d_w_c = None
    if weights.w_c is not None:
        d_ai, d_af, _, d_ao = jnp.split(d_gx.astype(after.cell.dtype), 4, axis=layout.axis)
        seen = (before.cell, d_ai), (before.cell, d_af), (after.cell, d_ao)
        d_w_c = jnp.stack([layout.total(c * d) for c, d in seen])
    return weights._replace(w_h=layout.outer(hidden, d_gx), w_c=d_w_c)


# --- GRU ----------------------------------------------------------------------------------------


def _halves(layout: Layout, x: Array, size: int) -> tuple[Array, Array]:
    """The gates z and r of x, side by side, and its candidate n."""
    zr = lax.slice_in_dim(x, 0, 2 * size, axis=layout.axis)
    return zr, lax.slice_in_dim(x, 2 * size, 3 * size, axis=layout.axis)


def _gru_forward(
    layout: Layout, cell: GRU, weights: Any, before: Any, gx: Array
) -> tuple[Any, tuple[Array, ...]]:
    h, times = before.hidden, layout.times
    gx_zr, gx_n = _halves(layout, gx, cell.hidden_size)
    if cell.reset == "after":
        recurrent_zr, recurrent_n = _halves(layout, times(h, weights.w_h), cell.hidden_size)
        z, r = jnp.split(jax.nn.sigmoid(gx_zr + recurrent_zr), 2, axis=layout.axis)
        q = recurrent_n + layout.vector(weights.b_h)
        n = jnp.tanh(gx_n + r * q)
        gates: tuple[Array, ...] = (z, r, n, q)
    else:
        w_zr, w_n = _halves(layout, weights.w_h, cell.hidden_size)
        z, r = jnp.split(jax.nn.sigmoid(gx_zr + times(h, w_zr)), 2, axis=layout.axis)
        n = jnp.tanh(gx_n + times(r * h, w_n))
        gates = (z, r, n)
    return before._replace(hidden=equations.gru(z, n, h)), gates


def _gru_backward(
    layout: Layout,
    cell: GRU,
    weights: Any,
    w_t: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_after: Any,
) -> tuple[Any, Array]:
    (z, r, n), h, d_h, times = gates[:3], before.hidden, d_after.hidden, layout.times
    d_az, d_an = equations.gru_back(z, n, h, d_h)
    if cell.reset == "after":
        d_ar = d_an * gates[3] * r * (1 - r)
        d_before = d_h * z + times(layout.join([d_az, d_ar, d_an * r]), w_t)
    else:
        inputs = -1 - layout.axis  # w_t's gates lie along its other axis
        size = cell.hidden_size
        d_rh = times(d_an, lax.slice_in_dim(w_t, 2 * size, 3 * size, axis=inputs))
        d_ar = d_rh * h * r * (1 - r)
        w_zr = lax.slice_in_dim(w_t, 0, 2 * size, axis=inputs)
        d_before = d_h * z + d_rh * r + times(layout.join([d_az, d_ar]), w_zr)
    return before._replace(hidden=d_before), layout.join([d_az, d_ar, d_an])


def _gru_gradients(
    layout: Layout,
    cell: GRU,
    weights: Any,
    hidden: Array,
    before: Any,
    after: Any,
    gates: tuple[Array, ...],
    d_gx: Array,
) -> Any:
    r, (d_zr, d_n) = gates[1], _halves(layout, d_gx, cell.hidden_size)
    if cell.reset == "after":
        d_q = d_n.astype(r.dtype) * r
        d_recurrent = layout.outer(hidden, d_q.astype(d_gx.dtype))
        d_b_h = layout.total(d_q)
    else:
        d_recurrent = layout.outer(layout.rows(r) * hidden, d_n)
        d_b_h = None
    d_w_h = jnp.concatenate([layout.outer(hidden, d_zr), d_recurrent], axis=1)
    return weights._replace(w_h=d_w_h, b_h=d_b_h)


RULES = {
    RNN: Rules(_rnn_forward, _rnn_backward, _rnn_gradients, joint=True),
    LSTM: Rules(_lstm_forward, _lstm_backward, _lstm_gradients, joint=True),
    GRU: Rules(_gru_forward, _gru_backward, _gru_gradients, joint=False),
}
