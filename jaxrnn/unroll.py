"""A cell over time: checks its arguments, picks the implementation, runs it.

`"scan"` is the plain reference: `jax.lax.scan` over `cell.step`, no custom derivative, so `jvp`,
`hessian` and `jax.checkpoint` work through it. `"xla"` computes the same with a backward pass written
by hand (`jaxrnn.kernels.xla`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.cells import Cell, wide
from jaxrnn.kernels import xla
from jaxrnn.kernels.xla import Lookup
from jaxrnn.shapes import Array, Bool, Float, Int

Implementation = Literal["scan", "xla"]


def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Array, "T B D"],
    state: Any = None,
    resets: Bool[Array, "T B"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """Run a cell over a sequence: `y_1 ... y_T` of the lecture's recurrences.

    Args:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      params: the cell's parameters, `cell.init(key, D)`. Their dtype is the dtype of the matrix
        products: float32, bfloat16 or float64.
      xs: inputs [T, B, D], time first, in the parameters' dtype.
      state: the state before the first step, each array [B, H], float32 (float64 beside float64
        parameters); None for zeros.
      resets: [T, B] bool. True starts row b afresh, from zeros, at time t: the state that would have
        entered step t is dropped (an episode or a document ends there).
      lengths: [B] whole numbers from 0 to T. Steps at and after a row's length are padding: its state
        stands still and its outputs there are zeros.
      reverse: run each row from its last real step to its first; outputs stay at their own times.
      implementation: "scan", "xla", or None for the fastest that serves this call.

    Returns:
      (state, ys): the state after the last step taken, and the outputs [T, B, H] in xs' dtype.

    Raises:
      ValueError: for a shape or dtype that does not fit (it names both), and for an implementation
        that is unknown or cannot run this cell (it says why).
    """
    _check_inputs(params, xs)
    state, ys = unroll_projected(
        cell, params, cell.project(params, xs), state, resets, lengths, reverse, implementation
    )
    return state, ys.astype(xs.dtype)


def unroll_projected(
    cell: Cell,
    params: Any,
    gx: Float[Array, "T B G"] | Lookup,
    state: Any = None,
    resets: Bool[Array, "T B"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """`unroll` for inputs that are projected already: gx [T, B, G] = `cell.project(params, xs)`.

    Inputs that are one of V tokens need no projection at every step: project the V once and give
    `Lookup(table, tokens)` for gx. Other arguments, errors and results are those of `unroll`, but the
    outputs stay in gx' dtype.
    """
    _check_projected(params, gx)
    if state is None:
        state = cell.initial_state(gx.shape[1], gx.dtype)
    _check_state(cell, state, gx)
    resets, active = _check_resets(resets, gx), _active(lengths, gx)
    if resets is not None and active is not None:
        resets = resets & active  # in the padding a row stands still, whatever happens there
    masks = xla.Masks(resets, active)
    if pick(cell, implementation) == "xla":
        return xla.run(cell, params, gx, state, masks, reverse)
    projected = gx.project() if isinstance(gx, Lookup) else gx
    return _scan(cell, params, projected, state, masks, reverse)


def pick(cell: Cell, implementation: Implementation | None = None) -> Implementation:
    """The implementation that a call would use; a ValueError where the one asked for cannot serve."""
    if implementation is not None and implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {names} or None, not {implementation!r}")
    if implementation == "xla" and not xla.supports(cell):
        raise ValueError(
            f"implementation 'xla' has no backward pass for {cell!r}, only for rnn, lstm and gru; "
            "use 'scan'"
        )
    return implementation or ("xla" if xla.supports(cell) else "scan")


def _scan(
    cell: Cell, params: Any, gx: Array, state: Any, masks: xla.Masks, reverse: bool
) -> tuple[Any, Array]:
    def body(state: Any, slices: Any) -> tuple[Any, Array]:
        gx_t, (reset, active) = slices
        if reset is not None:
            state = jax.tree.map(lambda s: jnp.where(reset[:, None], 0, s), state)
        after, y = cell.step(params, state, gx_t)
        if active is not None:
            after = jax.tree.map(lambda a, s: jnp.where(active[:, None], a, s), after, state)
            y = jnp.where(active[:, None], y, 0)
        return after, y

    return lax.scan(body, state, (gx, masks), reverse=reverse)


def _active(lengths: Array | None, gx: Array | Lookup) -> Array | None:
    """[T, B]: whether step t is a real step of row b."""
    if lengths is None:
        return None
    steps, batch, _ = gx.shape
    known = None if isinstance(lengths, jax.core.Tracer) else np.asarray(lengths)
    lengths = jnp.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths must be whole numbers of shape [B] = {(batch,)}, "
            f"not {lengths.dtype} of shape {lengths.shape}"
        )
    if known is not None and batch and (known.min() < 0 or known.max() > steps):
        raise ValueError(f"lengths must lie in 0..{steps} (T), not in {known.min()}..{known.max()}")
    return jnp.arange(steps, dtype=lengths.dtype)[:, None] < lengths[None, :]


def _check_inputs(params: Any, xs: Array) -> None:
    width = params.w_x.shape[0]
    if xs.ndim != 3 or xs.shape[-1] != width:
        raise ValueError(
            f"xs must be [T, B, D] with D = {width} as in params.w_x {params.w_x.shape}, "
            f"not of shape {xs.shape}"
        )
    if xs.dtype != params.w_x.dtype:
        raise ValueError(
            f"xs and params must share a dtype: xs is {xs.dtype}, params.w_x is {params.w_x.dtype}"
        )


def _check_projected(params: Any, gx: Array | Lookup) -> None:
    width = params.w_h.shape[1]
    if len(gx.shape) != 3 or gx.shape[-1] != width or gx.dtype != wide(params.w_h.dtype):
        raise ValueError(
            f"gx must be [T, B, {width}] {wide(params.w_h.dtype)} as params.w_h "
            f"{params.w_h.shape} {params.w_h.dtype} asks, not {gx.shape} {gx.dtype}"
        )


def _check_state(cell: Cell, state: Any, gx: Array | Lookup) -> None:
    expected = jax.eval_shape(lambda: cell.initial_state(gx.shape[1], gx.dtype))
    if jax.tree.structure(state) != jax.tree.structure(expected):  # type: ignore[operator]
        raise ValueError(f"state must be a {type(expected).__name__}, not {type(state).__name__}")
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        shape, dtype = jnp.shape(got), getattr(got, "dtype", type(got).__name__)
        if shape != want.shape or dtype != want.dtype:
            raise ValueError(
                f"state must be [B, H] = {want.shape} {want.dtype}, not {shape} {dtype}"
            )


def _check_resets(resets: Array | None, gx: Array | Lookup) -> Array | None:
    if resets is not None and (resets.shape != gx.shape[:2] or resets.dtype != jnp.bool_):
        raise ValueError(
            f"resets must be bool of shape [T, B] = {gx.shape[:2]}, "
            f"not {resets.dtype} of shape {resets.shape}"
        )
    return resets
