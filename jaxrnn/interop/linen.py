"""Recurrent layers of flax linen that run jaxrnn's recurrence, and the `ScannedRNN` of RL code.

    from jaxrnn.interop import linen as nn         # for nn.RNN, nn.Bidirectional and the four cells

The cells are flax's own. `RNN` and `Bidirectional` are subclasses of flax's: constructor, parameters,
their names and initial values, and results are the same, so that checkpoints load. The recurrence reads
the parameters of the cell. flax's loop runs cells and options that the recurrence does not know;
`explain` reports which of both it is.

Three things differ from flax where the recurrence runs. At and after a row's `seq_lengths` the outputs
are zeros (flax computes them from the padding). The carry of a row of length 0 is its initial carry. The
recurrence does not call the cell, so `nn.intercept_methods` does not see calls of the cell.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import jax
import jax.numpy as jnp

try:
    from flax import linen as nn
except ImportError as error:
    raise ImportError("jaxrnn.interop.linen needs flax: pip install flax") from error

from jaxrnn.errors import one_of
from jaxrnn.interop import flax_recurrence
from jaxrnn.interop.linen_cells import (
    KINDS,
    GRUCell,
    LSTMCell,
    OptimizedLSTMCell,
    SimpleCell,
    cell_reason,
    created,
    recurrence_cell,
)
from jaxrnn.recurrence.dispatch import Choice
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.shapes import Given

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

# Arguments of `nn.scan`: other values than the defaults may give each step variables of its own.
_SCAN_OPTIONS = ("variable_axes", "variable_broadcast", "variable_carry", "split_rngs")
# flax wraps every method to record its calls, and would record `super().__call__` as a second one.
_RNN_CALL = inspect.unwrap(nn.RNN.__call__)
_BIDIRECTIONAL_CALL = inspect.unwrap(nn.Bidirectional.__call__)


class RNN(nn.RNN):
    """A cell over a sequence: flax's `RNN`, run by jaxrnn's recurrence where it knows the cell.

    The recurrence runs exactly `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` and `SimpleCell` (no
    subclasses) with their default gate_fn and activation_fn (`SimpleCell` also with relu or sigmoid, and
    without residual), and the default variable_axes, variable_broadcast, variable_carry and split_rngs.
    flax's loop runs everything else.

    Attributes:
      implementation: as for `jaxrnn.unroll`; None for the fastest. It is the only attribute that flax's
        class does not have. `unroll` affects flax's loop only; it changes no result.
    """

    implementation: Implementation | None = None

    def __call__(
        self,
        inputs: Given,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Apply the layer.

        Args:
          inputs: [*batch, T, D], or [T, *batch, D] with `time_major`; any number of batch axes.
          initial_carry: (c, h) of an LSTM, h of the others, each [*batch, H]; None for the cell's own.
          init_key: key of the cell's own carry, which only a `carry_init` that draws numbers needs.
          seq_lengths: [*batch] whole numbers from 0 to T, the steps of each row; None for T.
          return_carry: whether to return the final carry too. This and the next three replace the
            attributes of the same names; None leaves them.
          time_major: whether time is the first axis of inputs and outputs.
          reverse: run each row from its last step to its first; outputs have this order too.
          keep_order: return the outputs of `reverse` at their own times.

        Returns:
          outputs [*batch, T, H] or [T, *batch, H], or (carry, outputs).

        Raises:
          ValueError: for a shape or dtype that does not fit (it names both), and for a named
            implementation that is unknown or cannot run this call (it says why).
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        reason = _loop_reason(self)
        if reason and self.implementation is not None:
            raise ValueError(f"implementation {self.implementation!r} cannot run this: {reason}")
        cell: Any = self.cell
        if reason:
            return _RNN_CALL(
                self,
                inputs,
                initial_carry=initial_carry,
                init_key=init_key,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
            )
        inputs = jnp.asarray(inputs)
        _, batch = flax_recurrence.steps_and_batch(inputs.shape, time_major)
        step = (*batch, inputs.shape[-1])
        carry = initial_carry
        if carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            carry = cell.initialize_carry(key, step)
        carry, outputs = flax_recurrence.run(
            *created(cell, step, inputs.dtype),
            inputs,
            carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            seq_lengths=seq_lengths,
            dtype=cell.dtype,
            implementation=self.implementation,
        )
        return (carry, outputs) if return_carry else outputs


class Bidirectional(nn.Bidirectional):
    """Two layers over the same sequence, one in each direction, with their outputs merged.

    It is flax's `Bidirectional`. Each layer runs as its own class does, so both must be `RNN`s of this
    module to run jaxrnn's recurrence; the backward one starts at each row's own last step.
    """

    # flax annotates the layers with a protocol that cannot be checked at run time.
    forward_rnn: Any
    backward_rnn: Any

    def __call__(
        self,
        inputs: Given,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Apply both layers.

        Args:
          inputs: as for `RNN`.
          initial_carry: (forward, backward), each as for `RNN`; None for the cells' own.
          init_key: as for `RNN`; each direction gets a key of its own.
          seq_lengths: as for `RNN`.
          return_carry: whether to return both final carries too.
          time_major: as for `RNN`.
          reverse: None or False. An outer `Bidirectional` passes True with `keep_order`; as in flax, it
            has no effect then.
          keep_order: without effect: the outputs are always in the order of the inputs.

        Returns:
          outputs [*batch, T, 2H] or [T, *batch, 2H] (as `merge_fn` makes them), or
          ((forward, backward), outputs).

        Raises:
          ValueError: as `RNN`, and for `reverse` without `keep_order`.
        """
        flax_recurrence.check_both_directions(reverse, keep_order)
        return _BIDIRECTIONAL_CALL(
            self,
            inputs,
            initial_carry=initial_carry,
            init_key=init_key,
            seq_lengths=seq_lengths,
            return_carry=return_carry,
            time_major=time_major,
        )


