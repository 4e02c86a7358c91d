"""The C++ of this folder as JAX functions, with an equivalent in plain JAX for other programs."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.recurrence.kernels import ffi, xla
from jaxrnn.recurrence.kernels.cudnn import algorithm, library, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size, possible_shard_rows
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig, CallInputs, CallOutputs, make_state
from jaxrnn.recurrence.kernels.cudnn.library import DescriptorArguments
from jaxrnn.recurrence.kernels.ffi import NOTHING, Argument, Result
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.portable import on_platform
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Problem
from jaxrnn.shapes import Array


def forward(
    config: CallConfig, keep: bool, _: None, *given: Any
) -> tuple[CallOutputs, tuple[Array, Array] | None]:
    """Return the outputs and, with `keep`, the residuals for `backward`: ys and cuDNN's reserve."""
    inputs = CallInputs(*given)
    descriptor = algorithm.descriptor_for(config, Size(*inputs.xs.shape), keep)
    bytes_per_row = _reserve_per_row(descriptor) if keep else 0

    def by_cudnn(inputs: CallInputs) -> tuple[CallOutputs, Array]:
        steps, batch, _ = inputs.xs.shape
        state = Result(inputs.hidden.shape, 1, config.dtype)
        width = config.directions * config.cell.hidden_size
        no_reserve = NOTHING._replace(dtype=jnp.uint8)
        ys, hidden, cell, reserve = ffi.call(
            "jaxrnn_cudnn_forward",
            [
                Result((steps, batch, width), 1, config.dtype),
                state,
                NOTHING._replace(dtype=config.dtype) if inputs.cell is None else state,
                Result((batch, bytes_per_row), 0, jnp.uint8) if keep else no_reserve,
            ],
            [
                Argument(inputs.xs, 1),
                Argument(inputs.hidden, 1),
                Argument(inputs.cell, 1, config.dtype),
                Argument(inputs.weights),
            ],
            **_attributes(descriptor),
        )
        return CallOutputs(ys, hidden, None if inputs.cell is None else cell), reserve

    def by_jax(inputs: CallInputs) -> tuple[CallOutputs, Array]:
        shape = (inputs.xs.shape[1], bytes_per_row) if keep else ffi.NONE
        return plain(config, None, *inputs), jnp.zeros(shape, jnp.uint8)

    outputs, reserve = on_platform(config.platform, by_cudnn, by_jax, inputs)
    return outputs, (outputs.ys, reserve) if keep else None


def backward(
    config: CallConfig,
    _: None,
    given: Any,
    residuals: tuple[Array, Array],
    cotangents: CallOutputs,
) -> tuple[Array | None, ...]:
    """Return the gradients with respect to the inputs, in the order of `CallInputs`."""
    inputs = CallInputs(*given)
    descriptor = algorithm.descriptor_for(config, Size(*inputs.xs.shape), training=True)

    def by_cudnn(inputs: CallInputs, residuals: tuple[Array, Array], d: CallOutputs) -> CallInputs:
        ys, reserve = residuals
        state = Result(inputs.hidden.shape, 1, config.dtype)
        hidden, cell = Argument(inputs.hidden, 1), Argument(inputs.cell, 1, config.dtype)
        d_xs, d_hidden, d_cell, reserve = ffi.call(
            "jaxrnn_cudnn_backward_data",
            [
                Result(inputs.xs.shape, 1, config.dtype),
                state,
                NOTHING._replace(dtype=config.dtype) if inputs.cell is None else state,
                Result(reserve.shape, 0, jnp.uint8),
            ],
            [
                Argument(ys, 1),
                hidden,
                cell,
                Argument(inputs.weights),
                Argument(d.ys, 1),
                Argument(d.hidden, 1),
                Argument(d.cell, 1, config.dtype),
                Argument(reserve, 0),
            ],
            # cuDNN writes to the reserve.
            aliases={7: 3},
            **_attributes(descriptor),
        )
        (d_weights,) = ffi.call(
            "jaxrnn_cudnn_backward_weights",
            [Result(inputs.weights.shape, None, config.dtype)],
            [
                Argument(inputs.xs, 1),
                hidden,
                Argument(ys, 1),
                Argument(reserve, 0),
                # cuDNN adds the gradient to this array.
                Argument(jnp.zeros_like(inputs.weights)),
            ],
            aliases={4: 0},
            **_attributes(descriptor),
        )
        return CallInputs(d_weights, d_xs, d_hidden, None if inputs.cell is None else d_cell)

    def by_jax(inputs: CallInputs, _: Any, d: CallOutputs) -> CallInputs:
        return CallInputs(*jax.vjp(partial(plain, config, None), *inputs)[1](d))

    return tuple(on_platform(config.platform, by_cudnn, by_jax, inputs, residuals, cotangents))


def _attributes(descriptor: DescriptorArguments) -> dict[str, Any]:
    """Return the attributes of the C++ calls."""
    return {
        "mode": np.int64(descriptor.mode),
        "algorithm": np.int64(descriptor.algorithm),
        "layers": np.int64(descriptor.layers),
        "both_directions": np.bool_(descriptor.both_directions),
        "tf32": np.bool_(descriptor.tf32),
    }


def _reserve_per_row(descriptor: DescriptorArguments) -> int:
    """Return the number of reserve bytes to allocate for each row of the batch.

    If `jit` shards the batch, each device needs enough reserve for its own rows. cuDNN does not document
    how the size depends on the number of rows, so this is the maximum over all possible shard sizes.
    """
    sizes = {
        rows: library.memory_sizes(descriptor._replace(batch=rows)).reserve
        for rows in possible_shard_rows(descriptor.batch)
    }
    return max(-(-size // rows) for rows, size in sizes.items())


def plain(config: CallConfig, _: None, *given: Any) -> CallOutputs:
    """Return the outputs of a call, computed by loops of XLA, one pseudo-layer after the other."""
    inputs = CallInputs(*given)
    params = weights.unpack(config, inputs.weights, inputs.xs.shape[-1])
    first = make_state(type(config.cell.initial_state(0)), inputs.hidden, inputs.cell)
    first = jax.tree.map(lambda s: s.astype(wide(config.dtype)), first)
    xs, finals = inputs.xs, []
    for layer in range(config.layers):
        outputs = []
        for direction in range(config.directions):
            index = layer * config.directions + direction
            state = jax.tree.map(lambda s, index=index: s[index], first)
            own = params[index]
            dense = Dense(xs, own.w_x, own.b)
            problem = Problem(config.cell, own, dense, state, reverse=direction == 1)
            final, ys = xla.run(problem)
            finals.append(final)
            outputs.append(ys.astype(config.dtype))
        xs = jnp.concatenate(outputs, axis=-1)
    last = jax.tree.map(lambda *s: jnp.stack(s).astype(config.dtype), *finals)
    return CallOutputs(xs, last.hidden, getattr(last, "cell", None))


PASSES = Passes(forward, backward, plain)
