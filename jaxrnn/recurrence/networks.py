"""A cell and an output layer: the smallest whole network (lecture rows 1 and 2).

    net = jaxrnn.network(jaxrnn.lstm(64), inputs=3, outputs=2)
    params = net.init(key)
    state, outputs = net.apply(params, xs)                 # [T, B, 3] -> [T, B, 2]

The outputs are linear in the hidden state. Their meaning is set by the loss, for example one of optax's:

    optax.softmax_cross_entropy_with_integer_labels(outputs, targets)      logits of one of K classes
    optax.squared_error(outputs, targets)                                  real numbers: a regression

A network that is trained to give the next value of a series, `outputs` = `inputs`, can also continue
it: `net.forecast` feeds the network its own outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.errors import whole_number
from jaxrnn.recurrence.api import unroll
from jaxrnn.recurrence.cells import Cell, check_cell
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.linalg import add, product
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.shapes import Array, Bool, Float, Given, Integer, Key


class NetworkParams(NamedTuple):
    """Parameters of a network: the cell's, and those of the output layer."""

    cell: Any
    w_out: Float[Array, "H K"]
    b_out: Float[Array, "K"]


@dataclasses.dataclass(frozen=True)
class Network:
    """A recurrent network with a linear output layer, made by `jaxrnn.network`.

        h^t = cell(h^{t-1}, x^t)
        y^t = h^t W_out + b_out                                           (lecture row 2)

    Attributes:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      inputs: D, the number of inputs at each step.
      outputs: K, the number of outputs at each step.

    Raises:
      ValueError: for what is no `jaxrnn.Cell`, and for a width that is not a positive whole number.
    """

    cell: Cell
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        check_cell(self.cell)
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))

    def init(self, key: Key, dtype: Any = jnp.float32) -> NetworkParams:
        """Return initial parameters: the cell's own, W_out Glorot-uniform, b_out zero."""
        k_cell, k_out = jax.random.split(key)
        w_out = jax.nn.initializers.glorot_uniform()(k_out, (self.cell.hidden_size, self.outputs))
        return NetworkParams(
            self.cell.init(k_cell, self.inputs, dtype),
            w_out.astype(dtype),
            jnp.zeros(self.outputs, dtype),
        )

    def apply(
        self,
        params: NetworkParams,
        xs: Float[Given, "T B D"],
        state: Any = None,
        *,
        resets: Bool[Given, "T B"] | None = None,
        lengths: Integer[Given, "B"] | Sequence[int] | None = None,
        reverse: bool = False,
        implementation: Implementation | None = None,
        save_every: SupportsIndex = 1,
    ) -> tuple[Any, Float[Array, "T B K"]]:
        """Run the network over a sequence.

        Args:
          params: from `init`.
          xs: [T, B, D], time first.
          state: the cell's state before the first step; None for zeros.
          resets: as for `jaxrnn.unroll`.
          lengths: as for `jaxrnn.unroll`.
          reverse: as for `jaxrnn.unroll`.
          implementation: as for `jaxrnn.unroll`.
          save_every: as for `jaxrnn.unroll`.

        Returns:
          (state, outputs): the cell's state after the last step, and [T, B, K], float32 or wider.

        Raises:
          ValueError: as `jaxrnn.unroll` and `output`.
        """
        state, ys = unroll(
            self.cell,
            params.cell,
            xs,
            state,
            resets=resets,
            lengths=lengths,
            reverse=reverse,
            implementation=implementation,
            save_every=save_every,
        )
        return state, self.output(params, ys)

    def output(self, params: NetworkParams, hidden: Float[Array, "... H"]) -> Float[Array, "... K"]:
        """Return the outputs of the output layer for hidden states.

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
          xs: [T, B, D], the known part; at least one step.
          steps: N, the number of steps to forecast.
          state: the cell's state before xs[0]; None for zeros.

        Returns:
          The values [N, B, D] at T, T + 1, ..., T + N - 1.

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


def network(cell: Cell, inputs: SupportsIndex, outputs: SupportsIndex) -> Network:
    """Return a network of a cell with `inputs` and `outputs` numbers per step; see `Network`."""
    return Network(cell, inputs, outputs)  # type: ignore[arg-type]
