"""One step of each cell inside the Hopper kernels, forward and backward.

A step is a function of a context (`context.Context`) and the state, a dict of tiles by the field names
of the cell's state (backward: their derivatives), and returns the state after the step. All arithmetic
is that of `recurrence.equations`; the context loads the inputs, exchanges tiles and multiplies. Both
kernels run the same steps.

The kernels' arrays, [T, B, n * H]:

    gx                   projected inputs                   forward: input
    gates                activated gates                    forward: output, backward: input
    previous_cell        cell before the step               forward: output, backward: input
    q                    h W_hn + b_h                       forward: output, backward: input
    ys                   outputs                            forward: output
    previous_hidden      hidden state before the step       forward: exchanged, backward: input
    reset_hidden         r * h (GRU that resets before)     forward: exchanged
    d_ys                 derivatives of ys                  backward: input
    d_gx                 derivatives of gx                  backward: exchanged
    d_q                  derivatives of q                   backward: exchanged
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper.context import Context
from jaxrnn.recurrence.kernels.hopper.launch import State, StepFunctions, Tile
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell

# The residuals of one step: the tiles of each array by its name in `Residuals`.
Kept = dict[str, tuple[Tile, ...]]


def forward(cell: BuiltinCell, keep: bool) -> StepFunctions:
    """Return the forward pass of a cell; `keep`: with the outputs that the backward pass needs."""
    rule = _FORWARD[cell.kind]
    step = partial(_forward, partial(rule.step, cell), keep)
    return StepFunctions(f"{_name(cell)}_forward", _begin, step, rule.products, 1)


def backward(cell: BuiltinCell) -> StepFunctions:
    """Return the backward pass of a cell."""
    rule = _BACKWARD[cell.kind]
    step = partial(_backward, partial(rule.step, cell))
    return StepFunctions(f"{_name(cell)}_backward", None, step, rule.products, rule.published)


def gate_order(cell: BuiltinCell) -> tuple[int, ...]:
    """Return the order in which the backward pass multiplies the gates, that of the weights' K there."""
    if cell.kind is CellKind.GRU_BEFORE:
        return (2, 0, 1)
    return tuple(range(len(cell.GATES)))


def _name(cell: BuiltinCell) -> str:
    return type(cell).__name__.lower()


# --- forward ------------------------------------------------------------------------------------


def _begin(context: Context, state: State) -> State:
    context.publish({"previous_hidden": {0: state["hidden"]}}, context.next_t)
    return state


def _forward(
    step: Callable[[Context, State], tuple[State, Kept]],
    keep: bool,
    context: Context,
    state: State,
) -> State:
    after, kept = step(context, state)
    y = context.where_active(after["hidden"], jnp.zeros_like(after["hidden"]))
    after = {name: context.where_active(x, state[name]) for name, x in after.items()}
    after = {name: context.zero_where_reset(x) for name, x in after.items()}
    context.finish({"ys": (y,)} | (kept if keep else {}), after["hidden"])
    return after


def _recurrent(context: Context, gates: range) -> tuple[Tile, ...]:
    return context.product([("previous_hidden", 0)], gates)


def _rnn(cell: RNN, context: Context, state: State) -> tuple[State, Kept]:
    (recurrent,) = _recurrent(context, range(1))
    (gx,) = context.load_input("gx")
    hidden = equations.rnn(gx + recurrent, cell.activation)
    return {"hidden": hidden}, {"gates": (hidden,)}


def _lstm(cell: LSTM, context: Context, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(4))
    a = [gx + z for gx, z in zip(context.load_input("gx"), recurrent, strict=True)]
    now = equations.lstm(a, state["cell"], _peepholes(cell, context))
    after = {"hidden": now.hidden, "cell": now.cell}
    return after, {"gates": now.gates, "previous_cell": (state["cell"],)}


def _peepholes(cell: LSTM, context: Context) -> equations.Peepholes:
    if not cell.peephole:
        return None
    return context.vector(0), context.vector(1), context.vector(2)


def _gru_after(cell: GRU, context: Context, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(3))
    gx = context.load_input("gx")
    z, r = (equations.gru_gate(gx[k] + recurrent[k]) for k in range(2))
    q = recurrent[2] + context.vector(0)
    n = equations.gru_candidate_after(gx[2], r, q)
    hidden = equations.gru_hidden(z, n, state["hidden"])
    return {"hidden": hidden}, {"gates": (z, r, n), "q": (q,)}


