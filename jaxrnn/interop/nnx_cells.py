"""The cells of `jaxrnn.interop.nnx`, and which cells of nnx the recurrence can run, and how."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from jaxrnn.interop import flax_recurrence
from jaxrnn.interop.flax import NNX, Kind, from_weights
from jaxrnn.interop.flax_recurrence import Carry
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.linalg import add
from jaxrnn.shapes import Array, Float

RecurrenceCell = RNN | LSTM | GRU


# With another base than flax's, Python would not let `from_flax` change the class of an object.
class _ZeroCarry(nnx.RNNCellBase):
    """The initial carry of these cells: zeros, for which no random keys are needed."""

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Carry:
        """Return the carry before the first step.

        Args:
          input_shape: the shape of a step's inputs, (*batch, D).
          rngs: as for flax's cells; used only where there is a `carry_init`, which needs it.
          carry_init: an initializer instead of the cell's own.

        Returns:
          (c, h) for an LSTM, otherwise h, each [*batch, H] in the cell's `param_dtype`: zeros if neither
          this call nor the cell has a `carry_init`.
        """
        cell: Any = self
        if cell.carry_init is None and carry_init is None:
            return zero_carry_of(cell, input_shape[:-1])
        parent: Any = super()
        return parent.initialize_carry(input_shape, rngs, carry_init)


class LSTMCell(_ZeroCarry, nnx.LSTMCell):
    """`flax.nnx.LSTMCell`: an LSTM with a kernel for each gate; its carry needs no rngs."""


class OptimizedLSTMCell(_ZeroCarry, nnx.OptimizedLSTMCell):
    """`flax.nnx.OptimizedLSTMCell`: an LSTM with one kernel for all gates; its carry needs no rngs."""


class SimpleCell(_ZeroCarry, nnx.SimpleCell):
    """`flax.nnx.SimpleCell`: a plain recurrent cell; its carry needs no rngs."""


class GRUCell(_ZeroCarry, nnx.GRUCell):
    """`flax.nnx.GRUCell` with an option for the recurrent bias, which flax's has not.

        r = sigmoid(W_ir x + b_ir + W_hr h)
        z = sigmoid(W_iz x + b_iz + W_hz h)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Without `recurrent_bias` there is no b_hn.
    """

    b_hn: Any = None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        recurrent_bias: bool = False,
        **options: Any,
    ) -> None:
        """Make the parameters.

        Args:
          in_features: width D of the inputs.
          hidden_features: width H of the hidden state.
          recurrent_bias: whether there is a parameter `b_hn` [H], zeros at the start. PyTorch's GRU and
            linen's have it.
          **options: those of `flax.nnx.GRUCell`; `rngs` is required. `bias_metadata` is also b_hn's.
        """
        super().__init__(in_features, hidden_features, **options)
        if recurrent_bias:
            zeros = jnp.zeros(hidden_features, self.param_dtype)
            self.b_hn = nnx.Param(zeros, **options.get("bias_metadata", {}))

    def __call__(
        self, carry: Float[Array, "... H"], inputs: Array
    ) -> tuple[Float[Array, "... H"], Float[Array, "... H"]]:
        """Return the carry after one step, and the output, which is the same.

        Args:
          carry: h [*batch, H].
          inputs: [*batch, D].
        """
        if self.b_hn is None:
            return super().__call__(carry, inputs)
        x_r, x_z, x_n = jnp.split(self.dense_i(inputs), 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.dense_h(carry), 3, axis=-1)
        r = self.gate_fn(x_r + h_r)
        z = self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + r * add(h_n, self.b_hn[...]))
        hidden = (1 - z) * n + z * carry
        return hidden, hidden


# The cells whose steps the recurrence computes. A subclass with a step of its own is not one of them.
_KINDS: dict[Any, Kind] = {
    nnx.LSTMCell.__call__: "LSTMCell",
    nnx.OptimizedLSTMCell.__call__: "OptimizedLSTMCell",
    nnx.GRUCell.__call__: "GRUCell",
    GRUCell.__call__: "GRUCell",
    nnx.SimpleCell.__call__: "SimpleCell",
}

# The methods whose carry is zeros for a cell without carry_init.
_ZERO_CARRIES = {_ZeroCarry.initialize_carry} | {
    kind.initialize_carry
    for kind in (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
}


def has_zero_carry(cell: Any) -> bool:
    """Return whether the initial carry of a cell is `zero_carry_of` it."""
    known = getattr(type(cell), "initialize_carry", None) in _ZERO_CARRIES
    return known and cell.carry_init is None and cell.num_feature_axes == 1


def zero_carry_of(cell: Any, batch: tuple[int, ...]) -> Carry:
    """Return zeros as the carry of a cell for these batch axes."""
    is_lstm = isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell)
    return zero_carry((*batch, cell.hidden_features), cell.param_dtype, is_lstm)


def zero_carry(shape: tuple[int, ...], dtype: Any, is_lstm: bool) -> Carry:
    """Return h, or (c, h) as two arrays, so that both can be donated."""
    zeros = [jnp.zeros(shape, dtype) for _ in range(2 if is_lstm else 1)]
    return tuple(zeros) if is_lstm else zeros[0]


def carry_arrays(carry: Any) -> Any:
    """Return a carry with arrays in the place of variables, such as a learned `nnx.Param`."""

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    return jax.tree.map(lambda a: a[...] if is_variable(a) else a, carry, is_leaf=is_variable)


def cell_reason(cell: Any) -> str | None:
    """Return why the recurrence cannot run a cell, or None where it can."""
    kind = _KINDS.get(type(cell).__call__)
    if kind is None:
        known = ", ".join(dict.fromkeys(_KINDS.values()))
        return f"the step of the cell {type(cell).__name__} is not that of {known}"
    if cell.num_feature_axes != 1:
        return f"the cell has {cell.num_feature_axes} feature axes, not 1"
    gate_fn, residual = getattr(cell, "gate_fn", None), getattr(cell, "residual", False)
    if reason := flax_recurrence.functions_reason(kind, gate_fn, cell.activation_fn, residual):
        return reason
    layout = NNX[kind]
    biased = {layer for layer, name in layout.arrays() if name == "bias"}
    for name in layout.inputs + layout.recurrent:
        layer = getattr(cell, name)
        if not _is_plain(layer, cell.dtype):
            return (
                f"{name} of the cell is not an nnx.Linear with the usual promote_dtype and product"
            )
        if layer.use_bias != (name in biased):
            return f"{name} of the cell has {'a' if layer.use_bias else 'no'} bias, unlike flax's {kind}"
    return None


def _is_plain(layer: Any, dtype: Any) -> bool:
    """Return whether a layer computes the plain product of `nnx.Linear`."""
    if type(layer) is not nnx.Linear:
        return False
    options = layer.dtype, layer.promote_dtype, layer.dot_general
    usual = dtype, promote_dtype, jax.lax.dot_general
    return options == usual and layer.precision is layer.preferred_element_type is None


def recurrence_cell(cell: Any) -> RecurrenceCell:
    """Return jaxrnn's cell for a cell that the recurrence can run."""
    activation: Any = flax_recurrence.activation_name(cell.activation_fn)
    kind = _KINDS[type(cell).__call__]
    return flax_recurrence.make_cell(kind, cell.hidden_features, activation)


def cell_and_params(cell: Any) -> tuple[RecurrenceCell, Any]:
    """Return jaxrnn's cell and parameters for a cell that the recurrence can run."""
    made = recurrence_cell(cell)
    layout = NNX[_KINDS[type(cell).__call__]]
    weights: dict[str, dict[str, Array]] = {}
    for layer, name in layout.arrays():
        weights.setdefault(layer, {})[name] = getattr(getattr(cell, layer), name)[...]
    params = from_weights(made, layout, weights)
    b_hn = getattr(cell, "b_hn", None)
    return made, params if b_hn is None else params._replace(b_h=b_hn[...])
