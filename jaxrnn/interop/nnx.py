"""Drop-in replacements for flax nnx's recurrent layers that run the recurrence of this library.

    from jaxrnn.interop import nnx as recurrent

    cell = recurrent.OptimizedLSTMCell(64, 128, rngs=nnx.Rngs(0))
    outputs = recurrent.RNN(cell)(inputs)  # [*batch, T, 64] -> [*batch, T, 128]

The classes are subclasses of flax's with the same arguments, parameters and initial values. `from_flax`
turns the layers of any module into these, `to_flax` turns them back. `RNN` runs the fast recurrence for
flax's cells and for those of this module, subclasses included, if they do not define a step of their
own; `explain` reports it. For a cell or an option that the recurrence does not support, `RNN` runs
flax's own loop.

There are two differences where the fast recurrence runs. At and after a row's `seq_lengths`, outputs
are zeros, and what the inputs hold there has no effect; flax computes outputs from the padding. And the
layer works under `jax.jit` and the like, because a carry of zeros takes no random keys and so changes no
state of the module. In flax's own loop a layer does what flax's does.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("jaxrnn.interop.nnx needs flax: pip install flax") from error

from jaxrnn.errors import one_of
from jaxrnn.interop import flax_recurrence
from jaxrnn.interop.flax_recurrence import Carry
from jaxrnn.interop.nnx_cells import (
    GRUCell,
    LSTMCell,
    OptimizedLSTMCell,
    SimpleCell,
    carry_arrays,
    cell_and_params,
    cell_reason,
    has_zero_carry,
    recurrence_cell,
    zero_carry,
    zero_carry_of,
)
from jaxrnn.recurrence.dispatch import Choice
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.shapes import Array, Float, Given

__all__ = [
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "OptimizedLSTMCell",
    "ScannedRNN",
    "SimpleCell",
    "explain",
    "from_flax",
    "to_flax",
]

CellName = Literal["gru", "lstm"]


class RNN(nnx.RNN):
    """`flax.nnx.RNN`: a cell over time, by the fast recurrence where it supports the cell.

    The recurrence supports flax's LSTMCell, OptimizedLSTMCell, GRUCell and SimpleCell and those of this
    module, with the usual sigmoid and tanh (a SimpleCell also with ReLU or sigmoid). Other cells, and
    other values of `promote_dtype`, `residual`, `state_axes` and `broadcast_rngs`, run in flax's own
    loop. `explain` reports which it is.
    """

    implementation: Implementation | None = None

    def __init__(
        self, cell: Any, *, implementation: Implementation | None = None, **options: Any
    ) -> None:
        """Keep the cell and the options.

        Args:
          cell: the cell, `(carry, inputs) -> (carry, outputs)`.
          implementation: as for `jaxrnn.unroll`; None for the fastest that supports a call.
          **options: those of `flax.nnx.RNN`. `unroll` changes no results; the fast recurrence does not
            use it.
        """
        super().__init__(cell, **options)
        # Without it, the attributes are flax's, as those of a module that `from_flax` made.
        if implementation is not None:
            self.implementation = implementation

    def __call__(
        self,
        inputs: Given,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Run the cell over a sequence; None stands for the option of the module.

        Args:
          inputs: [*batch, T, D], or [T, *batch, D] with `time_major`; any number of batch axes.
          initial_carry: the carry before the first step, (c, h) for an LSTM, otherwise h, each
            [*batch, H]; None for that of the cell.
          seq_lengths: [*batch] whole numbers from 0 to T: steps at and after a row's length are padding.
          return_carry: whether to return the carry too.
          time_major: whether time is the first axis.
          reverse: run each row from its last step to its first; the outputs have this order too, with a
            row's padding at the end.
          keep_order: return the outputs of `reverse` at their own times.
          rngs: random keys for an initial carry that is not zeros.

        Returns:
          The outputs in the axes of the inputs, [*batch, T, H] or [T, *batch, H], zeros in the padding
          unless flax's own loop runs; with `return_carry` (carry, outputs), the carry after each row's
          last real step.

        Raises:
          ValueError: for a shape that does not fit the cell (it names both), and for an
            `implementation` that is unknown or cannot run this call (it says why).
        """
        inputs = jnp.asarray(inputs)
        initial_carry = carry_arrays(initial_carry)
        if time_major is None:
            time_major = self.time_major
        cell: Any = self.cell
        reason = _loop_reason(self)
        if initial_carry is None and has_zero_carry(cell):
            _, batch = flax_recurrence.steps_and_batch(inputs.shape, time_major)
            initial_carry = zero_carry_of(cell, batch)
        if reason is not None:
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        if initial_carry is None:
            _, batch = flax_recurrence.steps_and_batch(inputs.shape, time_major)
            rngs = self.rngs if rngs is None else rngs
            rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
            initial_carry = cell.initialize_carry((*batch, inputs.shape[-1]), rngs)
        carry, outputs = flax_recurrence.run(
            *cell_and_params(cell),
            inputs,
            initial_carry,
            time_major=time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            seq_lengths=seq_lengths,
            dtype=cell.dtype,
            implementation=self.implementation,
        )
        if return_carry is None:
            return_carry = self.return_carry
        return (carry, outputs) if return_carry else outputs