def _gru_before(cell: GRU, context: Context, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(2))
    gx = context.load_input("gx")
    z, r = (equations.gru_gate(gx[k] + recurrent[k]) for k in range(2))
    context.publish({"reset_hidden": {0: r * state["hidden"]}}, context.t)
    (recurrent_n,) = context.product([("reset_hidden", 0)], range(2, 3))
    n = equations.gru_candidate_before(gx[2], recurrent_n)
    return {"hidden": equations.gru_hidden(z, n, state["hidden"])}, {"gates": (z, r, n)}


# --- backward -----------------------------------------------------------------------------------


def _backward(step: Callable[[Context, State], State], context: Context, d: State) -> State:
    (d_y,) = context.load_input("d_ys")
    d = d | {"hidden": d["hidden"] + context.where_active(d_y, jnp.zeros_like(d_y))}
    before = step(context, d)
    before = {name: context.where_active(x, d[name]) for name, x in before.items()}
    context.finish({}, None)
    return {name: context.zero_where_reset(x) for name, x in before.items()}


def _publish(context: Context, d_gx: dict[int, Tile], d_q: Tile | None = None) -> None:
    """Publish derivatives, by gate; those of inactive rows are zeros."""

    def masked(x: Tile) -> Tile:
        return context.where_active(x, jnp.zeros_like(x))

    published = {"d_gx": {gate: masked(x) for gate, x in d_gx.items()}}
    if d_q is not None:
        published["d_q"] = {0: masked(d_q)}
    context.publish(published, context.t)


def _rnn_backward(cell: RNN, context: Context, d: State) -> State:
    (hidden,) = context.load_input("gates")
    _publish(context, {0: equations.rnn_backward(hidden, d["hidden"], cell.activation)})
    (d_h,) = context.product([("d_gx", 0)])
    return {"hidden": d_h}


def _lstm_backward(cell: LSTM, context: Context, d: State) -> State:
    i, f, g, o = context.load_input("gates")
    (before,) = context.load_input("previous_cell")
    after = equations.lstm_cell((i, f, g), before)
    d_gates, d_cell = equations.lstm_backward(
        (i, f, g, o), before, after, d["hidden"], d["cell"], _peepholes(cell, context)
    )
    _publish(context, dict(enumerate(d_gates)))
    (d_h,) = context.product([("d_gx", k) for k in range(4)])
    return {"hidden": d_h, "cell": d_cell}


def _gru_after_backward(cell: GRU, context: Context, d: State) -> State:
    z, r, n = context.load_input("gates")
    (q,) = context.load_input("q")
    (h,) = context.load_input("previous_hidden")
    d_az, d_an, d_h = equations.gru_hidden_backward(z, n, h, d["hidden"])
    d_ar, d_q = equations.gru_reset_backward_after(q, r, d_an)
    _publish(context, {0: d_az, 1: d_ar, 2: d_an}, d_q)
    (d_h_by_gates,) = context.product([("d_gx", 0), ("d_gx", 1), ("d_q", 0)])
    return {"hidden": d_h + d_h_by_gates}


def _gru_before_backward(cell: GRU, context: Context, d: State) -> State:
    z, r, n = context.load_input("gates")
    (h,) = context.load_input("previous_hidden")
    d_az, d_an, d_h = equations.gru_hidden_backward(z, n, h, d["hidden"])
    _publish(context, {0: d_az, 2: d_an})
    (d_rh,) = context.product([("d_gx", 2)])
    d_ar, d_h_by_reset = equations.gru_reset_backward_before(h, r, d_rh)
    _publish(context, {1: d_ar})
    (d_h_by_gates,) = context.product([("d_gx", 0), ("d_gx", 1)], start=1)
    return {"hidden": d_h + d_h_by_reset + d_h_by_gates}


# --- tables --------------------------------------------------------------------------------------


class _Forward(NamedTuple):
    """A step of a cell, and its number of products."""

    step: Callable[..., tuple[State, Kept]]
    products: int


class _Backward(NamedTuple):
    """A step of a cell, its number of products, and the largest number of tiles published at once."""

    step: Callable[..., State]
    products: int
    published: int


_FORWARD = {
    CellKind.RNN: _Forward(_rnn, 1),
    CellKind.LSTM: _Forward(_lstm, 1),
    CellKind.GRU_AFTER: _Forward(_gru_after, 1),
    CellKind.GRU_BEFORE: _Forward(_gru_before, 2),
}
_BACKWARD = {
    CellKind.RNN: _Backward(_rnn_backward, 1, 1),
    CellKind.LSTM: _Backward(_lstm_backward, 1, 4),
    CellKind.GRU_AFTER: _Backward(_gru_after_backward, 1, 4),
    CellKind.GRU_BEFORE: _Backward(_gru_before_backward, 2, 2),
}
