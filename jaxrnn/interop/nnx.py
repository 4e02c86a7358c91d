"""Drop-in replacements for flax nnx's recurrent layers that run the recurrence of this library.

    from jaxrnn.interop import nnx as recurrent

    cell = recurrent.OptimizedLSTMCell(64, 128, rngs=nnx.Rngs(0))
    outputs = recurrent.RNN(cell)(inputs)  # [*batch, T, 64] -> [*batch, T, 128]

The classes are subclasses of flax's with the same arguments, parameters and initial values. `from_flax`
turns the layers of any module into these, `to_flax` turns them back. `RNN` runs the fast recurrence for
flax's cells and for those of this module, subclasses included, if they do not define a step of their
own; `explain` reports it. For a cell or an option that the recurrence does not support, `RNN` runs
flax's own loop.

There are two differences. At and after a row's `seq_lengths`, outputs are zeros, and what the inputs
hold there has no effect; flax computes outputs from the padding. A carry of zeros takes no random keys,
so that a module can be called under any transform without a change of its state.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrnn.errors import one_of
from jaxrnn.interop import flax_recurrence
from jaxrnn.interop.flax import NNX, Kind, from_weights
from jaxrnn.interop.flax_recurrence import Carry
from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.cells import RNN as PlainRNN
from jaxrnn.recurrence.dispatch import Choice
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.linalg import add
from jaxrnn.shapes import Array, Float, Given

try:
    from flax import nnx
    from flax.nnx.nn.dtypes import promote_dtype
except ImportError as error:
    raise ImportError("jaxrnn.interop.nnx needs flax: pip install flax") from error

RecurrenceCell = PlainRNN | LSTM | GRU
CellName = Literal["gru", "lstm"]


# With another base than flax's, Python would not let `from_flax` change the class of an object.
class _ZeroCarry(nnx.RNNCellBase):
    """The initial carry of the cells of this module: zeros, for which no random keys are needed."""

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Carry:
        """Return the carry before the first step.

        Args:
          input_shape: the shape of a step's inputs, (*batch, D).
          rngs: as for flax's cells; used only where there is a `carry_init`, which needs it.
          carry_init: an initializer instead of the cell's own.

        Returns:
          (c, h) for an LSTM, otherwise h, each [*batch, H] in the cell's `param_dtype`: zeros if neither
          this call nor the cell has a `carry_init`.
        """
        cell: Any = self
        if cell.carry_init is None and carry_init is None:
            return _zeros(cell, input_shape[:-1])
        parent: Any = super()
        return parent.initialize_carry(input_shape, rngs, carry_init)


class LSTMCell(_ZeroCarry, nnx.LSTMCell):
    """`flax.nnx.LSTMCell`: an LSTM with a kernel for each gate; its carry needs no rngs."""


class OptimizedLSTMCell(_ZeroCarry, nnx.OptimizedLSTMCell):
    """`flax.nnx.OptimizedLSTMCell`: an LSTM with one kernel for all gates; its carry needs no rngs."""


class SimpleCell(_ZeroCarry, nnx.SimpleCell):
    """`flax.nnx.SimpleCell`: a plain recurrent cell; its carry needs no rngs."""


class GRUCell(_ZeroCarry, nnx.GRUCell):
    """`flax.nnx.GRUCell` with an option for the recurrent bias, which flax's has not.

        r = sigmoid(W_ir x + b_ir + W_hr h)
        z = sigmoid(W_iz x + b_iz + W_hz h)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Without `recurrent_bias` there is no b_hn.
    """

    b_hn: Any = None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        recurrent_bias: bool = False,
        **options: Any,
    ) -> None:
        """Make the parameters.

        Args:
          in_features: width D of the inputs.
          hidden_features: width H of the hidden state.
          recurrent_bias: whether there is a parameter `b_hn` [H], zeros at the start. PyTorch's GRU and
            linen's have it.
          **options: those of `flax.nnx.GRUCell`; `rngs` is required. `bias_metadata` is also b_hn's.
        """
        super().__init__(in_features, hidden_features, **options)
        if recurrent_bias:
            zeros = jnp.zeros(hidden_features, self.param_dtype)
            self.b_hn = nnx.Param(zeros, **options.get("bias_metadata", {}))

    def __call__(
        self, carry: Float[Array, "... H"], inputs: Array
    ) -> tuple[Float[Array, "... H"], Float[Array, "... H"]]:
        """Return the carry after one step, and the output, which is the same.

        Args:
          carry: h [*batch, H].
          inputs: [*batch, D].
        """
        if self.b_hn is None:
            return super().__call__(carry, inputs)
        x_r, x_z, x_n = jnp.split(self.dense_i(inputs), 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.dense_h(carry), 3, axis=-1)
        r = self.gate_fn(x_r + h_r)
        z = self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + r * add(h_n, self.b_hn[...]))
        hidden = (1 - z) * n + z * carry
        return hidden, hidden


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
          The outputs in the axes of the inputs, [*batch, T, H] or [T, *batch, H], zeros in the padding;
          with `return_carry` (carry, outputs), the carry after each row's last real step.

        Raises:
          ValueError: for a shape that does not fit the cell (it names both), and for an
            `implementation` that is unknown or cannot run this call (it says why).
        """
        inputs = jnp.asarray(inputs)
        if time_major is None:
            time_major = self.time_major
        cell: Any = self.cell
        reason = _loop_reason(self)
        if initial_carry is None and _has_zero_carry(cell):
            _, batch = flax_recurrence.steps_and_batch(inputs.shape, time_major)
            initial_carry = _zeros(cell, batch)
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
            *_cell_and_params(cell),
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


