"""One step of each cell inside the TPU kernels of `jaxrnn.kernels.tpu`, forward and backward.

A step is a few phases, and a phase is a function of one tile of the hidden units, run for every tile
before the next phase begins: so a phase may read whole rows that the phase before it wrote, and only
its own tile of what it writes. `here(k)` are the tile's columns in the k-th gate, `here(0)` those in
arrays of H columns. `r` names the references, each [rows, columns] of one step and one block of rows:

    gx [G]                   the projected inputs                           forward
    gates [G]                the activated gates, None where not kept       forward out, backward in
    ys, hidden, cell         the output; the running state                  forward out
    previous_hidden, _cell   the state that entered the step                forward out, backward in
    rh, z, q                 GRU only: r * h, z and h W_hn + b_h
    d_ys, d_hidden, d_cell   cotangents of the output; of the running state backward in; out
    d_gx [G], d_q            cotangents of the gates' inputs; of q          backward out
    w_h [H, G], w_t [G, H]   the recurrent weights and their transpose, with w_c [3, H] and b_h [1, H]
    fresh, active            [rows, 1] numbers, None where all rows are alike: not zero where a row
                             starts from zeros; where it moves at all

The equations are those in the docstrings of `jaxrnn.cells`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells import ACTIVATIONS, GRU, LSTM, RNN, product
from jaxrnn.shapes import Array

Here = Callable[[int], Any]
Phase = Callable[[Any, Any, Here], None]  # (cell, r, here)


class Phases(NamedTuple):
    forward: tuple[Phase, ...]
    backward: tuple[Phase, ...]


def phases(cell: Any) -> Phases:
    """What one step of this cell does, in order."""
    if isinstance(cell, RNN):
        return Phases((_enter, _rnn), (_arrive, _rnn_back, _pass_on))
    if isinstance(cell, LSTM):
        return Phases((_enter, _lstm), (_arrive, _lstm_back, _pass_on))
    if cell.reset == "after":
        return Phases((_enter, _gru_after), (_arrive, _gru_after_back, _gru_pass_on))
    return Phases(
        (_enter, _gru_gates, _gru_candidate),
        (_arrive, _gru_candidate_back, _gru_gates_back, _gru_pass_on),
    )


def slope(cell: RNN, h: Array) -> Array:
    """The activation's derivative, from its value."""
    return {"tanh": 1 - h * h, "relu": jnp.where(h > 0, 1.0, 0.0), "sigmoid": h * (1 - h)}[
        cell.activation
    ]


# --- what the cells share -----------------------------------------------------------------------


def _enter(cell: Any, r: Any, here: Here) -> None:
    """The state that enters the step, zeros where a row starts afresh; what the products take."""
    hidden = _unless(r.fresh, r.hidden[:, here(0)])
    r.hidden[:, here(0)] = hidden
    r.previous_hidden[:, here(0)] = hidden.astype(r.previous_hidden.dtype)
    if isinstance(cell, LSTM):
        r.cell[:, here(0)] = state = _unless(r.fresh, r.cell[:, here(0)])
        if r.previous_cell is not None:
            r.previous_cell[:, here(0)] = state


def _leave(r: Any, here: Here, hidden: Array, gates: tuple[Array, ...]) -> None:
    """The output and the new hidden state of the rows that move; what the backward pass needs."""
    if r.gates is not None:
        for k, gate in enumerate(gates):
            r.gates[:, here(k)] = gate
    r.ys[:, here(0)] = _where(r.active, hidden, jnp.zeros_like(hidden))
    r.hidden[:, here(0)] = _where(r.active, hidden, r.hidden[:, here(0)])


def _arrive(cell: Any, r: Any, here: Here) -> None:
    """The output's cotangent joins the hidden state's."""
    d_y = r.d_ys[:, here(0)]
    r.d_hidden[:, here(0)] += _where(r.active, d_y, jnp.zeros_like(d_y))


