"""A cell's problem as a call of cuDNN: what it cannot be asked for is done around the call.

    reverse     the inputs are turned around in time before the call, and the outputs after it
    lengths     see `_with_lengths`; the lengths never leave the GPU
    tokens      rows of a table are products of the table with one-hot inputs

cuDNN's states have the dtype of the weights. Those that go into a call and come out of it are rounded to
it, while those of the other implementations stay float32 beside narrower weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import is_builtin
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import Derivatives, passes
from jaxrnn.recurrence.kernels.cudnn import algorithm, library, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size
from jaxrnn.recurrence.kernels.cudnn.calls import PASSES
from jaxrnn.recurrence.kernels.cudnn.setup import (
    MODES,
    Arrays,
    Results,
    Setup,
    allows_tf32,
    as_state,
    mode_of,
)
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.recurrence.kernels.rows import SHARED, by_rows
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Problem, choose_rows, vary
from jaxrnn.shapes import Array, Bool, Float, Int

DERIVATIVES = Derivatives.REVERSE

# So many tokens, or so many times the hidden size, are few enough for one-hot inputs: their memory and
# work are like those of the recurrence, or small anyway.
FEW_TOKENS, TOKENS_PER_UNIT = 256, 2
# cuDNN's sizes are C's int.
LARGEST = 2**31 - 1
# Tensor cores take 16-bit operands in groups of this many.
GROUP = 8
# An input of a gate at which the gate is 0 or 1 exactly, whatever the other inputs are.
SHUT = 1e4


def unsupported_reason(problem: Problem) -> str | None:
    """Return why cuDNN cannot run a problem on the GPU at hand, or None where it can.

    The first call compiles the C++ of this folder.
    """
    return _lacks(problem) or lacks_gpu() or refusal(problem, 1)


def _lacks(problem: Problem) -> str | None:
    """Return what a problem has that cuDNN does not have on any GPU, or None."""
    cell, inputs = problem.cell, problem.inputs
    if not is_builtin(cell):
        return f"cuDNN has an LSTM, a GRU and a plain RNN, not {cell!r}; use 'scan'"
    if cell.kind is CellKind.LSTM and cell.peephole:
        return "cuDNN's LSTM has no peepholes; use 'xla'"
    if cell.kind is CellKind.GRU_BEFORE:
        return "cuDNN's GRU resets after the product (reset=\"after\"); use 'xla'"
    if mode_of(cell) not in MODES:
        return f"cuDNN's plain RNN has tanh or relu, not {cell.activation}; use 'xla'"
    if problem.masks.reset is not None:
        return "cuDNN cannot reset a row in the middle of a sequence (resets); use 'xla'"
    if isinstance(inputs, Lookup):
        features = inputs.table.shape[0]
        most = max(FEW_TOKENS, TOKENS_PER_UNIT * cell.hidden_size)
        if features > most:
            return f"cuDNN takes up to {most} tokens at this hidden size, not {features}; use 'xla'"
    elif isinstance(inputs, Dense):
        features = inputs.xs.shape[-1]
    else:
        return "cuDNN multiplies the inputs itself and cannot take projected ones; use 'xla'"
    sizes = problem.steps, problem.batch, features, cell.hidden_size
    if not all(isinstance(size, int) for size in sizes):
        return "cuDNN needs sizes that are numbers, not symbols as jax.export has them; use 'xla'"
    if max(sizes) > LARGEST:
        return f"cuDNN takes no size above {LARGEST}, and one is {max(sizes)}; use 'xla'"
    return None


def refusal(first: Problem, layers: int) -> str | None:
    """Return why cuDNN itself refuses layers, or None if it does not.

    Args:
      first: the problem of the first layer.
      layers: the number of layers.
    """
    if not first.steps or not first.batch:
        return None
    inputs: Any = first.inputs
    rows = inputs.table if isinstance(inputs, Lookup) else inputs.w_x
    setup = Setup(first.cell, layers, False, str(first.dtype), allows_tf32(), "cuda")
    size = Size(first.steps, first.batch, max(rows.shape[0], 1))
    return algorithm.refusal(setup, size)


def lacks_gpu() -> str | None:
    """Return why there is no cuDNN for the device at hand, or None if there is."""
    if "rocm" in accelerator.device().client.platform_version.lower():
        return "cuDNN runs on NVIDIA's GPUs alone; use 'xla'"
    return library.missing()


def run(problem: Problem, *, platform: Platform = "cuda") -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state, and the outputs [T, B, H] in float32 or float64.

    Args:
      problem: without resets. The active steps of a row are its first ones.
      platform: that on whose programs cuDNN is called; tests call a stand-in on a CPU.

    Raises:
      ValueError: for a problem that cuDNN does not have, and where it refuses the sizes.
    """
    if not problem.steps or not problem.batch:
        return problem.no_steps()
    if reason := _lacks(problem):
        raise ValueError(f"cuDNN cannot run this: {reason}")
    dtype = problem.dtype
    setup = Setup(problem.cell, 1, False, str(dtype), allows_tf32(), platform)
    inputs, active = as_dense(problem.inputs, dtype), problem.masks.active
    if active is not None:
        final, ys = _with_lengths(setup, problem, inputs, active)
    elif problem.reverse:
        turned = inputs._replace(xs=jnp.flip(inputs.xs, 0))
        final, ys = _call(setup, problem, turned)
        ys = jnp.flip(ys, 0)
    else:
        final, ys = _call(setup, problem, inputs)
    broad = wide(dtype)
    return jax.tree.map(lambda s: s.astype(broad), final), ys.astype(broad)


