"""The options of a stack of recurrent layers, their checks, and the widths that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.errors import finite_number, truth, whole_number
from jaxrnn.recurrence.cells import Cell, check_cell


class StackedParams(NamedTuple):
    """Parameters of a stack of layers.

    Attributes:
      cells: the cell's parameters for each pseudo-layer: one direction of one layer, in the order layer
        1 forward, layer 1 backward, layer 2 forward, and so on. With blocks each array has a leading
        axis [blocks].
      initial: with `learned_state` the state of each pseudo-layer before the first step, each array
        [H]; otherwise None.
    """

    cells: tuple[Any, ...]
    initial: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of a stack of layers; `Stacked` describes them.

    Raises:
      ValueError: for an option of another type or outside of its range.
    """

    cell: Cell
    inputs: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    drop_last: bool = False
    variational: bool = False
    zoneout: float | tuple[float, ...] = 0.0
    weight_dropout: float = 0.0
    residual: bool = False
    learned_state: bool = False
    blocks: int = 1
    batch_first: bool = False

    def __post_init__(self) -> None:
        """Convert the options to Python's own types, so that equal stacks are equal in every way."""
        check_cell(self.cell)
        for name in ("inputs", "layers", "blocks"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        for name in (
            "bidirectional",
            "drop_last",
            "variational",
            "residual",
            "learned_state",
            "batch_first",
        ):
            object.__setattr__(self, name, truth(name, getattr(self, name)))
        for name in ("dropout", "weight_dropout"):
            object.__setattr__(self, name, _rate(name, getattr(self, name)))
        object.__setattr__(self, "zoneout", self._zoneout_rates())
        if self.blocks > 1:
            self._check_blocks()

    @property
    def directions(self) -> int:
        """Number of directions of each layer, 1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def pseudo_layers(self) -> int:
        """Number of pseudo-layers: one for each direction of each layer."""
        return self.layers * self.directions

    @property
    def width(self) -> int:
        """Number of outputs of each layer at each step."""
        return self.directions * self.cell.hidden_size

    def input_width(self, layer: int) -> int:
        """Return the number of inputs of a layer at each step; layers are counted from 0."""
        return self.width if layer else self.inputs

    @property
    def block(self) -> Any:
        """The cell of one block, which is `cell` itself where there is only one."""
        if self.blocks == 1:
            return self.cell
        cell: Any = self.cell
        return dataclasses.replace(cell, hidden_size=cell.hidden_size // self.blocks)

    @property
    def rates(self) -> tuple[float, ...]:
        """The zoneout rate of each array of the cell's state; empty without zoneout."""
        return self.zoneout if isinstance(self.zoneout, tuple) else ()

    def _zoneout_rates(self) -> float | tuple[float, ...]:
        given = self.zoneout
        if not isinstance(given, list | tuple):
            rate = _rate("zoneout", given)
            if not rate:
                return 0.0
            given = (rate,) * len(_state(self.cell))
        rates = tuple(_rate("zoneout", rate) for rate in given)
        state = _state(self.cell)
        if len(rates) != len(state):
            raise ValueError(
                f"zoneout must be one number, or one for each of the {len(state)} arrays of the state "
                f"of {self.cell}, not {len(rates)} numbers"
            )
        for array in state:
            if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.floating):
                raise ValueError(
                    f"zoneout needs a cell whose state has arrays [B, H] of floats, not "
                    f"{array.dtype} of shape {array.shape} for B = 1, as in {self.cell}"
                )
        if state[0].shape[-1] != self.cell.hidden_size:
            raise ValueError(
                f"zoneout needs a cell whose output is the first array of its state, of width "
                f"{self.cell.hidden_size}, not {state[0].shape[-1]} as in {self.cell}"
            )
        return rates if any(rates) else 0.0

    def _check_blocks(self) -> None:
        size = self.cell.hidden_size
        if size % self.blocks:
            raise ValueError(f"blocks {self.blocks} must divide the hidden size {size}")
        if not dataclasses.is_dataclass(self.cell) or {
            array.shape[-1] for array in _state(self.cell)
        } != {size}:
            raise ValueError(
                f"blocks need a cell that is a dataclass with a field hidden_size, the width of every "
                f"array of its state, not {self.cell}"
            )


def _rate(name: str, value: Any) -> float:
    rate = finite_number(name, value)
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
    return rate


def _state(cell: Cell) -> list[jax.ShapeDtypeStruct]:
    """Return the abstract arrays of a cell's state for one row."""
    return jax.tree.leaves(jax.eval_shape(lambda: cell.initial_state(1)))
