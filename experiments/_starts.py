"""Ways to initialise a cell, and the advice of the literature that `initialisation` tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn

# Steps of a sequence.
STEPS = 50


class Start(NamedTuple):
    """A network with its initialisation.

    cell: function of the width that returns the cell.
    change: function of (key, parameters of the cell) that returns the initial ones.
    """

    cell: Callable[[int], Any]
    change: Callable[[Any, Any], Any] = lambda key, params: params


def identity(key: Any, params: Any) -> Any:
    """Return the parameters of a plain RNN with the identity as recurrent weights."""
    return params._replace(w_h=jnp.eye(len(params.w_h), dtype=params.w_h.dtype))


def chrono(key: Any, params: Any) -> Any:
    """Return the parameters of an LSTM with gate biases for memories of up to STEPS steps."""
    _, _, g, o = jnp.split(params.b, 4)
    b = jnp.log(jax.random.uniform(key, g.shape, minval=1, maxval=STEPS - 1))
    return params._replace(b=jnp.concatenate([-b, b, g, o]))


def forget(bias: float, weights: Any = "orthogonal") -> Start:
    return Start(lambda width: jaxrnn.lstm(width, forget_bias=bias, recurrent_init=weights))


def plain(activation: Any, weights: Any) -> Start:
    return Start(lambda width: jaxrnn.rnn(width, activation=activation, recurrent_init=weights))


BIASES = {f"lstm, bias {bias:g}": forget(bias) for bias in (-2.0, 0.0, 1.0, 2.0, 4.0)}
STARTS = BIASES | {
    "lstm, chrono": Start(jaxrnn.lstm, chrono),
    "lstm, bias 1, Glorot": forget(1.0, "glorot"),
    "tanh, orthogonal": plain("tanh", "orthogonal"),
    "tanh, Glorot": plain("tanh", "glorot"),
    "relu, orthogonal": plain("relu", "orthogonal"),
    "relu, Glorot": plain("relu", "glorot"),
    "relu, identity": Start(lambda width: jaxrnn.rnn(width, activation="relu"), identity),
}
# The recommendations of the literature: (English, Korean, recommended, alternative).
ADVICE = [
    ("a forget bias of 1", "포겟 게이트 편향 1", "lstm, bias 1", "lstm, bias 0"),
    ("orthogonal weights of tanh", "tanh의 직교 가중치", "tanh, orthogonal", "tanh, Glorot"),
    ("identity weights of ReLU", "ReLU의 단위행렬 가중치", "relu, identity", "relu, Glorot"),
]