class ScannedRNN(nnx.Module):
    """The recurrent module of agents: a cell over time whose carry is dropped where an episode begins.

    It is the nnx twin of the linen module that PureJaxRL, JaxMARL, Mava, Stoix and popjaxrl share. A
    call with T = 1 is a single step for acting, and equals that step of a call with all steps.

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
        reason = _cell_reason(made)
        if made.carry_init is not None:
            reason = "a carry that is dropped becomes zeros, so that there is no carry_init"
        if reason is not None:
            raise ValueError(f"ScannedRNN cannot run the cell with these options: {reason}")
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
          ValueError: for a shape that does not fit (it names both), and for an `implementation` that is
            unknown or cannot run this call.
        """
        ins, resets = x
        return flax_recurrence.run(
            *_cell_and_params(self.cell),
            ins,
            carry,
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
        return _zero_carry((batch_size, hidden_size), jnp.float32, is_lstm)


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
    made = _recurrence_cell(cell)
    return flax_recurrence.explain(
        made, shape, products, implementation=module.implementation, **options
    )


_OURS: dict[type, type] = {
    nnx.LSTMCell: LSTMCell,
    nnx.OptimizedLSTMCell: OptimizedLSTMCell,
    nnx.GRUCell: GRUCell,
    nnx.SimpleCell: SimpleCell,
    nnx.RNN: RNN,
    nnx.Bidirectional: Bidirectional,
}

# The cells whose steps the recurrence computes. A subclass with a step of its own is not one of them.
_KINDS: dict[Any, Kind] = {
    nnx.LSTMCell.__call__: "LSTMCell",
    nnx.OptimizedLSTMCell.__call__: "OptimizedLSTMCell",
    nnx.GRUCell.__call__: "GRUCell",
    GRUCell.__call__: "GRUCell",
    nnx.SimpleCell.__call__: "SimpleCell",
}

# The methods whose carry is zeros for a cell without carry_init.
_ZERO_CARRIES = {_ZeroCarry.initialize_carry} | {
    kind.initialize_carry
    for kind in (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
}

_USUAL_AXES: Any = nnx.StateAxes({...: nnx.Carry})  # type: ignore[arg-type]


def _has_zero_carry(cell: Any) -> bool:
    known = getattr(type(cell), "initialize_carry", None) in _ZERO_CARRIES
    return known and cell.carry_init is None


def _zeros(cell: Any, batch: tuple[int, ...]) -> Carry:
    is_lstm = isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell)
    return _zero_carry((*batch, cell.hidden_features), cell.param_dtype, is_lstm)


def _zero_carry(shape: tuple[int, ...], dtype: Any, is_lstm: bool) -> Carry:
    """Return h, or (c, h) as two arrays, so that both can be donated."""
    zeros = [jnp.zeros(shape, dtype) for _ in range(2 if is_lstm else 1)]
    return tuple(zeros) if is_lstm else zeros[0]


def _loop_reason(rnn: RNN) -> str | None:
    """Return why flax's loop must run a layer, or None where the recurrence can run it.

    Raises:
      ValueError: if it must, and the layer names an implementation of the recurrence.
    """
    reason = _cell_reason(rnn.cell)
    if rnn.state_axes != _USUAL_AXES:
        reason = "state_axes is not the default"
    elif rnn.broadcast_rngs is not None:
        reason = "broadcast_rngs is not None"
    if reason is not None and rnn.implementation is not None:
        raise ValueError(
            f"implementation {rnn.implementation!r} cannot run this, only flax's loop can: {reason}"
        )
    return reason


def _cell_reason(cell: Any) -> str | None:
    """Return why the recurrence cannot run a cell, or None where it can."""
    kind = _KINDS.get(type(cell).__call__)
    if kind is None:
        known = ", ".join(dict.fromkeys(_KINDS.values()))
        return f"the step of the cell {type(cell).__name__} is not that of {known}"
    gate_fn, residual = getattr(cell, "gate_fn", None), getattr(cell, "residual", False)
    if reason := flax_recurrence.functions_reason(kind, gate_fn, cell.activation_fn, residual):
        return reason
    for name in NNX[kind].inputs + NNX[kind].recurrent:
        if not _is_plain(getattr(cell, name), cell.dtype):
            return (
                f"{name} of the cell is not an nnx.Linear with the usual promote_dtype and product"
            )
    return None


def _is_plain(layer: Any, dtype: Any) -> bool:
    """Return whether a layer computes the plain product of `nnx.Linear`."""
    if type(layer) is not nnx.Linear:
        return False
    options = layer.dtype, layer.promote_dtype, layer.dot_general
    usual = dtype, promote_dtype, jax.lax.dot_general
    return options == usual and layer.precision is layer.preferred_element_type is None


def _recurrence_cell(cell: Any) -> RecurrenceCell:
    activation: Any = flax_recurrence.activation_name(cell.activation_fn)
    kind = _KINDS[type(cell).__call__]
    return flax_recurrence.make_cell(kind, cell.hidden_features, activation)


def _cell_and_params(cell: Any) -> tuple[RecurrenceCell, Any]:
    """Return jaxrnn's cell and parameters for a cell that the recurrence can run."""
    made = _recurrence_cell(cell)
    layout = NNX[_KINDS[type(cell).__call__]]
    weights: dict[str, dict[str, Array]] = {}
    for layer, name in layout.arrays():
        weights.setdefault(layer, {})[name] = getattr(getattr(cell, layer), name)[...]
    params = from_weights(made, layout, weights)
    b_hn = getattr(cell, "b_hn", None)
    return made, params if b_hn is None else params._replace(b_h=b_hn[...])


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
