"""The static configuration and the arrays of a cuDNN call, and cuDNN's constants for cells and dtypes.

A pseudo-layer, in cuDNN's terms, is one direction of one layer. The order is layer 0 forward, layer 0
backward, layer 1 forward, and so on. With one direction there is one pseudo-layer for each layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.shapes import Array

# cuDNN's constants (cudnnRNNMode_t and cudnnDataType_t); a plain RNN is found by its activation.
MODES = {"relu": 0, "tanh": 1, CellKind.LSTM: 2, CellKind.GRU_AFTER: 3}
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}


class CallConfig(NamedTuple):
    """The static configuration of a call.

    Attributes:
      cell: the cell of all layers.
      layers: the number of stacked layers.
      both_directions: whether each layer runs forward and backward through time. Its outputs are then
        those of both directions side by side.
      dtype: the dtype of all arrays.
      tf32: whether float32 products may round their operands to TF32.
      platform: the platform whose programs call cuDNN: "cuda", or "cpu" in tests with a stand-in.
    """

    cell: Any
    layers: int
    both_directions: bool
    dtype: str
    tf32: bool
    platform: Platform

    @property
    def directions(self) -> int:
        """Number of directions, 1 or 2."""
        return 2 if self.both_directions else 1

    @property
    def pseudo_layers(self) -> int:
        """Number of pseudo-layers."""
        return self.layers * self.directions

    @property
    def mode(self) -> int:
        """The cell's constant in cuDNN."""
        return MODES[mode_key(self.cell)]

    def input_width(self, pseudo_layer: int, features: int) -> int:
        """Return the width of a pseudo-layer's inputs.

        Args:
          pseudo_layer: its index.
          features: D, the width of the first layer's inputs.
        """
        if pseudo_layer < self.directions:
            return features
        return self.directions * self.cell.hidden_size


class CallInputs(NamedTuple):
    """The input arrays of a call, all in one dtype. P is the number of pseudo-layers.

    Attributes:
      weights: [N], the weights of all pseudo-layers, as `weights.pack` returns them.
      xs: [T, B, D].
      hidden: [P, B, H], the hidden states before the first step.
      cell: [P, B, H], the cells of an LSTM before the first step; None for other cells.
    """

    weights: Array
    xs: Array
    hidden: Array
    cell: Array | None


class CallOutputs(NamedTuple):
    """The output arrays of a call, all in one dtype. P is the number of pseudo-layers.

    Attributes:
      ys: [T, B, directions * H], the outputs of the last layer.
      hidden: [P, B, H], the hidden states after the last step.
      cell: [P, B, H], the cells of an LSTM after the last step; None for other cells.
    """

    ys: Array
    hidden: Array
    cell: Array | None


def make_state(state_class: Any, hidden: Array, cell: Array | None) -> Any:
    """Return a state of the given class, such as `LSTMState`, with these arrays."""
    return state_class(hidden) if cell is None else state_class(hidden, cell)


def mode_key(cell: Any) -> Any:
    """Return the cell's key in `MODES`. A cell that cuDNN does not support has no such key there."""
    return cell.activation if cell.kind is CellKind.RNN else cell.kind


# Values of `jax.default_matmul_precision` that allow TF32 or a coarser format for float32 products.
_TF32_OR_COARSER = {None, "default", "fastest", "bfloat16", "tensorfloat32"}
_TF32_OR_COARSER |= {"BF16_BF16_F32", "TF32_TF32_F32"}


def allows_tf32() -> bool:
    """Return whether `jax.default_matmul_precision` allows float32 products in TF32."""
    return jax.config.jax_default_matmul_precision in _TF32_OR_COARSER  # type: ignore[attr-defined]
