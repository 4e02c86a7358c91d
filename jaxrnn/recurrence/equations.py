"""The arithmetic of every cell, forward and backward, beside the mathematics.

The functions take arrays of one shape (or shapes that broadcast), entry by entry, in float32 or wider.
They know nothing of matrix products, memory layouts or devices, so that the plain scan, XLA's loops and
the kernels for TPUs and GPUs all call them. The C++ of `kernels.native` is the only other copy.

Notation: h and c are the hidden state and the cell before the step, h' and c' those after it, `*` is the
product of entries. a_k is the complete input of gate k, for example a_i = x W_xi + h W_hi + b_i.
d_x is the derivative of the loss with respect to x.

    RNN (lecture row 1)     h' = activation(a)

    LSTM (rows 5 and 6)     i = sigmoid(a_i + p_i * c)            input gate
                            f = sigmoid(a_f + p_f * c)            forget gate
                            g = tanh(a_g)                         block input
                            c' = f * c + i * g                    cell
                            o = sigmoid(a_o + p_o * c')           output gate
                            h' = o * tanh(c')
                            The peepholes p are absent in an LSTM without them.

    GRU (row 7)             z = sigmoid(a_z)                      update gate
                            r = sigmoid(a_r)                      reset gate
                            n = tanh(x W_xn + b_n + (r * h) W_hn)     reset before the product
                            q = h W_hn + b_h
                            n = tanh(x W_xn + b_n + r * q)            reset after the product
                            h' = (1 - z) * n + z * h
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.literals import Activation
from jaxrnn.shapes import Array

Peepholes = tuple[Array, Array, Array] | None


class CellKind(enum.Enum):
    """The equations that a cell computes; the values are the names in tables and files."""

    RNN = "rnn"
    LSTM = "lstm"
    GRU_BEFORE = "gru-before"
    GRU_AFTER = "gru-after"


# --- plain RNN ---


def rnn(a: Array, activation: Activation) -> Array:
    """Return h' from the input a of the activation."""
    if activation == "relu":
        # `jax.nn.relu` has a custom derivative, which no Pallas kernel takes. This one has the same
        # derivative, 0 at 0, and lets NaN pass.
        return jnp.where(a <= 0, jnp.zeros_like(a), a)
    return jnp.tanh(a) if activation == "tanh" else jax.nn.sigmoid(a)


def rnn_backward(h_after: Array, d_h: Array, activation: Activation) -> Array:
    """Return d_a from h' and its derivative d_h."""
    if activation == "relu":
        return d_h * jnp.where(h_after > 0, jnp.ones_like(h_after), jnp.zeros_like(h_after))
    if activation == "tanh":
        return d_h * (1 - h_after * h_after)
    return d_h * (h_after * (1 - h_after))


# --- LSTM ---


class LSTMStep(NamedTuple):
    """The results of one step of an LSTM: the gates (i, f, g, o), c' and h'."""

    gates: tuple[Array, Array, Array, Array]
    cell: Array
    hidden: Array


def lstm(a: Sequence[Array], c: Array, peepholes: Peepholes) -> LSTMStep:
    """Return the gates, c' and h' from a = (a_i, a_f, a_g, a_o) and c."""
    a_i, a_f, a_g, a_o = a
    if peepholes is not None:
        a_i = a_i + peepholes[0] * c
        a_f = a_f + peepholes[1] * c
    i = jax.nn.sigmoid(a_i)
    f = jax.nn.sigmoid(a_f)
    g = jnp.tanh(a_g)
    c_after = lstm_cell((i, f, g), c)
    o = jax.nn.sigmoid(a_o if peepholes is None else a_o + peepholes[2] * c_after)
    return LSTMStep((i, f, g, o), c_after, o * jnp.tanh(c_after))


def lstm_cell(gates: Sequence[Array], c: Array) -> Array:
    """Return c' from the gates, of which i, f and g are the first three, and c."""
    i, f, g = gates[:3]
    return f * c + i * g


def lstm_backward(
    gates: Sequence[Array], c: Array, c_after: Array, d_h: Array, d_c: Array, peepholes: Peepholes
) -> tuple[tuple[Array, Array, Array, Array], Array]:
    """Return (d_ai, d_af, d_ag, d_ao) and the derivative with respect to c.

    Args:
      gates: (i, f, g, o).
      c: the cell before the step.
      c_after: the cell after it.
      d_h: derivative with respect to h'.
      d_c: derivative with respect to c', without what comes through h'.
      peepholes: (p_i, p_f, p_o), or None.
    """
    i, f, g, o = gates
    tanh_c = jnp.tanh(c_after)
    d_ao = d_h * tanh_c * o * (1 - o)
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    if peepholes is not None:
        d_c = d_c + peepholes[2] * d_ao
    d_ai = d_c * g * i * (1 - i)
    d_af = d_c * c * f * (1 - f)
    d_ag = d_c * i * (1 - g * g)
    d_before = d_c * f
    if peepholes is not None:
        d_before = d_before + peepholes[0] * d_ai + peepholes[1] * d_af
    return (d_ai, d_af, d_ag, d_ao), d_before


# --- GRU ---
# A step has a matrix product in its middle, so it comes in parts: the gates, the candidate, the state.


def gru_gate(a: Array) -> Array:
    """Return z or r, or both side by side, from their inputs."""
    return jax.nn.sigmoid(a)


def gru_candidate_before(gx_n: Array, product: Array) -> Array:
    """Return n of a GRU that resets before the product, from gx_n = x W_xn + b_n and (r * h) W_hn."""
    return jnp.tanh(gx_n + product)


def gru_candidate_after(gx_n: Array, r: Array, q: Array) -> Array:
    """Return n of a GRU that resets after the product, from gx_n, r and q = h W_hn + b_h."""
    return jnp.tanh(gx_n + r * q)


def gru_hidden(z: Array, n: Array, h: Array) -> Array:
    """Return h'."""
    return (1 - z) * n + z * h


def gru_hidden_backward(z: Array, n: Array, h: Array, d_h: Array) -> tuple[Array, Array, Array]:
    """Return d_az, d_an and the part of the derivative with respect to h that comes through z * h.

    d_h is the derivative with respect to h'.
    """
    return d_h * (h - n) * z * (1 - z), d_h * (1 - z) * (1 - n * n), d_h * z


def gru_reset_backward_before(h: Array, r: Array, d_rh: Array) -> tuple[Array, Array]:
    """Return d_ar and the part of the derivative with respect to h that comes through r * h.

    d_rh is the derivative with respect to r * h, that is d_an W_hn^T.
    """
    return d_rh * h * r * (1 - r), d_rh * r


def gru_reset_backward_after(q: Array, r: Array, d_an: Array) -> tuple[Array, Array]:
    """Return d_ar and the derivative with respect to q = h W_hn + b_h."""
    return d_an * q * r * (1 - r), d_an * r
