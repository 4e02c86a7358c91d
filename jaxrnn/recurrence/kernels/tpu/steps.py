"""One step of each cell inside the TPU kernels of `kernels.tpu`, forward and backward.

A step enters, then makes a few sweeps over the tiles of the hidden units. A sweep is made of phases,
functions of one tile; it ends for every tile before the next one begins. So its phases may read whole
rows that the sweep before it wrote, but of what the sweep itself writes only their own tile.

`r` names views (`kernels.tpu.views`) on the tile's part of the arrays, each [rows, columns] of
one step and one block of rows: `r.gates[k]` is that of the k-th gate, `r.hidden[0]` that of an array of
H columns, `r.d_gx.gate(k)` the k-th gate in whole rows.

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

The equations are those in the docstrings of `recurrence.cells`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import ACTIVATIONS, GRU, LSTM, RNN, product
from jaxrnn.shapes import Array

Phase = Callable[[Any, Any], None]  # (cell, r)


class Sweep(NamedTuple):
    """Phases for a tile, one after the other.

    uses: of the arrays that may come and go by tiles, the gates that these phases read or write.
      What is written is written in one sweep alone.
    """

    phases: tuple[Phase, ...]
    uses: dict[str, tuple[int, ...]]


class Step(NamedTuple):
    """One step of a cell in one direction.

    enter: a phase for every tile before the first sweep, None for none. It uses no array that may
      come and go by tiles.
    """

    enter: Phase | None
    sweeps: tuple[Sweep, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All of them in order, to be run for every tile one after the other."""
        enter = (self.enter,) if self.enter else ()
        return enter + tuple(phase for sweep in self.sweeps for phase in sweep.phases)


def forward(cell: Any) -> Step:
    """One step of this cell."""
    all_gates = tuple(range(len(cell.GATES)))
    uses = {"w_h": all_gates, "gx": all_gates, "gates": all_gates, "ys": (0,)}
    if isinstance(cell, RNN):
        return Step(_enter, (Sweep((_rnn,), uses),))
    if isinstance(cell, LSTM):
        return Step(_enter, (Sweep((_lstm,), uses | {"previous_cell": (0,)}),))
    if cell.reset == "after":
        return Step(_enter, (Sweep((_gru_after,), uses | {"q": (0,)}),))
    gates = Sweep((_gru_gates,), {"w_h": (0, 1), "gx": (0, 1), "gates": (1,)})
    candidate = Sweep((_gru_candidate,), {"w_h": (2,), "gx": (2,), "gates": (0, 2), "ys": (0,)})
    return Step(_enter, (gates, candidate))


def backward(cell: Any) -> Step:
    """The way back through one step of this cell."""
    all_gates = tuple(range(len(cell.GATES)))
    uses = {"gates": all_gates, "d_ys": (0,), "d_gx": all_gates}
    weights = {"w_t": all_gates}
    if isinstance(cell, RNN):
        return Step(None, (Sweep((_arrive, _rnn_back), uses), Sweep((_pass_on,), weights)))
    if isinstance(cell, LSTM):
        uses |= {"previous_cell": (0,)}
        return Step(None, (Sweep((_arrive, _lstm_back), uses), Sweep((_pass_on,), weights)))
    uses |= {"previous_hidden": (0,)}
    if cell.reset == "after":
        uses |= {"q": (0,)}
        return Step(
            None, (Sweep((_arrive, _gru_after_back), uses), Sweep((_gru_pass_on,), weights))
        )
    candidate = uses | {"gates": (0, 2), "d_gx": (0, 2)}
    gates = {"gates": (0, 1), "previous_hidden": (0,), "d_gx": (1,), "w_t": (2,)}
    return Step(
        None,
        (
            Sweep((_arrive, _gru_candidate_back), candidate),
            Sweep((_gru_gates_back,), gates),
            Sweep((_gru_pass_on,), {"w_t": (0, 1)}),
        ),
    )


