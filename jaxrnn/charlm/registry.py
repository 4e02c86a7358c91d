"""The cells of a char-RNN by name: those of the library, and cells of one's own.

A configuration names its cell, so that `config.json` describes the whole model and loading a run
executes no code from it. `register_cell` gives a cell of one's own a name:

    jaxrnn.register_cell("leaky", Leaky)
    params = jaxrnn.init(jaxrnn.ModelConfig(cell="leaky", hidden_size=64), vocabulary)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from jaxrnn.literals import CellName
from jaxrnn.recurrence import variants
from jaxrnn.recurrence.cells import Cell, check_cell

# The functions that make a cell of a hidden size.
_makers: dict[str, Callable[[int], Cell]] = {
    "mgu": variants.mgu,
    "coupled_lstm": variants.coupled_lstm,
    "indrnn": variants.indrnn,
    "mingru": variants.mingru,
    "minlstm": variants.minlstm,
    "layer_norm_lstm": variants.layer_norm_lstm,
    "layer_norm_gru": variants.layer_norm_gru,
    "mogrifier_lstm": variants.mogrifier_lstm,
}


def register_cell(name: str, make: Callable[[int], Cell]) -> None:
    """Let `ModelConfig(cell=name)` stand for a cell of one's own, in this process.

    A char-RNN with the cell can then be trained from Python, saved, loaded and sampled like any other.
    A process that loads such a run must register the cell first.

    Args:
      name: the name of the cell.
      make: a function of the hidden size that returns the cell, for example its class.

    Raises:
      ValueError: for a name that is no text or that one of the library's cells has, and for `make` that
        cannot be called.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a cell must be a text such as 'leaky', not {name!r}")
    if not callable(make):
        raise ValueError(
            f"make must be a function of the hidden size that returns a cell, not {make!r}"
        )
    if name in get_args(CellName):
        raise ValueError(f"the library has a cell {name!r}; choose another name")
    _makers[name] = make


def check_name(name: str) -> None:
    """Raise ValueError if no cell has this name."""
    if name not in (*get_args(CellName), *_makers):
        known = ", ".join(dict.fromkeys((*get_args(CellName), *_makers)))
        raise ValueError(
            f"cell must be one of {known}, or a name given to jaxrnn.register_cell, not {name!r}"
        )


def make_cell(name: str, hidden_size: int) -> Cell:
    """Return a cell that has no options in `ModelConfig`.

    Raises:
      ValueError: if what makes it returns no cell, or one of another width.
    """
    cell = _makers[name](hidden_size)
    check_cell(cell)
    if cell.hidden_size != hidden_size:
        raise ValueError(
            f"the cell {name!r} was asked for hidden_size {hidden_size} and has {cell.hidden_size}"
        )
    return cell
