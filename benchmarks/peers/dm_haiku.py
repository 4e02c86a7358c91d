"""Haiku: hk.dynamic_unroll over hk.LSTM and hk.GRU (reset before), time-major."""

from __future__ import annotations

from functools import partial
from typing import Any

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
from jaxrnn.interop.haiku import gradients_from_haiku, to_haiku, unsupported_reason
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

NAME = "haiku"
# `layers` has no GRU that resets after the product, as those of the other libraries do.
GRU_RESET = "before"


def check() -> None:
    require("haiku", "dm-haiku")


def contender(cell: Any, given: Given) -> Contender:
    import haiku as hk

    if reason := unsupported_reason(cell):
        raise Unserved(reason)
    kind: Any = {RNN: hk.VanillaRNN, LSTM: hk.LSTM, GRU: hk.GRU}[type(cell)]

    def unroll(xs: Any, state: Any) -> Any:
        core = kind(cell.hidden_size)
        start = hk.LSTMState(*state) if isinstance(cell, LSTM) else state.hidden
        return hk.dynamic_unroll(core, xs, start)[0]

    transformed = hk.without_apply_rng(hk.transform(unroll))
    problem = to_haiku(cell, given.params), given.xs, given.state, given.cotangent
    forward, backward = jitted(transformed.apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return gradients_from_haiku(cell, d_params), d_xs, d_state

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
        convert = partial(gradients_from_haiku, cell)
        return [[given.converted(convert, d) for d in directions] for directions in numpy(found)]

    convert = partial(to_haiku, cell)
    params = [[given.converted(convert, p) for p in directions] for directions in given.params]
    return jitted_layers(given, params, apply, gradients)
