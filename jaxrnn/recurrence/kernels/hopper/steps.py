"""One step of each cell inside the Hopper kernel, forward and backward.

A step is a function of the block (`kernels.hopper.block`) and the running state, a dict of
tiles by the names of the cell's state (back: their cotangents), and returns the running state after it.
The kernels' arrays, [T, B, n * H]:

    gx                     the projected inputs                              forward in
    gates                  the activated gates                               forward out, backward in
    previous_cell, q       the cell before the step; h W_hn + b_h            forward out, backward in
    ys                     the outputs                                       forward out
    previous_hidden        the hidden state that enters a step               forward exchanged, back in
    reset_hidden           r * h, of a GRU that resets before its product    forward exchanged
    d_ys                   cotangents of the outputs                         backward in
    d_gx                   cotangents of the gates' inputs                   backward exchanged
    d_q                    of q                                              backward exchanged

The equations are those of `recurrence.equations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.kernels.hopper.arrays import Steps, Tile
from jaxrnn.recurrence.kernels.hopper.block import Block

State = dict[str, Tile]
Kept = dict[str, tuple[Tile, ...]]


@runtime_checkable
class Units(Protocol):
    """What a step forward asks of its kernel: a `Block`, or a `Part` of the sampling kernel."""

    t: Any

    def product(self, sources: Sequence[tuple[str, int]], gates: range) -> tuple[Tile, ...]: ...

    def take(self, name: str) -> tuple[Tile, ...]: ...

    def vector(self, k: int) -> Tile: ...

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Any) -> None: ...


def forward(cell: Any, keep: bool) -> Steps:
    """One step of this cell; keep: put out what its way back needs."""
    one, products = _FORWARD[_kind(cell)]
    return Steps(f"{_name(cell)}_forward", _begin, partial(_forward, cell, one, keep), products, 1)


def step(cell: Any) -> Any:
    """Of (block, state), gives the state after a step of this cell, and what its way back needs."""
    return partial(_FORWARD[_kind(cell)][0], cell)


def backward(cell: Any) -> Steps:
    """The way back through one step of this cell."""
    one, products, published = _BACKWARD[_kind(cell)]
    name = f"{_name(cell)}_backward"
    return Steps(name, None, partial(_backward, cell, one), products, published)


def order_of_gates(cell: Any) -> tuple[int, ...]:
    """In which the way back multiplies them, and so the order of the weights' K there."""
    if _kind(cell) == "gru before":
        return (2, 0, 1)
    return tuple(range(len(cell.GATES)))


def _name(cell: Any) -> str:
    return type(cell).__name__.lower()


def _kind(cell: Any) -> str:
    return f"gru {cell.reset}" if isinstance(cell, GRU) else _name(cell)


# --- forward ------------------------------------------------------------------------------------


def _begin(block: Block, state: State) -> State:
    block.publish({"previous_hidden": {0: state["hidden"]}}, block.next)
    return state


def _forward(cell: Any, step: Any, keep: bool, block: Block, state: State) -> State:
    after, kept = step(cell, block, state)
    y = block.moving(after["hidden"], jnp.zeros_like(after["hidden"]))
    after = {name: block.moving(x, state[name]) for name, x in after.items()}
    after = {name: block.surviving(x) for name, x in after.items()}
    block.publish({"previous_hidden": {0: after["hidden"]}}, block.next, when=block.more)
    block.finish({"ys": (y,)} | (kept if keep else {}))
    return after


def _recurrent(block: Units, gates: range, source: str = "previous_hidden") -> tuple[Tile, ...]:
    return block.product([(source, 0)], gates)


def _rnn(cell: RNN, block: Units, state: State) -> tuple[State, Kept]:
    (recurrent,) = _recurrent(block, range(1))
    (x,) = block.take("gx")
    hidden = equations.rnn(cell, x + recurrent)
    return {"hidden": hidden}, {"gates": (hidden,)}


