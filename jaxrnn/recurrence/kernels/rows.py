"""Functions of arrays with rows, which `jax.vmap` calls with more rows.

A kernel is fast where many rows of the batch use the weights that it has just read. Mapped like any
other function, it would run again for every element of the mapped axis. Here that axis becomes part of
the axis of the rows, as long as all elements share the weights; otherwise JAX maps the function.

The axis is folded before the function is differentiated. So the gradient of shared weights is one sum
over all rows, no array holds a gradient for each element, and `jax.grad` of a mapped loss takes no more
time and memory than that of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Masks
from jaxrnn.shapes import Array

# In place of the axis of the rows: an array that all rows share.
SHARED = -1


def by_rows(
    function: Callable[..., Any],
    static: tuple[Any, ...],
    arguments: tuple[Any, ...],
    rows: tuple[Any, ...],
    result_rows: Any,
) -> Any:
    """Return function(*static, *arguments). `jax.vmap` over it calls the function with more rows.

    Args:
      function: computes every row independently of the others. Functions compare by identity, so pass
        one that is defined at the top level of a module.
      static: its first arguments, hashable.
      arguments: pytrees of arrays.
      rows: for each array the axis of its rows, or SHARED.
      result_rows: the same for the results.
    """
    leaves, tree = jax.tree.flatten(arguments)
    rows = tuple(jax.tree.leaves(rows))
    results = _bind(
        leaves, _Call(function, static, tree, rows, tuple(jax.tree.leaves(result_rows)))
    )
    return jax.tree.unflatten(jax.tree.structure(result_rows), results)


def shared(tree: Any) -> Any:
    """Return `rows` of arrays that all rows share."""
    return jax.tree.map(lambda _: SHARED, tree)


def of_state(state: Any) -> Any:
    """Return `rows` of a state, [B, H]."""
    return jax.tree.map(lambda _: 0, state)


def of_steps(tree: Any) -> Any:
    """Return `rows` of arrays with all steps, [T, B, ...]."""
    return jax.tree.map(lambda _: 1, tree)


def of_inputs(inputs: Inputs) -> Any:
    """Return `rows` of a recurrence's inputs."""
    if isinstance(inputs, Lookup):
        return Lookup(SHARED, 1)  # type: ignore[arg-type]
    if isinstance(inputs, Dense):
        return Dense(1, SHARED, SHARED)  # type: ignore[arg-type]
    return 1


def unroll_by_rows(
    run: Callable[..., Any],
    static: tuple[Any, ...],
    weights: Any,
    inputs: Inputs,
    state: Any,
    masks: Masks,
) -> tuple[Any, Array]:
    """Return `by_rows` of run(*static, weights, inputs, state, masks) -> (state, ys)."""
    arguments = weights, inputs, state, masks
    rows = shared(weights), of_inputs(inputs), of_state(state), of_steps(masks)
    return by_rows(run, static, arguments, rows, (of_state(state), 1))


class _Call(NamedTuple):
    """The static part of a call: all that tracing may depend on."""

    function: Callable[..., Any]
    static: tuple[Any, ...]
    # The structure of the arguments.
    tree: Any
    rows: tuple[int, ...]
    result_rows: tuple[int, ...]


def _apply(call: _Call, *leaves: Any) -> list[Array]:
    return jax.tree.leaves(call.function(*call.static, *jax.tree.unflatten(call.tree, leaves)))


_compiled = jax.jit(_apply, static_argnums=0)


def _bind(leaves: Sequence[Any], call: _Call) -> list[Array]:
    # JAX looks for what a program needs in the jaxprs of its primitives, so this primitive has one too.
    jaxpr = jax.make_jaxpr(partial(_apply, call))(*leaves)
    return _primitive.bind(*leaves, call=call, jaxpr=jaxpr)


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], *, call: _Call, jaxpr: Any
) -> Any:
    full = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(partial(_apply, call), tuple(primals), tuple(full))


def _mapped(
    arguments: Sequence[Any], axes: Sequence[int | None], *, call: _Call, jaxpr: Any
) -> tuple[list[Array], list[int | None]]:
    """Return the results for arguments with a mapped axis, and the place of that axis in each."""
    given = list(zip(arguments, axes, call.rows, strict=True))
    if any(axis is not None and row == SHARED for _, axis, row in given):
        found = jax.vmap(partial(_apply, call), tuple(axes))(*arguments)
        return found, [0] * len(found)
    size = next(x.shape[axis] for x, axis, _ in given if axis is not None)

    def fold(x: Array, axis: int | None, row: int) -> Array:
        if row == SHARED:
            return x
        if axis is None:
            x = jnp.broadcast_to(jnp.expand_dims(x, row), (*x.shape[:row], size, *x.shape[row:]))
        else:
            x = jnp.moveaxis(x, axis, row)
        return x.reshape(*x.shape[:row], size * x.shape[row + 1], *x.shape[row + 2 :])

    def unfold(x: Array, like: Any, row: int) -> Array:
        return x if row == SHARED else x.reshape(*x.shape[:row], size, *like.shape[row:])

    found = _bind([fold(*one) for one in given], call)
    unfolded = list(map(unfold, found, jaxpr.out_avals, call.result_rows))
    return unfolded, [None if row == SHARED else row for row in call.result_rows]


_primitive = Primitive("jaxrnn_by_rows")
_primitive.multiple_results = True
_primitive.def_impl(lambda *leaves, call, jaxpr: _compiled(call, *leaves))
_primitive.def_abstract_eval(lambda *_, call, jaxpr: jaxpr.out_avals)
ad.primitive_jvps[_primitive] = _differentiated
batching.primitive_batchers[_primitive] = _mapped
mlir.register_lowering(
    _primitive,
    mlir.lower_fun(
        lambda *leaves, call, jaxpr: jaxpr_as_fun(jaxpr)(*leaves), multiple_results=True
    ),
)
