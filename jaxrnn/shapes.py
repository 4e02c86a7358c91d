"""The letters of the shape annotations. Time comes first inside the library.

    T  time steps            D  input features          V  tokens in the vocabulary
    B  rows of the batch     H  hidden size             E  embedding size
    G  gates times H: 4H for an LSTM, 3H for a GRU, H for a plain RNN
    C  units of the memory of a projected LSTM, whose output is H wide
    T1 T + 1                 K, N  any other width      P  tokens of a prime      L  layers

Batches of text are [B, T] at the public functions (rows of characters) and [T, B] inside of the model.
The tests check every annotation at run time (jaxtyping with beartype). The library itself does not need
jaxtyping; without it the names below mean "an array".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer, UInt
else:
    try:
        from jaxtyping import Bool, Float, Int, Integer, UInt
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Integer = UInt = _Unchecked

Array = jax.Array
# What callers of the library may pass for an array.
Given = jax.Array | np.ndarray
Scalar = Float[Array, ""]
Key = jax.Array

__all__ = ["Array", "Bool", "Float", "Given", "Int", "Integer", "Key", "Scalar", "UInt"]