def slope(cell: RNN, h: Array) -> Array:
    """The activation's derivative, from its value."""
    return {"tanh": 1 - h * h, "relu": jnp.where(h > 0, 1.0, 0.0), "sigmoid": h * (1 - h)}[
        cell.activation
    ]


# --- what the cells share -----------------------------------------------------------------------


def _enter(cell: Any, r: Any) -> None:
    """The state that enters the step, zeros where a row starts afresh; what the products take."""
    hidden = _unless(r.fresh, r.hidden[0])
    r.hidden[0] = r.previous_hidden[0] = hidden
    if isinstance(cell, LSTM):
        r.cell[0] = _unless(r.fresh, r.cell[0])


def _leave(r: Any, hidden: Array, gates: tuple[Array, ...]) -> None:
    """The output and the new hidden state of the rows that move; what the backward pass needs."""
    if r.gates is not None:
        for k, gate in enumerate(gates):
            r.gates[k] = gate
    r.ys[0] = _where(r.active, hidden, jnp.zeros_like(hidden))
    r.hidden[0] = _where(r.active, hidden, r.hidden[0])


def _arrive(cell: Any, r: Any) -> None:
    """The output's cotangent joins the hidden state's."""
    d_y = r.d_ys[0]
    r.d_hidden[0] += _where(r.active, d_y, jnp.zeros_like(d_y))


def _put_d_gx(r: Any, gates: dict[int, Array]) -> None:
    for k, d_gate in gates.items():
        r.d_gx[k] = _where(r.active, d_gate, jnp.zeros_like(d_gate))


def _pass_on(cell: Any, r: Any) -> None:
    """dh^{t-1} = dgx W_h^T for the rows that move, as it was for the others (their dgx is zero)."""
    through = r.w_t.after(r.d_gx, len(cell.GATES))
    r.d_hidden[0] = _unless(r.fresh, r.d_hidden[0] + through)


def _where(rows: Array | None, yes: Array, no: Array) -> Array:
    return yes if rows is None else jnp.where(jnp.broadcast_to(rows, yes.shape) != 0, yes, no)


def _unless(rows: Array | None, x: Array) -> Array:
    return x if rows is None else _where(rows, jnp.zeros_like(x), x)


def _recurrent(r: Any, k: int) -> Array:
    return product(r.previous_hidden.gate(0), r.w_h[k])


# --- plain RNN ----------------------------------------------------------------------------------


def _rnn(cell: RNN, r: Any) -> None:
    hidden = ACTIVATIONS[cell.activation](r.gx[0] + _recurrent(r, 0))
    _leave(r, hidden, (hidden,))


def _rnn_back(cell: RNN, r: Any) -> None:
    d_hidden = r.d_hidden[0]
    _put_d_gx(r, {0: d_hidden * slope(cell, r.gates[0])})
    r.d_hidden[0] = _where(r.active, jnp.zeros_like(d_hidden), d_hidden)


# --- LSTM ---------------------------------------------------------------------------------------


def _lstm(cell: LSTM, r: Any) -> None:
    a_i, a_f, a_g, a_o = (r.gx[k] + _recurrent(r, k) for k in range(4))
    before = r.cell[0]
    if r.previous_cell is not None:
        r.previous_cell[0] = before
    if cell.peephole:
        a_i, a_f = a_i + _peephole(r, 0, before), a_f + _peephole(r, 1, before)
    i, f, g = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jnp.tanh(a_g)
    c = f * before + i * g
    o = jax.nn.sigmoid(a_o + _peephole(r, 2, c) if cell.peephole else a_o)
    r.cell[0] = _where(r.active, c, before)
    _leave(r, o * jnp.tanh(c), (i, f, g, o))


