"""What a call of cuDNN depends on beside its arrays, and cuDNN's numbers for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.shapes import Array

# cuDNN's numbers of the cells and dtypes that it has; a plain RNN by its activation.
MODES = {"relu": 0, "tanh": 1, CellKind.LSTM: 2, CellKind.GRU_AFTER: 3}
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}


class Setup(NamedTuple):
    """The static part of a call.

    Attributes:
      cell: the cell of all layers.
      layers: the number of stacked layers.
      both_directions: whether each layer runs forward and backward through time, and puts the outputs of
        both, side by side, out.
      dtype: the dtype of all arrays.
      tf32: whether float32 products may round their operands to TF32.
      platform: that on whose programs cuDNN is called: "cuda", or in tests with a stand-in "cpu".
    """

    cell: Any
    layers: int
    both_directions: bool
    dtype: str
    tf32: bool
    platform: Platform

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.both_directions else 1

    @property
    def parts(self) -> int:
        """The number of layers in one direction each."""
        return self.layers * self.directions

    @property
    def mode(self) -> int:
        """The number of the cell in cuDNN."""
        return MODES[mode_of(self.cell)]

    def inputs_of(self, part: int, features: int) -> int:
        """Return the width of a part's inputs. The parts of the first layer come first.

        Args:
          part: its number.
          features: D, the width of the first layer's inputs.
        """
        return features if part < self.directions else self.directions * self.cell.hidden_size


class Arrays(NamedTuple):
    """The arrays that go into a call, all in one dtype.

    Attributes:
      weights: [N], of all layers and directions, as `weights.pack` makes them.
      xs: [T, B, D].
      hidden: [parts, B, H], before each part's first step.
      cell: [parts, B, H], of an LSTM, else None.
    """

    weights: Array
    xs: Array
    hidden: Array
    cell: Array | None


class Results(NamedTuple):
    """The arrays that come out of a call.

    Attributes:
      ys: [T, B, directions * H], the outputs of the last layer.
      hidden: [parts, B, H], after each part's last step.
      cell: [parts, B, H], of an LSTM, else None.
    """

    ys: Array
    hidden: Array
    cell: Array | None


def as_state(kind: Any, hidden: Array, cell: Array | None) -> Any:
    """Return arrays as a state of a cell, whose class is `kind`."""
    return kind(hidden) if cell is None else kind(hidden, cell)


def mode_of(cell: Any) -> Any:
    """Return the key of a cell in `MODES`; cuDNN lacks a cell whose key is not there."""
    return cell.activation if cell.kind is CellKind.RNN else cell.kind


# Precisions of JAX's matrix products that round the operands of float32 to TF32 or more coarsely.
_COARSE = {None, "default", "fastest", "bfloat16", "tensorfloat32"}
_COARSE |= {"BF16_BF16_F32", "TF32_TF32_F32"}


def allows_tf32() -> bool:
    """Return whether JAX's matrix products may be in TF32, by `jax.default_matmul_precision`."""
    return jax.config.jax_default_matmul_precision in _COARSE  # type: ignore[attr-defined]