ScannedCell = Literal["gru", "lstm"]
_SCANNED: dict[str, Any] = {"gru": GRUCell, "lstm": OptimizedLSTMCell}
_SCANNED_NAMES = {"gru": "GRUCell_1", "lstm": "OptimizedLSTMCell_0"}


class ScannedRNN(nn.Module):
    """The recurrent module of PureJaxRL and JaxMARL, run by jaxrnn's recurrence.

        carry = ScannedRNN.initialize_carry(environments, hidden_size)
        carry, y = ScannedRNN()(carry, (ins, resets))

    The width of the carry is the hidden size. Parameters have the names and, for the same key, the
    initial values that the copied module gives them.

    Attributes:
      cell: "gru", whose carry is h, or "lstm", whose carry is (c, h).
      cell_name: name of the cell's parameters. None for "GRUCell_1", as in PureJaxRL and JaxMARL, whose
        module makes a first cell for the carry of a reset, and for "OptimizedLSTMCell_0". Modules that
        make no such cell, as in popjaxrl, call it "GRUCell_0".
      implementation: as for `jaxrnn.unroll`; None for the fastest.
    """

    cell: ScannedCell = "gru"
    implementation: Implementation | None = None
    cell_name: str | None = None

    @nn.compact
    def __call__(self, carry: Any, x: tuple[Given, Given]) -> tuple[Any, Any]:
        """Run the cell over time.

        Args:
          carry: the carry before the first step: h or (c, h), each [*batch, H].
          x: (ins, resets): ins [T, *batch, D], time first; resets [T, *batch], bools or numbers of which
            0 is false. A reset replaces the carry that enters its step by zeros, so it marks the first
            step of an episode.

        Returns:
          (carry, y): the carry after the last step, and the outputs [T, *batch, H].

        Raises:
          ValueError: for an unknown cell, for parameters of another name, for a shape or dtype that does
            not fit (it names both), and for a named implementation that is unknown or cannot run this
            call (it says why).
        """
        ins, resets = map(jnp.asarray, x)
        _, batch = flax_recurrence.steps_and_batch(ins.shape, time_major=True)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry)]
        # The recurrence refuses a carry without a width.
        width = shapes[-1][-1] if shapes and shapes[-1] else ins.shape[-1]
        name = self.cell_name or _SCANNED_NAMES[one_of(ScannedCell)("cell", self.cell)]
        there = self.variables.get("params", {})
        if there and name not in there and not self.is_initializing():
            raise ValueError(
                f"the parameters are named {', '.join(there)}, not {name}: set cell_name to their name"
            )
        cell = _scanned_cell(self.cell)(features=width, name=name)
        return flax_recurrence.run(
            *created(cell, (*batch, ins.shape[-1]), ins.dtype),
            ins,
            carry,
            time_major=True,
            reverse=False,
            keep_order=False,
            seq_lengths=None,
            resets=resets,
            implementation=self.implementation,
        )

    @staticmethod
    def initialize_carry(batch_size: int, hidden_size: int, cell: ScannedCell = "gru") -> Any:
        """Return the carry at the start of an episode: zeros [B, H], two of them for an LSTM.

        Raises:
          ValueError: for an unknown cell.
        """
        # An LSTM gets two arrays, so that both can be donated.
        count = 2 if _scanned_cell(cell) is OptimizedLSTMCell else 1
        zeros = [jnp.zeros((batch_size, hidden_size)) for _ in range(count)]
        return zeros[0] if count == 1 else tuple(zeros)