def _lstm(cell: LSTM, block: Units, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(block, range(4))
    a = [x + z for x, z in zip(block.take("gx"), recurrent, strict=True)]
    before = state["cell"]
    now = equations.lstm(a, before, _peepholes(cell, block))
    after = {"hidden": now.hidden, "cell": now.cell}
    return after, {"gates": now.gates, "previous_cell": (before,)}


def _peepholes(cell: LSTM, block: Units) -> equations.Peepholes:
    return (block.vector(0), block.vector(1), block.vector(2)) if cell.peephole else None


def _gru_after(cell: GRU, block: Units, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(block, range(3))
    x = block.take("gx")
    z, r = (jax.nn.sigmoid(x[k] + recurrent[k]) for k in range(2))
    q = recurrent[2] + block.vector(0)
    n = jnp.tanh(x[2] + r * q)
    hidden = equations.gru(z, n, state["hidden"])
    return {"hidden": hidden}, {"gates": (z, r, n), "q": (q,)}


def _gru_before(cell: GRU, block: Units, state: State) -> tuple[State, Kept]:
    recurrent = _recurrent(block, range(2))
    x = block.take("gx")
    z, r = (jax.nn.sigmoid(x[k] + recurrent[k]) for k in range(2))
    block.publish({"reset_hidden": {0: r * state["hidden"]}}, block.t)
    (recurrent_n,) = _recurrent(block, range(2, 3), "reset_hidden")
    n = jnp.tanh(x[2] + recurrent_n)
    return {"hidden": equations.gru(z, n, state["hidden"])}, {"gates": (z, r, n)}


# --- backward -----------------------------------------------------------------------------------


def _backward(cell: Any, step: Any, block: Block, d: State) -> State:
    (d_y,) = block.take("d_ys")
    d = d | {"hidden": d["hidden"] + block.moving(d_y, jnp.zeros_like(d_y))}
    before = step(cell, block, d)
    before = {name: block.moving(x, d[name]) for name, x in before.items()}
    block.finish({})
    return {name: block.surviving(x) for name, x in before.items()}


def _publish(block: Block, gates: dict[int, Tile], q: Tile | None = None) -> None:
    """Rows that do not move have no gradient."""
    masked = {k: block.moving(x, jnp.zeros_like(x)) for k, x in gates.items()}
    published = {"d_gx": masked}
    if q is not None:
        published["d_q"] = {0: block.moving(q, jnp.zeros_like(q))}
    block.publish(published, block.t)


def _rnn_back(cell: RNN, block: Block, d: State) -> State:
    (hidden,) = block.take("gates")
    _publish(block, {0: d["hidden"] * equations.rnn_slope(cell, hidden)})
    (through,) = block.product([("d_gx", 0)])
    return {"hidden": through}


def _lstm_back(cell: LSTM, block: Block, d: State) -> State:
    gates, (before,) = block.take("gates"), block.take("previous_cell")
    i, f, g, _ = gates
    after = f * before + i * g
    d_gates, d_cell = equations.lstm_back(
        gates, before, after, d["hidden"], d["cell"], _peepholes(cell, block)
    )
    _publish(block, dict(enumerate(d_gates)))
    (through,) = block.product([("d_gx", k) for k in range(4)])
    return {"hidden": through, "cell": d_cell}


def _gru_after_back(cell: GRU, block: Block, d: State) -> State:
    (z, r, n), (q,), (h,) = (block.take(name) for name in ("gates", "q", "previous_hidden"))
    d_z, d_n = equations.gru_back(z, n, h, d["hidden"])
    _publish(block, {0: d_z, 1: d_n * q * r * (1 - r), 2: d_n}, q=d_n * r)
    (through,) = block.product([("d_gx", 0), ("d_gx", 1), ("d_q", 0)])
    return {"hidden": d["hidden"] * z + through}


def _gru_before_back(cell: GRU, block: Block, d: State) -> State:
    (z, r, n), (h,) = block.take("gates"), block.take("previous_hidden")
    d_z, d_n = equations.gru_back(z, n, h, d["hidden"])
    _publish(block, {0: d_z, 2: d_n})
    (d_rh,) = block.product([("d_gx", 2)])
    _publish(block, {1: d_rh * h * r * (1 - r)})
    (through,) = block.product([("d_gx", 0), ("d_gx", 1)], start=1)
    return {"hidden": d["hidden"] * z + d_rh * r + through}


_FORWARD: dict[str, tuple[Any, int]] = {  # a step, and how many products it has
    "rnn": (_rnn, 1),
    "lstm": (_lstm, 1),
    "gru after": (_gru_after, 1),
    "gru before": (_gru_before, 2),
}
_BACKWARD: dict[str, tuple[Any, int, int]] = {  # and how many gates it publishes at once
    "rnn": (_rnn_back, 1, 1),
    "lstm": (_lstm_back, 1, 4),
    "gru after": (_gru_after_back, 1, 4),
    "gru before": (_gru_before_back, 2, 2),
}
