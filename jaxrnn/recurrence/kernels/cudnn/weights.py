"""The layout of cuDNN's weights, which are one vector. No other module depends on this layout.

    the matrices of every pseudo-layer, then the biases of every pseudo-layer

    matrices   W_0 ... W_n-1  [H, inputs]  multiplied by the inputs, one for each of n gates
               R_0 ... R_n-1  [H, H]       multiplied by the hidden state
    biases     b_0 ... b_n-1  [H]          added to the products with the inputs
               q_0 ... q_n-1  [H]          added to the products with the hidden state

Matrices are stored row by row, and are the transposed blocks of jaxrnn's w_x and w_h. The gate order of
an LSTM is input, forget, new memory, output, the same as jaxrnn's i, f, g, o. The gate order of a GRU is
reset, update, new, or r, z, n, where jaxrnn has z, r, n. The second biases q are zero, except for q_n of
a GRU, which is jaxrnn's b_h.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig
from jaxrnn.recurrence.parameters import GRUParams, LSTMParams, RNNParams
from jaxrnn.shapes import Array, Float


def pack(config: CallConfig, params: Sequence[Any], minimum: int = 0) -> Float[Array, "N"]:
    """Return the weight vector.

    Args:
      config: the configuration of the call.
      params: the cell parameters of every pseudo-layer: w_x [inputs, G], w_h [H, G], b [G] and b_h [H].
      minimum: the minimum length of the vector; zeros are appended to reach it.
    """
    matrices = [_by_gate(config, w).ravel() for p in params for w in (p.w_x, p.w_h)]
    biases = [
        b for p in params for b in (_by_gate(config, p.b[None]).ravel(), _second_bias(config, p))
    ]
    vectors = [x.astype(config.dtype) for x in (*matrices, *biases)]
    missing = minimum - sum(x.size for x in vectors)
    if missing > 0:
        vectors.append(jnp.zeros(missing, config.dtype))
    return jnp.concatenate(vectors)


def unpack(config: CallConfig, vector: Float[Array, "N"], features: int) -> list[Any]:
    """Return the cell parameters of every pseudo-layer. This is the inverse of `pack`.

    Args:
      config: the configuration of the call.
      vector: the weight vector, or its gradient.
      features: D, the width of the first layer's inputs.
    """
    place = 0

    def take(size: int) -> Array:
        nonlocal place
        place += size
        return vector[place - size : place]

    gates, size = len(config.cell.GATES), config.cell.hidden_size
    matrices = [
        [take(gates * size * width) for width in (config.input_width(index, features), size)]
        for index in range(config.pseudo_layers)
    ]
    biases = [[take(gates * size) for _ in range(2)] for _ in range(config.pseudo_layers)]
    params = []
    for (w, r), (b, q) in zip(matrices, biases, strict=True):
        w_x, w_h, first = (_from_gates(config, x) for x in (w, r, b))
        params.append(_make_params(config, w_x, w_h, first[0], q))
    return params


def offsets(config: CallConfig, features: int) -> list[tuple[int, int]]:
    """Return the offsets of every matrix and its bias, in entries of the weight vector.

    cuDNN can be asked for these offsets as well (`library.offsets`), to check the layout.

    Args:
      config: the configuration of the call.
      features: D, the width of the first layer's inputs.

    Returns:
      (offset of the matrix, offset of the bias), for each pseudo-layer first those of W and b of every
      gate, then those of R and q.
    """
    gates, size = len(config.cell.GATES), config.cell.hidden_size
    widths = [
        width
        for index in range(config.pseudo_layers)
        for width in [config.input_width(index, features)] * gates + [size] * gates
    ]
    lengths = [size * width for width in widths] + [size] * len(widths)
    starts = [0, *itertools.accumulate(lengths)]
    return list(zip(starts[: len(widths)], starts[len(widths) : -1], strict=True))


def _by_gate(config: CallConfig, w: Float[Array, "K G"]) -> Float[Array, "gates H K"]:
    """Return a matrix in cuDNN's layout: one transposed block for each gate, in cuDNN's order."""
    rows, gates = w.shape[0], len(config.cell.GATES)
    return _reordered(config, w.reshape(rows, gates, -1).transpose(1, 2, 0))


def _from_gates(config: CallConfig, x: Float[Array, "M"]) -> Float[Array, "K G"]:
    """Return a matrix in jaxrnn's layout. This is the inverse of `_by_gate`."""
    gates, size = len(config.cell.GATES), config.cell.hidden_size
    rows = x.size // (gates * size)
    by_gate = _reordered(config, x.reshape(gates, size, rows))
    return by_gate.transpose(2, 0, 1).reshape(rows, gates * size)


def _reordered(config: CallConfig, by_gate: Float[Array, "gates H K"]) -> Float[Array, "gates H K"]:
    """Swap the first two gates of a GRU, which converts between jaxrnn's order and cuDNN's."""
    if not isinstance(config.cell, GRU):
        return by_gate
    return jnp.concatenate([by_gate[1:2], by_gate[0:1], by_gate[2:]])


def _second_bias(config: CallConfig, params: Any) -> Float[Array, "G"]:
    size = config.cell.hidden_size
    if not isinstance(config.cell, GRU):
        return jnp.zeros(len(config.cell.GATES) * size, params.b.dtype)
    return jnp.concatenate([jnp.zeros(2 * size, params.b_h.dtype), params.b_h])


def _make_params(config: CallConfig, w_x: Array, w_h: Array, b: Array, second: Array) -> Any:
    if isinstance(config.cell, LSTM):
        return LSTMParams(w_x, w_h, b)
    if isinstance(config.cell, GRU):
        return GRUParams(w_x, w_h, b, second[2 * config.cell.hidden_size :])
    return RNNParams(w_x, w_h, b)
