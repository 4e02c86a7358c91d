"""NVIDIA's own LSTM, from cuDNN, as `jax.experimental.rnn.lstm` offers it: float32, no peepholes.

It multiplies the inputs itself and takes every weight in one vector,

    W_x^T [4H, D], W_h^T [4H, H], b [4H], 0 [4H]      gates in the order i, f, g, o

which is also our order of the gates; the fourth is its second bias, which adds nothing here. The vector
is made once per call, before cuDNN's loop over time. Its arrays are [B, T, ...] and its float32 products
may run in TF32, as XLA's do on a GPU. It has a first derivative in reverse mode and no `vmap`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jax.experimental.layout import Layout, with_layout_constraint

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import LSTM
from jaxrnn.recurrence.kernels import Derivatives
from jaxrnn.recurrence.problem import Dense, Problem
from jaxrnn.shapes import Array, Float

DERIVATIVES = Derivatives.REVERSE


def unsupported_reason(problem: Problem) -> str | None:
    """Return why cuDNN cannot run a problem on the GPU at hand, or None where it can."""
    cell = problem.cell
    if type(cell) is not LSTM:
        return f"JAX offers cuDNN's LSTM alone, not {cell!r}; use 'xla'"
    if cell.peephole:
        return "cuDNN's LSTM has no peepholes; use 'xla'"
    if problem.dtype != jnp.float32:
        return f"JAX offers it in float32 alone, not {problem.dtype}; use 'xla'"
    if not isinstance(problem.inputs, Dense):
        return "it multiplies the inputs itself and cannot take projected ones; use 'xla'"
    if problem.masks.reset is not None:
        return "it cannot reset a row in the middle of a sequence (resets); use 'xla'"
    if problem.reverse:
        return "it is wrapped for the forward direction alone (reverse); use 'xla'"
    if "rocm" in accelerator.device().client.platform_version.lower():
        return "cuDNN runs on NVIDIA's GPUs alone; use 'xla'"
    return None


def run(problem: Problem, *, interpret: bool = False) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in float32.

    Args:
      problem: of an LSTM without peepholes, in float32, with a `Dense` and no resets. The active steps
        of a row are its first ones.
      interpret: run JAX's plain reference of the same call on any device, for tests.

    Raises:
      ValueError: for a problem that cuDNN cannot run.
    """
    reason = unsupported_reason(problem)
    if reason:
        raise ValueError(f"cuDNN cannot run this: {reason}")
    if not problem.steps:
        return problem.no_steps()
    cell, params, state = problem.cell, problem.params, problem.state
    active = problem.masks.active
    assert isinstance(problem.inputs, Dense)
    xs, w_x, b = problem.inputs
    steps, batch, features = xs.shape
    lengths = jnp.full(batch, steps, jnp.int32)
    if active is not None:
        xs = jnp.where(active[..., None], xs, 0)
        lengths = active.sum(0, dtype=jnp.int32)
    weights = flat(w_x, params.w_h, b)
    # One layer, no dropout, one direction.
    sizes = (features, cell.hidden_size, 1, 0.0, False)
    # cuDNN's rows have at least one step.
    at_least_one = jnp.maximum(lengths, 1)
    arguments = (_row_major(xs.swapaxes(0, 1)), state.hidden[None], state.cell[None])
    if interpret:
        unpacked = rnn.unpack_lstm_weights(weights, features, cell.hidden_size, 1, False)
        ys, hidden, memory = rnn.lstm_ref(*arguments, *unpacked, at_least_one, *sizes)
    else:
        ys, hidden, memory = rnn.lstm(*arguments, weights, at_least_one, *sizes)
    ys, final = _row_major(ys).swapaxes(0, 1), type(state)(hidden[0], memory[0])
    if active is None:
        return final, ys
    final = jax.tree.map(lambda a, s: jnp.where(lengths[:, None] > 0, a, s), final, state)
    return final, jnp.where(active[..., None], ys, 0)


def _row_major(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Return x laid out in memory as its shape says, and its cotangent too.

    JAX calls cuDNN without saying how the arrays must be laid out, so that XLA leaves a transposed
    array where it is and cuDNN reads time as rows. It did so on the first card: every result was wrong.
    """
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def flat(
    w_x: Float[Array, "D G"], w_h: Float[Array, "H G"], b: Float[Array, "G"]
) -> Float[Array, "N"]:
    """Return cuDNN's vector [N] of an LSTM's weights."""
    return jnp.concatenate([w_x.T.ravel(), w_h.T.ravel(), b, jnp.zeros_like(b)])
