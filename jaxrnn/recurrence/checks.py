"""Checks of the arguments of `unroll`. Their errors name what was given and what fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.cells import Cell, is_builtin
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.parameters import check_params
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, clipped, dtype_of
from jaxrnn.shapes import Array, Bool, Int


def check_lengths(lengths: Any, inputs: Any) -> Int[Array, "B"] | None:
    """Return lengths as int32. Their range is checked unless they are traced."""
    if lengths is None:
        return None
    steps, batch = inputs.shape[:2]
    if not isinstance(lengths, jax.Array):
        lengths = jnp.asarray(lengths) if _traced(lengths) else np.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths must be whole numbers of shape [B] = {(batch,)}, "
            f"not {lengths.dtype} of shape {lengths.shape}"
        )
    if batch and not _traced(lengths) and getattr(lengths, "is_fully_addressable", True):
        known = np.asarray(lengths)
        if known.min() < 0 or known.max() > steps:
            raise ValueError(
                f"lengths must lie in 0..{steps} (T), not in {known.min()}..{known.max()}"
            )
    return clipped(jnp.asarray(lengths), steps)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def as_array(leaf: Any) -> Any:
    """Convert a numpy array as `jnp.asarray` does: float64 to float32 unless x64 is enabled."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def check_record(cell: Cell, params: Any, state: Any, gx: Inputs, names: Sequence[str]) -> None:
    """Raise ValueError for a name that the cell cannot record."""
    if isinstance(names, str):
        raise ValueError(f"names must be a list of names, as in [{names!r}], not a string")
    known: list[str] = []
    if hasattr(cell, "activations"):
        gx_t = jax.ShapeDtypeStruct(gx.shape[1:], gx.dtype)
        known = list(jax.eval_shape(cell.activations, params, state, gx_t))
    for name in names:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has no activations"
            raise ValueError(f"{type(cell).__name__} cannot record {name!r}: {there}")


def check_parameters(cell: Cell, params: Any, projected: bool = False) -> None:
    """Raise ValueError for a dtype that is not supported and for parameters of another cell."""
    for leaf in jax.tree.leaves(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            dispatch.check_dtype(dtype)
    check_params(cell, params, builtin=is_builtin(cell), projected=projected)


def check_inputs(params: Any, xs: Array) -> None:
    """Raise ValueError for inputs that do not fit w_x in width or dtype."""
    w_x = getattr(params, "w_x", None)
    if w_x is None:
        raise ValueError(
            f"params must have the input weights w_x [D, ...], as jaxrnn.Cell asks, and "
            f"{type(params).__name__} has none"
        )
    width = w_x.shape[0]
    if xs.ndim != 3 or xs.shape[-1] != width:
        raise ValueError(
            f"xs must be [T, B, D] with D = {width} as in params.w_x {params.w_x.shape}, "
            f"not of shape {xs.shape}"
        )
    if xs.dtype != params.w_x.dtype:
        raise ValueError(
            f"xs and params must share a dtype: xs is {xs.dtype}, params.w_x is {params.w_x.dtype}"
        )


def check_projected(cell: Cell, params: Any, gx: Any) -> Inputs:
    """Check projected inputs, `Lookup` or `Dense`, and return them in the form the kernels take.

    The width of projected inputs is checked for a cell with recurrent weights w_h [H, G], and for one
    that has `keeps_inputs`, whose `project` returns the inputs [..., D] as they are.
    """
    w_h = getattr(params, "w_h", None)
    if isinstance(gx, Dense):
        if w_h is None:
            raise ValueError(
                f"Dense is for a cell with recurrent weights w_h, not for {type(params).__name__}; pass "
                "cell.project(params, xs)"
            )
        xs, w_x, b = gx
        shapes = (w_x.shape, b.shape) == ((xs.shape[-1], w_h.shape[1]), w_h.shape[1:])
        if xs.ndim != 3 or not shapes or {xs.dtype, w_x.dtype, b.dtype} != {w_h.dtype}:
            raise ValueError(
                f"Dense must be of xs [T, B, D], w_x [D, {w_h.shape[1]}] and b [{w_h.shape[1]}] in "
                f"{w_h.dtype} as params.w_h {w_h.shape} asks, not of {xs.shape} {xs.dtype}, "
                f"{w_x.shape} {w_x.dtype} and {b.shape} {b.dtype}"
            )
        return gx
    if isinstance(gx, Lookup):
        tokens = gx.tokens
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens must be whole numbers [T, B], not {tokens.dtype} of shape {tokens.shape}"
            )
        if gx.table.ndim != 2 or not gx.table.shape[0]:
            raise ValueError(f"table must be [V, G] with a row or more, not {gx.table.shape}")
    dtype = wide(dtype_of(params))
    name, axis = ("w_x", 0) if getattr(cell, "keeps_inputs", False) else ("w_h", 1)
    weights = getattr(params, name, None)
    width = gx.shape[-1] if weights is None or weights.ndim != 2 else weights.shape[axis]
    if len(gx.shape) != 3 or gx.shape[-1] != width or gx.dtype != dtype:
        asks = "" if weights is None else f" as params.{name} {weights.shape} {weights.dtype} asks"
        raise ValueError(f"gx must be [T, B, {width}] {dtype}{asks}, not {gx.shape} {gx.dtype}")
    return gx.clipped() if isinstance(gx, Lookup) else gx


def check_state(cell: Cell, state: Any, gx: Inputs) -> None:
    """Raise ValueError for a state that is not one of the cell, [B, H] in the dtype of the inputs."""
    expected = jax.eval_shape(lambda: cell.initial_state(gx.shape[1], gx.dtype))
    if jax.tree.structure(state) != jax.tree.structure(expected):  # type: ignore[operator]
        kind, given = type(expected).__name__, type(state).__name__
        if given == kind:
            leaves = jax.tree.leaves(state, is_leaf=lambda leaf: leaf is None)
            given = f"with {', '.join(type(leaf).__name__ for leaf in leaves)}"
        raise ValueError(f"state must be {kind} with arrays as its fields, not {given}")
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        shape, dtype = jnp.shape(got), getattr(got, "dtype", type(got).__name__)
        if shape != want.shape or dtype != want.dtype:
            raise ValueError(
                f"state must be [B, H] = {want.shape} {want.dtype}, not {shape} {dtype}"
            )


def check_resets(resets: Any, gx: Any, axes: str = "[T, B]") -> Bool[Array, "..."] | None:
    """Return resets as a JAX array, checked to have the two axes that the inputs gx begin with."""
    if resets is None:
        return None
    resets = jnp.asarray(resets)
    if resets.shape != gx.shape[:2] or resets.dtype != jnp.bool_:
        raise ValueError(
            f"resets must be bool of shape {axes} = {gx.shape[:2]}, "
            f"not {resets.dtype} of shape {resets.shape}"
        )
    return resets
