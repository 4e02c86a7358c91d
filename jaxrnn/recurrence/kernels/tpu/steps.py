"""One step of each cell inside the TPU kernels, forward and backward, on one tile of the hidden units.

The arithmetic is that of `recurrence.equations`. Here it meets the matrix products and the arrays.

A step first runs `enter`, then makes one or more sweeps over the tiles of the hidden units. A sweep
consists of phases, functions of one tile. It ends for every tile before the next sweep begins, so its
phases may read whole rows that an earlier sweep wrote. Of what the sweep itself writes they may read
only their own tile.

A phase gets the cell and `v`, which names views on the arrays of one step and one block of rows:
`v.gates[k]` is the tile of the k-th gate, `v.hidden[0]` the tile of an array with H columns, and
`v.d_gx.gate(k)` the k-th gate in whole rows.

    name                     array                                                   forward   backward
    gx [G]                   projected inputs                                        in
    gates [G]                activated gates; forward only if they are kept          out       in
    previous_hidden [H]      hidden state that entered the step, in w_h's dtype      out       in (GRU)
    previous_cell [H]        cell that entered the step; forward only if kept        out       in
    q [H]                    h W_hn + b_h of a GRU that resets after the product     out       in
    hidden, cell [H]         running state                                           in, out
    ys [H]                   outputs                                                 out
    z, reset_hidden [H]      z and r * h of a GRU that resets before the product     scratch
    d_ys [H]                 derivative with respect to the outputs                            in
    d_hidden, d_cell [H]     derivative with respect to the running state                      in, out
    d_gx [G]                 derivative with respect to the gates' inputs                      out
    d_q [H]                  derivative with respect to q                                      scratch
    w_h [H, G]               recurrent weights                                       in
    w_t [G, H]               their transpose                                                   in
    vectors [n, H]           peepholes (n = 3) or b_h (n = 1), if there are any      in        in
    reset, active [rows, 1]  the masks of `problem.Masks` as float32 numbers; None   in        in
                             where no row is reset, or all rows are active
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.tpu.views import Views
from jaxrnn.recurrence.linalg import product
from jaxrnn.shapes import Array

# Called with the cell and the views on one tile.
Phase = Callable[[Any, Views], None]


class Sweep(NamedTuple):
    """Phases to be run for every tile of the hidden units, in order within a tile.

    Attributes:
      phases: the phases.
      uses: for each array that may be copied to VMEM tile by tile, the gates that the phases read or
        write. An array that is written is written in one sweep only.
    """

    phases: tuple[Phase, ...]
    uses: dict[str, tuple[int, ...]]


class Step(NamedTuple):
    """One step of a cell in one direction.

    Attributes:
      enter: phase to be run for every tile before the first sweep, or None. It uses no array that may
        be copied to VMEM tile by tile.
      sweeps: the sweeps, in order.
    """

    enter: Phase | None
    sweeps: tuple[Sweep, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases in order, each to be run for every tile before the next phase begins."""
        enter = (self.enter,) if self.enter else ()
        return enter + tuple(phase for sweep in self.sweeps for phase in sweep.phases)


# --- what the cells share -----------------------------------------------------------------------


def _enter(cell: Any, v: Views) -> None:
    """Set the state that enters the step, zeros in rows that are reset, and keep it for the products."""
    hidden = _zero_where(v.reset, v.hidden[0])
    v.hidden[0] = hidden
    v.previous_hidden[0] = hidden
    if "cell" in v:
        v.cell[0] = _zero_where(v.reset, v.cell[0])


def _recurrent(v: Views, k: int) -> Array:
    """Return h W_h of the k-th gate."""
    return product(v.previous_hidden.gate(0), v.w_h[k])


def _put_hidden(v: Views, hidden: Array) -> None:
    """Write the output, and the new hidden state of the active rows."""
    v.ys[0] = _choose(v.active, hidden, jnp.zeros_like(hidden))
    v.hidden[0] = _choose(v.active, hidden, v.hidden[0])


def _keep_gates(v: Views, gates: dict[int, Array]) -> None:
    """Write activated gates, by number, if the backward pass will need them."""
    if "gates" in v:
        for k, gate in gates.items():
            v.gates[k] = gate


def _add_d_ys(cell: Any, v: Views) -> None:
    """Add the output's derivative to the hidden state's."""
    d_y = v.d_ys[0]
    v.d_hidden[0] += _choose(v.active, d_y, jnp.zeros_like(d_y))


def _put_d_gx(v: Views, gates: dict[int, Array]) -> None:
    """Write the derivatives with respect to gates' inputs, by number; zeros in the padding."""
    for k, d_gate in gates.items():
        v.d_gx[k] = _choose(v.active, d_gate, jnp.zeros_like(d_gate))


def _put_d_hidden(v: Views, through_products: Array) -> None:
    """Complete the derivative with respect to the hidden state that entered the step.

    It is zero in the rows that were reset. In the padding d_gx and so `through_products` are zero, and
    the derivative passes unchanged.
    """
    v.d_hidden[0] = _zero_where(v.reset, v.d_hidden[0] + through_products)


