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
from jaxrnn.recurrence.inputs import Dense, Inputs, Masks
from jaxrnn.shapes import Array, Float


def unsupported_reason(
    cell: Any,
    batch: int,
    dtype: Any,
    *,
    projected: bool = False,
    resets: bool = False,
    reverse: bool = False,
) -> str | None:
    """Why cuDNN cannot run such a problem on the GPU at hand; None where it can.

    projected: the inputs come as [T, B, G] or as a `Lookup`, not as a `Dense`.
    """
    if type(cell) is not LSTM:
        return f"JAX offers cuDNN's LSTM alone, not {cell!r}; use 'xla'"
    if cell.peephole:
        return "cuDNN's LSTM has no peepholes; use 'xla'"
    if dtype != jnp.float32:
        return f"JAX offers it in float32 alone, not {jnp.dtype(dtype)}; use 'xla'"
    if projected:
        return "it multiplies the inputs itself and cannot take projected ones; use 'xla'"
    if resets:
        return "it cannot start a row afresh in the middle (resets); use 'xla'"
    if reverse:
        return "it is wrapped for the forward direction alone (reverse); use 'xla'"
    if "rocm" in accelerator.device().client.platform_version.lower():
        return "cuDNN runs on NVIDIA's GPUs alone; use 'xla'"
    return None


def run(
    cell: Any,
    params: Any,
    inputs: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    *,
    interpret: bool = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H] in float32.

    Args:
      cell: an `lstm` without peepholes.
      params: the cell's parameters in float32.
      inputs: a `Dense`.
      state, masks: as for `kernels.xla.run`; the steps that count are a row's first.
      interpret: run JAX's plain reference of the same call on any device, for tests.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    projected, resets = not isinstance(inputs, Dense), masks.reset is not None
    limits = {"projected": projected, "resets": resets, "reverse": reverse}
    reason = unsupported_reason(cell, inputs.shape[1], params.w_h.dtype, **limits)
    if reason:
        raise ValueError(f"cuDNN cannot run this: {reason}")
    xs, active = inputs.xs, masks.active  # type: ignore[union-attr]
    steps, batch, features = xs.shape
    if steps == 0:
        return state, jnp.zeros((0, batch, cell.hidden_size), state.hidden.dtype)
    lengths = jnp.full(batch, steps, jnp.int32)
    if active is not None:
        xs = jnp.where(active[..., None], xs, 0)
        lengths = active.sum(0, dtype=jnp.int32)
    weights = flat(inputs.w_x, params.w_h, inputs.b)  # type: ignore[union-attr]
    sizes = (features, cell.hidden_size, 1, 0.0, False)  # one layer, no dropout, one direction
    some = jnp.maximum(lengths, 1)  # cuDNN's rows have one step at least
    arguments = (_row_major(xs.swapaxes(0, 1)), state.hidden[None], state.cell[None])
    if interpret:
        apart = rnn.unpack_lstm_weights(weights, features, cell.hidden_size, 1, False)
        ys, hidden, memory = rnn.lstm_ref(*arguments, *apart, some, *sizes)
    else:
        ys, hidden, memory = rnn.lstm(*arguments, weights, some, *sizes)
    ys, final = _row_major(ys).swapaxes(0, 1), type(state)(hidden[0], memory[0])
    if active is None:
        return final, ys
    final = jax.tree.map(lambda a, s: jnp.where(lengths[:, None] > 0, a, s), final, state)
    return final, jnp.where(active[..., None], ys, 0)


def _row_major(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """x, laid out in memory as its shape says, and its cotangent too.

    JAX calls cuDNN without saying how the arrays must be laid out, so that XLA leaves a transposed
    array where it is and cuDNN reads time as rows. It did so on the first card: every result was wrong.
    """
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def flat(
    w_x: Float[Array, "D G"], w_h: Float[Array, "H G"], b: Float[Array, "G"]
) -> Float[Array, "N"]:
    """cuDNN's vector of an LSTM's weights."""
    return jnp.concatenate([w_x.T.ravel(), w_h.T.ravel(), b, jnp.zeros_like(b)])
