"""Several recurrent layers as pure functions.

net = jaxrnn.layers.stacked(jaxrnn.lstm(512), inputs=64, layers=3, dropout=0.2)
params = net.init(key)
state, ys = net.apply(params, xs, key=dropout_key)     # training: [T, B, 64] -> [T, B, 512]
state, ys = net.apply(params, xs, state)               # without a key nothing is dropped
state, y = net.step(params, state, x)                  # one step: [B, 64] -> [B, 512]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp

from jaxrnn.errors import whole_number
from jaxrnn.layers import running
from jaxrnn.layers.architecture import Architecture, StackedParams
from jaxrnn.layers.dropping import check_recurrent_weights
from jaxrnn.layers.wrapped import Wrapped, rows_of
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.checks import as_array, check_resets
from jaxrnn.recurrence.dispatch import Choice
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import dtype_of
from jaxrnn.shapes import Array, Bool, Float, Given, Integer, Key


@dataclasses.dataclass(frozen=True)
class Stacked(Architecture):
    """Several layers of one cell, made by `jaxrnn.layers.stacked`.

    The outputs of a layer are the inputs of the next. Everything that is random is drawn from the `key`
    of `apply`; without a key nothing is dropped.

    Attributes:
      cell: made by `jaxrnn.lstm` and the like, or any `jaxrnn.Cell`.
      inputs: D, the number of inputs at each step.
      layers: number of layers.
      bidirectional: whether each layer also runs backward through time, from each row's own last step,
        with parameters of its own; its outputs are those of both directions side by side, [T, B, 2 H].
      dropout: fraction of the outputs of each layer but the last that is dropped.
      drop_last: whether the outputs of the last layer are dropped, too.
      variational: whether all steps of a call share the mask of the dropped outputs (Gal & Ghahramani
        2016); a row keeps its mask at resets.
      zoneout: probability that a unit of the state keeps its old value at a step (Krueger et al. 2017):
        one number, or one for each array of the state, (hidden, cell) for an LSTM. Without a key the new
        state is the expectation.
      weight_dropout: fraction of the recurrent weights w_h that is dropped, for all steps of a call
        (Merity et al. 2018).
      residual: whether a layer whose inputs are as wide as its outputs adds its inputs to its outputs,
        after the dropout.
      learned_state: whether the state before the first step, and after a reset, is a parameter.
      blocks: n; the recurrent weights are block-diagonal: n independent cells of H / n units each, which
        share the inputs.
      batch_first: whether sequences are [B, T, D] and resets [B, T], in place of [T, B, D] and [T, B].

    Raises:
      ValueError: for an option of another type or outside of its range.
    """

    def init(self, key: Key, dtype: Any = jnp.float32) -> StackedParams:
        """Return initial parameters: those of the cells, and zeros for learned states."""
        cells = []
        for number, k in enumerate(jax.random.split(key, self.pseudo_layers)):
            width = self.input_width(number // self.directions)
            if self.blocks == 1:
                cells.append(self.cell.init(k, width, dtype))
            else:
                blocks = [
                    self.block.init(b, width, dtype) for b in jax.random.split(k, self.blocks)
                ]
                cells.append(jax.tree.map(lambda *arrays: jnp.stack(arrays), *blocks))
        initial = self._zeros_of_one_row(dtype) if self.learned_state else None
        return StackedParams(tuple(cells), initial)

    def initial_state(self, params: StackedParams, batch: int) -> running.States:
        """Return the state of each pseudo-layer before the first step: zeros, or the learned state.

        Args:
          params: from `init`.
          batch: B, the number of rows.

        Returns:
          A tuple with the cell's state for each pseudo-layer, in the order of `StackedParams.cells`,
          each array [B, H], float32 (float64 beside float64 parameters).
        """
        dtype = wide(dtype_of(params.cells[0]))
        # Each has arrays of its own, so that they can all be donated.
        zeros = tuple(self.cell.initial_state(batch, dtype) for _ in params.cells)
        return zeros if params.initial is None else rows_of(params.initial, zeros)

    def apply(
        self,
        params: StackedParams,
        xs: Float[Given, "N K D"],
        state: running.States | None = None,
        *,
        key: Key | None = None,
        resets: Bool[Given, "N K"] | None = None,
        lengths: Integer[Given, "B"] | Sequence[int] | None = None,
        implementation: Implementation | None = None,
        save_every: SupportsIndex = 1,
    ) -> tuple[running.States, Float[Array, "N K H"]]:
        """Run all layers over a sequence.

        Args:
          params: from `init`.
          xs: [T, B, D], or [B, T, D] with `batch_first`, in the parameters' dtype.
          state: from `initial_state` or from the call before; None for the initial state.
          key: PRNG key of all that is dropped in training; None drops nothing. Calls with the same key
            drop the same.
          resets: bool, [T, B] or [B, T]; true where an episode or document begins. The row's state
            enters that step as zeros or as the learned state. The backward direction of a bidirectional
            layer starts again at the last step of each episode.
          lengths: as for `jaxrnn.unroll`. A backward direction starts at each row's last real step.
          implementation: as for `jaxrnn.unroll`.
          save_every: as for `jaxrnn.unroll`.

        Returns:
          (state, ys): the state after the last step, and the outputs of the last layer, [T, B, H] or
          [B, T, H], in xs' dtype; 2 H wide where the layers are bidirectional.

        Raises:
          ValueError: as `jaxrnn.unroll`, and for parameters or a state of another stack.
        """
        params, xs = self._checked(params, xs, "xs", self._axes)
        resets = check_resets(resets, xs, self._axes[:-4] + "]")
        time_first: Any = xs
        if self.batch_first:
            time_first, resets = _swap_batch_and_time(xs), _swap_batch_and_time(resets)
        state, ys = running.run(
            self,
            params,
            time_first,
            self._checked_state(params, time_first.shape[1], state),
            key=key,
            resets=resets,
            lengths=lengths,
            implementation=implementation,
            save_every=whole_number("save_every", save_every, 1),
        )
        return state, _swap_batch_and_time(ys) if self.batch_first else ys

    def step(
        self, params: StackedParams, state: running.States | None, x: Float[Given, "B D"]
    ) -> tuple[running.States, Float[Array, "B H"]]:
        """Run all layers over one step, as `apply` without a key does.

        Args:
          params: from `init`.
          state: from `initial_state`, `apply` or `step`; None for the initial state.
          x: [B, D], in the parameters' dtype.

        Returns:
          (state, y): the state after the step, and the outputs of the last layer [B, H].

        Raises:
          ValueError: for bidirectional layers, which need the whole sequence, and for parameters, a
            state or inputs of another stack.
        """
        if self.bidirectional:
            raise ValueError(
                "step runs layers in one direction, and these are bidirectional: their outputs need the "
                "whole sequence"
            )
        params, x = self._checked(params, x, "x", "[B, D]")
        return running.step(self, params, self._checked_state(params, x.shape[0], state), x)

    def explain(
        self,
        shape: tuple[int, ...],
        dtype: Any = jnp.float32,
        implementation: Implementation | None = None,
        *,
        resets: bool = False,
        training: bool = False,
    ) -> tuple[Choice, ...]:
        """Return which implementation runs each pseudo-layer of `apply`, and why.

        Args:
          shape: the shape of xs, [T, B, D], or [B, T, D] with `batch_first`.
          dtype: the dtype of xs and the parameters.
          implementation: as for `apply`.
          resets: whether `apply` would be given resets.
          training: whether `apply` would be given a key.

        Returns:
          A `Choice` (implementation, why) for each pseudo-layer, in the order of `StackedParams.cells`.

        Raises:
          ValueError: as `jaxrnn.explain`, and for inputs of another width.
        """
        first, second, width = dispatch.check_shape(shape, "BTD" if self.batch_first else "TBD")
        if width != self.inputs:
            raise ValueError(self._wrong_inputs("xs", self._axes, shape))
        steps, batch = (second, first) if self.batch_first else (first, second)
        learned = self.learned_state and resets
        cell = self.block
        notes = []
        if running.wraps(self, resets):
            cell = Wrapped(cell, self.rates, training and bool(self.rates), learned)
        if self.rates:
            notes.append("zoneout changes the step")
        if learned:
            notes.append("resets to a learned state change the step")
        if self.blocks > 1:
            notes.append(f"{self.blocks} blocks of {cell.hidden_size} units")
        problems = [
            dispatch.abstract_problem(
                cell,
                (steps, batch, self.input_width(number // self.directions)),
                dtype,
                resets=resets and not learned,
                reverse=running.is_backward(self, number),
            )
            for number in range(self.pseudo_layers)
        ]
        choices = [dispatch.choose(problem, implementation) for problem in problems]
        together = not resets and not running.drops_between(self, True if training else None)
        inputs: Any = problems[0].inputs
        cells = [problem.params for problem in problems]
        if together and running.runs_together(self, cells, inputs, implementation):
            notes.append("all layers in one call")
        return tuple(choice._replace(why="; ".join([*notes, choice.why])) for choice in choices)

    @property
    def _axes(self) -> str:
        return "[B, T, D]" if self.batch_first else "[T, B, D]"

    def _checked(
        self, params: StackedParams, xs: Any, name: str, axes: str
    ) -> tuple[StackedParams, Array]:
        """Return JAX arrays. Raise ValueError for parameters or inputs of another stack."""
        try:
            xs = jnp.asarray(xs)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be an array {axes}, not {type(xs).__name__}") from None
        if xs.ndim != axes.count(",") + 1 or xs.shape[-1] != self.inputs:
            raise ValueError(self._wrong_inputs(name, axes, xs.shape))
        params = self._checked_params(params)
        dtype = dtype_of(params.cells[0])
        if xs.dtype != dtype:
            raise ValueError(
                f"{name} and params must share a dtype: {name} is {xs.dtype}, params {dtype}"
            )
        return params, xs

    def _checked_params(self, params: StackedParams) -> StackedParams:
        """Return JAX arrays. Raise ValueError for parameters of another stack."""
        params = jax.tree.map(as_array, params)
        if not isinstance(params, StackedParams) or len(params.cells) != self.pseudo_layers:
            given = type(params).__name__
            if isinstance(params, StackedParams):
                given = f"of {len(params.cells)}"
            raise ValueError(
                f"params must be StackedParams of {self.layers} layers in {self.directions} "
                f"direction(s), {self.pseudo_layers} in all, not {given}"
            )
        if (params.initial is not None) != self.learned_state:
            raise ValueError(
                f"params.initial must be {'learned states' if self.learned_state else 'None'}, as "
                f"learned_state is {self.learned_state}, not {type(params.initial).__name__}"
            )
        for cell in params.cells:
            arrays = jax.tree.leaves(cell)
            if not arrays:
                raise ValueError(f"params.cells must be parameters of {self.block}, not {cell!r}")
            if self.blocks > 1 and any(a.shape[:1] != (self.blocks,) for a in arrays):
                shapes = ", ".join(str(a.shape) for a in arrays)
                raise ValueError(
                    f"each array of params.cells must begin with an axis of blocks = {self.blocks}, "
                    f"not be of shape {shapes}"
                )
        if self.learned_state:
            expected = jax.eval_shape(lambda: self._zeros_of_one_row(dtype_of(params.cells[0])))
            if _described(params.initial) != _described(expected):
                raise ValueError(
                    f"params.initial must be {_described(expected)}, not {_described(params.initial)}"
                )
        if self.weight_dropout:
            check_recurrent_weights(params.cells[0])
        return params

    def _zeros_of_one_row(self, dtype: Any) -> running.States:
        """Return the state of each pseudo-layer for one row, without the axis of rows."""
        states = tuple(self.cell.initial_state(1, dtype) for _ in range(self.pseudo_layers))
        return jax.tree.map(lambda a: a[0], states)

    def _wrong_inputs(self, name: str, axes: str, shape: tuple[int, ...]) -> str:
        return f"{name} must be {axes} with D = inputs = {self.inputs}, not of shape {tuple(shape)}"

    def _checked_state(
        self, params: StackedParams, batch: int, state: running.States | None
    ) -> running.States:
        """Return the state, or the initial state for None. Raise ValueError for one of another stack."""
        if state is None:
            return self.initial_state(params, batch)
        state = jax.tree.map(as_array, state)
        expected = jax.eval_shape(lambda: self.initial_state(params, batch))
        if _described(state) != _described(expected):
            raise ValueError(
                f"state must be a tuple of {self.pseudo_layers}, each {_described(expected[0])}, not "
                f"{_described(state)}"
            )
        return state


def stacked(
    cell: Cell,
    inputs: SupportsIndex,
    *,
    layers: SupportsIndex = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    drop_last: bool = False,
    variational: bool = False,
    zoneout: float | tuple[float, ...] = 0.0,
    weight_dropout: float = 0.0,
    residual: bool = False,
    learned_state: bool = False,
    blocks: SupportsIndex = 1,
    batch_first: bool = False,
) -> Stacked:
    """Return several layers of a cell; `Stacked` has the options and the functions."""
    return Stacked(
        cell,
        inputs,  # type: ignore[arg-type]
        layers,  # type: ignore[arg-type]
        bidirectional,
        dropout,
        drop_last,
        variational,
        zoneout,
        weight_dropout,
        residual,
        learned_state,
        blocks,  # type: ignore[arg-type]
        batch_first,
    )


def _swap_batch_and_time(a: Any) -> Any:
    """Return [B, T, ...] as [T, B, ...], and the other way round; None as None."""
    return None if a is None else jnp.swapaxes(a, 0, 1)


def _described(tree: Any) -> str:
    """Return a text that is equal for equal structures, shapes and dtypes."""
    return str(
        jax.tree.map(lambda a: f"{getattr(a, 'dtype', type(a).__name__)}{list(jnp.shape(a))}", tree)
    )
