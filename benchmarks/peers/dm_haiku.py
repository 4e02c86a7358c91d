"""Haiku: hk.dynamic_unroll over hk.LSTM and hk.GRU (reset before), time-major.

Haiku's LSTM has the gate order i g f o and one matrix over [x, h], and adds 1 to the forget gate.
Its GRU multiplies the old state by 1 - z instead of z, so the update gate's weights change sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers import (
    Contender,
    Given,
    Stack,
    Unserved,
    cast,
    jitted,
    jitted_layers,
    numpy,
    require,
    scan_layers,
)
from jaxrnn.recurrence.cells import LSTM, RNN

NAME = "haiku"
# `layers` has no GRU that resets after the product, as those of the other libraries do.
GRU_RESET = "before"


def check() -> None:
    require("haiku", "dm-haiku")


def contender(cell: Any, given: Given) -> Contender:
    import haiku as hk

    if isinstance(cell, RNN):
        raise Unserved("hk.VanillaRNN has only relu")
    if getattr(cell, "peephole", False):
        raise Unserved("hk.LSTM has no peepholes")
    if getattr(cell, "reset", "before") == "after":
        raise Unserved("hk.GRU resets before the product")

    def unroll(xs: Any, state: Any) -> Any:
        core = (hk.LSTM if isinstance(cell, LSTM) else hk.GRU)(cell.hidden_size)
        start = hk.LSTMState(*state) if isinstance(cell, LSTM) else state.hidden
        return hk.dynamic_unroll(core, xs, start)[0]

    transformed = hk.without_apply_rng(hk.transform(unroll))
    problem = to_haiku(cell, given.params), given.xs, given.state, given.cotangent
    forward, backward = jitted(transformed.apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return from_haiku(cell, given.params, d_params), d_xs, d_state

    return Contender(forward, backward, numpy, gradients)


def layers(given: Stack) -> Contender:
    """Return hk.dynamic_unroll for each layer and direction, over hk.ResetCore if there are resets."""
    import haiku as hk

    cell = given.cell
    kind = hk.LSTM if isinstance(cell, LSTM) else hk.GRU

    def unroll(xs: Any, resets: Any) -> Any:
        core: Any = kind(cell.hidden_size)
        start = core.initial_state(xs.shape[1])
        if resets is not None:
            core, xs = hk.ResetCore(core), (xs, resets)
        return hk.dynamic_unroll(core, xs, start)[0]

    run = hk.without_apply_rng(hk.transform(unroll)).apply

    def apply(params: Any, xs: Any, resets: Any, lengths: Any) -> Any:
        return scan_layers(params, run, xs, resets, lengths)

    def gradients(found: Any) -> Any:
        pairs = zip(given.params, numpy(found), strict=True)
        return [
            [from_haiku(cell, like, made) for like, made in zip(*pair, strict=True)]
            for pair in pairs
        ]

    params = [[to_haiku(cell, p) for p in directions] for directions in given.params]
    return jitted_layers(given, params, apply, gradients)


def to_haiku(cell: Any, params: Any) -> dict[str, Any]:
    """Return jaxrnn's parameters under Haiku's names."""
    w_x, w_h, b = params[:3]
    if isinstance(cell, LSTM):
        b = b - np.repeat(np.float32([0, 1, 0, 0]), cell.hidden_size)
        w = np.concatenate([w_x, w_h], axis=-2)
        return {"lstm/linear": {"w": _swap_f_g(w), "b": _swap_f_g(b)}}
    return {"gru": {"w_i": _turn_z(w_x), "w_h": _turn_z(w_h), "b": _turn_z(b)}}


def from_haiku(cell: Any, like: Any, made: dict[str, Any]) -> Any:
    """Return gradients of the arrays of `to_haiku` in jaxrnn's layout."""
    if isinstance(cell, LSTM):
        w, b = (_swap_f_g(made["lstm/linear"][name]) for name in ("w", "b"))
        w_x, w_h = np.split(w, [like.w_x.shape[-2]], axis=-2)
        return like._replace(w_x=w_x, w_h=w_h, b=b)
    w_x, w_h, b = (_turn_z(made["gru"][name]) for name in ("w_i", "w_h", "b"))
    return like._replace(w_x=w_x, w_h=w_h, b=b)


def _swap_f_g(a: np.ndarray) -> np.ndarray:
    i, f, g, o = np.split(a, 4, axis=-1)
    return np.concatenate([i, g, f, o], axis=-1)


def _turn_z(a: np.ndarray) -> np.ndarray:
    z, r, n = np.split(a, 3, axis=-1)
    return np.concatenate([-z, r, n], axis=-1)