def _put_d_gx(r: Any, here: Here, gates: dict[int, Array]) -> None:
    for k, d_gate in gates.items():
        d_gate = _where(r.active, d_gate, jnp.zeros_like(d_gate))
        r.d_gx[:, here(k)] = d_gate.astype(r.d_gx.dtype)


def _pass_on(cell: Any, r: Any, here: Here) -> None:
    """dh^{t-1} = dgx W_h^T for the rows that move, as it was for the others (their dgx is zero)."""
    through = product(r.d_gx[...], r.w_t[:, here(0)])
    r.d_hidden[:, here(0)] = _unless(r.fresh, r.d_hidden[:, here(0)] + through)


def _where(rows: Array | None, yes: Array, no: Array) -> Array:
    return yes if rows is None else jnp.where(jnp.broadcast_to(rows, yes.shape) != 0, yes, no)


def _unless(rows: Array | None, x: Array) -> Array:
    return x if rows is None else _where(rows, jnp.zeros_like(x), x)


def _recurrent(r: Any, here: Here, k: int) -> Array:
    return product(r.previous_hidden[...], r.w_h[:, here(k)])


# --- plain RNN ----------------------------------------------------------------------------------


def _rnn(cell: RNN, r: Any, here: Here) -> None:
    hidden = ACTIVATIONS[cell.activation](r.gx[:, here(0)] + _recurrent(r, here, 0))
    _leave(r, here, hidden, (hidden,))


def _rnn_back(cell: RNN, r: Any, here: Here) -> None:
    d_hidden = r.d_hidden[:, here(0)]
    _put_d_gx(r, here, {0: d_hidden * slope(cell, r.gates[:, here(0)])})
    r.d_hidden[:, here(0)] = _where(r.active, jnp.zeros_like(d_hidden), d_hidden)


# --- LSTM ---------------------------------------------------------------------------------------


def _lstm(cell: LSTM, r: Any, here: Here) -> None:
    a_i, a_f, a_g, a_o = (r.gx[:, here(k)] + _recurrent(r, here, k) for k in range(4))
    before = r.cell[:, here(0)]
    if cell.peephole:
        a_i, a_f = a_i + _peephole(r, here, 0, before), a_f + _peephole(r, here, 1, before)
    i, f, g = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jnp.tanh(a_g)
    c = f * before + i * g
    o = jax.nn.sigmoid(a_o + _peephole(r, here, 2, c) if cell.peephole else a_o)
    r.cell[:, here(0)] = _where(r.active, c, before)
    _leave(r, here, o * jnp.tanh(c), (i, f, g, o))


def _lstm_back(cell: LSTM, r: Any, here: Here) -> None:
    i, f, g, o = (r.gates[:, here(k)] for k in range(4))
    before = r.previous_cell[:, here(0)]
    d_hidden, d_cell = r.d_hidden[:, here(0)], r.d_cell[:, here(0)]
    tanh_c = jnp.tanh(f * before + i * g)
    d_o = d_hidden * tanh_c * o * (1 - o)
    d_c = d_cell + d_hidden * o * (1 - tanh_c * tanh_c)
    if cell.peephole:
        d_c = d_c + _peephole(r, here, 2, d_o)
    d_i, d_f, d_g = d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g * g)
    _put_d_gx(r, here, dict(enumerate((d_i, d_f, d_g, d_o))))
    d_c = d_c * f
    if cell.peephole:
        d_c = d_c + _peephole(r, here, 0, d_i) + _peephole(r, here, 1, d_f)
    r.d_cell[:, here(0)] = _unless(r.fresh, _where(r.active, d_c, d_cell))
    r.d_hidden[:, here(0)] = _where(r.active, jnp.zeros_like(d_hidden), d_hidden)


def _peephole(r: Any, here: Here, row: int, x: Array) -> Array:
    return jnp.broadcast_to(r.w_c[row : row + 1, here(0)], x.shape) * x


# --- GRU, reset after the product ---------------------------------------------------------------


