"""Call C++ handlers through XLA's foreign function interface (FFI).

The calls support `vmap`, and under a `jit` over several devices each device processes its own rows. A
handler has a fixed number of arguments and results; absent ones are passed as arrays without elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
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
      array: the array; None if it is absent.
      rows: the axis of the batch; None if all rows share the array.
      dtype: the dtype that the handler expects; only used if the array is absent.
    """

    array: Array | None
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
    **attributes: Any,
) -> list[Array]:
    """Call a handler and return its results.

    Args:
      name: the name under which the handler is registered.
      results: the results of the handler.
      arguments: the arguments of the handler.
      aliases: maps the index of an argument to the index of the result that shares its memory.
      flat: whether the handler expects arrays [T * B, K] instead of [T, B, K].
      attributes: the handler's attributes, numpy scalars.
    """
    there = [a for a in arguments if a.array is not None]

    def run_here(*present: Array) -> list[Array]:
        arrays = iter(present)
        given = [jnp.zeros(NONE, a.dtype) if a.array is None else next(arrays) for a in arguments]
        divided = zip(present, there, strict=True)
        batch = next(x.shape[a.rows] for x, a in divided if a.rows is not None)
        shapes = [_with_rows(r, batch) for r in results]
        made = shapes
        if flat:
            given = [
                x.reshape(_flat(x.shape, a.rows)) for x, a in zip(given, arguments, strict=True)
            ]
            made = [_flat(s, r.rows) for s, r in zip(shapes, results, strict=True)]
        types = [
            jax.ShapeDtypeStruct(shape, r.dtype) for shape, r in zip(made, results, strict=True)
        ]
        run = jax.ffi.ffi_call(name, types, input_output_aliases=aliases)
        found = vary_like(run(*given, **attributes), given)
        pairs = zip(found, shapes, results, strict=True)
        return [x.reshape(shape) for x, shape, r in pairs if not _absent(r)]

    made = [r for r in results if not _absent(r)]
    # If the weights are mapped, too, vmap becomes a loop over the elements of the mapped axis.
    run = sequential_vmap(_partitioned(run_here, there, made))
    found = iter(run(*(a.array for a in there)))
    return [jnp.zeros(NONE, r.dtype) if _absent(r) else next(found) for r in results]


def _absent(result: Result) -> bool:
    return result.shape == NONE


def _with_rows(result: Result, batch: int) -> tuple[int, ...]:
    """Return the shape of a result for a number of rows."""
    shape, rows, _ = result
    return shape if rows is None else (*shape[:rows], batch, *shape[rows + 1 :])


def _flat(shape: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    return shape if rows is None else (shape[0] * shape[1], *shape[2:])


def _partitioned(
    call: Callable[..., list[Array]], arguments: Sequence[Argument], results: Sequence[Result]
) -> Callable[..., list[Array]]:
    """Let each device of a `jit` call the handler for its own rows only."""
    names = (f"x{n}" for n in itertools.count())

    def factors(shape: tuple[int, ...], rows: int | None) -> str:
        return " ".join("rows" if n == rows else next(names) for n in range(len(shape)))

    def partition(mesh: Any, given: Sequence[Any], _: Any) -> tuple[Any, ...]:
        divided = _divided(given, arguments)

        def place(rows: int | None) -> NamedSharding:
            return NamedSharding(mesh, P() if rows is None else P(*[None] * rows, divided))

        def call_here(*arrays: Array) -> list[Array]:
            found = zip(call(*arrays), results, strict=True)
            return [lax.psum(x, divided) if r.rows is None and divided else x for x, r in found]

        to, back = [place(r.rows) for r in results], tuple(place(a.rows) for a in arguments)
        return mesh, call_here, to, back

    inward = ", ".join(factors(a.array.shape, a.rows) for a in arguments if a.array is not None)
    outward = ", ".join(factors(r.shape, r.rows) for r in results)
    all_factors = f"{inward} {outward}".replace(",", " ").split()
    summed = () if "rows" in outward else ("rows",)
    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition,
        sharding_rule=f"{inward} -> {outward}",
        reduction_factors=summed,
        need_replication_factors=tuple(name for name in all_factors if name != "rows"),
    )
    return partitioned


def _divided(given: Sequence[Any], arguments: Sequence[Argument]) -> tuple[str, ...]:
    """Return the mesh axes over which the rows are sharded; none if the shards would be unequal."""
    for array, argument in zip(given, arguments, strict=True):
        if argument.rows is None or not isinstance(array.sharding, NamedSharding):
            continue
        spec = (*array.sharding.spec, *[None] * argument.rows)[argument.rows]
        axes = (spec,) if isinstance(spec, str) else tuple(spec or ())
        sizes = [array.sharding.mesh.shape[axis] for axis in axes]
        return () if array.shape[argument.rows] % math.prod(sizes) else axes
    return ()
