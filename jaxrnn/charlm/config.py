"""The architecture of a char-RNN, as its commands and its files describe it.

The methods import modules that need JAX, so that commands can read configurations without JAX.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from jaxrnn.errors import InputError, one_of, whole_number
from jaxrnn.literals import Activation, CellName, ProductDType, RecurrentInit, Reset
from jaxrnn.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a char-RNN."""

    cell: CellName = "lstm"
    """Recurrent cell of every layer. In Python, also a name given to `jaxrnn.register_cell`."""
    layers: int = 1
    """Number of layers."""
    hidden_size: int = 256
    """Width of the hidden state of each layer."""
    embedding_size: int = 64
    """Width of the character embedding; 0 feeds one-hot characters instead."""
    dropout: float = setting(0.0, may_change=True)
    """Fraction of each layer's outputs dropped in training, from 0 to 1."""
    variational: bool = setting(False, may_change=True)
    """Drop the same outputs at all characters of a row of the batch (Gal & Ghahramani 2016)."""
    embedding_dropout: float = setting(0.0, may_change=True)
    """Fraction of the numbers of the embedding dropped in each training step, from 0 to 1."""
    weight_dropout: float = setting(0.0, may_change=True)
    """Fraction of the recurrent weights dropped in each training step, from 0 to 1 (Merity et al.
    2018)."""
    tie: bool = False
    """Also use the embedding as the output weights. Needs an embedding as wide as the hidden state."""
    activation: Activation = "tanh"
    """Activation of the plain RNN."""
    peephole: bool = False
    """Peephole connections of the LSTM, from its cell to its gates."""
    forget_bias: float = 1.0
    """Initial forget-gate bias of the LSTM."""
    reset: Reset = "before"
    """Position of the GRU's reset gate: before the recurrent product (the lecture) or after it
    (cuDNN)."""
    recurrent_init: RecurrentInit = "orthogonal"
    """Distribution of the initial recurrent weights."""
    dtype: ProductDType = "float32"
    """Dtype of the matrix products; parameters, states and sums stay float32. auto takes bfloat16 where
    the hardware multiplies it faster."""
    lines: bool = False
    """Treat each line of the text as a separate sequence (names, SMILES, recipes): the state is reset
    at its start, its end is learned, and the lines are read in random order. Empty lines are left out,
    and a tenth of the lines, chosen at random, is for validation."""

    def __post_init__(self) -> None:
        """Convert integers of any type to int. Raises InputError for an invalid value."""
        try:
            self._check_cell()
            one_of(ProductDType)("dtype", self.dtype)
            for name, least in (("layers", 1), ("hidden_size", 1), ("embedding_size", 0)):
                object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        except ValueError as error:
            raise InputError(str(error)) from None
        for name in ("dropout", "embedding_dropout", "weight_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {value}")
        if self.embedding_dropout and not self.embedding_size:
            raise InputError("`embedding_dropout` needs an embedding: set `embedding_size` above 0")
        if self.tie and self.embedding_size != self.hidden_size:
            raise InputError(
                f"`tie` needs `embedding_size` equal to `hidden_size`, not {self.embedding_size} and "
                f"{self.hidden_size}"
            )

    def _check_cell(self) -> None:
        """Raise ValueError if no cell has this name."""
        if self.cell not in get_args(CellName):
            from jaxrnn.charlm import registry

            registry.check_name(self.cell)

    def resolved(self) -> ModelConfig:
        """Return the same with dtype "auto" replaced by what is fast on the device in use."""
        if self.dtype != "auto":
            return self
        from jaxrnn.devices import accelerator
        from jaxrnn.recurrence import dispatch

        compiled = False
        if dispatch.platform() == "cpu":
            shape = (64, 32, self.hidden_size)
            chosen = dispatch.explain(self.make_cell(), shape, "bfloat16")
            compiled = chosen.implementation == "native"
        return dataclasses.replace(self, dtype=accelerator.fast_dtype(compiled))

    def make_cell(self) -> Any:
        """Return the cell of every layer."""
        from jaxrnn.charlm import registry
        from jaxrnn.recurrence import cells

        if self.cell == "rnn":
            return cells.RNN(self.hidden_size, self.activation, self.recurrent_init)
        if self.cell == "gru":
            return cells.GRU(self.hidden_size, self.reset, self.recurrent_init)
        if self.cell == "lstm":
            return cells.LSTM(
                self.hidden_size, self.peephole, self.forget_bias, self.recurrent_init
            )
        return registry.make_cell(self.cell, self.hidden_size)
