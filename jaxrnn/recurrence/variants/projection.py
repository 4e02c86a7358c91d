"""LSTM with a recurrent projection (LSTMP): a wide memory behind a narrow recurrent state.

    i^t = sigmoid(x^t W_xi + h^{t-1} W_hi + b_i)                      input gate
    f^t = sigmoid(x^t W_xf + h^{t-1} W_hf + b_f)                      forget gate
    g^t = tanh   (x^t W_xg + h^{t-1} W_hg + b_g)                      block input
    o^t = sigmoid(x^t W_xo + h^{t-1} W_ho + b_o)                      output gate
    c^t = f^t * c^{t-1} + i^t * g^t                                   cell, [B, C]
    h^t = (o^t * tanh(c^t)) W_r                                       hidden state, [B, H]

Source: Sak, Senior and Beaufays, "Long Short-Term Memory Based Recurrent Neural Network Architectures
for Large Vocabulary Speech Recognition", 2014, arXiv 1402.1128. The cell of the paper has peepholes.
This one has none, and computes what PyTorch's `nn.LSTM(D, C, proj_size=H)` does.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.errors import whole_number
from jaxrnn.recurrence import equations
from jaxrnn.recurrence.linalg import product, split_gates
from jaxrnn.recurrence.variants.base import Variant, glorot_blocks, lstm_bias
from jaxrnn.shapes import Array, Float, Key


class ProjectedLSTMParams(NamedTuple):
    """Parameters of a projected LSTM, with the columns of the gates in the order i, f, g, o."""

    w_x: Float[Array, "D 4*C"]
    w_h: Float[Array, "H 4*C"]
    b: Float[Array, 4 * C]
    w_r: Float[Array, "C H"]


class ProjectedLSTMState(NamedTuple):
    """State of a projected LSTM: h and the wider c."""

    hidden: Float[Array, "B H"]
    cell: Float[Array, "B C"]


@dataclasses.dataclass(frozen=True)
class ProjectedLSTM(Variant):
    """LSTM with a recurrent projection, made by `jaxrnn.projected_lstm`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state, which is the output; usually less than C.
      cell_size: width C of the cell and of the gates.
      forget_bias: initial b_f; 1 keeps the memory open.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("i", "f", "g", "o")
    CHECKS: ClassVar = {"cell_size": partial(whole_number, least=1)}
    STATE = ProjectedLSTMState

    cell_size: int
    forget_bias: float = 1.0

    def init(
        self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32
    ) -> ProjectedLSTMParams:
        """Return initial parameters for inputs of width D = `input_size`; weights Glorot-uniform."""
        k_x, k_h, k_r = jax.random.split(key, 3)
        input_size = whole_number("input_size", input_size, 1)
        return ProjectedLSTMParams(
            glorot_blocks(k_x, (input_size, self.cell_size), 4, dtype),
            glorot_blocks(k_h, (self.hidden_size, self.cell_size), 4, dtype),
            lstm_bias(self.forget_bias, self.cell_size, dtype),
            glorot_blocks(k_r, (self.cell_size, self.hidden_size), 1, dtype),
        )

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> ProjectedLSTMState:
        """Return zeros, the hidden state [B, H] and the cell [B, C]."""
        widths = self.hidden_size, self.cell_size
        return ProjectedLSTMState(*(jnp.zeros((batch, width), dtype) for width in widths))

    def activations(
        self, params: ProjectedLSTMParams, state: ProjectedLSTMState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B _"]]:
        """Return the gates "i", "f", "o", the block input "g" and the new "cell", and "hidden".

        All are [B, C], except for "hidden" [B, H].
        """
        a = split_gates(gx + product(state.hidden, params.w_h), 4)
        now = equations.lstm(a, state.cell, None)
        gates = dict(zip(self.GATES, now.gates, strict=True))
        return gates | {"cell": now.cell, "hidden": product(now.hidden, params.w_r)}


def projected_lstm(
    hidden_size: SupportsIndex, cell_size: SupportsIndex, *, forget_bias: float = 1.0
) -> ProjectedLSTM:
    """Return an LSTM of `cell_size` units that are projected to `hidden_size`; see `ProjectedLSTM`."""
    return ProjectedLSTM(hidden_size, cell_size, forget_bias)  # type: ignore[arg-type]