def _gru_after(cell: GRU, r: Any, here: Here) -> None:
    z, reset = (jax.nn.sigmoid(r.gx[:, here(k)] + _recurrent(r, here, k)) for k in range(2))
    q = _recurrent(r, here, 2)
    q = q + jnp.broadcast_to(r.b_h[:, here(0)], q.shape)
    n = jnp.tanh(r.gx[:, here(2)] + reset * q)
    if r.q is not None:
        r.q[:, here(0)] = q
    _leave(r, here, (1 - z) * n + z * r.hidden[:, here(0)], (z, reset, n))


def _gru_after_back(cell: GRU, r: Any, here: Here) -> None:
    z, reset, n = (r.gates[:, here(k)] for k in range(3))
    d_hidden = r.d_hidden[:, here(0)]
    d_n = d_hidden * (1 - z) * (1 - n * n)
    d_r = d_n * r.q[:, here(0)] * reset * (1 - reset)
    _put_d_gx(r, here, {0: _d_z(r, here, d_hidden, z, n), 1: d_r, 2: d_n})
    d_q = _where(r.active, d_n * reset, jnp.zeros_like(d_n))
    r.d_q[:, here(0)] = d_q.astype(r.d_q.dtype)
    r.d_hidden[:, here(0)] = _where(r.active, d_hidden * z, d_hidden)


def _gru_pass_on(cell: GRU, r: Any, here: Here) -> None:
    gates = 2 * cell.hidden
    through = product(r.d_gx[:, :gates], r.w_t[:gates, here(0)])
    if cell.reset == "after":
        through += product(r.d_q[...], r.w_t[gates:, here(0)])
    r.d_hidden[:, here(0)] = _unless(r.fresh, r.d_hidden[:, here(0)] + through)


def _d_z(r: Any, here: Here, d_hidden: Array, z: Array, n: Array) -> Array:
    return d_hidden * (r.previous_hidden[:, here(0)].astype(n.dtype) - n) * z * (1 - z)


# --- GRU, reset before the product --------------------------------------------------------------


def _gru_gates(cell: GRU, r: Any, here: Here) -> None:
    z, reset = (jax.nn.sigmoid(r.gx[:, here(k)] + _recurrent(r, here, k)) for k in range(2))
    r.z[:, here(0)] = z
    r.rh[:, here(0)] = (reset * r.hidden[:, here(0)]).astype(r.rh.dtype)
    if r.gates is not None:
        r.gates[:, here(1)] = reset


def _gru_candidate(cell: GRU, r: Any, here: Here) -> None:
    n = jnp.tanh(r.gx[:, here(2)] + product(r.rh[...], r.w_h[:, here(2)]))
    z = r.z[:, here(0)]
    if r.gates is not None:
        r.gates[:, here(0)], r.gates[:, here(2)] = z, n
    _leave(r, here, (1 - z) * n + z * r.hidden[:, here(0)], ())


def _gru_candidate_back(cell: GRU, r: Any, here: Here) -> None:
    z, n = r.gates[:, here(0)], r.gates[:, here(2)]
    d_hidden = r.d_hidden[:, here(0)]
    d_n = d_hidden * (1 - z) * (1 - n * n)
    _put_d_gx(r, here, {0: _d_z(r, here, d_hidden, z, n), 2: d_n})


def _gru_gates_back(cell: GRU, r: Any, here: Here) -> None:
    z, reset, d_hidden = r.gates[:, here(0)], r.gates[:, here(1)], r.d_hidden[:, here(0)]
    gates = 2 * cell.hidden
    d_rh = product(r.d_gx[:, gates:], r.w_t[gates:, here(0)])
    hidden = r.previous_hidden[:, here(0)].astype(d_rh.dtype)
    _put_d_gx(r, here, {1: d_rh * hidden * reset * (1 - reset)})
    r.d_hidden[:, here(0)] = _where(r.active, d_hidden * z + d_rh * reset, d_hidden)
