"""Ways to initialise a cell, and the advice of the literature that `initialisation` tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn


class Start(NamedTuple):
    """A network with its initialisation.

    kind: the cell without regard to the initialisation, a name in KINDS.
    cell: function of the width that returns the cell.
    change: function of (key, parameters of the cell, T) that returns the initial ones for sequences
      of T steps.
    """

    kind: str
    cell: Callable[[int], Any]
    change: Callable[[Any, Any, int], Any] = lambda key, params, length: params


def identity(key: Any, params: Any, length: int) -> Any:
    """Return the parameters of a plain RNN with the identity as recurrent weights."""
    return params._replace(w_h=jnp.eye(len(params.w_h), dtype=params.w_h.dtype))


def chrono(key: Any, params: Any, length: int) -> Any:
    """Return the parameters of an LSTM with gate biases for memories of up to T steps."""
    _, _, g, o = jnp.split(params.b, 4)
    b = jnp.log(jax.random.uniform(key, g.shape, minval=1, maxval=length - 1))
    return params._replace(b=jnp.concatenate([-b, b, g, o]))


def forget(bias: float, weights: Any = "orthogonal") -> Start:
    return Start("lstm", lambda width: jaxrnn.lstm(width, forget_bias=bias, recurrent_init=weights))


def plain(activation: str, weights: Any) -> Start:
    make = functools.partial(jaxrnn.rnn, activation=activation, recurrent_init=weights)
    return Start(activation, make)


KINDS: dict[str, Callable[[int], Any]] = {
    "lstm": jaxrnn.lstm,
    "tanh": functools.partial(jaxrnn.rnn, activation="tanh"),
    "relu": functools.partial(jaxrnn.rnn, activation="relu"),
}

BIASES = {f"lstm, bias {bias:g}": forget(bias) for bias in (-2.0, 0.0, 1.0, 2.0, 4.0)}
STARTS = BIASES | {
    "lstm, chrono": Start("lstm", jaxrnn.lstm, chrono),
    "lstm, bias 1, Glorot": forget(1.0, "glorot"),
    "tanh, orthogonal": plain("tanh", "orthogonal"),
    "tanh, Glorot": plain("tanh", "glorot"),
    "relu, orthogonal": plain("relu", "orthogonal"),
    "relu, Glorot": plain("relu", "glorot"),
    "relu, identity": Start("relu", KINDS["relu"], identity),
}
# The recommendations of the literature: (English, Korean, recommended, alternative).
ADVICE = [
    ("a forget bias of 1", "포겟 게이트 편향 1", "lstm, bias 1", "lstm, bias 0"),
    ("chrono biases", "chrono 편향", "lstm, chrono", "lstm, bias 1"),
    ("orthogonal weights of tanh", "tanh의 직교 가중치", "tanh, orthogonal", "tanh, Glorot"),
    ("identity weights of ReLU", "ReLU의 단위행렬 가중치", "relu, identity", "relu, Glorot"),
]
