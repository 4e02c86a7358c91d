"""Run a single layer with cuDNN, and handle in plain JAX what cuDNN does not support.

    reverse    the inputs are reversed in time before the call, and the outputs after it
    lengths    see `_run_with_lengths`; the lengths are not copied to the host
    tokens     the table of projected tokens is multiplied by one-hot inputs

cuDNN's states have the dtype of the weights. With float16 or bfloat16 weights the states are therefore
rounded to that dtype at the start and the end of a call. The other implementations keep them in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import is_builtin
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import passes
from jaxrnn.recurrence.kernels.cudnn import algorithm, library, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size
from jaxrnn.recurrence.kernels.cudnn.calls import PASSES
from jaxrnn.recurrence.kernels.cudnn.config import (
    MODES,
    CallConfig,
    CallInputs,
    CallOutputs,
    allows_tf32,
    make_state,
    mode_key,
)
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.recurrence.kernels.rows import SHARED, by_rows
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Problem, choose_rows, vary
from jaxrnn.shapes import Array, Bool, Float, Int

# One-hot inputs are used for up to this many tokens, or this many times the hidden size if that is more.
# Beyond that, their memory and work would exceed those of the recurrence.
MAX_TOKENS, MAX_TOKENS_PER_UNIT = 256, 2
# cuDNN stores sizes and strides as C's int. The largest stride is that of the states, B * H.
MAX_SIZE = 2**31 - 1
# Tensor cores need 16-bit operands in multiples of this many values.
TENSOR_CORE_ALIGNMENT = 8
# A pre-activation so large that a sigmoid gate is exactly 0 or 1, whatever else is added to it.
SATURATED = 1e4


def unsupported_reason(problem: Problem) -> str | None:
    """Return why cuDNN cannot run a problem on the current device, or None if it can.

    The first call compiles the C++ of this folder.
    """
    return (
        _unsupported_feature(problem) or unavailable_reason() or rejection_reason(problem, layers=1)
    )


def _unsupported_feature(problem: Problem) -> str | None:
    """Return which feature of a problem no version of cuDNN supports, or None."""
    cell, inputs = problem.cell, problem.inputs
    if not is_builtin(cell):
        return f"cuDNN has an LSTM, a GRU and a plain RNN, not {cell!r}; use 'scan'"
    if cell.kind is CellKind.LSTM and cell.peephole:
        return "cuDNN's LSTM has no peepholes; use 'xla'"
    if cell.kind is CellKind.GRU_BEFORE:
        return "cuDNN's GRU resets after the product (reset=\"after\"); use 'xla'"
    if mode_key(cell) not in MODES:
        return f"cuDNN's plain RNN supports tanh and relu, not {cell.activation}; use 'xla'"
    if problem.masks.reset is not None:
        return "cuDNN cannot reset a row in the middle of a sequence (resets); use 'xla'"
    if isinstance(inputs, Lookup):
        features = inputs.table.shape[0]
        most = max(MAX_TOKENS, MAX_TOKENS_PER_UNIT * cell.hidden_size)
        if features > most:
            return f"at this hidden size it supports up to {most} tokens, not {features}; use 'xla'"
    elif isinstance(inputs, Dense):
        features = inputs.xs.shape[-1]
    else:
        return "cuDNN projects the inputs itself and does not accept projected inputs; use 'xla'"
    sizes = problem.steps, features, problem.batch * cell.hidden_size
    if not all(isinstance(size, int) for size in sizes):
        return "cuDNN does not support the symbolic sizes of jax.export; use 'xla'"
    if max(sizes) > MAX_SIZE:
        return f"cuDNN supports sizes and strides up to {MAX_SIZE}, not {max(sizes)}; use 'xla'"
    return None


def unavailable_reason() -> str | None:
    """Return why cuDNN is not available for the current device, or None if it is."""
    if "rocm" in accelerator.device().client.platform_version.lower():
        return "cuDNN supports only NVIDIA GPUs; use 'xla'"
    return library.unavailable_reason()


def rejection_reason(first: Problem, layers: int) -> str | None:
    """Return the reason why cuDNN rejects a stack of layers, or None if it accepts it.

    Args:
      first: the problem of the first layer.
      layers: the number of layers.
    """
    if not first.steps or not first.batch:
        return None
    inputs: Any = first.inputs
    w_x = inputs.table if isinstance(inputs, Lookup) else inputs.w_x
    config = CallConfig(first.cell, layers, False, str(first.dtype), allows_tf32(), "cuda")
    size = Size(first.steps, first.batch, max(w_x.shape[0], 1))
    return algorithm.rejection_reason(config, size)


def run(problem: Problem, *, platform: Platform = "cuda") -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H], in float64 for float64 weights, else in float32.

    Args:
      problem: a problem without resets. The active steps of each row must be its first steps.
      platform: the platform whose programs call cuDNN; tests with a stand-in pass "cpu".

    Raises:
      ValueError: if cuDNN does not support the problem.
    """
    if not problem.steps or not problem.batch:
        return problem.no_steps()
    if reason := _unsupported_feature(problem):
        raise ValueError(f"cuDNN cannot run this: {reason}")
    dtype = problem.dtype
    config = CallConfig(problem.cell, 1, False, str(dtype), allows_tf32(), platform)
    inputs, active = to_dense(problem.inputs, dtype), problem.masks.active
    if active is not None:
        final, ys = _run_with_lengths(config, problem, inputs, active)
    elif problem.reverse:
        reversed_inputs = inputs._replace(xs=jnp.flip(inputs.xs, 0))
        final, ys = _run_forward(config, problem, reversed_inputs)
        ys = jnp.flip(ys, 0)
    else:
        final, ys = _run_forward(config, problem, inputs)
    result_dtype = wide(dtype)
    return jax.tree.map(lambda s: s.astype(result_dtype), final), ys.astype(result_dtype)


