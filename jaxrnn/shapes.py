"""What the letters in the shape annotations mean. Time comes first inside the library.

    T  time steps            D  input features          V  tokens in the vocabulary
    B  rows of the batch     H  hidden units            E  embedding width
    G  gates times H: 4H for an LSTM, 3H for a GRU, H for a plain RNN

Batches of text are [B, T] where people meet them (rows of characters) and [T, B] from the model
inwards. The tests check every annotation at run time (jaxtyping with beartype); the library itself
does not need jaxtyping, and without it the names below mean only "an array".
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
Given = jax.Array | np.ndarray  # what callers of the library may give for an array
Scalar = Float[Array, ""]
Key = jax.Array

__all__ = ["Array", "Bool", "Float", "Given", "Int", "Integer", "Key", "Scalar", "UInt"]