def _pass_through_all_gates(cell: Any, v: Views) -> None:
    """Add d_gx W_h^T to d_hidden: an RNN and an LSTM multiply h by all of W_h."""
    _put_d_hidden(v, v.w_t.back(v.d_gx, len(cell.GATES)))


def _choose(mask: Array | None, yes: Array, no: Array) -> Array:
    """Return `yes` in the rows where a mask is not zero, else `no`; None stands for all rows."""
    if mask is None:
        return yes
    return jnp.where(jnp.broadcast_to(mask, yes.shape) != 0, yes, no)


def _zero_where(mask: Array | None, x: Array) -> Array:
    """Return x with zeros in the rows where a mask is not zero; None stands for no row."""
    if mask is None:
        return x
    return _choose(mask, jnp.zeros_like(x), x)


# --- plain RNN ----------------------------------------------------------------------------------


def _rnn(cell: Any, v: Views) -> None:
    hidden = equations.rnn(v.gx[0] + _recurrent(v, 0), cell.activation)
    _keep_gates(v, {0: hidden})
    _put_hidden(v, hidden)


def _rnn_backward(cell: Any, v: Views) -> None:
    d_hidden = v.d_hidden[0]
    _put_d_gx(v, {0: equations.rnn_backward(v.gates[0], d_hidden, cell.activation)})
    v.d_hidden[0] = _choose(v.active, jnp.zeros_like(d_hidden), d_hidden)


# --- LSTM ---------------------------------------------------------------------------------------


def _lstm(cell: Any, v: Views) -> None:
    a = [v.gx[k] + _recurrent(v, k) for k in range(4)]
    before = v.cell[0]
    if "previous_cell" in v:
        v.previous_cell[0] = before
    now = equations.lstm(a, before, _peepholes(v, before))
    v.cell[0] = _choose(v.active, now.cell, before)
    _keep_gates(v, dict(enumerate(now.gates)))
    _put_hidden(v, now.hidden)


def _lstm_backward(cell: Any, v: Views) -> None:
    gates = [v.gates[k] for k in range(4)]
    before = v.previous_cell[0]
    after = equations.lstm_cell(gates, before)
    d_hidden = v.d_hidden[0]
    d_cell = v.d_cell[0]
    d_gates, d_before = equations.lstm_backward(
        gates, before, after, d_hidden, d_cell, _peepholes(v, before)
    )
    _put_d_gx(v, dict(enumerate(d_gates)))
    v.d_cell[0] = _zero_where(v.reset, _choose(v.active, d_before, d_cell))
    v.d_hidden[0] = _choose(v.active, jnp.zeros_like(d_hidden), d_hidden)


def _peepholes(v: Views, cell: Array) -> equations.Peepholes:
    """Return the peepholes in the shape of the cell."""
    if "vectors" not in v:
        return None
    rows = v.vectors[0]
    p_i, p_f, p_o = (jnp.broadcast_to(rows[k : k + 1], cell.shape) for k in range(3))
    return p_i, p_f, p_o


# --- GRU, reset after the product ---------------------------------------------------------------


def _gru_after(cell: Any, v: Views) -> None:
    z, r = (equations.gru_gate(v.gx[k] + _recurrent(v, k)) for k in range(2))
    q = _recurrent(v, 2)
    q = q + jnp.broadcast_to(v.vectors[0], q.shape)
    n = equations.gru_candidate_after(v.gx[2], r, q)
    if "q" in v:
        v.q[0] = q
    _keep_gates(v, {0: z, 1: r, 2: n})
    _put_hidden(v, equations.gru_hidden(z, n, v.hidden[0]))


def _gru_after_backward(cell: Any, v: Views) -> None:
    z, r, n = (v.gates[k] for k in range(3))
    d_hidden = v.d_hidden[0]
    d_az, d_an, d_before = equations.gru_hidden_backward(z, n, _entered(v, n), d_hidden)
    d_ar, d_q = equations.gru_reset_backward_after(v.q[0], r, d_an)
    _put_d_gx(v, {0: d_az, 1: d_ar, 2: d_an})
    v.d_q[0] = _choose(v.active, d_q, jnp.zeros_like(d_q))
    v.d_hidden[0] = _choose(v.active, d_before, d_hidden)


def _gru_after_products(cell: Any, v: Views) -> None:
    _put_d_hidden(v, v.w_t.back(v.d_gx, 2) + product(v.d_q.gate(0), v.w_t[2]))


def _entered(v: Views, like: Array) -> Array:
    """Return the hidden state that entered the step, in the dtype of another array."""
    return v.previous_hidden[0].astype(like.dtype)


# --- GRU, reset before the product --------------------------------------------------------------


