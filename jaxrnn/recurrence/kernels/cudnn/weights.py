"""cuDNN's vector of weights, the one place that knows its order.

For layers and directions (a "part" each: layer 0 forward, layer 0 backward, layer 1 forward, ...):

    matrices of all parts, then biases of all parts

    matrices of a part   W_0 ... W_n-1  [H, inputs] each     times the part's inputs, one per gate
                         R_0 ... R_n-1  [H, H] each          times its state
    biases of a part     b_0 ... b_n-1  [H] each             added to the products with the inputs
                         q_0 ... q_n-1  [H] each             added to the products with the state

Matrices are row by row, so they are ours transposed. The gates are in the order of cuDNN's
"linear layer" numbers: an LSTM's input, forget, new memory and output gate, which is our i, f, g, o; a
GRU's reset, update and new gate, which is our r, z, n, where ours is z, r, n. The second biases are zero
but for q_n of a GRU, our b_h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.kernels.cudnn.setup import Setup
from jaxrnn.recurrence.parameters import GRUParams, LSTMParams, RNNParams
from jaxrnn.shapes import Array, Float


def count(setup: Setup, features: int) -> int:
    """Return N, the number of entries of the vector, for inputs of width D = `features`."""
    sizes = [size for part in range(setup.parts) for size in _sizes(setup, part, features)]
    return sum(sizes)


def pack(setup: Setup, parts: Sequence[Any], least: int = 0) -> Float[Array, "N"]:
    """Return the vector of the parameters of every part.

    Args:
      setup: the static part of the call.
      parts: the cells' parameters, w_x [inputs, G], w_h [H, G], b [G] and b_h [H].
      least: the least number of entries, in case that cuDNN wants zeros after the last bias.
    """
    matrices = [_by_gate(setup, w).ravel() for p in parts for w in (p.w_x, p.w_h)]
    biases = [
        b for p in parts for b in (_by_gate(setup, p.b[None]).ravel(), _second_bias(setup, p))
    ]
    vectors = [x.astype(setup.dtype) for x in (*matrices, *biases)]
    missing = least - sum(x.size for x in vectors)
    if missing > 0:
        vectors.append(jnp.zeros(missing, setup.dtype))
    return jnp.concatenate(vectors)


def unpack(setup: Setup, vector: Float[Array, "N"], features: int) -> list[Any]:
    """Return the parameters of every part; the inverse of `pack`.

    Args:
      setup: the static part of the call.
      vector: from `pack`, or its gradient.
      features: D, the width of the first layer's inputs.
    """
    place = 0

    def take(size: int) -> Array:
        nonlocal place
        place += size
        return vector[place - size : place]

    sizes = [_sizes(setup, part, features) for part in range(setup.parts)]
    matrices = [(take(w), take(r)) for w, r, _, _ in sizes]
    biases = [(take(b), take(q)) for _, _, b, q in sizes]
    found = []
    for (w, r), (b, q) in zip(matrices, biases, strict=True):
        w_x, w_h, first = (_from_gates(setup, x) for x in (w, r, b))
        found.append(_params(setup, w_x, w_h, first[0], q))
    return found


def _sizes(setup: Setup, part: int, features: int) -> tuple[int, int, int, int]:
    """Return the numbers of entries of a part's W, R, b and q, of all gates."""
    size = setup.cell.hidden_size
    columns = len(setup.cell.GATES) * size
    inputs = setup.inputs_of(part, features)
    return inputs * columns, size * columns, columns, columns


def _by_gate(setup: Setup, w: Float[Array, "K G"]) -> Float[Array, "gates H K"]:
    """Return a matrix as cuDNN has it: its gates in cuDNN's order, each transposed."""
    rows, gates = w.shape[0], len(setup.cell.GATES)
    return _reordered(setup, w.reshape(rows, gates, -1).transpose(1, 2, 0))


def _from_gates(setup: Setup, x: Float[Array, "M"]) -> Float[Array, "K G"]:
    """Return the matrix of which `_by_gate` made these entries."""
    gates, size = len(setup.cell.GATES), setup.cell.hidden_size
    rows = x.size // (gates * size)
    by_gate = _reordered(setup, x.reshape(gates, size, rows))
    return by_gate.transpose(2, 0, 1).reshape(rows, gates * size)


def _reordered(setup: Setup, by_gate: Float[Array, "gates H K"]) -> Float[Array, "gates H K"]:
    """Exchange the first two gates of a GRU, ours for cuDNN's or cuDNN's for ours."""
    if not isinstance(setup.cell, GRU):
        return by_gate
    return jnp.concatenate([by_gate[1:2], by_gate[0:1], by_gate[2:]])


def _second_bias(setup: Setup, params: Any) -> Float[Array, "G"]:
    size = setup.cell.hidden_size
    if not isinstance(setup.cell, GRU):
        return jnp.zeros(len(setup.cell.GATES) * size, params.b.dtype)
    return jnp.concatenate([jnp.zeros(2 * size, params.b_h.dtype), params.b_h])


def _params(setup: Setup, w_x: Array, w_h: Array, b: Array, second: Array) -> Any:
    if isinstance(setup.cell, LSTM):
        return LSTMParams(w_x, w_h, b)
    if isinstance(setup.cell, GRU):
        return GRUParams(w_x, w_h, b, second[2 * setup.cell.hidden_size :])
    return RNNParams(w_x, w_h, b)
