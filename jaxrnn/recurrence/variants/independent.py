"""Independently recurrent network: each unit sees its own past alone.

    h^t = activation(x^t W_x + u * h^{t-1} + b)

Source: Li, Li, Cook, Zhu and Gao, "Independently Recurrent Neural Network (IndRNN)", 2018, arXiv
1803.04831. The gradient through k steps has the factor u^k, so the paper keeps |u| below a bound near 1
while it trains: clip `params.u` after each update to do the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import Activation
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.variants.base import HiddenState, Variant, scale
from jaxrnn.shapes import Array, Float, Key


class IndRNNParams(NamedTuple):
    """Parameters of an independently recurrent network; u are the recurrent weights."""

    w_x: Float[Array, "D H"]
    u: Float[Array, "H"]
    b: Float[Array, "H"]


@dataclasses.dataclass(frozen=True)
class IndRNN(Variant):
    """Independently recurrent network, made by `jaxrnn.indrnn`. Its module has the equation.

    Attributes:
      hidden_size: width H of the hidden state.
      activation: "relu" (the paper's), "tanh" or "sigmoid".

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("h",)

    activation: Activation = "relu"

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> IndRNNParams:
        """Return initial parameters for inputs of width D = `input_size`.

        w_x is Glorot-uniform, u uniform between 0 and 1, b zero.
        """
        k_x, k_u = jax.random.split(key)
        w_x = self._input_weights(k_x, input_size, dtype)
        u = jax.random.uniform(k_u, (self.hidden_size,), wide(dtype)).astype(dtype)
        return IndRNNParams(w_x, u, jnp.zeros(self.hidden_size, dtype))

    def activations(
        self, params: IndRNNParams, state: HiddenState, gx: Float[Array, "B H"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the new hidden state as "hidden"."""
        return {"hidden": equations.rnn(gx + scale(state.hidden, params.u), self.activation)}


def indrnn(hidden_size: SupportsIndex, *, activation: Activation = "relu") -> IndRNN:
    """Return an independently recurrent cell of width `hidden_size`; `IndRNN` has its options."""
    return IndRNN(hidden_size, activation)  # type: ignore[arg-type]