class Bidirectional(nnx.Bidirectional):
    """`flax.nnx.Bidirectional`: two layers over time, one in each direction, and their outputs merged.

    The arguments are flax's. With `seq_lengths` the backward direction begins at each row's own last
    step; where both layers are `RNN`s of this module, padding has no effect and its outputs are zeros.
    """

    def __call__(
        self,
        inputs: Given,
        *,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        **options: Any,
    ) -> Any:
        """Apply both layers.

        Args:
          inputs: as for `RNN`.
          reverse: None or False. An outer `Bidirectional` passes True with `keep_order`; as in flax, it
            has no effect then.
          keep_order: without effect: the outputs are always in the order of the inputs.
          **options: as for `RNN`; `initial_carry` is (forward, backward), each as for `RNN`.

        Returns:
          outputs [*batch, T, 2H] or [T, *batch, 2H] (as `merge_fn` makes them), or with `return_carry`
          ((forward, backward), outputs).

        Raises:
          ValueError: as `RNN`, and for `reverse` without `keep_order`.
        """
        flax_recurrence.check_both_directions(reverse, keep_order)
        return super().__call__(jnp.asarray(inputs), **options)


class ScannedRNN(nnx.Module):
    """The recurrent module of agents: a cell over time whose carry is dropped where an episode begins.

    It is the nnx twin of `jaxrnn.interop.linen.ScannedRNN`. A call with T = 1 is a single step for
    acting, and equals that step of a call with all steps.

    Attributes:
      cell: a `GRUCell` or an `OptimizedLSTMCell`.
      implementation: as for `jaxrnn.unroll`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: CellName = "gru",
        implementation: Implementation | None = None,
        rngs: Any,
        **options: Any,
    ) -> None:
        """Make the cell.

        Args:
          in_features: width D of the inputs.
          hidden_features: width H of the hidden state.
          cell: "gru" or "lstm".
          implementation: as for `jaxrnn.unroll`; None for the fastest that supports a call.
          rngs: random keys for the parameters.
          **options: more options of the cell, as `recurrent_bias=True` for the bias b_hn that linen's
            GRU has.

        Raises:
          ValueError: for another cell, and for options with which the recurrence cannot run the cell.
        """
        kinds = {"gru": GRUCell, "lstm": OptimizedLSTMCell}
        made = kinds[one_of(CellName)("cell", cell)](
            in_features, hidden_features, rngs=rngs, **options
        )
        _check_scanned(made)
        self.cell = made
        self.implementation = implementation

    def __call__(self, carry: Carry, x: tuple[Given, Given]) -> tuple[Carry, Float[Array, "... H"]]:
        """Run the cell over a sequence, time first.

        Args:
          carry: the carry before the first step, h or (c, h), each [B, H].
          x: (ins, resets): inputs [T, B, D], and [T, B] bool; True replaces the carry that enters the
            step by zeros. There may be any number of batch axes in the place of B.

        Returns:
          (carry, ys): the carry after the last step, and the outputs [T, B, H].

        Raises:
          ValueError: for a shape that does not fit (it names both), for an `implementation` that is
            unknown or cannot run this call, and for a cell that has been changed so that the recurrence
            cannot run it.
        """
        _check_scanned(self.cell)
        ins, resets = x
        return flax_recurrence.run(
            *cell_and_params(self.cell),
            ins,
            carry_arrays(carry),
            time_major=True,
            reverse=False,
            keep_order=False,
            seq_lengths=None,
            resets=resets,
            dtype=self.cell.dtype,
            implementation=self.implementation,
        )

    @staticmethod
    def initialize_carry(batch_size: int, hidden_size: int, cell: CellName = "gru") -> Carry:
        """Return zeros [B, H] in float32: h of a "gru", (c, h) of an "lstm".

        Raises:
          ValueError: for another cell.
        """
        is_lstm = one_of(CellName)("cell", cell) == "lstm"
        return zero_carry((batch_size, hidden_size), jnp.float32, is_lstm)


def from_flax(module: Any) -> Any:
    """Return a copy of a module in which this module's layers take the place of flax's.

    Args:
      module: any nnx module. It and its submodules are replaced where they are exactly of flax's classes
        LSTMCell, OptimizedLSTMCell, GRUCell, SimpleCell, RNN and Bidirectional; subclasses are kept.

    Returns:
      The copy. Its variables are new and hold the same arrays; what is shared in `module` is shared in
      the copy.
    """
    return _converted(module, _OURS)


def to_flax(module: Any) -> Any:
    """Return a copy of a module with flax's layers in the place of ours: the inverse of `from_flax`.

    Args:
      module: as for `from_flax`. The option `implementation` of an `RNN` is dropped. A `ScannedRNN` is
        kept, with a cell of flax.

    Raises:
      ValueError: for a GRUCell with `recurrent_bias`, which flax's GRUCell has not.
    """
    return _converted(module, {ours: flaxs for flaxs, ours in _OURS.items()})


def explain(module: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Choice:
    """Return what runs a layer on inputs of this shape, and why.

    Args:
      module: an `RNN` or a `ScannedRNN`.
      shape: the shape of the inputs, in the layer's own order of axes.
      dtype: the dtype of the inputs.

    Returns:
      (implementation, why), which prints as one line, as from `jaxrnn.explain`; implementation is "flax"
      where flax's own loop runs.

    Raises:
      ValueError: for another module, and as `jaxrnn.explain`.
    """
    options: dict[str, Any] = {"time_major": True, "resets": True}
    if isinstance(module, RNN):
        if reason := _loop_reason(module):
            return Choice("flax", reason)  # type: ignore[arg-type]
        options = {"time_major": module.time_major, "reverse": module.reverse}
    elif not isinstance(module, ScannedRNN):
        raise ValueError(f"explain takes an RNN or a ScannedRNN, not {type(module).__name__}")
    cell = module.cell
    products = cell.dtype
    if products is None:
        products = jnp.promote_types(dtype, cell.param_dtype)
    return flax_recurrence.explain(
        recurrence_cell(cell), shape, products, implementation=module.implementation, **options
    )


_OURS: dict[type, type] = {
    nnx.LSTMCell: LSTMCell,
    nnx.OptimizedLSTMCell: OptimizedLSTMCell,
    nnx.GRUCell: GRUCell,
    nnx.SimpleCell: SimpleCell,
    nnx.RNN: RNN,
    nnx.Bidirectional: Bidirectional,
}

_USUAL_AXES: Any = nnx.StateAxes({...: nnx.Carry})  # type: ignore[arg-type]


def _check_scanned(cell: Any) -> None:
    """Raise ValueError for a cell that `ScannedRNN` cannot run."""
    reason = cell_reason(cell)
    if reason is None and cell.carry_init is not None:
        reason = "a carry that is dropped becomes zeros, so that there is no carry_init"
    if reason is not None:
        raise ValueError(f"ScannedRNN cannot run the cell with these options: {reason}")


def _loop_reason(rnn: RNN) -> str | None:
    """Return why flax's loop must run a layer, or None where the recurrence can run it.

    Raises:
      ValueError: if it must, and the layer names an implementation of the recurrence.
    """
    reason = cell_reason(rnn.cell)
    if rnn.state_axes != _USUAL_AXES:
        reason = "state_axes is not the default"
    elif rnn.broadcast_rngs is not None:
        reason = "broadcast_rngs is not None"
    if reason is not None and rnn.implementation is not None:
        raise ValueError(
            f"implementation {rnn.implementation!r} cannot run this, only flax's loop can: {reason}"
        )
    return reason


def _converted(module: Any, classes: dict[type, type]) -> Any:
    """Return a copy of a module with other classes for its submodules."""
    made = nnx.clone(module)
    for _, node in list(nnx.iter_graph(made)):
        kind = classes.get(type(node))
        if kind is nnx.GRUCell and node.b_hn is not None:
            raise ValueError(
                "flax's GRUCell has no b_hn, and the cell was made with recurrent_bias"
            )
        if kind is nnx.RNN:
            vars(node).pop("implementation", None)
        if kind is not None:
            object.__setattr__(node, "__class__", kind)
    return made