def _lstm_back(cell: LSTM, r: Any) -> None:
    i, f, g, o = (r.gates[k] for k in range(4))
    before = r.previous_cell[0]
    d_hidden, d_cell = r.d_hidden[0], r.d_cell[0]
    tanh_c = jnp.tanh(f * before + i * g)
    d_o = d_hidden * tanh_c * o * (1 - o)
    d_c = d_cell + d_hidden * o * (1 - tanh_c * tanh_c)
    if cell.peephole:
        d_c = d_c + _peephole(r, 2, d_o)
    d_i, d_f, d_g = d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g * g)
    _put_d_gx(r, dict(enumerate((d_i, d_f, d_g, d_o))))
    d_c = d_c * f
    if cell.peephole:
        d_c = d_c + _peephole(r, 0, d_i) + _peephole(r, 1, d_f)
    r.d_cell[0] = _unless(r.fresh, _where(r.active, d_c, d_cell))
    r.d_hidden[0] = _where(r.active, jnp.zeros_like(d_hidden), d_hidden)


def _peephole(r: Any, row: int, x: Array) -> Array:
    return jnp.broadcast_to(r.w_c[0][row : row + 1], x.shape) * x


# --- GRU, reset after the product ---------------------------------------------------------------


def _gru_after(cell: GRU, r: Any) -> None:
    z, reset = (jax.nn.sigmoid(r.gx[k] + _recurrent(r, k)) for k in range(2))
    q = _recurrent(r, 2)
    q = q + jnp.broadcast_to(r.b_h[0], q.shape)
    n = jnp.tanh(r.gx[2] + reset * q)
    if r.q is not None:
        r.q[0] = q
    _leave(r, (1 - z) * n + z * r.hidden[0], (z, reset, n))


def _gru_after_back(cell: GRU, r: Any) -> None:
    z, reset, n = (r.gates[k] for k in range(3))
    d_hidden = r.d_hidden[0]
    d_n = d_hidden * (1 - z) * (1 - n * n)
    d_r = d_n * r.q[0] * reset * (1 - reset)
    _put_d_gx(r, {0: _d_z(r, d_hidden, z, n), 1: d_r, 2: d_n})
    r.d_q[0] = _where(r.active, d_n * reset, jnp.zeros_like(d_n))
    r.d_hidden[0] = _where(r.active, d_hidden * z, d_hidden)


def _gru_pass_on(cell: GRU, r: Any) -> None:
    through = r.w_t.after(r.d_gx, 2)
    if cell.reset == "after":
        through += product(r.d_q.gate(0), r.w_t[2])
    r.d_hidden[0] = _unless(r.fresh, r.d_hidden[0] + through)


def _d_z(r: Any, d_hidden: Array, z: Array, n: Array) -> Array:
    return d_hidden * (r.previous_hidden[0].astype(n.dtype) - n) * z * (1 - z)


# --- GRU, reset before the product --------------------------------------------------------------


def _gru_gates(cell: GRU, r: Any) -> None:
    z, reset = (jax.nn.sigmoid(r.gx[k] + _recurrent(r, k)) for k in range(2))
    r.z[0] = z
    r.rh[0] = reset * r.hidden[0]
    if r.gates is not None:
        r.gates[1] = reset


def _gru_candidate(cell: GRU, r: Any) -> None:
    n = jnp.tanh(r.gx[2] + product(r.rh.gate(0), r.w_h[2]))
    z = r.z[0]
    if r.gates is not None:
        r.gates[0], r.gates[2] = z, n
    _leave(r, (1 - z) * n + z * r.hidden[0], ())


def _gru_candidate_back(cell: GRU, r: Any) -> None:
    z, n = r.gates[0], r.gates[2]
    d_hidden = r.d_hidden[0]
    d_n = d_hidden * (1 - z) * (1 - n * n)
    _put_d_gx(r, {0: _d_z(r, d_hidden, z, n), 2: d_n})


def _gru_gates_back(cell: GRU, r: Any) -> None:
    z, reset, d_hidden = r.gates[0], r.gates[1], r.d_hidden[0]
    d_rh = product(r.d_gx.gate(2), r.w_t[2])
    hidden = r.previous_hidden[0].astype(d_rh.dtype)
    _put_d_gx(r, {1: d_rh * hidden * reset * (1 - reset)})
    r.d_hidden[0] = _where(r.active, d_hidden * z + d_rh * reset, d_hidden)
