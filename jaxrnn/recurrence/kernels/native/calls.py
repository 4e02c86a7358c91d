"""The C++ of this folder as JAX functions.

All arrays are float32, except that w_h and w_x may both be bfloat16. Then the operands of the products
are rounded to bfloat16; xs, ys and their derivatives may be bfloat16; and h before each step, an
operand, always is. Sums, states and gates are float32.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import ffi
from jaxrnn.recurrence.kernels.ffi import NOTHING, Argument, Result
from jaxrnn.recurrence.kernels.native import plain
from jaxrnn.recurrence.kernels.portable import on_platform
from jaxrnn.recurrence.kernels.rows import SHARED, by_rows, of_inputs, of_state, of_steps, shared
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Masks, Residuals
from jaxrnn.shapes import Array, Float, Int

on_cpu = partial(on_platform, "cpu")
_call = partial(ffi.call, mapped=True)


class Static(NamedTuple):
    """The static part of a call.

    Attributes:
      cell: the cell.
      reverse: whether to run from the last step to the first.
      batch_first: whether the C++ reads and writes arrays [B, T, ...] in place of [T, B, ...].
      narrow: whether the operands of the products are bfloat16.
    """

    cell: Any
    reverse: bool
    batch_first: bool
    narrow: bool = False

    @property
    def operand_dtype(self) -> Any:
        """The dtype to which the operands of products are rounded."""
        return jnp.bfloat16 if self.narrow else jnp.float32

    @property
    def rows(self) -> int:
        """The axis of the rows in the arrays of the C++ that have all steps."""
        return 0 if self.batch_first else 1

    def turned(self, tree: Any) -> Any:
        """Return arrays [T, B, ...] as the C++ has them, or arrays of the C++ as [T, B, ...].

        Two of these, one after the other, cancel when XLA compiles them.
        """
        return jax.tree.map(lambda a: a.swapaxes(0, 1), tree) if self.batch_first else tree


class Form(enum.IntEnum):
    """The forms in which weights are packed, as recurrence.h numbers them."""

    RECURRENT = 0
    INPUT = 1
    TRANSPOSED = 2


def pack(cell: Any, form: Form, w: Float[Array, "K G"]) -> Float[Array, "P"]:
    """Return weights in the order in which the C++ reads them.

    This is a call of its own, so that XLA moves it out of a loop in which the weights do not change.

    Args:
      cell: the cell; None for weights whose columns are not divided into gates.
      form: what the weights are for.
      w: weights of float32 or bfloat16.
    """
    gates = len(cell.GATES) if cell else 1
    # Units are padded to whole panels; and K, for products of bfloat16, to whole tiles.
    rows, columns = w.shape[0], w.shape[1] // gates
    length, units = (columns, rows) if form is Form.TRANSPOSED else (rows, columns)
    length = -(-length // 32) * 32 if w.dtype == jnp.bfloat16 else length
    size = gates * length * (-(-units // 64) * 64)
    return _call(
        "jaxrnn_pack",
        [Result((size,), dtype=w.dtype)],
        [Argument(w)],
        form=np.int64(form),
        cell=_cell(cell) if cell else np.int64(0),
        gates=np.int64(gates),
    )[0]


def forward(
    static: Static, weights: Any, inputs: Inputs, state: Any, masks: Masks, keep: bool
) -> tuple[Any, Float[Array, "T B H"], Residuals | None]:
    """Return the final state, the outputs and, with `keep`, what `backward` needs."""
    arguments = weights, inputs, state, masks
    rows = shared(weights), of_inputs(inputs), of_state(state), of_steps(masks)
    result_rows = of_state(state), 1, _residual_rows(static.cell) if keep else None
    return by_rows(_forward, (static, keep), arguments, rows, result_rows)


def _forward(static: Static, keep: bool, *given: Any) -> tuple[Any, Array, Any]:
    kernel = partial(_forward_call, static, keep)
    return on_cpu(kernel, partial(_forward_plain, static, keep), *given)


def _forward_plain(static: Static, keep: bool, *given: Any) -> tuple[Any, Array, Any]:
    final, ys, residuals = plain.forward(static.cell, static.reverse, *given)
    inputs = given[1]
    if isinstance(inputs, Dense):
        ys = ys.astype(inputs.xs.dtype)
    before = residuals.previous_hidden.astype(static.operand_dtype)
    return final, ys, residuals._replace(previous_hidden=before) if keep else None


def _forward_call(
    static: Static, keep: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array, Residuals | None]:
    cell, rows = static.cell, static.rows
    tokens = w_x = b = None
    if isinstance(inputs, Lookup):
        tokens, first = static.turned(inputs.tokens.astype(jnp.int32)), Argument(inputs.table)
    elif isinstance(inputs, Dense):
        first = Argument(static.turned(inputs.xs), rows)
        w_x, b = pack(cell, Form.INPUT, inputs.w_x), inputs.b
    else:
        first = Argument(static.turned(inputs), rows)
    steps, batch, width = inputs.shape
    order = (batch, steps) if static.batch_first else (steps, batch)
    every = Result((*order, cell.hidden_size), rows)
    ys_dtype = inputs.xs.dtype if isinstance(inputs, Dense) else jnp.float32
    last = Result((batch, cell.hidden_size), 0)
    third = _third_residual(cell)
    ys, hidden, c, previous_hidden, gates, extra = _call(
        "jaxrnn_forward",
        [
            every._replace(dtype=ys_dtype),
            last,
            last if cell.kind is CellKind.LSTM else NOTHING,
            every._replace(dtype=static.operand_dtype) if keep else NOTHING,
            Result((*order, width), rows) if keep else NOTHING,
            every if keep and third else NOTHING,
        ],
        [
            first,
            Argument(tokens, rows, jnp.int32),
            Argument(w_x),
            Argument(b),
            Argument(pack(cell, Form.RECURRENT, weights.w_h)),
            Argument(_vectors(weights)),
            *_state(state),
            *_masks(static, masks),
        ],
        cell=_cell(cell),
        reverse=static.reverse,
        batch_first=static.batch_first,
    )
    residuals = None
    if keep:
        residuals = Residuals(previous_hidden, gates, **({third: extra} if third else {}))
    return _like(state, hidden, c), *static.turned((ys, residuals))


def _third_residual(cell: Any) -> str | None:
    """Return the field of `Residuals` that the C++ keeps beside previous_hidden and gates."""
    return {
        CellKind.LSTM: "previous_cell",
        CellKind.GRU_BEFORE: "reset_hidden",
        CellKind.GRU_AFTER: "q",
    }.get(cell.kind)


def _residual_rows(cell: Any) -> Any:
    third = _third_residual(cell)
    return Residuals(1, 1, **({third: 1} if third else {}))


def backward(
    static: Static,
    weights: Any,
    masks: Masks,
    residuals: Residuals,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Float[Array, "T B G"], Float[Array, "T B H"] | None, Any]:
    """Return the derivatives with respect to the gates' inputs, to q, and to the first state.

    That with respect to q is None but for a GRU that resets after the product.
    """
    arguments = weights, masks, residuals, d_final, d_ys
    cell = static.cell
    rows = shared(weights), of_steps(masks), _residual_rows(cell), of_state(d_final), 1
    results = 1, 1 if _has_q(cell) else None, of_state(d_final)
    return by_rows(_backward, (static,), arguments, rows, results)


def _backward(static: Static, *given: Any) -> tuple[Array, Array | None, Any]:
    kernel = partial(_backward_call, static)
    return on_cpu(kernel, partial(plain.backward, static.cell, static.reverse), *given)


def _backward_call(
    static: Static,
    weights: Any,
    masks: Masks,
    residuals: Residuals,
    d_final: Any,
    d_ys: Array,
) -> tuple[Array, Array | None, Any]:
    cell, rows = static.cell, static.rows
    batch, size = d_ys.shape[1:]
    first = Result((batch, size), 0)
    residuals, d_ys = static.turned((residuals, d_ys))
    every = d_ys.shape
    third = _third_residual(cell)
    kept = residuals.previous_hidden, residuals.gates, getattr(residuals, third) if third else None
    d_gx, d_q, hidden, c = _call(
        "jaxrnn_backward",
        [
            Result((*every[:2], residuals.gates.shape[-1]), rows),
            Result(every, rows) if _has_q(cell) else NOTHING,
            first,
            first if cell.kind is CellKind.LSTM else NOTHING,
        ],
        [
            Argument(pack(cell, Form.TRANSPOSED, weights.w_h)),
            Argument(_vectors(weights)),
            *(Argument(a, rows) for a in kept),
            Argument(d_ys, rows),
            *_state(d_final),
            *_masks(static, masks),
        ],
        # d_gx is written over the gates, and d_q over q, where nothing else reads them.
        aliases={3: 0, 4: 1} if _has_q(cell) else {3: 0},
        cell=_cell(cell),
        reverse=static.reverse,
        batch_first=static.batch_first,
    )
    d_gx, d_q = static.turned((d_gx, d_q if _has_q(cell) else None))
    return d_gx, d_q, _like(d_final, hidden, c)


def _has_q(cell: Any) -> bool:
    return cell.kind is CellKind.GRU_AFTER


def outer(
    static: Static,
    x: Float[Array, "T B K"],
    d: Float[Array, "T B G"],
    columns: slice = slice(None),
) -> tuple[Float[Array, "K N"], Float[Array, "N"]]:
    """Return the sum of x d^T over all rows, and that of d, for some N columns of d."""
    kernel = partial(_outer_call, static, columns)
    return on_cpu(kernel, partial(_outer_plain, static.narrow, columns), x, d)


def _outer_plain(narrow: bool, columns: slice, x: Array, d: Array) -> tuple[Array, Array]:
    d = d[..., columns]
    return Rows.outer(x, d.astype(jnp.bfloat16) if narrow else d), Rows.total(d)


def _outer_call(static: Static, columns: slice, x: Array, d: Array) -> tuple[Array, Array]:
    first, end, _ = columns.indices(d.shape[-1])
    results = [Result((x.shape[-1], end - first)), Result((end - first,))]
    arguments = [Argument(a, static.rows) for a in static.turned((x, d))]
    found, total = _call(
        "jaxrnn_outer",
        results,
        arguments,
        flat=True,
        first=np.int64(first),
        narrow=static.narrow,
    )
    return found, total


def back(
    static: Static, d: Float[Array, "T B G"], w: Float[Array, "D G"], dtype: Any = jnp.float32
) -> Float[Array, "T B D"]:
    """Return d W^T for all rows, in a dtype."""
    return by_rows(_back, (static, jnp.dtype(dtype)), (d, w), (1, SHARED), 1)


def _back(static: Static, dtype: Any, d: Array, w: Array) -> Array:
    kernel, plain_back = partial(_back_call, static, dtype), partial(_back_plain, dtype)
    return on_cpu(kernel, plain_back, d, w)


def _back_plain(dtype: Any, d: Array, w: Array) -> Array:
    return Rows.back(d, w).astype(dtype)


def _back_call(static: Static, dtype: Any, d: Array, w: Array) -> Array:
    d = static.turned(d)
    results = [Result((*d.shape[:2], w.shape[0]), static.rows, dtype)]
    arguments = [Argument(d, static.rows), Argument(pack(None, Form.TRANSPOSED, w))]
    return static.turned(_call("jaxrnn_back", results, arguments, flat=True)[0])


def sum_equal(
    static: Static, tokens: Int[Array, "T B"], d: Float[Array, "T B G"], size: int
) -> Array:
    """Return d summed over equal tokens, [size, G]."""
    kernel = partial(_sum_equal_call, static, size)
    return on_cpu(kernel, partial(_sum_equal_plain, size), tokens, d)


def _sum_equal_plain(size: int, tokens: Array, d: Array) -> Array:
    return Rows.sum_equal(Lookup(jnp.zeros((size, d.shape[-1])), tokens), d)


def _sum_equal_call(static: Static, size: int, tokens: Array, d: Array) -> Array:
    results = [Result((size, d.shape[-1]))]
    given = static.turned((tokens.astype(jnp.int32), d))
    arguments = [Argument(a, static.rows) for a in given]
    return _call("jaxrnn_sum_equal", results, arguments, flat=True)[0]


# As recurrence.h numbers the kinds of cells; a plain RNN by its activation.
_KINDS = {CellKind.LSTM: 3, CellKind.GRU_BEFORE: 4, CellKind.GRU_AFTER: 5}
_ACTIVATIONS = {"tanh": 0, "relu": 1, "sigmoid": 2}


def _cell(cell: Any) -> np.int64:
    if cell.kind is CellKind.RNN:
        return np.int64(_ACTIVATIONS[cell.activation])
    return np.int64(_KINDS[cell.kind])


def _vectors(weights: Any) -> Array | None:
    """Return peepholes [3, H] of an LSTM, b_h [H] of a GRU, or None where there are none."""
    return getattr(weights, "w_c", getattr(weights, "b_h", None))


def _state(state: Any) -> tuple[Argument, Argument]:
    return Argument(state.hidden, 0), Argument(getattr(state, "cell", None), 0)


def _masks(static: Static, masks: Masks) -> tuple[Argument, Argument]:
    reset, active = (Argument(mask, static.rows, jnp.bool_) for mask in static.turned(tuple(masks)))
    return reset, active


def _like(state: Any, hidden: Array, c: Array) -> Any:
    return state._replace(hidden=hidden, **({"cell": c} if hasattr(state, "cell") else {}))
