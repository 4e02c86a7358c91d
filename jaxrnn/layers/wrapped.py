"""A cell around a cell, for what changes the step itself: zoneout, and resets to a learned state.

What differs from step to step enters beside the projected inputs of the inner cell:

    gx [T, B, G]  |  zoneout masks [T, B, H] for each array of the state  |  reset [T, B, 1]
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import Cell, is_builtin
from jaxrnn.recurrence.problem import choose_rows
from jaxrnn.shapes import Array, Bool, Float, Key


class WrappedParams(NamedTuple):
    """Parameters of a wrapped cell.

    Attributes:
      cell: the parameters of the inner cell.
      initial: the learned state, each array [H]; None where the state is not reset to it.
    """

    cell: Any
    initial: Any = None


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A cell with zoneout (Krueger et al. 2017), with resets to a learned state, or with both.

        s  = initial where reset, else s^{t-1}
        s' = step(s, gx^t)
        s^t = k^t * s + (1 - k^t) * s'          k: a mask of 0 and 1, or its expectation
        y^t = the first array of s^t

    Attributes:
      cell: the inner cell.
      rates: the zoneout rate of each array of the state; empty without zoneout.
      masked: whether zoneout's masks are beside the projected inputs. Otherwise k is its expectation.
      learned: whether resets to `WrappedParams.initial` are beside the projected inputs.
    """

    cell: Any
    rates: tuple[float, ...] = ()
    masked: bool = False
    learned: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of the output."""
        return self.cell.hidden_size

    def init(self, key: Key, input_size: int, dtype: Any = jnp.float32) -> WrappedParams:
        """Return initial parameters, with zeros as the learned state."""
        state = self.cell.initial_state(1, dtype)
        initial = jax.tree.map(lambda leaf: leaf[0], state) if self.learned else None
        return WrappedParams(self.cell.init(key, input_size, dtype), initial)

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """Return the zero state of the inner cell."""
        return self.cell.initial_state(batch, dtype)

    def project(self, params: WrappedParams, xs: Float[Array, "... D"]) -> Float[Array, "... G"]:
        """Return the projected inputs of the inner cell; `beside` adds the masks."""
        return self.cell.project(params.cell, xs)

    def step(
        self, params: WrappedParams, state: Any, gx: Float[Array, "B G"]
    ) -> tuple[Any, Float[Array, "B H"]]:
        """Return the state after one step, and the output."""
        if self.learned:
            gx, reset = gx[:, :-1], gx[:, -1] > 0
            state = choose_rows(reset, rows_of(params.initial, state), state)
        keep: list[Any] = list(self.rates)
        if self.masked:
            widths = [leaf.shape[-1] for leaf in jax.tree.leaves(state)]
            cuts = list(itertools.accumulate(widths[:-1], initial=gx.shape[-1] - sum(widths)))
            gx, *keep = jnp.split(gx, cuts, axis=-1)
        after, y = self.cell.step(params.cell, state, gx)
        if not self.rates:
            return after, y
        leaves, structure = jax.tree.flatten(after)
        mixed = [
            k * old + (1 - k) * new
            for k, old, new in zip(keep, jax.tree.leaves(state), leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, mixed), mixed[0]


def beside(
    gx: Float[Array, "T B G"],
    masks: tuple[Float[Array, "T B _"], ...],
    resets: Bool[Array, "T B"] | None,
) -> Float[Array, "T B N"]:
    """Return the projected inputs of a wrapped cell: those of the inner cell, masks and resets."""
    flags = () if resets is None else (resets[..., None].astype(gx.dtype),)
    return jnp.concatenate([gx, *masks, *flags], axis=-1) if masks or flags else gx


def recurrent_params(cell: Cell, params: Any) -> Any:
    """Return the parameters that `step` needs, without those of a projection that is known."""
    return params._replace(w_x=None, b=None) if is_builtin(cell) else params


def rows_of(initial: Any, state: Any) -> Any:
    """Return a learned state, each array [H], for every row of a state like `state`, [B, H]."""
    return jax.tree.map(
        lambda one, like: jnp.broadcast_to(one.astype(like.dtype), like.shape), initial, state
    )
