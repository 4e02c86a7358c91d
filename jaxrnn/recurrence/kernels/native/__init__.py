"""A cell over time on a CPU, in C++: each core takes rows of the batch through all of time by itself.

XLA's loop multiplies small matrices on one core, writes every intermediate of a step to memory, and
packs the weights anew at each step. Here they are packed once a call, the gates are applied to a product
while it is in the first cache, and no core waits for another. With too few rows for all of them they
share out the units instead, and meet after each step. The C++ (recurrence.cc, called through XLA's
foreign function interface, on XLA's threads) is compiled once on the machine that runs it (`build`).

As in `kernels.xla` the forward pass keeps the states and the activated gates, the way back runs the
recurrent chain alone,

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

and dW_h, dW_x, db and dx are large products over all T B rows after it. Second derivatives are those of
`kernels.xla`, which computes the gradients anew for them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.inputs import Dense, Inputs, Lookup, Masks, vary
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.native import build, calls
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.shapes import Array, Float


def unsupported_reason(cell: Any, batch: int, dtype: Any) -> str | None:
    """Return why this cannot run such a problem, or None where it can; the first time it compiles."""
    if reason := xla.unsupported_reason(cell, batch, dtype):
        return reason
    if jnp.dtype(dtype) != jnp.float32:
        return f"its C++ multiplies float32 alone, not {jnp.dtype(dtype)}; use 'xla'"
    return build.why_not()


def run(
    cell: Any, params: Any, inputs: Inputs, state: Any, masks: Masks, reverse: bool
) -> tuple[Any, Float[Array, "T B H"]]:
    """The same as `kernels.xla.run`."""
    steps, batch, _ = inputs.shape
    if not steps or not batch:
        return state, jnp.zeros((steps, batch, cell.hidden_size), inputs.dtype)
    if isinstance(inputs, Dense) and not inputs.xs.shape[-1]:
        inputs = inputs.project()
    # w_h is float32; what is narrower beside it is widened, as the other implementations do.
    weights, inputs = jax.tree.map(_float32, (params._replace(w_x=None, b=None), inputs))
    return unroll_by_rows(_run, (cell, reverse), *vary((weights, inputs, state, masks)))


def _float32(a: Array) -> Array:
    return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array]:
    final, ys, _ = calls.forward(cell, reverse, weights, inputs, state, masks, keep=False)
    return final, ys


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _keeping(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array, calls.Kept]:
    """`_run`, and what the backward pass needs. It has a derivative for the sake of second ones."""
    return calls.forward(cell, reverse, weights, inputs, state, masks, keep=True)


def _forward(cell: Any, reverse: bool, *given: Any) -> tuple[tuple[Any, Array], tuple[Any, Any]]:
    final, ys, kept = _keeping(cell, reverse, *given)
    return (final, ys), (given, kept)


def _keeping_forward(cell: Any, reverse: bool, *given: Any) -> tuple[Any, tuple[Any, Any]]:
    final, ys, kept = _keeping(cell, reverse, *given)
    return (final, ys, kept), (given, kept)


def _backward(
    cell: Any, reverse: bool, saved: tuple[Any, calls.Kept], cotangents: tuple[Any, ...]
) -> tuple[Any, Any, Any, Masks]:
    """What was kept has no cotangent: `_gradients` takes all derivatives by way of what was given."""
    return (*_gradients(cell, reverse, *saved, cotangents[:2]), Masks(None, None))


_run.defvjp(_forward, _backward)
_keeping.defvjp(_keeping_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    cell: Any, reverse: bool, given: Any, kept: calls.Kept, cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any]:
    """Of the weights, the inputs and the first state."""
    weights, inputs, _, masks = given
    d_gx, d_q, d_state = calls.backward(cell, reverse, weights, masks, kept, *cotangents)
    d_weights = _weight_gradients(cell, weights, kept, d_gx, d_q)
    return d_weights, _input_gradients(inputs, d_gx), d_state


def _weight_gradients(cell: Any, weights: Any, kept: calls.Kept, d_gx: Array, d_q: Array) -> Any:
    size = cell.hidden_size
    if isinstance(cell, GRU):
        d_zr, _ = calls.outer(kept.entered, d_gx, slice(0, 2 * size))
        if cell.reset == "after":
            d_n, d_b_h = calls.outer(kept.entered, d_q)
        else:
            (d_n, _), d_b_h = calls.outer(kept.extra, d_gx, slice(2 * size, None)), None
        return weights._replace(w_h=jnp.concatenate([d_zr, d_n], axis=1), b_h=d_b_h)
    d_weights = weights._replace(w_h=calls.outer(kept.entered, d_gx)[0])
    if isinstance(cell, LSTM) and cell.peephole:
        d_i, d_f, _, d_o = jnp.split(d_gx, 4, axis=-1)
        (i, f, g, _), before = jnp.split(kept.gates, 4, axis=-1), kept.extra
        seen = (before, d_i), (before, d_f), (f * before + i * g, d_o)
        d_weights = d_weights._replace(w_c=jnp.stack([(c * d).sum((0, 1)) for c, d in seen]))
    return d_weights


def _input_gradients(inputs: Inputs, d_gx: Array) -> Any:
    if isinstance(inputs, Lookup):
        d_table = calls.sum_equal(inputs.tokens, d_gx, inputs.table.shape[0])
        return Lookup(d_table, None)  # type: ignore[arg-type]
    if isinstance(inputs, Dense):
        return Dense(calls.back(d_gx, inputs.w_x), *calls.outer(inputs.xs, d_gx))
    return d_gx


def _gradients_forward(
    cell: Any, reverse: bool, given: Any, kept: calls.Kept, cotangents: Any
) -> Any:
    return _gradients(cell, reverse, given, kept, cotangents), (given, cotangents)


def _gradients_backward(cell: Any, reverse: bool, saved: Any, d_gradients: Any) -> Any:
    """By XLA. What was kept is a function of what was given, and counts as a part of that."""
    (*given, masks), cotangents = saved

    def forward(weights: Any, inputs: Inputs, state: Any) -> Any:
        return xla.run(cell, weights, inputs, state, masks, reverse)

    def gradients(given: Any, cotangents: Any) -> Any:
        return jax.vjp(forward, *given)[1](cotangents)

    d_given, d_cotangents = jax.vjp(gradients, given, cotangents)[1](d_gradients)
    return (*d_given, Masks(None, None)), None, d_cotangents


_gradients.defvjp(_gradients_forward, _gradients_backward)
