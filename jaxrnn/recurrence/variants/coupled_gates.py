"""LSTM with coupled input and forget gates: what is forgotten is replaced.

    f^t = sigmoid(x^t W_xf + h^{t-1} W_hf + b_f)                      forget gate
    g^t = tanh   (x^t W_xg + h^{t-1} W_hg + b_g)                      block input
    o^t = sigmoid(x^t W_xo + h^{t-1} W_ho + b_o)                      output gate
    c^t = f^t * c^{t-1} + (1 - f^t) * g^t                             cell
    h^t = o^t * tanh(c^t)

Source: Greff, Srivastava, Koutník, Steunebrink and Schmidhuber, "LSTM: A Search Space Odyssey", 2017,
arXiv 1503.04069, where it is called CIFG. The variant of the paper has peepholes; this cell has none.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.linalg import product, split_gates
from jaxrnn.recurrence.parameters import LSTMState
from jaxrnn.recurrence.variants.base import Variant
from jaxrnn.shapes import Array, Float, Key


class CoupledLSTMParams(NamedTuple):
    """Parameters of a coupled LSTM, with the columns of the gates in the order f, g, o."""

    w_x: Float[Array, "D 3*H"]
    w_h: Float[Array, "H 3*H"]
    b: Float[Array, 3 * H]


@dataclasses.dataclass(frozen=True)
class CoupledLSTM(Variant):
    """LSTM with coupled gates, made by `jaxrnn.coupled_lstm`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state and of the cell.
      forget_bias: initial b_f; 1 keeps the memory open.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("f", "g", "o")
    STATE = LSTMState

    forget_bias: float = 1.0

    def init(
        self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32
    ) -> CoupledLSTMParams:
        """Return initial parameters for inputs of width D = `input_size`; w_h is orthogonal by gate."""
        w_x, w_h = self._weights(key, input_size, dtype)
        b = jnp.repeat(jnp.array([self.forget_bias, 0, 0], dtype), self.hidden_size)
        return CoupledLSTMParams(w_x, w_h, b)

    def activations(
        self, params: CoupledLSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "f" and "o", the block input "g", and the new "cell" and "hidden"."""
        a_f, a_g, a_o = split_gates(gx + product(state.hidden, params.w_h), 3)
        f, g, o = jax.nn.sigmoid(a_f), jnp.tanh(a_g), jax.nn.sigmoid(a_o)
        cell = equations.lstm_cell((1 - f, f, g), state.cell)
        return {"f": f, "g": g, "o": o, "cell": cell, "hidden": o * jnp.tanh(cell)}


def coupled_lstm(hidden_size: SupportsIndex, *, forget_bias: float = 1.0) -> CoupledLSTM:
    """Return an LSTM of width `hidden_size` with i = 1 - f; `CoupledLSTM` has its options."""
    return CoupledLSTM(hidden_size, forget_bias)  # type: ignore[arg-type]