def _gru_before_gates(cell: Any, v: Views) -> None:
    z, r = (equations.gru_gate(v.gx[k] + _recurrent(v, k)) for k in range(2))
    v.z[0] = z
    v.reset_hidden[0] = r * v.hidden[0]
    _keep_gates(v, {1: r})


def _gru_before_hidden(cell: Any, v: Views) -> None:
    n = equations.gru_candidate_before(v.gx[2], product(v.reset_hidden.gate(0), v.w_h[2]))
    z = v.z[0]
    _keep_gates(v, {0: z, 2: n})
    _put_hidden(v, equations.gru_hidden(z, n, v.hidden[0]))


def _gru_before_hidden_backward(cell: Any, v: Views) -> None:
    z = v.gates[0]
    n = v.gates[2]
    d_hidden = v.d_hidden[0]
    d_az, d_an, d_before = equations.gru_hidden_backward(z, n, _entered(v, n), d_hidden)
    _put_d_gx(v, {0: d_az, 2: d_an})
    v.d_hidden[0] = _choose(v.active, d_before, d_hidden)


def _gru_before_gates_backward(cell: Any, v: Views) -> None:
    d_rh = product(v.d_gx.gate(2), v.w_t[2])
    d_ar, d_before = equations.gru_reset_backward_before(_entered(v, d_rh), v.gates[1], d_rh)
    _put_d_gx(v, {1: d_ar})
    d_hidden = v.d_hidden[0]
    v.d_hidden[0] = _choose(v.active, d_hidden + d_before, d_hidden)


def _gru_before_products(cell: Any, v: Views) -> None:
    _put_d_hidden(v, v.w_t.back(v.d_gx, 2))


# --- the steps by kind of cell ------------------------------------------------------------------

_LSTM_GATES = (0, 1, 2, 3)
_GRU_GATES = (0, 1, 2)

FORWARD: dict[CellKind, Step] = {
    CellKind.RNN: Step(
        enter=_enter,
        sweeps=(Sweep((_rnn,), {"w_h": (0,), "gx": (0,), "gates": (0,), "ys": (0,)}),),
    ),
    CellKind.LSTM: Step(
        enter=_enter,
        sweeps=(
            Sweep(
                (_lstm,),
                {
                    "w_h": _LSTM_GATES,
                    "gx": _LSTM_GATES,
                    "gates": _LSTM_GATES,
                    "ys": (0,),
                    "previous_cell": (0,),
                },
            ),
        ),
    ),
    CellKind.GRU_BEFORE: Step(
        enter=_enter,
        sweeps=(
            Sweep((_gru_before_gates,), {"w_h": (0, 1), "gx": (0, 1), "gates": (1,)}),
            Sweep((_gru_before_hidden,), {"w_h": (2,), "gx": (2,), "gates": (0, 2), "ys": (0,)}),
        ),
    ),
    CellKind.GRU_AFTER: Step(
        enter=_enter,
        sweeps=(
            Sweep(
                (_gru_after,),
                {
                    "w_h": _GRU_GATES,
                    "gx": _GRU_GATES,
                    "gates": _GRU_GATES,
                    "ys": (0,),
                    "q": (0,),
                },
            ),
        ),
    ),
}

BACKWARD: dict[CellKind, Step] = {
    CellKind.RNN: Step(
        enter=None,
        sweeps=(
            Sweep((_add_d_ys, _rnn_backward), {"gates": (0,), "d_ys": (0,), "d_gx": (0,)}),
            Sweep((_pass_through_all_gates,), {"w_t": (0,)}),
        ),
    ),
    CellKind.LSTM: Step(
        enter=None,
        sweeps=(
            Sweep(
                (_add_d_ys, _lstm_backward),
                {
                    "gates": _LSTM_GATES,
                    "d_ys": (0,),
                    "d_gx": _LSTM_GATES,
                    "previous_cell": (0,),
                },
            ),
            Sweep((_pass_through_all_gates,), {"w_t": _LSTM_GATES}),
        ),
    ),
    CellKind.GRU_BEFORE: Step(
        enter=None,
        sweeps=(
            Sweep(
                (_add_d_ys, _gru_before_hidden_backward),
                {"gates": (0, 2), "d_ys": (0,), "d_gx": (0, 2), "previous_hidden": (0,)},
            ),
            Sweep(
                (_gru_before_gates_backward,),
                {"gates": (1,), "previous_hidden": (0,), "d_gx": (1,), "w_t": (2,)},
            ),
            Sweep((_gru_before_products,), {"w_t": (0, 1)}),
        ),
    ),
    CellKind.GRU_AFTER: Step(
        enter=None,
        sweeps=(
            Sweep(
                (_add_d_ys, _gru_after_backward),
                {
                    "gates": _GRU_GATES,
                    "d_ys": (0,),
                    "d_gx": _GRU_GATES,
                    "previous_hidden": (0,),
                    "q": (0,),
                },
            ),
            Sweep((_gru_after_products,), {"w_t": _GRU_GATES}),
        ),
    ),
}