def as_dense(inputs: Inputs, dtype: Any) -> Dense:
    """Return a `Lookup` or `Dense` as inputs at least one wide, and their weights."""
    if isinstance(inputs, Lookup):
        table = inputs.clipped()
        missing = -table.table.shape[0] % GROUP
        w_x = jnp.pad(table.table, ((0, missing), (0, 0)))
        xs = jax.nn.one_hot(table.tokens, w_x.shape[0], dtype=dtype)
        return Dense(xs, w_x, jnp.zeros(w_x.shape[1], dtype))
    assert isinstance(inputs, Dense)
    return _with_features(inputs, 1) if not inputs.xs.shape[-1] else inputs


def _with_features(
    inputs: Dense, count: int, first: Array | int = 0, row: Array | int = 0
) -> Dense:
    """Return the inputs with more features, all zero but the first of them.

    Args:
      inputs: the inputs.
      count: the number of features to add.
      first: [T, B], the first of these.
      row: [G], its weights.
    """
    xs, w_x, b = inputs
    more = jnp.zeros((*xs.shape[:2], count), xs.dtype).at[..., 0].set(first)
    rows = jnp.zeros((count, w_x.shape[1]), w_x.dtype).at[0].set(row)
    return Dense(jnp.concatenate([xs, more], -1), jnp.concatenate([w_x, rows]), b)


def _at(x: Float[Array, "T B K"], times: Int[Array, "N B"]) -> Float[Array, "N B K"]:
    """Return x at N times, which may differ from row to row."""
    return jnp.take_along_axis(x, times[..., None], axis=0)


def _call(setup: Setup, problem: Problem, inputs: Dense) -> tuple[Any, Array]:
    """Return the final state and the outputs, both in the dtype of the weights."""
    params = problem.params._replace(w_x=inputs.w_x, b=inputs.b)
    states = jax.tree.map(lambda s: s[None], problem.state)
    found = call(setup, [params], inputs.xs, states)
    final = as_state(type(problem.state), found.hidden, found.cell)
    return jax.tree.map(lambda s: s[0], final), found.ys


def call(setup: Setup, parts: list[Any], xs: Float[Array, "T B D"], states: Any) -> Results:
    """Return the results of a call, all in the dtype of the weights.

    Args:
      setup: the static part.
      parts: the parameters of every layer and direction.
      xs: the inputs of the first layer.
      states: the state before the first step of each part, arrays [parts, B, H].
    """
    numbers = algorithm.numbers_of(setup, Size(*xs.shape), training=False)
    count = library.sizes(numbers).weights // jnp.dtype(setup.dtype).itemsize
    packed = weights.pack(setup, parts, count)
    made = Arrays(packed, xs, states.hidden, getattr(states, "cell", None))
    arrays = vary(jax.tree.map(lambda a: a.astype(setup.dtype), made))
    cell = None if arrays.cell is None else 1
    rows, result_rows = Arrays(SHARED, 1, 1, cell), Results(1, 1, cell)  # type: ignore[arg-type]
    return by_rows(_run, (setup,), tuple(arrays), tuple(rows), result_rows)


def _run(setup: Setup, *arrays: Any) -> Results:
    return passes.run(PASSES, setup, None, *arrays)


def _with_lengths(
    setup: Setup, problem: Problem, inputs: Dense, active: Bool[Array, "T B"]
) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs of rows with padding after their last step.

    cuDNN takes lengths from the host alone, and to wait for them would hold up the GPU. Here it runs
    through the padding. What it puts out there is dropped, and h after a row's last step is among the
    outputs. c is not, so in the padding an LSTM gets a further input that shuts its input gate and opens
    its forget gate, whereby c stays as it is. In reverse each row's own steps are turned around.
    """
    lengths = active.sum(0, dtype=jnp.int32)
    times = lax.broadcasted_iota(jnp.int32, active.shape, 0)
    order = jnp.where(active, lengths[None] - 1 - times, times)
    if problem.reverse:
        inputs = inputs._replace(xs=_at(inputs.xs, order))
    if problem.cell.kind is CellKind.LSTM:
        gates = jnp.asarray([-SHUT, SHUT, 0, 0], inputs.w_x.dtype)
        row = jnp.repeat(gates, problem.cell.hidden_size)
        padding = jnp.where(active, 0, 1).astype(inputs.xs.dtype)
        count = GROUP - inputs.xs.shape[-1] % GROUP
        inputs = _with_features(inputs, count, padding, row)
    state, ys = _call(setup, problem, inputs)
    last = jnp.maximum(lengths - 1, 0)[None]
    state = state._replace(hidden=_at(ys, last)[0])
    first = jax.tree.map(lambda s, like: s.astype(like.dtype), problem.state, state)
    ys = _at(ys, order) if problem.reverse else ys
    return choose_rows(lengths > 0, state, first), jnp.where(active[..., None], ys, 0)
