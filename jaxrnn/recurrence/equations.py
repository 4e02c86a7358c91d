"""What a step of a cell does beside its matrix products, forward and backward, entry by entry.

Functions of arrays of one shape, in float32 or wider, whatever computed the products and wherever they
lie: the equations of `recurrence.cells` and their derivatives. `a_k` is the input of gate k, all of it
summed; `d_x` the loss's derivative by x. Peepholes are (p_i, p_f, p_o) or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import ACTIVATIONS, RNN
from jaxrnn.shapes import Array

Peepholes = tuple[Array, Array, Array] | None


def rnn(cell: RNN, a: Array) -> Array:
    """The hidden state after the step."""
    if cell.activation == "relu":
        return jnp.maximum(
            a, jnp.zeros_like(a)
        )  # jax.nn's carries a derivative that no kernel takes
    return ACTIVATIONS[cell.activation](a)


def rnn_slope(cell: RNN, h: Array) -> Array:
    """The activation's derivative, from its value."""
    if cell.activation == "relu":
        return jnp.where(h > 0, jnp.ones_like(h), jnp.zeros_like(h))
    return 1 - h * h if cell.activation == "tanh" else h * (1 - h)


class LSTMStep(NamedTuple):
    gates: tuple[Array, Array, Array, Array]  # i, f, g, o
    cell: Array
    hidden: Array


def lstm(a: Sequence[Array], c: Array, p: Peepholes) -> LSTMStep:
    """a: of the gates i, f, g, o. c: the cell before the step."""
    a_i, a_f, a_g, a_o = a
    if p is not None:
        a_i, a_f = a_i + p[0] * c, a_f + p[1] * c
    i, f, g = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jnp.tanh(a_g)
    c = f * c + i * g
    o = jax.nn.sigmoid(a_o if p is None else a_o + p[2] * c)
    return LSTMStep((i, f, g, o), c, o * jnp.tanh(c))


def lstm_back(
    gates: tuple[Array, ...], before: Array, after: Array, d_h: Array, d_c: Array, p: Peepholes
) -> tuple[tuple[Array, Array, Array, Array], Array]:
    """(d_ai, d_af, d_ag, d_ao), d of the cell before.

    before, after: the cell. d_h, d_c: of the hidden state and the cell after the step.
    """
    i, f, g, o = gates
    tanh_c = jnp.tanh(after)
    d_ao = d_h * tanh_c * o * (1 - o)
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    if p is not None:
        d_c = d_c + p[2] * d_ao
    d_ai, d_af, d_ag = d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g * g)
    d_c = d_c * f
    if p is not None:
        d_c = d_c + p[0] * d_ai + p[1] * d_af
    return (d_ai, d_af, d_ag, d_ao), d_c


def gru(z: Array, n: Array, h: Array) -> Array:
    """The hidden state after the step."""
    return (1 - z) * n + z * h


def gru_back(z: Array, n: Array, h: Array, d_h: Array) -> tuple[Array, Array]:
    """d_az, d_an, from d of the hidden state after the step; h: before it."""
    return d_h * (h - n) * z * (1 - z), d_h * (1 - z) * (1 - n * n)
