"""Call C++ handlers through XLA's foreign function interface (FFI).

The calls support `vmap`, and under a `jit` over several devices each device processes its own rows. A
handler has a fixed number of arguments and results; absent ones are passed as arrays without elements.

A handler may take calls that are mapped: each `vmap` adds an axis in front of all arrays. An argument
that is not mapped has length 1 there, so that what all elements share is not copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.recurrence.problem import vary_like
from jaxrnn.shapes import Array

# The shape of an absent array.
NONE = (0,)


class Argument(NamedTuple):
    """An argument of a call.

    Attributes:
      array: the array, or its shape and dtype; None if it is absent.
      rows: the axis of the batch; None if all rows share the array.
      dtype: the dtype that the handler expects; only used if the array is absent.
    """

    array: Any
    rows: int | None = None
    dtype: Any = jnp.float32


class Result(NamedTuple):
    """A result of a call.

    Attributes:
      shape: its shape; `NONE` if it is absent.
      rows: the axis of the batch; None for a sum over all rows.
      dtype: its dtype.
    """

    shape: tuple[int, ...]
    rows: int | None = None
    dtype: Any = jnp.float32


NOTHING = Result(NONE)


def call(
    name: str,
    results: Sequence[Result],
    arguments: Sequence[Argument],
    *,
    aliases: dict[int, int] | None = None,
    flat: bool = False,
    mapped: bool = False,
    **attributes: Any,
) -> list[Array]:
    """Call a handler and return its results.

    Args:
      name: the name under which the handler is registered.
      results: the results of the handler.
      arguments: the arguments of the handler.
      aliases: maps the index of an argument to the index of the result that shares its memory, if they
        have the same shape.
      flat: whether the handler expects arrays [T * B, K] instead of [T, B, K].
      mapped: whether the handler takes mapped calls. If not, `vmap` becomes a loop of calls.
      attributes: the handler's attributes, numpy scalars.
    """
    arrays = [a.array for a in arguments if a.array is not None]
    # What follows is part of the program and may outlive this call, so it holds shapes and no arrays.
    arguments = [a._replace(array=_abstract(a.array)) for a in arguments]
    there = [a for a in arguments if a.array is not None]
    made = [r for r in results if not _absent(r)]

    def run_here(*present: Array) -> list[Array]:
        # The number and the lengths of the mapped axes.
        front = present[0].ndim - there[0].array.ndim
        lengths = jnp.broadcast_shapes(*(x.shape[:front] for x in present))
        divided = zip(present, there, strict=True)
        batch = next((x.shape[front + a.rows] for x, a in divided if a.rows is not None), 0)
        shapes = [NONE if _absent(r) else lengths + _with_rows(r, batch) for r in results]
        left = iter(present)
        given = [jnp.zeros(NONE, a.dtype) if a.array is None else next(left) for a in arguments]
        passed = shapes
        if flat:
            given = [
                x.reshape(_flat(x.shape, a.rows, front))
                for x, a in zip(given, arguments, strict=True)
            ]
            passed = [_flat(s, r.rows, front) for s, r in zip(shapes, results, strict=True)]
        types = [
            jax.ShapeDtypeStruct(shape, r.dtype) for shape, r in zip(passed, results, strict=True)
        ]
        pairs = (aliases or {}).items()
        shared = {n: m for n, m in pairs if given[n].shape == types[m].shape}
        run = jax.ffi.ffi_call(name, types, input_output_aliases=shared)
        found = vary_like(run(*given, **attributes), given)
        whole = zip(found, shapes, results, strict=True)
        return [x.reshape(shape) for x, shape, r in whole if not _absent(r)]

    partitioned = partial(_partitioned, run_here, there, made)
    run = _mapped(partitioned) if mapped else sequential_vmap(partitioned())
    found = iter(run(*arrays))
    return [jnp.zeros(NONE, r.dtype) if _absent(r) else next(found) for r in results]


def _mapped(
    partitioned: Callable[..., Callable[..., list[Array]]], front: int = 0
) -> Callable[..., list[Array]]:
    """Return partitioned(front), the call for arrays with `front` mapped axes; `vmap` adds one."""
    run = custom_vmap(partitioned(front))

    @run.def_vmap
    def _(_: int, own: Sequence[bool], *arrays: Array) -> tuple[list[Array], list[bool]]:
        # All elements share an array whose axis has length 1.
        given = [x if o else x[None] for x, o in zip(arrays, own, strict=True)]
        found = _mapped(partitioned, front + 1)(*given)
        return found, [True] * len(found)

    return run


def _abstract(array: Array | None) -> Any:
    return None if array is None else jax.ShapeDtypeStruct(array.shape, array.dtype)


def _absent(result: Result) -> bool:
    return result.shape == NONE


def _with_rows(result: Result, batch: int) -> tuple[int, ...]:
    """Return the shape of a result for a number of rows."""
    shape, rows, _ = result
    return shape if rows is None else (*shape[:rows], batch, *shape[rows + 1 :])


def _flat(shape: tuple[int, ...], rows: int | None, front: int) -> tuple[int, ...]:
    """Return the shape with the axes of time and rows as one, after `front` mapped axes."""
    if rows is None:
        return shape
    before, (steps, batch, *after) = shape[:front], shape[front:]
    return (*before, steps * batch, *after)


def _partitioned(
    call: Callable[..., list[Array]],
    arguments: Sequence[Argument],
    results: Sequence[Result],
    front: int = 0,
) -> Callable[..., list[Array]]:
    """Let each device of a `jit` call the handler for its own rows only, after `front` mapped axes."""
    names = (f"x{n}" for n in itertools.count())

    def factors(shape: tuple[int, ...], rows: int | None) -> str:
        axes = range(-front, len(shape))
        return " ".join("rows" if n == rows else next(names) for n in axes)

    def partition(mesh: Any, given: Sequence[Any], _: Any) -> tuple[Any, ...]:
        divided = _divided(given, arguments, front)

        def place(rows: int | None) -> NamedSharding:
            spec = P() if rows is None else P(*[None] * (front + rows), divided)
            return NamedSharding(mesh, spec)

        def call_here(*arrays: Array) -> list[Array]:
            found = zip(call(*arrays), results, strict=True)
            return [lax.psum(x, divided) if r.rows is None and divided else x for x, r in found]

        to, back = [place(r.rows) for r in results], tuple(place(a.rows) for a in arguments)
        return mesh, call_here, to, back

    inward = ", ".join(factors(a.array.shape, a.rows) for a in arguments if a.array is not None)
    outward = ", ".join(factors(r.shape, r.rows) for r in results)
    all_factors = f"{inward} {outward}".replace(",", " ").split()
    summed = ("rows",) if "rows" in inward and "rows" not in outward else ()
    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition,
        sharding_rule=f"{inward} -> {outward}",
        reduction_factors=summed,
        need_replication_factors=tuple(name for name in all_factors if name != "rows"),
    )
    return partitioned


def _divided(given: Sequence[Any], arguments: Sequence[Argument], front: int) -> tuple[str, ...]:
    """Return the mesh axes over which the rows are sharded; none if the shards would be unequal."""
    for array, argument in zip(given, arguments, strict=True):
        if argument.rows is None or not isinstance(array.sharding, NamedSharding):
            continue
        rows = front + argument.rows
        spec = (*array.sharding.spec, *[None] * rows)[rows]
        axes = (spec,) if isinstance(spec, str) else tuple(spec or ())
        sizes = [array.sharding.mesh.shape[axis] for axis in axes]
        return () if array.shape[rows] % math.prod(sizes) else axes
    return ()
