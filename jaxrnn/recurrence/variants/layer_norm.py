"""LSTM and GRU with layer normalization inside of the cell.

    LN(a) = (a - mean(a)) / sqrt(variance(a) + 1e-5)                  over the last axis

    a^t = LN(x^t W_x) * p + LN(h^{t-1} W_h) * q + b                   LSTM: a = (a_i, a_f, a_g, a_o)
    i^t, f^t, o^t = sigmoid(a_i^t), sigmoid(a_f^t), sigmoid(a_o^t)    gates
    g^t = tanh(a_g^t)                                                 block input
    c^t = f^t * c^{t-1} + i^t * g^t                                   cell
    h^t = o^t * tanh(LN(c^t) * p_c + b_c)

    z^t, r^t = sigmoid(LN(x^t W_xzr) * p_zr + LN(h^{t-1} W_hzr) * q_zr + b_zr)      GRU: gates
    n^t = tanh(LN(x^t W_xn) * p_n + b_n + r^t * (LN(h^{t-1} W_hn) * q_n + b_h))     candidate
    h^t = (1 - z^t) * n^t + z^t * h^{t-1}

One mean and variance covers all gates of the LSTM (4H numbers), the two gates z and r of the GRU (2H)
or its candidate (H). p, q and p_c are learned gains. The input's part, with its gain and b, is computed
by `project` for all steps at once.

Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv 1607.06450, appendix, and its authors'
program, https://github.com/ryankiros/layer-norm, which normalizes the same gates together. Both have a
shift for each normalization besides b; only the sums of those that are added count, and they are b here.
The z of the paper takes the new state; here it keeps the old, as in that program and in `jaxrnn.gru`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.linalg import add, product, split_gates
from jaxrnn.recurrence.parameters import LSTMState, check_params
from jaxrnn.recurrence.variants.base import HiddenState, Variant, lstm_bias, scale
from jaxrnn.shapes import Array, Float, Key

EPSILON = 1e-5


class LayerNormLSTMParams(NamedTuple):
    """Parameters of a layer-normalized LSTM, with the columns of the gates in the order i, f, g, o.

    gain_x, gain_h and gain_c are p, q and p_c of the equations.
    """

    w_x: Float[Array, "D 4*H"]
    w_h: Float[Array, "H 4*H"]
    b: Float[Array, 4 * H]
    gain_x: Float[Array, 4 * H]
    gain_h: Float[Array, 4 * H]
    gain_c: Float[Array, "H"]
    b_c: Float[Array, "H"]


class LayerNormGRUParams(NamedTuple):
    """Parameters of a layer-normalized GRU, with the columns of the gates in the order z, r, n.

    gain_x and gain_h are p and q of the equations; b_h is the recurrent bias of the candidate n.
    """

    w_x: Float[Array, "D 3*H"]
    w_h: Float[Array, "H 3*H"]
    b: Float[Array, 3 * H]
    b_h: Float[Array, "H"]
    gain_x: Float[Array, 3 * H]
    gain_h: Float[Array, 3 * H]


def normalized(a: Float[Array, "... N"]) -> Float[Array, "... N"]:
    """Return a with mean 0 and, but for `EPSILON`, variance 1 in the last axis."""
    a = a - a.mean(-1, keepdims=True)
    return a * lax.rsqrt((a * a).mean(-1, keepdims=True) + EPSILON)


@dataclasses.dataclass(frozen=True)
class LayerNormLSTM(Variant):
    """LSTM with layer normalization, made by `jaxrnn.layer_norm_lstm`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state and of the cell.
      forget_bias: initial b_f; 1 keeps the memory open.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("i", "f", "g", "o")
    STATE = LSTMState

    forget_bias: float = 1.0

    def init(
        self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32
    ) -> LayerNormLSTMParams:
        """Return initial parameters for inputs of width D = `input_size`; the gains are one."""
        w_x, w_h = self._weights(key, input_size, dtype)
        b = lstm_bias(self.forget_bias, self.hidden_size, dtype)
        ones, zeros = jnp.ones(self.hidden_size, dtype), jnp.zeros(self.hidden_size, dtype)
        return LayerNormLSTMParams(w_x, w_h, b, jnp.ones_like(b), jnp.ones_like(b), ones, zeros)

    def project(
        self, params: LayerNormLSTMParams, xs: Float[Array, "... D"]
    ) -> Float[Array, "... G"]:
        """Return LN(x W_x) * p + b for any leading axes, in the wide dtype.

        Raises:
          ValueError: for parameters of another cell.
        """
        check_params(self, params, builtin=False)
        return add(scale(normalized(product(xs, params.w_x)), params.gain_x), params.b)

    def activations(
        self, params: LayerNormLSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "i", "f", "o", the block input "g", and the new "cell" and "hidden"."""
        recurrent = scale(normalized(product(state.hidden, params.w_h)), params.gain_h)
        a_i, a_f, a_g, a_o = split_gates(gx + recurrent, 4)
        i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
        g = jnp.tanh(a_g)
        cell = equations.lstm_cell((i, f, g), state.cell)
        hidden = o * jnp.tanh(add(scale(normalized(cell), params.gain_c), params.b_c))
        return {"i": i, "f": f, "g": g, "o": o, "cell": cell, "hidden": hidden}


@dataclasses.dataclass(frozen=True)
class LayerNormGRU(Variant):
    """GRU with layer normalization, made by `jaxrnn.layer_norm_gru`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state.

    Raises:
      ValueError: for a width that is not a positive whole number.
    """

    GATES = ("z", "r", "n")

    def init(
        self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32
    ) -> LayerNormGRUParams:
        """Return initial parameters for inputs of width D = `input_size`; the gains are one."""
        w_x, w_h = self._weights(key, input_size, dtype)
        ones, zeros = jnp.ones(w_x.shape[1], dtype), jnp.zeros(w_x.shape[1], dtype)
        return LayerNormGRUParams(w_x, w_h, zeros, zeros[: self.hidden_size], ones, ones)

    def project(
        self, params: LayerNormGRUParams, xs: Float[Array, "... D"]
    ) -> Float[Array, "... G"]:
        """Return LN(x W_x) * p + b for any leading axes, in the wide dtype.

        Raises:
          ValueError: for parameters of another cell.
        """
        check_params(self, params, builtin=False)
        gates, candidate = self._normalized(product(xs, params.w_x), params.gain_x)
        return add(jnp.concatenate([gates, candidate], axis=-1), params.b)

    def activations(
        self, params: LayerNormGRUParams, state: HiddenState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "z" and "r", the candidate "n", and the new "hidden"."""
        gx_zr, gx_n = jnp.split(gx, [2 * self.hidden_size], axis=-1)
        recurrent_zr, recurrent_n = self._normalized(
            product(state.hidden, params.w_h), params.gain_h
        )
        z, r = split_gates(equations.gru_gate(gx_zr + recurrent_zr), 2)
        n = equations.gru_candidate_after(gx_n, r, add(recurrent_n, params.b_h))
        return {"z": z, "r": r, "n": n, "hidden": equations.gru_hidden(z, n, state.hidden)}

    def _normalized(
        self, a: Float[Array, "... G"], gain: Float[Array, "G"]
    ) -> tuple[Float[Array, "... N"], Float[Array, "... H"]]:
        """Return the parts of z and r (N = 2H) and of n, each normalized and scaled."""
        parts = zip(
            *(jnp.split(x, [2 * self.hidden_size], axis=-1) for x in (a, gain)), strict=True
        )
        gates, candidate = (scale(normalized(part), its_gain) for part, its_gain in parts)
        return gates, candidate


def layer_norm_lstm(hidden_size: SupportsIndex, *, forget_bias: float = 1.0) -> LayerNormLSTM:
    """Return a layer-normalized LSTM of width `hidden_size`; `LayerNormLSTM` has its options."""
    return LayerNormLSTM(hidden_size, forget_bias)  # type: ignore[arg-type]


def layer_norm_gru(hidden_size: SupportsIndex) -> LayerNormGRU:
    """Return a layer-normalized GRU of width `hidden_size`, which resets after the product."""
    return LayerNormGRU(hidden_size)  # type: ignore[arg-type]
