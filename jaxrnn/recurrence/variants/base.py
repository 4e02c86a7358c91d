"""The members that the cells of this folder share, and the functions that several of them use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.errors import whole_number
from jaxrnn.recurrence.cells import _OPTIONS, _BuiltinCell
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.parameters import check_params
from jaxrnn.shapes import Array, Float, Key


class HiddenState(NamedTuple):
    """State of a cell that keeps only its hidden state."""

    hidden: Float[Array, "B H"]


@dataclasses.dataclass(frozen=True)
class Variant(_BuiltinCell):
    """A cell of this folder.

    A subclass defines `init` and `activations`. `is_builtin` is false for it, so the implementations
    that have the equations of the lecture's cells do not run it.
    """

    # The checks of the options that the cells of the lecture do not have.
    CHECKS: ClassVar[dict[str, Callable[[str, Any], Any]]] = {}
    # The type of the state; `activations` returns its fields by name.
    STATE: ClassVar[Any] = HiddenState

    def __post_init__(self) -> None:
        checks = _OPTIONS | self.CHECKS
        for field in dataclasses.fields(self):
            checked = checks[field.name](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """Return zeros, each [B, H]."""
        shape = (batch, self.hidden_size)
        return self.STATE(*(jnp.zeros(shape, dtype) for _ in self.STATE._fields))

    def activations(self, params: Any, state: Any, gx: Float[Array, "B G"]) -> dict[str, Array]:
        """Return all that a step computes, by name; the fields of the new state are among them."""
        raise NotImplementedError

    def step(
        self, params: Any, state: Any, gx: Float[Array, "B G"]
    ) -> tuple[Any, Float[Array, "B H"]]:
        """Return the state after one step, and the output, which is its hidden state."""
        check_params(self, params, builtin=False)
        now = self.activations(params, state, gx)
        return self.STATE(*(now[name] for name in self.STATE._fields)), now["hidden"]

    def _input_weights(
        self, key: Key, input_size: SupportsIndex, dtype: Any
    ) -> Float[Array, "D G"]:
        """Return w_x for a cell without the recurrent weights w_h, Glorot-uniform by gate."""
        input_size = whole_number("input_size", input_size, 1)
        return glorot_blocks(key, (input_size, self.hidden_size), len(self.GATES), dtype)


def glorot_blocks(key: Key, shape: tuple[int, int], count: int, dtype: Any) -> Float[Array, "K N"]:
    """Return `count` Glorot-uniform matrices of this shape, side by side."""
    draw = jax.nn.initializers.glorot_uniform()
    blocks = [draw(k, shape, wide(dtype)) for k in jax.random.split(key, count)]
    return jnp.concatenate(blocks, axis=1).astype(dtype)


def lstm_bias(forget_bias: float, size: int, dtype: Any) -> Float[Array, "G"]:
    """Return the initial biases [4 * size] of the gates i, f, g, o: zero but for the forget gate's."""
    return jnp.repeat(jnp.array([0, forget_bias, 0, 0], dtype), size)


def scale(x: Float[Array, "... N"], gain: Float[Array, "N"]) -> Float[Array, "... N"]:
    """Return x * gain, with the vector `gain` in x's dtype."""
    return x * jnp.expand_dims(gain.astype(x.dtype), tuple(range(x.ndim - 1)))
