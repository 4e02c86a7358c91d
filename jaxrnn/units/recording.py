"""The activations of all units at every character of a text, in windows of constant memory.

    recorder = Recorder(params, ["cell", "hidden"])
    for window in recorder.windows(text):         # float32 [t, S], S = len(recorder.units)
        ...

`jaxrnn.activations` returns the same numbers at once, except that "cell" is tanh of the cell here, which
is what the output gate lets out of the network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import modes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Float, Int

# Tokens that are read in one call of the device.
WINDOW = 1024
# The activations that come first where a cell has them: its states.
STATES = ("cell", "hidden")


class Unit(NamedTuple):
    """An activation of one unit; layers and units are counted from 1.

    record: the name of the activation, as for `jaxrnn.activations`.
    """

    record: str
    layer: int
    unit: int

    def __str__(self) -> str:
        return f"{self.record} of unit {self.unit} in layer {self.layer}"


def names(config: charlm.ModelConfig) -> dict[str, int]:
    """Return the names of what a model's cell can record, the states first, and their widths.

    Raises:
      InputError: for a cell that records nothing.
    """
    cell = config.make_cell()
    if not hasattr(cell, "activations"):
        raise InputError(
            f"the cell {type(cell).__name__} has no method `activations`, so its units cannot be shown"
        )

    widths: dict[str, int] = {}

    def step() -> None:
        params = cell.init(jax.random.key(0), config.hidden_size)
        gx = cell.project(params, jnp.zeros((1, config.hidden_size)))
        found = cell.activations(params, cell.initial_state(1), gx)
        # Noted here, because JAX would return the dictionary sorted.
        widths.update({name: a.shape[1] for name, a in found.items() if a.ndim == 2})

    jax.eval_shape(step)
    return {name: widths[name] for name in (*filter(widths.get, STATES), *widths)}


class Recorder:
    """The activations of a model.

    Args:
      params: the model.
      record: names of activations; empty for all that the cell has.

    Attributes:
      units: the S activations, those of the first name first, layer by layer.

    Raises:
      InputError: for a name that the cell cannot record, and for a cell that records nothing.
    """

    @modes.fixed()
    def __init__(self, params: charlm.Params, record: Sequence[str] = ()) -> None:
        known = names(params.config)
        for name in record:
            if name not in known:
                raise InputError(
                    f"`record` must be of {', '.join(known)}, which the cell "
                    f"{params.config.cell} has, not {name!r}"
                )
        self._params = params
        self._names = tuple(dict.fromkeys(record)) or tuple(known)
        self.units = [
            Unit(name, layer, unit)
            for name in self._names
            for layer in range(1, params.config.layers + 1)
            for unit in range(1, known[name] + 1)
        ]

    def windows(
        self, text: str, reach: Callable[[int], None] = lambda done: None
    ) -> Iterator[Float[np.ndarray, "T S"]]:
        """Yield the activations after each character of a text, read from the zero state.

        Args:
          text: the text. The value at a character of several tokens is that after the last of them, and
            characters that share a token have the same values.
          reach: called with the number of characters that have been read.

        Raises:
          InputError: for characters that the model has never seen, and for values that are not finite.
        """
        vocabulary = self._params.vocabulary
        tokens = vocabulary.encode(text).astype(np.int32)
        last = last_tokens(vocabulary, text, tokens)
        carry = None
        for begin in range(0, len(tokens), WINDOW):
            window = tokens[begin : begin + WINDOW]
            padded = np.pad(window, (0, WINDOW - len(window)))
            carry, values = _read(self._params, carry, padded, self._names)
            first, end = np.searchsorted(last, (begin, begin + len(window)))
            values = values[last[first:end] - begin]
            if not np.isfinite(values).all():
                raise InputError(
                    "the model has activations that are not numbers; give one whose training has not "
                    "diverged"
                )
            reach(int(end))
            yield values

    def values(
        self,
        text: str,
        units: Sequence[Unit],
        reach: Callable[[int], None] = lambda done: None,
    ) -> Float[np.ndarray, "T N"]:
        """Return the activations of N units after each of T characters."""
        columns = {unit: column for column, unit in enumerate(self.units)}
        chosen = [columns[unit] for unit in units]
        parts = [window[:, chosen] for window in self.windows(text, reach)]
        return np.concatenate(parts) if parts else np.zeros((0, len(units)), np.float32)


def last_tokens(
    vocabulary: Vocabulary, text: str, tokens: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "T"]:
    """Return the position of the last token of each of the T characters of a text."""
    if vocabulary.by_bytes:
        widths = [len(character.encode(errors="surrogateescape")) for character in text]
        return np.cumsum(np.array(widths, int)) - 1
    if len(tokens) == len(text):
        return np.arange(len(tokens))
    lengths = [len(vocabulary.symbols[token]) for token in tokens]
    return np.repeat(np.arange(len(tokens)), lengths)


@modes.fixed()
def _read(
    params: charlm.Params,
    carry: charlm.Carry | None,
    tokens: Int[np.ndarray, "T"],
    record: tuple[str, ...],
) -> tuple[charlm.Carry, Float[np.ndarray, "T S"]]:
    """Return the state after the tokens and the activations after each."""
    if carry is None:
        carry = charlm.initial_carry(params.config, 1)
    carry, values = _recorded(params, carry, jnp.asarray(tokens)[:, None], record)
    return carry, np.asarray(values)


@functools.partial(jax.jit, static_argnums=3)
def _recorded(
    params: charlm.Params, carry: charlm.Carry, tokens: Int[Array, "T B"], record: tuple[str, ...]
) -> tuple[charlm.Carry, Float[Array, "T S"]]:
    carry, _, layers = charlm.record(params, tokens, carry, record)
    values = [
        jnp.tanh(layer[name]) if name == "cell" else layer[name]
        for name in record
        for layer in layers
    ]
    return carry, jnp.concatenate([each[:, 0].astype(jnp.float32) for each in values], axis=1)
