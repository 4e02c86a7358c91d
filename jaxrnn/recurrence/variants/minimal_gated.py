"""Minimal gated unit: a GRU whose one gate both resets and updates.

    f^t = sigmoid(x^t W_xf + h^{t-1} W_hf + b_f)                      forget gate

    n^t = tanh(x^t W_xn + (f^t * h^{t-1}) W_hn + b_n)                 form="paper": candidate
    h^t = (1 - f^t) * h^{t-1} + f^t * n^t

    n^t = tanh(x^t W_xn + f^t * (h^{t-1} W_hn + b_h) + b_n)           form="linen": candidate
    h^t = (1 - f^t) * n^t + f^t * h^{t-1}

Source: Zhou, Wu, Zhang and Zhou, "Minimal Gated Unit for Recurrent Neural Networks", 2016, arXiv
1603.09420. `flax.linen.MGUCell` cites this paper but differs in two ways, and neither form contains the
other: it resets after the product, and its gate keeps the old state where the paper's takes the new.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, SupportsIndex

import jax.numpy as jnp

from jaxrnn.errors import one_of
from jaxrnn.recurrence import equations
from jaxrnn.recurrence.linalg import add, product, split_gates
from jaxrnn.recurrence.variants.base import HiddenState, Variant
from jaxrnn.shapes import Array, Float, Key

Form = Literal["paper", "linen"]


class MGUParams(NamedTuple):
    """Parameters of a minimal gated unit, with the columns of the gates in the order f, n.

    b_h is the recurrent bias of the candidate n; only with form="linen", otherwise None.
    """

    w_x: Float[Array, "D 2*H"]
    w_h: Float[Array, "H 2*H"]
    b: Float[Array, 2 * H]
    b_h: Float[Array, "H"] | None = None


@dataclasses.dataclass(frozen=True)
class MGU(Variant):
    """Minimal gated unit, made by `jaxrnn.mgu`. Its module has the equations.

    Attributes:
      hidden_size: width H of the hidden state.
      form: "paper" or "linen", which of the two sets of equations.
      forget_bias: initial b_f; linen's cell begins with 1.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("f", "n")
    CHECKS: ClassVar = {"form": one_of(Form)}

    form: Form = "paper"
    forget_bias: float = 0.0

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> MGUParams:
        """Return initial parameters for inputs of width D = `input_size`; w_h is orthogonal by gate."""
        w_x, w_h = self._weights(key, input_size, dtype)
        b = jnp.repeat(jnp.array([self.forget_bias, 0], dtype), self.hidden_size)
        b_h = jnp.zeros(self.hidden_size, dtype) if self.form == "linen" else None
        return MGUParams(w_x, w_h, b, b_h)

    def activations(
        self, params: MGUParams, state: HiddenState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gate "f", the candidate "n", and the new "hidden"."""
        h = state.hidden
        gx_f, gx_n = split_gates(gx, 2)
        if params.b_h is not None:
            product_f, product_n = split_gates(product(h, params.w_h), 2)
            f = equations.gru_gate(gx_f + product_f)
            n = equations.gru_candidate_after(gx_n, f, add(product_n, params.b_h))
            return {"f": f, "n": n, "hidden": (1 - f) * n + f * h}
        w_f, w_n = split_gates(params.w_h, 2)
        f = equations.gru_gate(gx_f + product(h, w_f))
        n = equations.gru_candidate_before(gx_n, product(f * h, w_n))
        return {"f": f, "n": n, "hidden": (1 - f) * h + f * n}


def mgu(hidden_size: SupportsIndex, *, form: Form = "paper", forget_bias: float = 0.0) -> MGU:
    """Return a minimal gated unit of width `hidden_size`; `MGU` has its options."""
    return MGU(hidden_size, form, forget_bias)  # type: ignore[arg-type]