def to_dense(inputs: Inputs, dtype: Any) -> Dense:
    """Convert a `Lookup` or `Dense` to a `Dense` with at least one input feature."""
    if isinstance(inputs, Lookup):
        table, tokens = inputs.clipped()
        padding = -table.shape[0] % TENSOR_CORE_ALIGNMENT
        w_x = jnp.pad(table, ((0, padding), (0, 0)))
        xs = jax.nn.one_hot(tokens, w_x.shape[0], dtype=dtype)
        return Dense(xs, w_x, jnp.zeros(w_x.shape[1], dtype))
    assert isinstance(inputs, Dense)
    return _append_features(inputs, 1) if not inputs.xs.shape[-1] else inputs


def _append_features(
    inputs: Dense, count: int, first: Array | int = 0, weights: Array | int = 0
) -> Dense:
    """Append input features. All of them are zero, except the first if it is given.

    Args:
      inputs: the inputs.
      count: the number of features to append.
      first: [T, B], the values of the first appended feature.
      weights: [G], the weights of the first appended feature.
    """
    xs, w_x, b = inputs
    more = jnp.zeros((*xs.shape[:2], count), xs.dtype).at[..., 0].set(first)
    rows = jnp.zeros((count, w_x.shape[1]), w_x.dtype).at[0].set(weights)
    return Dense(jnp.concatenate([xs, more], -1), jnp.concatenate([w_x, rows]), b)


def _gather_steps(x: Float[Array, "T B K"], steps: Int[Array, "N B"]) -> Float[Array, "N B K"]:
    """Return x at the given N steps of each row."""
    return jnp.take_along_axis(x, steps[..., None], axis=0)


def _run_forward(config: CallConfig, problem: Problem, inputs: Dense) -> tuple[Any, Array]:
    """Run one layer forward in time. The final state and the outputs have the dtype of the weights."""
    params = problem.params._replace(w_x=inputs.w_x, b=inputs.b)
    states = jax.tree.map(lambda s: s[None], problem.state)
    outputs = run_call(config, [params], inputs.xs, states)
    final = make_state(type(problem.state), outputs.hidden, outputs.cell)
    return jax.tree.map(lambda s: s[0], final), outputs.ys


def run_call(
    config: CallConfig, params: list[Any], xs: Float[Array, "T B D"], states: Any
) -> CallOutputs:
    """Run a cuDNN call. All outputs have the dtype of the weights.

    Args:
      config: the configuration of the call.
      params: the cell parameters of every pseudo-layer.
      xs: the inputs of the first layer.
      states: the states of all P pseudo-layers before the first step, each array [P, B, H].
    """
    descriptor = algorithm.descriptor_for(config, Size(*xs.shape), training=False)
    length = library.memory_sizes(descriptor).weights // jnp.dtype(config.dtype).itemsize
    packed = weights.pack(config, params, minimum=length)
    inputs = CallInputs(packed, xs, states.hidden, getattr(states, "cell", None))
    inputs = vary(jax.tree.map(lambda a: a.astype(config.dtype), inputs))
    cell = None if inputs.cell is None else 1
    rows, output_rows = CallInputs(SHARED, 1, 1, cell), CallOutputs(1, 1, cell)  # type: ignore[arg-type]
    return by_rows(_run_passes, (config,), tuple(inputs), tuple(rows), output_rows)


def _run_passes(config: CallConfig, *inputs: Any) -> CallOutputs:
    return passes.run(PASSES, config, None, *inputs)


def _run_with_lengths(
    config: CallConfig, problem: Problem, inputs: Dense, active: Bool[Array, "T B"]
) -> tuple[Any, Float[Array, "T B H"]]:
    """Run one layer on rows of different lengths.

    cuDNN accepts lengths only from the host, and the GPU would have to wait for that copy. So cuDNN also
    runs the padding steps after the end of each row, and their outputs are dropped. The final h is the
    output of a row's last real step. The final c is not among the outputs, so it must not change in the
    padding: there an LSTM gets an additional input, which closes the input gate (i = 0) and opens the
    forget gate (f = 1). For `reverse`, each row's real steps are reversed before and after the call.
    """
    lengths = active.sum(0, dtype=jnp.int32)
    steps = lax.broadcasted_iota(jnp.int32, active.shape, 0)
    reversed_steps = jnp.where(active, lengths[None] - 1 - steps, steps)
    if problem.reverse:
        inputs = inputs._replace(xs=_gather_steps(inputs.xs, reversed_steps))
    if problem.cell.kind is CellKind.LSTM:
        gates = jnp.asarray([-SATURATED, SATURATED, 0, 0], inputs.w_x.dtype)
        padding = jnp.where(active, 0, 1).astype(inputs.xs.dtype)
        count = TENSOR_CORE_ALIGNMENT - inputs.xs.shape[-1] % TENSOR_CORE_ALIGNMENT
        gate_weights = jnp.repeat(gates, problem.cell.hidden_size)
        inputs = _append_features(inputs, count, padding, gate_weights)
    state, ys = _run_forward(config, problem, inputs)
    last = jnp.maximum(lengths - 1, 0)[None]
    state = state._replace(hidden=_gather_steps(ys, last)[0])
    first = jax.tree.map(lambda s, like: s.astype(like.dtype), problem.state, state)
    ys = _gather_steps(ys, reversed_steps) if problem.reverse else ys
    return choose_rows(lengths > 0, state, first), jnp.where(active[..., None], ys, 0)
