"""The C++ of this folder as JAX functions, and the same in plain JAX where cuDNN is not called."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.recurrence.kernels import ffi, xla
from jaxrnn.recurrence.kernels.cudnn import algorithm, library, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size, divided
from jaxrnn.recurrence.kernels.cudnn.library import Numbers
from jaxrnn.recurrence.kernels.cudnn.setup import Arrays, Results, Setup, as_state
from jaxrnn.recurrence.kernels.ffi import NOTHING, Argument, Result
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.portable import on_platform
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Problem
from jaxrnn.shapes import Array


def forward(
    setup: Setup, keep: bool, _: None, *given: Any
) -> tuple[Results, tuple[Array, Array] | None]:
    """Return the results and, with `keep`, the outputs and cuDNN's reserve for `backward`."""
    arrays = Arrays(*given)
    numbers = algorithm.numbers_of(setup, Size(*arrays.xs.shape), keep)
    bytes_per_row = _reserve_per_row(numbers) if keep else 0

    def by_cudnn(arrays: Arrays) -> tuple[Results, Array]:
        steps, batch, _ = arrays.xs.shape
        state = Result(arrays.hidden.shape, 1, setup.dtype)
        width = setup.directions * setup.cell.hidden_size
        ys, hidden, cell, reserve = ffi.call(
            "jaxrnn_cudnn_forward",
            [
                Result((steps, batch, width), 1, setup.dtype),
                state,
                NOTHING._replace(dtype=setup.dtype) if arrays.cell is None else state,
                Result((batch, bytes_per_row), 0, jnp.uint8) if keep else _NO_RESERVE,
            ],
            [
                Argument(arrays.xs, 1),
                Argument(arrays.hidden, 1),
                Argument(arrays.cell, 1, setup.dtype),
                Argument(arrays.weights),
            ],
            **_attributes(numbers),
        )
        return Results(ys, hidden, None if arrays.cell is None else cell), reserve

    def by_jax(arrays: Arrays) -> tuple[Results, Array]:
        shape = (arrays.xs.shape[1], bytes_per_row) if keep else ffi.NONE
        return plain(setup, None, *arrays), jnp.zeros(shape, jnp.uint8)

    results, reserve = on_platform(setup.platform, by_cudnn, by_jax, arrays)
    return results, (results.ys, reserve) if keep else None


def backward(
    setup: Setup, _: None, given: Any, kept: tuple[Array, Array], cotangents: Results
) -> tuple[Array | None, ...]:
    """Return the derivatives with respect to the arrays."""
    numbers = algorithm.numbers_of(setup, Size(*given[1].shape), training=True)

    def by_cudnn(arrays: Arrays, kept: tuple[Array, Array], d: Results) -> Arrays:
        ys, reserve = kept
        state = Result(arrays.hidden.shape, 1, setup.dtype)
        none = NOTHING._replace(dtype=setup.dtype)
        hidden, cell = Argument(arrays.hidden, 1), Argument(arrays.cell, 1, setup.dtype)
        d_xs, d_hidden, d_cell, reserve = ffi.call(
            "jaxrnn_cudnn_backward_data",
            [
                Result(arrays.xs.shape, 1, setup.dtype),
                state,
                none if arrays.cell is None else state,
                Result(reserve.shape, 0, jnp.uint8),
            ],
            [
                Argument(ys, 1),
                hidden,
                cell,
                Argument(arrays.weights),
                Argument(d.ys, 1),
                Argument(d.hidden, 1),
                Argument(d.cell, 1, setup.dtype),
                Argument(reserve, 0),
            ],
            # cuDNN writes into the reserve.
            aliases={7: 3},
            **_attributes(numbers),
        )
        (d_weights,) = ffi.call(
            "jaxrnn_cudnn_backward_weights",
            [Result(arrays.weights.shape, None, setup.dtype)],
            [
                Argument(arrays.xs, 1),
                hidden,
                Argument(ys, 1),
                Argument(reserve, 0),
                # cuDNN adds to what is there.
                Argument(jnp.zeros_like(arrays.weights)),
            ],
            aliases={4: 0},
            **_attributes(numbers),
        )
        return Arrays(d_weights, d_xs, d_hidden, None if arrays.cell is None else d_cell)

    def by_jax(arrays: Arrays, _: Any, d: Results) -> Arrays:
        return Arrays(*jax.vjp(partial(plain, setup, None), *arrays)[1](d))

    found = on_platform(setup.platform, by_cudnn, by_jax, Arrays(*given), kept, cotangents)
    return tuple(found)


_NO_RESERVE = NOTHING._replace(dtype=jnp.uint8)


def _attributes(numbers: Numbers) -> dict[str, Any]:
    """Return the attributes of a handler."""
    return {
        "mode": np.int64(numbers.mode),
        "algorithm": np.int64(numbers.algorithm),
        "layers": np.int64(numbers.layers),
        "both_directions": np.bool_(numbers.both_directions),
        "tf32": np.bool_(numbers.tf32),
    }


def _reserve_per_row(numbers: Numbers) -> int:
    """Return the bytes of the reserve for each row of the batch.

    Where a `jit` divides the rows over devices, what a part of the rows needs must fit into its part of
    the reserve. cuDNN does not say how the size depends on the rows.
    """
    needed = {n: library.sizes(numbers._replace(batch=n)).reserve for n in divided(numbers.batch)}
    return max(-(-size // n) for n, size in needed.items())


def plain(setup: Setup, _: None, *given: Any) -> Results:
    """Return the results of a call by loops of XLA, part after part."""
    arrays = Arrays(*given)
    parts = weights.unpack(setup, arrays.weights, arrays.xs.shape[-1])
    stacked = as_state(type(setup.cell.initial_state(0)), arrays.hidden, arrays.cell)
    stacked = jax.tree.map(lambda s: s.astype(wide(setup.dtype)), stacked)
    xs, finals = arrays.xs, []
    for layer in range(setup.layers):
        outputs = []
        for direction in range(setup.directions):
            part = layer * setup.directions + direction
            p = parts[part]
            state = jax.tree.map(lambda s, part=part: s[part], stacked)
            inputs = Dense(xs, p.w_x, p.b)
            problem = Problem(setup.cell, p, inputs, state, reverse=direction == 1)
            final, ys = xla.run(problem)
            finals.append(final)
            outputs.append(ys.astype(setup.dtype))
        xs = jnp.concatenate(outputs, axis=-1)
    final = jax.tree.map(lambda *s: jnp.stack(s).astype(setup.dtype), *finals)
    return Results(xs, final.hidden, getattr(final, "cell", None))


PASSES = Passes(forward, backward, plain)
