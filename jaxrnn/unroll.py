"""A cell over time: checks its arguments, picks the implementation, runs it.

`"scan"` is the plain reference: `jax.lax.scan` over `cell.step`, no custom derivative, so `jvp`,
`hessian` and `jax.checkpoint` work through it. The others (`jaxrnn.kernels`) compute the same with a
backward pass written by hand; `jaxrnn.dispatch` knows which can run what and which is fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import dispatch
from jaxrnn.cells import Cell, gru, lstm, rnn, wide
from jaxrnn.dispatch import Call, Implementation
from jaxrnn.kernels.inputs import Dense, Inputs, Lookup, Masks
from jaxrnn.shapes import Array, Bool, Float, Int


def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Array, "T B D"],
    state: Any = None,
    resets: Bool[Array, "T B"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: int = 1,
    record: Sequence[str] | None = None,
) -> Any:
    """Run a cell over a sequence: `y_1 ... y_T` of the lecture's recurrences.

    Args:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      params: the cell's parameters, `cell.init(key, D)`. Their dtype is the dtype of the matrix
        products: float32, bfloat16, float16 or float64.
      xs: inputs [T, B, D], time first, in the parameters' dtype; at least one row.
      state: the state before the first step, each array [B, H], float32 (float64 beside float64
        parameters); None for zeros.
      resets: [T, B] bool. True starts row b afresh, from zeros, at time t: the state that would have
        entered step t is dropped (an episode or a document ends there).
      lengths: [B] whole numbers from 0 to T. Steps at and after a row's length are padding: its state
        stands still and its outputs there are zeros.
      reverse: run each row from its last real step to its first; outputs stay at their own times.
      implementation: "scan", "xla", "columns" and "native" (CPU), "pallas" (TPU, Hopper GPU), "cudnn"
        (GPU), or None for the fastest that serves this call; `jaxrnn.explain` says which and why.
      save_every: k, how often the state is kept for the backward pass. 1 keeps every step's states
        and gates, S + G/H arrays [T, B, H] (six for an LSTM, four for a GRU). k > 1 keeps every k-th
        state, S arrays [T/k, B, H] (two for an LSTM, one for a GRU), and computes the k steps between
        again on the way back, k steps' states and gates at a time: about one more forward pass.
        Inputs and outputs are kept in both cases. Least memory at k near the square root of T.
      record: what to give back of the inside of every step, by the names of `cell.activations`: for
        an LSTM of "i", "f", "g", "o", "cell", "hidden"; for a GRU of "z", "r", "n", "hidden". It is
        for looking, and differentiable: "scan" runs it.

    Returns:
      (state, ys): the state after the last step taken, and the outputs [T, B, H] in xs' dtype; with
      `record` (state, ys, recorded), a dict of arrays [T, B, H] in the state's dtype, zeros in the
      padding like the outputs.

    Raises:
      ValueError: for a shape or dtype that does not fit (it names both), for an implementation that
        is unknown or cannot run this call (it says why), and for a name the cell cannot record.
    """
    _check_inputs(params, xs)
    if type(cell) in (rnn, lstm, gru):  # an implementation may project step by step
        inputs: Inputs = Dense(xs, params.w_x, params.b)
    else:
        inputs = cell.project(params, xs)
    state, ys, *recorded = unroll_projected(
        cell, params, inputs, state, resets, lengths, reverse, implementation, save_every, record
    )
    return state, ys.astype(xs.dtype), *recorded


def unroll_projected(
    cell: Cell,
    params: Any,
    gx: Float[Array, "T B G"] | Lookup | Dense,
    state: Any = None,
    resets: Bool[Array, "T B"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: int = 1,
    record: Sequence[str] | None = None,
) -> Any:
    """`unroll` for inputs that are projected already: gx [T, B, G] = `cell.project(params, xs)`.

    Inputs that are one of V tokens need no projection at every step: project the V once and give
    `Lookup(table, tokens)` for gx. `Dense(xs, w_x, b)` leaves the projection to the implementation, as
    `unroll` does. Other arguments, errors and results are those of `unroll`, but the outputs stay in
    gx' dtype.
    """
    _check_projected(params, gx)
    _check_save_every(save_every)
    if record is not None and implementation not in (None, "scan"):
        raise ValueError(f'record needs implementation "scan" or None, not {implementation!r}')
    call = Call(
        cell,
        gx.shape[1],
        params.w_h.dtype,
        projected=not isinstance(gx, Dense),
        resets=resets is not None,
        reverse=reverse,
    )
    chosen, _ = dispatch.choose(call, implementation if record is None else "scan")
    if state is None:
        state = cell.initial_state(gx.shape[1], gx.dtype)
    _check_state(cell, state, gx)
    _check_record(cell, params, state, gx, record)
    resets, active = _check_resets(resets, gx), _active(lengths, gx)
    if resets is not None and active is not None:
        resets = resets & active  # in the padding a row stands still, whatever happens there
    run = partial(_scan, record=record) if chosen == "scan" else dispatch.kernel(chosen).run
    if save_every > 1:
        run = partial(_in_stretches, run, save_every)
    state, out = run(cell, params, gx, state, Masks(resets, active), reverse)
    return (state, out) if record is None else (state, *out)


def _scan(
    cell: Cell,
    params: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    record: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    projected = gx.project() if isinstance(gx, Lookup | Dense) else gx

    def body(state: Any, slices: Any) -> tuple[Any, Any]:
        gx_t, (reset, active) = slices
        if reset is not None:
            state = jax.tree.map(lambda s: jnp.where(reset[:, None], 0, s), state)
        after, y = cell.step(params, state, gx_t)
        out: Any = y
        if record is not None:
            now = cell.activations(params, state, gx_t)  # type: ignore[attr-defined]
            out = y, {name: now[name] for name in record}
        if active is not None:
            after = jax.tree.map(lambda a, s: jnp.where(active[:, None], a, s), after, state)
            out = jax.tree.map(lambda a: jnp.where(active[:, None], a, 0), out)
        return after, out

    return lax.scan(body, state, (projected, masks), reverse=reverse)


def _in_stretches(
    run: Any,
    every: int,
    cell: Cell,
    params: Any,
    inputs: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
) -> tuple[Any, Any]:
    """The same as `run`, stretch by stretch of `every` steps, each run again on the way back.

    What all stretches share goes into the loop in the wide dtype, since there the loop adds up its
    gradients, and back to its own dtype inside.
    """
    slices, constant, join = _apart(inputs)
    shared = params, constant

    @jax.checkpoint
    def stretch(state: Any, shared_wide: Any, now: Any) -> tuple[Any, Any]:
        slices, masks = now
        params, constant = jax.tree.map(_as, shared_wide, shared)
        return run(cell, params, join(slices, constant), state, masks, reverse)

    over_time = slices, masks
    shared_wide = jax.tree.map(_widened, shared)
    count, left = divmod(inputs.shape[0], every)
    cut = count * every

    def stretches(state: Any) -> tuple[Any, Any]:
        blocks = jax.tree.map(lambda a: a[:cut].reshape(count, every, *a.shape[1:]), over_time)
        state, out = lax.scan(
            lambda state, now: stretch(state, shared_wide, now), state, blocks, reverse=reverse
        )
        return state, jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), out)

    def remainder(state: Any) -> tuple[Any, Any]:
        return stretch(state, shared_wide, jax.tree.map(lambda a: a[cut:], over_time))

    if not left or not count:
        return (stretches if count else remainder)(state)
    if reverse:
        state, late = remainder(state)
        state, early = stretches(state)
    else:
        state, early = stretches(state)
        state, late = remainder(state)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)


def _apart(inputs: Inputs) -> tuple[Array, tuple[Array, ...], Any]:
    """What comes anew at each step, what stays, and what puts them together again."""
    if isinstance(inputs, Lookup):
        return inputs.tokens, (inputs.table,), lambda tokens, constant: Lookup(constant[0], tokens)
    if isinstance(inputs, Dense):
        return inputs.xs, (inputs.w_x, inputs.b), lambda xs, constant: Dense(xs, *constant)
    return inputs, (), lambda gx, _: gx


def _widened(a: Array) -> Array:
    return a.astype(wide(a.dtype)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _as(a: Array, like: Array) -> Array:
    return a if a.dtype == like.dtype else a.astype(like.dtype)


def _active(lengths: Array | None, gx: Inputs) -> Array | None:
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


def _check_save_every(save_every: int) -> None:
    if not isinstance(save_every, int) or isinstance(save_every, bool) or save_every < 1:
        raise ValueError(f"save_every must be a whole number from 1, not {save_every!r}")


def _check_record(
    cell: Cell, params: Any, state: Any, gx: Inputs, record: Sequence[str] | None
) -> None:
    if record is None:
        return
    if isinstance(record, str):
        raise ValueError(f"record must be a list of names, as in [{record!r}], not a string")
    names: list[str] = []
    if hasattr(cell, "activations"):
        gx_t = jax.ShapeDtypeStruct(gx.shape[1:], gx.dtype)
        names = list(jax.eval_shape(cell.activations, params, state, gx_t))
    for name in record:
        if name not in names:
            there = f"it has {', '.join(names)}" if names else "it has no activations"
            raise ValueError(f"{type(cell).__name__} cannot record {name!r}: {there}")


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


def _check_projected(params: Any, gx: Inputs) -> None:
    for leaf in jax.tree.leaves(params):
        dispatch.check_dtype(leaf.dtype)
    width = params.w_h.shape[1]
    if len(gx.shape) != 3 or gx.shape[-1] != width or gx.dtype != wide(params.w_h.dtype):
        raise ValueError(
            f"gx must be [T, B, {width}] {wide(params.w_h.dtype)} as params.w_h "
            f"{params.w_h.shape} {params.w_h.dtype} asks, not {gx.shape} {gx.dtype}"
        )


def _check_state(cell: Cell, state: Any, gx: Inputs) -> None:
    expected = jax.eval_shape(lambda: cell.initial_state(gx.shape[1], gx.dtype))
    if jax.tree.structure(state) != jax.tree.structure(expected):  # type: ignore[operator]
        raise ValueError(f"state must be a {type(expected).__name__}, not {type(state).__name__}")
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        shape, dtype = jnp.shape(got), getattr(got, "dtype", type(got).__name__)
        if shape != want.shape or dtype != want.dtype:
            raise ValueError(
                f"state must be [B, H] = {want.shape} {want.dtype}, not {shape} {dtype}"
            )


def _check_resets(resets: Array | None, gx: Inputs) -> Array | None:
    if resets is not None and (resets.shape != gx.shape[:2] or resets.dtype != jnp.bool_):
        raise ValueError(
            f"resets must be bool of shape [T, B] = {gx.shape[:2]}, "
            f"not {resets.dtype} of shape {resets.shape}"
        )
    return resets