def from_flax(module: Any) -> Any:
    """Return the layer of this module for a layer of flax, with the same fields and names.

    Variables need no change.

    Args:
      module: `nn.RNN`, `nn.Bidirectional`, whose layers are converted too, or one of the four cells. It
        must not be bound to a parent; inside of a module's call, make it with `parent=None`.

    Raises:
      ValueError: for any other module, and for one that has a parent.
    """
    return _converted(module, {nn.RNN: RNN, nn.Bidirectional: Bidirectional})


def to_flax(module: Any) -> Any:
    """Return flax's layer for a layer of this module, the inverse of `from_flax`.

    Args:
      module: `RNN`, whose implementation is dropped, `Bidirectional` or one of the four cells, not bound
        to a parent.

    Raises:
      ValueError: for any other module, and for one that has a parent.
    """
    return _converted(module, {RNN: nn.RNN, Bidirectional: nn.Bidirectional})


def explain(module: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Choice:
    """Return what runs a layer on inputs of this shape, and why.

    Args:
      module: an `RNN`, or a `ScannedRNN`, whose carry is taken to be as wide as its inputs.
      shape: the shape of the inputs, in the layer's own order of axes.
      dtype: the dtype of the inputs.

    Returns:
      (implementation, why), which prints as one line, as from `jaxrnn.explain`; implementation is "flax"
      where flax's own loop runs.

    Raises:
      ValueError: for another module, and as `jaxrnn.explain`.
    """
    if isinstance(module, ScannedRNN):
        cell = _scanned_cell(module.cell)(features=shape[-1], parent=None)
        options: dict[str, Any] = {"time_major": True, "resets": True}
    elif isinstance(module, RNN):
        if reason := _loop_reason(module):
            return Choice("flax", reason)  # type: ignore[arg-type]
        cell = module.cell
        options = {"time_major": module.time_major, "reverse": module.reverse}
    else:
        raise ValueError(f"explain takes an RNN or a ScannedRNN, not {type(module).__name__}")
    made = recurrence_cell(cell, cell.features)
    products = cell.dtype
    if products is None:
        products = jnp.promote_types(dtype, cell.param_dtype)
    return flax_recurrence.explain(
        made, shape, products, implementation=module.implementation, **options
    )


def _loop_reason(rnn: RNN) -> str | None:
    """Return why flax's loop must run a layer, or None where the recurrence can run it."""
    if reason := cell_reason(rnn.cell):
        return reason
    for field in dataclasses.fields(nn.RNN):
        given = getattr(rnn, field.name)
        if field.name in _SCAN_OPTIONS and _plain(given) != _plain(field.default):
            return f"{field.name} is {given}, not the default {field.default}"
    return None


def _plain(option: Any) -> Any:
    """Return a mapping of any type as a dict: flax's frozen ones do not equal others."""
    return dict(option) if hasattr(option, "items") else option


def _scanned_cell(name: Any) -> Any:
    return _SCANNED[one_of(ScannedCell)("cell", name)]


def _converted(module: Any, classes: dict[Any, Any]) -> Any:
    """Return a module in the class that `classes` names, with its fields and the layers inside of it."""
    kind = type(module)
    if kind in KINDS or kind in classes.values():
        return module
    if kind not in classes:
        cells = ", ".join(KINDS.values())
        raise ValueError(f"the layer must be an RNN, Bidirectional, {cells}, not {kind.__name__}")
    if module.parent is not None:
        raise ValueError(
            f"the {kind.__name__} must not be bound to {type(module.parent).__name__}: make it with "
            "parent=None, or convert it outside of the module"
        )
    wanted = classes[kind]
    names = {field.name for field in dataclasses.fields(wanted)}
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(kind)
        if field.name in names
    }
    for name in ("forward_rnn", "backward_rnn"):
        if type(fields.get(name)) in classes:
            fields[name] = _converted(fields[name], classes)
    if kind in (nn.Bidirectional, Bidirectional) and module.forward_rnn is module.backward_rnn:
        # One layer in both directions stays one.
        fields["backward_rnn"] = fields["forward_rnn"]
    return wanted(**fields)
