"""A cell and an output layer, the smallest whole network (lecture rows 1 and 2), for symbols and series.

    net = jaxrnn.network(jaxrnn.lstm(64), inputs=3, outputs=2)
    params = net.init(key)
    state, outputs = net.apply(params, xs)                 # [T, B, 3] -> [T, B, 2]

The outputs are linear in the hidden state, and what they mean is the loss' affair, optax' for one:

    optax.softmax_cross_entropy_with_integer_labels(outputs, targets)      logits of one of K symbols
    optax.squared_error(outputs, targets)                                  real numbers: a regression

A network of a series that gives the next value, `outputs` = `inputs`, also forecasts: `net.forecast`
feeds it with its own outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.errors import whole_number
from jaxrnn.recurrence.api import unroll
from jaxrnn.recurrence.cells import Cell, add, product
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.shapes import Array, Float, Given, Key


class NetworkParams(NamedTuple):
    """cell: the cell's. w_out: [H, K]. b_out: [K]."""

    cell: Any
    w_out: Float[Array, "H K"]
    b_out: Float[Array, "K"]


@dataclasses.dataclass(frozen=True)
class Network:
    """A recurrent network with a linear output layer.

        h^t = cell(h^{t-1}, x^t)
        y^t = h^t W_out + b_out                                           (lecture row 2)

    Args:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      inputs: D, numbers that come in at each step.
      outputs: K, numbers that go out at each step.

    Raises:
      ValueError: for a width that is no positive whole number.
    """

    cell: Cell
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))

    def init(self, key: Key, dtype: Any = jnp.float32) -> NetworkParams:
        """First parameters: the cell's own, W_out Glorot-uniform, b_out zero."""
        k_cell, k_out = jax.random.split(key)
        w_out = jax.nn.initializers.glorot_uniform()(k_out, (self.cell.hidden_size, self.outputs))
        return NetworkParams(
            self.cell.init(k_cell, self.inputs, dtype),
            w_out.astype(dtype),
            jnp.zeros(self.outputs, dtype),
        )

    def apply(
        self, params: NetworkParams, xs: Float[Given, "T B D"], state: Any = None, **how: Any
    ) -> Any:
        """Run the network over a sequence.

        Args:
          params: from `init`.
          xs: [T, B, D], time first.
          state: the cell's before the first step; None for zeros.
          how: what else `jaxrnn.unroll` takes, as `resets`, `lengths`, `implementation`, `record`.

        Returns:
          (state, outputs): the cell's state after the last step, and [T, B, K], float32 or wider;
          with `record` (state, outputs, recorded), as from `jaxrnn.unroll`.
        """
        state, ys, *recorded = unroll(self.cell, params.cell, xs, state, **how)
        return state, self.output(params, ys), *recorded

    def output(self, params: NetworkParams, hidden: Float[Array, "... H"]) -> Float[Array, "... K"]:
        """The output layer alone.

        Raises:
          ValueError: for w_out or b_out of another network.
        """
        found, wanted = (
            (params.w_out.shape, params.b_out.shape),
            (self.cell.hidden_size, self.outputs),
        )
        if found != (wanted, wanted[1:]):
            raise ValueError(
                f"params.w_out and b_out must be of shape {wanted} and {wanted[1:]}, not "
                f"{found[0]} and {found[1]}"
            )
        return add(product(hidden, params.w_out), params.b_out)

    def forecast(
        self,
        params: NetworkParams,
        xs: Float[Given, "T B D"],
        steps: SupportsIndex,
        state: Any = None,
    ) -> Float[Array, "N B D"]:
        """Continue a series, with each output as the next step's input.

        Args:
          params: of a network whose output at t is meant for xs[t + 1].
          xs: [T, B, D], what is known; at least one step.
          steps: N, how many steps to forecast.
          state: the cell's before xs[0]; None for zeros.

        Returns:
          [N, B, D]: the values at T, T + 1, ..., T + N - 1.

        Raises:
          ValueError: where `outputs` is not `inputs`, no step is known, or `steps` is not positive.
        """
        if self.outputs != self.inputs:
            raise ValueError(
                f"a forecast feeds outputs back as inputs: outputs {self.outputs} must be inputs "
                f"{self.inputs}"
            )
        steps = whole_number("steps", steps, 1)
        if not len(xs):
            raise ValueError("a forecast needs at least one known step: xs has T = 0")
        run = _compiled_forecast if by_value(self.cell) else _forecast
        return run(self, steps, params, jnp.asarray(xs), state)


def _forecast(
    net: Network, steps: int, params: NetworkParams, xs: Float[Array, "T B D"], state: Any
) -> Float[Array, "N B D"]:
    cell = net.cell
    state, outputs = net.apply(params, xs, state)

    def ahead(now: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
        state, x = now
        state, hidden = cell.step(params.cell, state, cell.project(params.cell, x))
        after = net.output(params, hidden).astype(x.dtype)
        return (state, after), after

    first = outputs[-1].astype(xs.dtype)
    _, others = lax.scan(ahead, (state, first), length=steps - 1)
    return jnp.concatenate([first[None], others])


_compiled_forecast = jax.jit(_forecast, static_argnums=(0, 1))


network = Network  # made by a call, as in `jaxrnn.network(cell, 3, 2)`
