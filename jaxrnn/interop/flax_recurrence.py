"""Run the weights of a flax cell over a sequence: the code that the nnx and linen layers share.

`run` takes inputs, carries and options as flax's `RNN` does, with any number of batch axes, and calls
the recurrence of this library. It agrees with flax, with one difference: at and after a row's
`seq_lengths` the outputs are zeros, and what the inputs hold there, even NaN, has no effect. (flax
computes outputs from the padding.) The carry of a row of length 0 is its initial carry.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.interop.flax import Kind
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.cells import GRU, LSTM, RNN, gru, lstm, rnn
from jaxrnn.recurrence.dispatch import Choice
from jaxrnn.recurrence.equations import Activation
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.parameters import GRUState, LSTMState, RNNState
from jaxrnn.recurrence.problem import Dense, clipped
from jaxrnn.shapes import Array, Float, Given, Integer

# A carry of flax: (c, h) of an LSTM, h of the others, each [*batch, H].
Carry = Any

_ACTIVATIONS: dict[Any, Activation] = {
    jax.nn.sigmoid: "sigmoid",
    jax.lax.logistic: "sigmoid",
    jnp.tanh: "tanh",
    jax.lax.tanh: "tanh",
    jax.nn.relu: "relu",
}


def make_cell(kind: Kind, hidden_size: int, activation: Activation = "tanh") -> RNN | LSTM | GRU:
    """Return jaxrnn's cell that computes what a flax cell does.

    Args:
      kind: the name of the flax cell.
      hidden_size: width H of the hidden state.
      activation: that of a `SimpleCell`; the others have tanh.
    """
    if kind == "SimpleCell":
        return rnn(hidden_size, activation=activation)
    if kind == "GRUCell":
        return gru(hidden_size, reset="after")
    return lstm(hidden_size)


def activation_name(function: Any) -> Activation | None:
    """Return the name of an activation function; None for one that the recurrence does not know."""
    try:
        return _ACTIVATIONS.get(function)
    except TypeError:
        # It is not hashable.
        return None


def functions_reason(kind: Kind, gate_fn: Any, activation_fn: Any, residual: bool) -> str | None:
    """Return which option of a flax cell the recurrence does not support, or None.

    Args:
      kind: the name of the flax cell.
      gate_fn: its option; None for a `SimpleCell`, which has none.
      activation_fn: its option.
      residual: the option of a `SimpleCell`; False for the others.
    """
    activation = activation_name(activation_fn)
    if kind == "SimpleCell":
        if activation is None:
            return "the activation_fn of the cell is not tanh, relu or sigmoid"
        return "the cell is residual" if residual else None
    if activation_name(gate_fn) != "sigmoid":
        return "the gate_fn of the cell is not sigmoid"
    if activation != "tanh":
        return "the activation_fn of the cell is not tanh"
    return None


def run(
    cell: RNN | LSTM | GRU,
    params: Any,
    inputs: Given,
    carry: Carry,
    *,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    seq_lengths: Any,
    resets: Given | None = None,
    dtype: Any = None,
    implementation: Implementation | None = None,
) -> tuple[Carry, Float[Array, "... H"]]:
    """Run a cell over a sequence as flax's `RNN` does.

    Args:
      cell: of `make_cell`.
      params: its parameters, of any dtypes.
      inputs: [*batch, T, D], or [T, *batch, D] with `time_major`; any number of batch axes.
      carry: the initial carry in flax's form: (c, h) or h, each [*batch, H].
      time_major: whether time is the first axis.
      reverse: run each row from its last step to its first; the outputs have this order too, with a
        row's padding at the end.
      keep_order: return the outputs of `reverse` at their own times.
      seq_lengths: [*batch] whole numbers from 0 to T; None where every row has T steps.
      resets: [*batch, T] or [T, *batch], as `time_major` says; True, or any number but 0, replaces the
        carry that enters the step by zeros. None for no resets.
      dtype: that of the products, as a flax cell's option `dtype`; None for the common dtype of inputs,
        hidden state and parameters.
      implementation: as for `jaxrnn.unroll`.

    Returns:
      (carry, outputs): the carry after each row's last real step, and the outputs in the axes of the
      inputs. Their dtypes are those that a step of flax's cell returns.

    Raises:
      ValueError: for a shape or dtype that does not fit (it names both), and for an implementation that
        is unknown or cannot run this call (it says why).
    """
    inputs = jnp.asarray(inputs)
    carry = jax.tree.map(jnp.asarray, carry)
    steps, batch = steps_and_batch(inputs.shape, time_major)
    width = params.w_x.shape[0]
    if inputs.shape[-1] != width:
        raise ValueError(
            f"inputs must have {width} features, as the cell has, not {inputs.shape[-1]} as in their "
            f"shape {inputs.shape}"
        )
    hidden = (*batch, cell.hidden_size)
    _check_carry(cell, carry, hidden)
    products, dtypes = _dtypes(cell, params, inputs, carry, dtype)

    rows = math.prod(batch)
    order = (steps, rows) if time_major else (rows, steps)
    xs = inputs.astype(products).reshape(*order, width)
    xs = xs if time_major else xs.swapaxes(0, 1)
    wide_carry = jax.tree.map(
        lambda a: a.astype(wide(products)).reshape(rows, cell.hidden_size), carry
    )
    state = _state(cell, wide_carry)
    params = jax.tree.map(lambda a: a.astype(products), params)
    lengths = None if seq_lengths is None else _lengths(seq_lengths, batch)
    # `unroll` would round the outputs to the dtype of the products; flax rounds them to the carry's.
    state, ys = unroll_projected(
        cell,
        params,
        Dense(xs, params.w_x, params.b),
        state,
        resets=None if resets is None else _resets(resets, xs.shape[:2], batch, time_major),
        lengths=lengths,
        reverse=reverse,
        implementation=implementation,
        batch_first_memory=not time_major,
    )
    if reverse and not keep_order:
        ys = _flip(ys, lengths)
    ys = (ys if time_major else ys.swapaxes(0, 1)).astype(dtypes[-1])
    ys = ys.reshape(*((steps, *batch) if time_major else (*batch, steps)), cell.hidden_size)
    leaves = (state.cell, state.hidden) if isinstance(cell, LSTM) else (state.hidden,)
    after = [a.astype(d).reshape(hidden) for a, d in zip(leaves, dtypes, strict=True)]
    return tuple(after) if isinstance(cell, LSTM) else after[0], ys


def explain(
    cell: RNN | LSTM | GRU,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    time_major: bool,
    reverse: bool = False,
    resets: bool = False,
    implementation: Implementation | None = None,
) -> Choice:
    """Return which implementation `run` picks for inputs of this shape, and why.

    Args:
      cell: as for `run`.
      shape: that of the inputs.
      dtype: that of the products.
      time_major: as for `run`.
      reverse: as for `run`.
      resets: whether `run` would be given resets.
      implementation: as for `run`.

    Raises:
      ValueError: as `jaxrnn.explain`.
    """
    steps, batch = steps_and_batch(shape, time_major)
    rows = (steps, math.prod(batch), shape[-1])
    return dispatch.explain(cell, rows, dtype, implementation, resets=resets, reverse=reverse)


def check_both_directions(reverse: Any, keep_order: Any) -> None:
    """Raise ValueError where a layer in both directions is asked for outputs in reverse order.

    An outer `Bidirectional` passes reverse=True and keep_order=True to its backward layer. For a layer
    in both directions that changes nothing.
    """
    if reverse and not keep_order:
        raise ValueError(
            f"Bidirectional runs both directions: reverse must be None or False, not {reverse}"
        )


def steps_and_batch(shape: tuple[int, ...], time_major: bool) -> tuple[int, tuple[int, ...]]:
    """Return the number of steps and the batch axes of inputs of this shape.

    Raises:
      ValueError: for fewer than two axes.
    """
    if len(shape) < 2:
        axes = "[T, *batch, D]" if time_major else "[*batch, T, D]"
        raise ValueError(f"inputs must be {axes}, not of shape {tuple(shape)}")
    return (shape[0], shape[1:-1]) if time_major else (shape[-2], shape[:-2])


def _check_carry(cell: RNN | LSTM | GRU, carry: Carry, shape: tuple[int, ...]) -> None:
    lstm_cell = isinstance(cell, LSTM)
    leaves = carry if lstm_cell else [carry]
    pair = not lstm_cell or (isinstance(carry, tuple | list) and len(carry) == 2)
    if not pair or any(getattr(leaf, "shape", None) != shape for leaf in leaves):
        wanted = f"(c, h), each of shape {shape}" if lstm_cell else f"an array of shape {shape}"
        raise ValueError(
            f"the initial carry must be {wanted}, not {jax.tree.map(jnp.shape, carry)} as given"
        )


def _dtypes(
    cell: RNN | LSTM | GRU, params: Any, inputs: Array, carry: Carry, dtype: Any
) -> tuple[Any, list[Any]]:
    """Return the dtype of the products, and those of the carry's arrays after a step of flax's cell.

    The last of them is the hidden state's, and that of the outputs.
    """
    leaves = list(carry) if isinstance(cell, LSTM) else [carry]
    hidden = leaves[-1]
    products = dtype
    if products is None:
        products = jnp.result_type(inputs, hidden, *jax.tree.leaves(params))
    dispatch.check_dtype(products)
    if isinstance(cell, RNN):
        return products, [products]
    # h' of a GRU is a sum with h, and c' of an LSTM one with c, so they keep the wider dtype.
    after = jnp.promote_types(products, leaves[0].dtype)
    return products, [after] * len(leaves)


def _state(cell: RNN | LSTM | GRU, carry: Carry) -> Any:
    """Return jaxrnn's state of flax's carry."""
    if isinstance(cell, LSTM):
        c, h = carry
        return LSTMState(h, c)
    return GRUState(carry) if isinstance(cell, GRU) else RNNState(carry)


def _lengths(seq_lengths: Any, batch: tuple[int, ...]) -> Any:
    """Return the lengths as [rows]."""
    # Numbers that are not traced stay so: `unroll` checks their range.
    lengths = seq_lengths if isinstance(seq_lengths, jax.Array) else np.asarray(seq_lengths)
    if lengths.shape != batch:
        raise ValueError(
            f"seq_lengths must be of shape {batch} like the batch axes of the inputs, not "
            f"{lengths.shape}"
        )
    return lengths.reshape(-1)


def _resets(
    resets: Any, steps_and_rows: tuple[int, ...], batch: tuple[int, ...], time_major: bool
) -> Array:
    """Return the resets as [T, rows]."""
    steps = steps_and_rows[0]
    shape = (steps, *batch) if time_major else (*batch, steps)
    if jnp.shape(resets) != shape:
        raise ValueError(
            f"resets must be of shape {shape} like the inputs without their features, not "
            f"{jnp.shape(resets)}"
        )
    resets = jnp.asarray(resets).astype(bool)
    return (resets if time_major else jnp.moveaxis(resets, -1, 0)).reshape(steps_and_rows)


def _flip(ys: Float[Array, "T B H"], lengths: Integer[Given, "B"] | None) -> Float[Array, "T B H"]:
    """Return each row's real steps in reverse order, its padding after them."""
    if lengths is None:
        return jnp.flip(ys, axis=0)
    steps = ys.shape[0]
    order = jnp.arange(steps - 1, -1, -1, dtype=jnp.int32)[:, None]
    order = (order + clipped(jnp.asarray(lengths), steps)[None]) % steps
    return jnp.take_along_axis(ys, order[..., None], axis=0, mode="promise_in_bounds")
