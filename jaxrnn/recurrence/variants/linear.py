"""minGRU and minLSTM: gates that see the input alone, so that the state is linear in its past.

Both are h^t = a^t * h^{t-1} + b^t, where a^t and b^t depend on x^t only. All steps can thus be computed
at once by an associative scan; `coefficients` returns a and b.

    z^t = sigmoid(x^t W_xz + b_z)                                     minGRU: update gate
    n^t = candidate(x^t W_xn + b_n)
    h^t = (1 - z^t) * h^{t-1} + z^t * n^t                             a = 1 - z, b = z * n

    s_f^t = sigmoid(x^t W_xf + b_f)                                   minLSTM
    s_i^t = sigmoid(x^t W_xi + b_i)
    f^t = s_f^t / (s_f^t + s_i^t)                                     forget gate
    i^t = s_i^t / (s_f^t + s_i^t)                                     input gate
    n^t = candidate(x^t W_xn + b_n)
    h^t = f^t * h^{t-1} + i^t * n^t                                   a = f, b = i * n

    candidate(a) = a                                                  candidate="linear"
    candidate(a) = a + 0.5 where a >= 0, sigmoid(a) elsewhere         candidate="positive"

Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs All We Needed?", 2024, arXiv 2410.01201.
These are its plain forms, not computed as logarithms. The paper has the linear candidate in its plain
form and the positive one in its logarithmic form, which needs h > 0. Here z takes the new state as in
the paper; in `jaxrnn.gru` it keeps the old.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.errors import one_of
from jaxrnn.recurrence.linalg import split_gates
from jaxrnn.recurrence.variants.base import HiddenState, Variant
from jaxrnn.shapes import Array, Float, Key

Candidate = Literal["linear", "positive"]


class MinParams(NamedTuple):
    """Parameters of minGRU and minLSTM, with the columns of the gates in the order of `GATES`."""

    w_x: Float[Array, "D G"]
    b: Float[Array, "G"]


@dataclasses.dataclass(frozen=True)
class _LinearCell(Variant):
    """The members that minGRU and minLSTM share."""

    CHECKS: ClassVar = {"candidate": one_of(Candidate)}

    candidate: Candidate = "linear"

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> MinParams:
        """Return initial parameters for inputs of width D = `input_size`: Glorot-uniform w_x, b zero."""
        w_x = self._input_weights(key, input_size, dtype)
        return MinParams(w_x, jnp.zeros(w_x.shape[1], dtype))

    def _gates(self, gx: Float[Array, "... G"]) -> dict[str, Float[Array, "... H"]]:
        """Return the gates by name, in the order `GATES`."""
        raise NotImplementedError

    def coefficients(
        self, params: MinParams, gx: Float[Array, "... G"]
    ) -> tuple[Float[Array, "... H"], Float[Array, "... H"]]:
        """Return a and b of h^t = a * h^{t-1} + b, for any leading axes of the projected inputs."""
        raise NotImplementedError

    def activations(
        self, params: MinParams, state: HiddenState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates and the candidate by their names in `GATES`, and the new "hidden"."""
        a, b = self.coefficients(params, gx)
        return self._gates(gx) | {"hidden": a * state.hidden + b}

    def _candidate(self, a: Array) -> Array:
        if self.candidate == "linear":
            return a
        return jnp.where(a >= 0, a + 0.5, jax.nn.sigmoid(a))


@dataclasses.dataclass(frozen=True)
class MinGRU(_LinearCell):
    """minGRU, made by `jaxrnn.mingru`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state.
      candidate: "linear" or "positive", the activation of the candidate n.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("z", "n")

    def _gates(self, gx: Float[Array, "... G"]) -> dict[str, Float[Array, "... H"]]:
        a_z, a_n = split_gates(gx, 2)
        return {"z": jax.nn.sigmoid(a_z), "n": self._candidate(a_n)}

    def coefficients(
        self, params: MinParams, gx: Float[Array, "... G"]
    ) -> tuple[Float[Array, "... H"], Float[Array, "... H"]]:
        """Return a = 1 - z and b = z * n, for any leading axes of the projected inputs."""
        now = self._gates(gx)
        return 1 - now["z"], now["z"] * now["n"]


@dataclasses.dataclass(frozen=True)
class MinLSTM(_LinearCell):
    """minLSTM, made by `jaxrnn.minlstm`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state.
      candidate: "linear" or "positive", the activation of the candidate n.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("f", "i", "n")

    def _gates(self, gx: Float[Array, "... G"]) -> dict[str, Float[Array, "... H"]]:
        a_f, a_i, a_n = split_gates(gx, 3)
        # The logarithm of s_f / s_i. The quotients themselves would be 0 / 0 where both gates are shut.
        odds = jax.nn.log_sigmoid(a_f) - jax.nn.log_sigmoid(a_i)
        return {
            "f": jax.nn.sigmoid(odds),
            "i": jax.nn.sigmoid(-odds),
            "n": self._candidate(a_n),
        }

    def coefficients(
        self, params: MinParams, gx: Float[Array, "... G"]
    ) -> tuple[Float[Array, "... H"], Float[Array, "... H"]]:
        """Return a = f and b = i * n, for any leading axes of the projected inputs."""
        now = self._gates(gx)
        return now["f"], now["i"] * now["n"]


def mingru(hidden_size: SupportsIndex, *, candidate: Candidate = "linear") -> MinGRU:
    """Return a minGRU of width `hidden_size`; `MinGRU` has its options."""
    return MinGRU(hidden_size, candidate)  # type: ignore[arg-type]


def minlstm(hidden_size: SupportsIndex, *, candidate: Candidate = "linear") -> MinLSTM:
    """Return a minLSTM of width `hidden_size`; `MinLSTM` has its options."""
    return MinLSTM(hidden_size, candidate)  # type: ignore[arg-type]
