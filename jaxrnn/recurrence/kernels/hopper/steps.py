"""One step of each cell inside the Hopper kernels, forward and backward.

A step is a function of the block (`block.Block`) and the state, a dict of tiles by the field names of
the cell's state (backward: their derivatives), and returns the state after the step. All arithmetic is
that of `recurrence.equations`; the block loads the inputs, exchanges tiles with the other parts and
multiplies. The same forward steps serve the kernel for one layer, the kernel for several layers and the
sampling kernel (`ForwardContext`).

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

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper.block import Block
from jaxrnn.recurrence.kernels.hopper.launch import State, StepFunctions, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Scalar
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell

# The residuals of one step: the tiles of each array by its name in `Residuals`.
Kept = dict[str, tuple[Tile, ...]]


@runtime_checkable
class ForwardContext(Protocol):
    """The operations that a forward step calls. `Block` and `SamplingCTA` implement them."""

    # The time of the step.
    t: Scalar

    def product(self, sources: Sequence[tuple[str, int]], gates: range) -> tuple[Tile, ...]:
        """Return the sum of published (array, gate) pairs times the weights of some gates."""

    def load_input(self, name: str) -> tuple[Tile, ...]:
        """Return the gates of an input of this step."""

    def vector(self, k: int) -> Tile:
        """Return the k-th of the cell's vectors, the same in every row."""

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        """Publish tiles, by array and gate, to be read at the next product."""


def forward(cell: BuiltinCell, keep: bool) -> StepFunctions:
    """Return the forward pass of a cell; `keep`: with the outputs that the backward pass needs."""
    rule = _FORWARD[cell.kind]
    step = partial(_forward, forward_step(cell), keep)
    return StepFunctions(f"{_name(cell)}_forward", _begin, step, rule.products, 1)


def forward_step(cell: BuiltinCell) -> Callable[[Any, State], tuple[State, Kept]]:
    """Return a function of (context, state) that returns the state after a step, and what is kept."""
    return partial(_FORWARD[cell.kind].step, cell)


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


def _begin(block: Block, state: State) -> State:
    block.publish({"previous_hidden": {0: state["hidden"]}}, block.next_t)
    return state


def _forward(
    step: Callable[[Any, State], tuple[State, Kept]], keep: bool, block: Block, state: State
) -> State:
    y, after, kept = masked_step(step, block, state)
    block.publish({"previous_hidden": {0: after["hidden"]}}, block.next_t, when=block.has_next)
    block.finish({"ys": (y,)} | (kept if keep else {}))
    return after


def masked_step(
    step: Callable[[Any, State], tuple[State, Kept]], block: Block, state: State
) -> tuple[Tile, State, Kept]:
    """Return the output of a step, the state that enters the next one, and what is kept."""
    after, kept = step(block, state)
    y = block.where_active(after["hidden"], jnp.zeros_like(after["hidden"]))
    after = {name: block.where_active(x, state[name]) for name, x in after.items()}
    after = {name: block.zero_where_reset(x) for name, x in after.items()}
    return y, after, kept


def _recurrent(context: ForwardContext, gates: range) -> tuple[Tile, ...]:
    return context.product([("previous_hidden", 0)], gates)


def _rnn(cell: RNN, context: ForwardContext, state: State) -> tuple[State, Kept]:
    (recurrent,) = _recurrent(context, range(1))
    (gx,) = context.load_input("gx")
    hidden = equations.rnn(gx + recurrent, cell.activation)
    return {"hidden": hidden}, {"gates": (hidden,)}


def _lstm(cell: LSTM, context: ForwardContext, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(4))
    a = [gx + z for gx, z in zip(context.load_input("gx"), recurrent, strict=True)]
    now = equations.lstm(a, state["cell"], _peepholes(cell, context))
    after = {"hidden": now.hidden, "cell": now.cell}
    return after, {"gates": now.gates, "previous_cell": (state["cell"],)}


def _peepholes(cell: LSTM, context: ForwardContext) -> equations.Peepholes:
    if not cell.peephole:
        return None
    return context.vector(0), context.vector(1), context.vector(2)


