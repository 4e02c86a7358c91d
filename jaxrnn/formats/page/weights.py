"""The weights of a page: rounded, and encoded for JavaScript."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.literals import Weights

# The arrays that are rounded.
MATRICES = ("embedding", "w_x", "w_h", "w_out")
# The largest number of float16.
HALF_RANGE = float(np.finfo(np.float16).max)


class Rounded(NamedTuple):
    """An array of the model as the page has it.

    stored: the numbers in the dtype of the page.
    scales: of an int8 matrix, what its rows [K, 1] or columns [1, N] are multiplied by; else None.
    """

    stored: np.ndarray
    scales: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """Return the numbers that the page computes with, in float32."""
        values = self.stored.astype(np.float32)
        return values if self.scales is None else values * self.scales


def rounded(params: charlm.Params, weights: Weights) -> charlm.Params:
    """Return the model with a `Rounded` in place of each array.

    float16 and int8 are for matrices. Vectors (biases and peepholes) stay float32: they are a thousandth
    of the numbers. float16 leaves a matrix with a number beyond its range in float32. int8 is symmetric,
    with one scale for each column of a matrix, because all products of a column are added up to one
    number, which is multiplied by the scale as a whole; the embedding has one for each row instead, the
    vector of one character, since characters that occur rarely have small vectors.
    """

    def each(path: Any, array: Any) -> Rounded:
        array = np.asarray(array, np.float32)
        name = path[-1].name
        if name not in MATRICES or weights == "float32":
            return Rounded(array)
        if weights == "float16":
            return _half(array)
        return _eight_bits(array, by_rows=name == "embedding")

    return jax.tree_util.tree_map_with_path(each, params)


def values(model: charlm.Params) -> charlm.Params:
    """Return the model with the numbers that the page computes with, from `rounded`."""
    return jax.tree.map(lambda r: r.values(), model, is_leaf=_is_rounded)


def encoded(model: charlm.Params) -> dict[str, Any]:
    """Return the arrays of a model from `rounded` as the page's JavaScript decodes them."""
    layers = [
        {name: _encoded(a) for name, a in layer._asdict().items() if a is not None}
        for layer in model.layers
    ]
    return {
        "embedding": _encoded(model.embedding),
        "layers": layers,
        "w_out": _encoded(model.w_out),
        "b_out": _encoded(model.b_out),
    }


def _is_rounded(tree: Any) -> bool:
    return isinstance(tree, Rounded)


def _half(array: np.ndarray) -> Rounded:
    fits = np.abs(array).max() <= HALF_RANGE
    return Rounded(array.astype(np.float16) if fits else array)


def _eight_bits(array: np.ndarray, by_rows: bool) -> Rounded:
    largest = np.abs(array).max(axis=1 if by_rows else 0, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return Rounded(np.round(array / scales).astype(np.int8), scales)


def _encoded(array: Rounded | None) -> dict[str, Any] | None:
    if array is None:
        return None
    stored, scales = array
    content = {"type": stored.dtype.name, "shape": list(stored.shape), "data": _base64(stored)}
    if scales is not None:
        by_rows = scales.shape == (len(stored), 1)
        content |= {"scaled": "rows" if by_rows else "columns", "scales": _base64(scales)}
    return content


def _base64(array: np.ndarray) -> str:
    """Return an array's bytes, row by row and in little-endian order, as base64."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()
