"""Padding, cropping and the hand-written derivative, shared by the kernels for TPUs and GPUs.

Such an implementation has a forward kernel, which also puts out what the backward pass needs, and a
backward kernel, which runs only the recurrent chain

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

and dW_h is one large product of what the two put out (`kernels.xla.weight_gradients`).

Units are padded with zeros, which have no effect on the real units, and rows with rows of zeros; the
results are cropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.kernels import passes, xla
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Masks, Problem, Residuals, vary
from jaxrnn.shapes import Array, Bool, Float


class Kernels(NamedTuple):
    """The two kernels of an accelerator.

    Attributes:
      unsupported_reason: called with a `Problem`; returns why the kernels cannot run it, or None.
      plan: called with (cell, batch, dtype); returns the `Plan`.
      forward: called with (call, weights, gx, state, masks, keep); returns the final state, the outputs
        [T, B, H] and, with `keep`, the `Residuals`, else None. All arrays are padded.
      backward: called with (call, weights, residuals, d_final, d_ys, masks); returns d_gx [T, B, G] in
        the weights' dtype and the derivative with respect to the initial state.
    """

    unsupported_reason: Callable[[Problem], str | None]
    plan: Callable[..., Plan]
    forward: Callable[..., tuple[Any, Array, Residuals | None]]
    backward: Callable[..., tuple[Array, Any]]


class Plan(NamedTuple):
    """The rows and the width of the arrays with their padding, and the kernels' own tiling, hashable."""

    rows: int
    width: int
    tiles: Any = None


class Call(NamedTuple):
    """The static part of a call.

    Attributes:
      cell: the cell, of the padded width.
      tiles: the tiling of the `Plan`.
      reverse: whether to run from the last step to the first.
      interpret: how to run without the device, for tests; None or False on the device.
    """

    cell: Any
    tiles: Any
    reverse: bool
    interpret: Any


def run(
    kernels: Kernels, problem: Problem, interpret: Any = False
) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in float32, with a hand-written derivative.

    Raises:
      ValueError: for a problem that the kernels cannot run.
    """
    if not problem.steps:
        return problem.no_steps()
    reason = kernels.unsupported_reason(problem)
    if reason:
        raise ValueError(f"the fused kernels cannot run this: {reason}")
    static = kernels, problem.cell, problem.reverse, interpret
    given = vary((problem.recurrent_params, problem.inputs, problem.state, problem.masks))
    return unroll_by_rows(_run_rows, static, *given)


def _run_rows(
    kernels: Kernels,
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
) -> tuple[Any, Array]:
    """Return what `run` does, for the rows that it has under `jax.vmap`."""
    size, gates = cell.hidden_size, len(cell.GATES)
    batch = len(jax.tree.leaves(state)[0])
    rows, width, tiles = kernels.plan(cell, batch, weights.w_h.dtype)
    pad = partial(_pad_units, size=size, to=width)
    more = partial(pad_rows, to=rows)
    weights = _pad_weights(weights, gates, pad)
    if isinstance(gx, Lookup):
        gx = Lookup(pad(gx.table, gates), more(gx.tokens, 1))
    elif isinstance(gx, Dense):
        gx = Dense(more(gx.xs, 1), pad(gx.w_x, gates), pad(gx.b, gates))
    else:
        gx = more(pad(gx, gates), 1)
    state = jax.tree.map(lambda s: more(pad(s, 1), 0), state)
    masks = jax.tree.map(lambda mask: more(mask, 1), masks)
    padded = dataclasses.replace(cell, hidden_size=width)
    call = kernels, Call(padded, tiles, reverse, interpret)
    final, ys = passes.run(_PASSES, call, masks, weights, gx, state)
    return jax.tree.map(lambda s: s[:batch, :size], final), ys[:, :batch, :size]


def _forward(
    static: Any, keep: bool, masks: Masks, weights: Any, gx: Inputs, state: Any
) -> tuple[tuple[Any, Array], Residuals | None]:
    kernels, call = static
    projected = gx.project() if isinstance(gx, Lookup | Dense) else gx
    final, ys, residuals = kernels.forward(call, weights, projected, state, masks, keep)
    return (final, ys), residuals


def _backward(
    static: Any, masks: Masks, given: Any, residuals: Residuals, cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any]:
    (kernels, call), (weights, gx, _) = static, given
    d_final, d_ys = cotangents
    d_gx, d_state = kernels.backward(call, weights, residuals, d_final, d_ys, masks)
    d_weights = xla.weight_gradients(call.cell, weights, d_final, residuals, d_gx)
    return d_weights, xla.to_inputs(Rows, gx, d_gx, d_ys.dtype), d_state


def _plain(static: Any, masks: Masks, weights: Any, gx: Inputs, state: Any) -> Any:
    call = static[1]
    return xla.run(Problem(call.cell, weights, gx, state, masks, call.reverse))


_PASSES = Passes(_forward, _backward, _plain)


def join_gates(gates: Array | tuple[Array, ...]) -> Float[Array, "T B G"]:
    """Return gates side by side in the last axis, from arrays [T, B, H] or as they are."""
    if isinstance(gates, tuple):
        return jnp.concatenate(gates, axis=-1)
    return gates


def _pad_units(x: Array, gates: int, *, size: int, to: int) -> Array:
    """Pad each of the gates, side by side in the last axis, with zeros from `size` units to `to`."""
    if size == to:
        return x
    x = x.reshape(*x.shape[:-1], gates, size)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, to - size)])
    return x.reshape(*x.shape[:-2], gates * to)


def pad_rows(x: Array, axis: int, *, to: int) -> Array:
    """Pad an axis with zeros to length `to`."""
    if x.shape[axis] == to:
        return x
    return jnp.pad(x, [(0, to - x.shape[axis] if at == axis else 0) for at in range(x.ndim)])


def _pad_weights(weights: Any, gates: int, pad: Callable[[Array, int], Array]) -> Any:
    """Pad the recurrent parameters; `pad` is `_pad_units` with its sizes."""
    others = {k: w for k, w in weights._asdict().items() if k != "w_h" and w is not None}
    padded = weights._replace(**{k: pad(w, 1) for k, w in others.items()})
    return padded._replace(w_h=pad(pad(weights.w_h, gates).T, 1).T)


def recurrent_vectors(weights: Any) -> Array | None:
    """Return the parameters beside w_h as [n, H] float32: peepholes, b_h; None where there are none."""
    for name in ("w_c", "b_h"):
        vectors = getattr(weights, name, None)
        if vectors is not None:
            return jnp.atleast_2d(vectors.astype(jnp.float32))
    return None


def reset_and_active(
    masks: Masks, reset: Bool[Array, "T B"] | None
) -> tuple[Bool[Array, "T B"], Bool[Array, "T B"]] | None:
    """Return `reset` and the active rows, both as arrays, or None where neither is there.

    reset: [T, B]; an argument of its own, because a kernel may need it shifted in time.
    """
    known = reset if reset is not None else masks.active
    if known is None:
        return None
    none_reset = jnp.zeros_like(known) if reset is None else reset
    all_active = jnp.ones_like(known) if masks.active is None else masks.active
    return none_reset, all_active