def _gru_after(cell: GRU, context: ForwardContext, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(3))
    gx = context.load_input("gx")
    z, r = (equations.gru_gate(gx[k] + recurrent[k]) for k in range(2))
    q = recurrent[2] + context.vector(0)
    n = equations.gru_candidate_after(gx[2], r, q)
    hidden = equations.gru_hidden(z, n, state["hidden"])
    return {"hidden": hidden}, {"gates": (z, r, n), "q": (q,)}


def _gru_before(cell: GRU, context: ForwardContext, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(context, range(2))
    gx = context.load_input("gx")
    z, r = (equations.gru_gate(gx[k] + recurrent[k]) for k in range(2))
    context.publish({"reset_hidden": {0: r * state["hidden"]}}, context.t)
    (recurrent_n,) = context.product([("reset_hidden", 0)], range(2, 3))
    n = equations.gru_candidate_before(gx[2], recurrent_n)
    return {"hidden": equations.gru_hidden(z, n, state["hidden"])}, {"gates": (z, r, n)}


# --- backward -----------------------------------------------------------------------------------


def _backward(step: Callable[[Block, State], State], block: Block, d: State) -> State:
    (d_y,) = block.load_input("d_ys")
    d = d | {"hidden": d["hidden"] + block.where_active(d_y, jnp.zeros_like(d_y))}
    before = step(block, d)
    before = {name: block.where_active(x, d[name]) for name, x in before.items()}
    block.finish({})
    return {name: block.zero_where_reset(x) for name, x in before.items()}


def _publish(block: Block, d_gx: dict[int, Tile], d_q: Tile | None = None) -> None:
    """Publish derivatives, by gate; those of inactive rows are zeros."""

    def masked(x: Tile) -> Tile:
        return block.where_active(x, jnp.zeros_like(x))

    published = {"d_gx": {gate: masked(x) for gate, x in d_gx.items()}}
    if d_q is not None:
        published["d_q"] = {0: masked(d_q)}
    block.publish(published, block.t)


def _rnn_backward(cell: RNN, block: Block, d: State) -> State:
    (hidden,) = block.load_input("gates")
    _publish(block, {0: equations.rnn_backward(hidden, d["hidden"], cell.activation)})
    (d_h,) = block.product([("d_gx", 0)])
    return {"hidden": d_h}


def _lstm_backward(cell: LSTM, block: Block, d: State) -> State:
    i, f, g, o = block.load_input("gates")
    (before,) = block.load_input("previous_cell")
    after = equations.lstm_cell((i, f, g), before)
    d_gates, d_cell = equations.lstm_backward(
        (i, f, g, o), before, after, d["hidden"], d["cell"], _peepholes(cell, block)
    )
    _publish(block, dict(enumerate(d_gates)))
    (d_h,) = block.product([("d_gx", k) for k in range(4)])
    return {"hidden": d_h, "cell": d_cell}


def _gru_after_backward(cell: GRU, block: Block, d: State) -> State:
    z, r, n = block.load_input("gates")
    (q,) = block.load_input("q")
    (h,) = block.load_input("previous_hidden")
    d_az, d_an, d_h = equations.gru_hidden_backward(z, n, h, d["hidden"])
    d_ar, d_q = equations.gru_reset_backward_after(q, r, d_an)
    _publish(block, {0: d_az, 1: d_ar, 2: d_an}, d_q)
    (d_h_by_gates,) = block.product([("d_gx", 0), ("d_gx", 1), ("d_q", 0)])
    return {"hidden": d_h + d_h_by_gates}


def _gru_before_backward(cell: GRU, block: Block, d: State) -> State:
    z, r, n = block.load_input("gates")
    (h,) = block.load_input("previous_hidden")
    d_az, d_an, d_h = equations.gru_hidden_backward(z, n, h, d["hidden"])
    _publish(block, {0: d_az, 2: d_an})
    (d_rh,) = block.product([("d_gx", 2)])
    d_ar, d_h_by_reset = equations.gru_reset_backward_before(h, r, d_rh)
    _publish(block, {1: d_ar})
    (d_h_by_gates,) = block.product([("d_gx", 0), ("d_gx", 1)], start=1)
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
