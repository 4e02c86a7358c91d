"""Mogrifier LSTM: before each step the input and the hidden state modulate each other.

    x <- 2 sigmoid(h Q_i) * x                                         rounds i = 1, 3, 5, ...
    h <- 2 sigmoid(x R_i) * h                                         rounds i = 2, 4, 6, ...

from x = x^t and h = h^{t-1}. What the last round leaves enters an LSTM:

    i^t = sigmoid(x W_xi + h W_hi + b_i)                              input gate
    f^t = sigmoid(x W_xf + h W_hf + b_f)                              forget gate
    g^t = tanh   (x W_xg + h W_hg + b_g)                              block input
    o^t = sigmoid(x W_xo + h W_ho + b_o)                              output gate
    c^t = f^t * c^{t-1} + i^t * g^t                                   cell
    h^t = o^t * tanh(c^t)

Each Q_i and R_i is a whole matrix or a product of two, [H, k] [k, D] and [D, k] [k, H]. Because h
modulates x, `project` returns the inputs as they are, and each step multiplies them by W_x.

Source: Melis, Kočiský and Blunsom, "Mogrifier LSTM", 2020, arXiv 1909.01792, and its authors' program,
https://github.com/google-deepmind/lamb, for the initial Q_i and R_i. The program also adds a bias in
each round and can bound the input gate by 1 - f; the paper's equations, and this cell, do neither.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.errors import whole_number
from jaxrnn.recurrence import equations
from jaxrnn.recurrence.linalg import add, product, split_gates, wide
from jaxrnn.recurrence.parameters import LSTMState, check_params
from jaxrnn.recurrence.variants.base import Variant, lstm_bias
from jaxrnn.shapes import Array, Float, Key


class MogrifierLSTMParams(NamedTuple):
    """Parameters of a Mogrifier LSTM, with the columns of the gates in the order i, f, g, o.

    Q_1, Q_3, ... are q_left[0] q_right[0], q_left[1] q_right[1], ..., and R_2, R_4, ... likewise. Whole
    matrices are q_left and r_left, with q_right and r_right None. All are None where no round has them.
    """

    w_x: Float[Array, "D 4*H"]
    w_h: Float[Array, "H 4*H"]
    b: Float[Array, 4 * H]
    q_left: Float[Array, "I H K"] | None
    q_right: Float[Array, "I K D"] | None
    r_left: Float[Array, "J D K"] | None
    r_right: Float[Array, "J K H"] | None


@dataclasses.dataclass(frozen=True)
class MogrifierLSTM(Variant):
    """Mogrifier LSTM, made by `jaxrnn.mogrifier_lstm`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state and of the cell.
      rounds: number of modulations; 0 is a plain LSTM.
      rank: k, the rank of the matrices Q_i and R_i; 0 for whole matrices.
      forget_bias: initial b_f; 1 keeps the memory open.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("i", "f", "g", "o")
    CHECKS: ClassVar = {name: partial(whole_number, least=0) for name in ("rounds", "rank")}
    STATE = LSTMState
    # Tells `unroll` that projected inputs are D wide, and not as wide as w_h.
    keeps_inputs: ClassVar[bool] = True

    rounds: int = 5
    rank: int = 24
    forget_bias: float = 1.0

    def init(
        self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32
    ) -> MogrifierLSTMParams:
        """Return initial parameters for inputs of width D = `input_size`; w_h is orthogonal by gate.

        The entries of the matrices Q_i [H, D] have variance 1 / H, those of the R_i [D, H] 1 / D.
        """
        k_weights, k_q, k_r = jax.random.split(key, 3)
        w_x, w_h = self._weights(k_weights, input_size, dtype)
        b = lstm_bias(self.forget_bias, self.hidden_size, dtype)
        shape = self.hidden_size, w_x.shape[0]
        q = self._matrices(k_q, (self.rounds + 1) // 2, shape, dtype)
        r = self._matrices(k_r, self.rounds // 2, shape[::-1], dtype)
        return MogrifierLSTMParams(w_x, w_h, b, *q, *r)

    def _matrices(
        self, key: Key, count: int, shape: tuple[int, int], dtype: Any
    ) -> tuple[Array | None, Array | None]:
        """Return the left and right factors of `count` matrices, normally distributed."""
        if not count:
            return None, None
        rows, columns = shape

        def draw(key: Key, *shape: int, scale: float) -> Array:
            return (scale * jax.random.normal(key, (count, *shape), wide(dtype))).astype(dtype)

        if not self.rank:
            return draw(key, rows, columns, scale=rows**-0.5), None
        # An entry of the product is a sum of `rank` products.
        scale = (rows * self.rank) ** -0.25
        k_left, k_right = jax.random.split(key)
        left = draw(k_left, rows, self.rank, scale=scale)
        return left, draw(k_right, self.rank, columns, scale=scale)

    def project(
        self, params: MogrifierLSTMParams, xs: Float[Array, "... D"]
    ) -> Float[Array, "... D"]:
        """Return xs in the wide dtype, for any leading axes.

        Raises:
          ValueError: for parameters of another cell.
        """
        check_params(self, params, builtin=False)
        return xs.astype(wide(params.w_x.dtype))

    def activations(
        self, params: MogrifierLSTMParams, state: LSTMState, gx: Float[Array, "B D"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "i", "f", "o", the block input "g", and the new "cell" and "hidden"."""
        x, h = gx, state.hidden
        for number in range(self.rounds):
            if number % 2 == 0:
                x = _modulated(x, h, params.q_left, params.q_right, number // 2)
            else:
                h = _modulated(h, x, params.r_left, params.r_right, number // 2)
        a = add(product(x, params.w_x) + product(h, params.w_h), params.b)
        now = equations.lstm(split_gates(a, 4), state.cell, None)
        gates = dict(zip(self.GATES, now.gates, strict=True))
        return gates | {"cell": now.cell, "hidden": now.hidden}


def _modulated(x: Array, by: Array, left: Any, right: Any, at: int) -> Array:
    a = product(by, left[at])
    return 2 * jax.nn.sigmoid(a if right is None else product(a, right[at])) * x


def mogrifier_lstm(
    hidden_size: SupportsIndex,
    *,
    rounds: SupportsIndex = 5,
    rank: SupportsIndex = 24,
    forget_bias: float = 1.0,
) -> MogrifierLSTM:
    """Return a Mogrifier LSTM of width `hidden_size`; `MogrifierLSTM` has its options."""
    return MogrifierLSTM(hidden_size, rounds, rank, forget_bias)  # type: ignore[arg-type]
