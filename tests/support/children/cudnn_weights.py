"""Compare the offsets of cuDNN's weights with those of jaxrnn, without a GPU.

cuDNN computes sizes and offsets without using a GPU, but it requires a context, which it can create only
on a GPU. With cuDNN 9.28 a block of zeros works in place of the context. Another version may crash, so
this is a program of its own. `tests/recurrence/kernels/test_cudnn_calls.py` starts it with the path of
the library. It prints the number of matrices whose offsets it compared.
"""

import ctypes
import itertools
import sys

import jax.numpy as jnp

from jaxrnn import gru, lstm, rnn
from jaxrnn.recurrence.kernels.cudnn import algorithm, weights
from jaxrnn.recurrence.kernels.cudnn.config import TYPES, CallConfig

FEATURES = 5
# An address of weights, which cuDNN does not read.
BASE = 1 << 32
CELLS = (lstm(7), gru(7, reset="after"), rnn(7), rnn(7, activation="relu"), lstm(128))


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    context = ctypes.cast(ctypes.create_string_buffer(1 << 20), ctypes.c_void_p)

    def create(kind: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        succeed(getattr(library, f"cudnnCreate{kind}Descriptor")(ctypes.byref(found)))
        return found

    recurrence, dropout, matrix, bias = map(create, ("RNN", "Dropout", "Tensor", "Tensor"))
    compared = 0
    for cell, layers, both, dtype, number in itertools.product(
        CELLS, (1, 2, 3), (False, True), TYPES, algorithm.ALGORITHMS.values()
    ):
        if dtype == "float64" and number:
            # Only "standard" supports float64.
            continue
        config = CallConfig(cell, layers, both, dtype, True, "cuda")
        size, itemsize = cell.hidden_size, jnp.dtype(dtype).itemsize
        precision = TYPES["float64" if dtype == "float64" else "float32"]
        # Double biases (2), linear inputs (0), default math (0), padded arrays (1).
        values = number, config.mode, 2, int(both), 0, TYPES[dtype], precision, 0
        succeed(
            library.cudnnSetRNNDescriptor_v8(
                recurrence, *values, FEATURES, size, size, layers, dropout, 1
            )
        )
        total = ctypes.c_size_t()
        succeed(library.cudnnGetRNNWeightSpaceSize(context, recurrence, ctypes.byref(total)))
        offsets = weights.offsets(config, FEATURES)
        # The last bias ends the vector.
        assert total.value == itemsize * (offsets[-1][1] + size)
        products = range(2 * len(cell.GATES))
        pairs = itertools.product(range(config.pseudo_layers), products)
        for (index, product), expected in zip(pairs, offsets, strict=True):
            found = [ctypes.c_void_p(), ctypes.c_void_p()]
            addresses = matrix, ctypes.byref(found[0]), bias, ctypes.byref(found[1])
            arguments = index, total, ctypes.c_void_p(BASE), product, *addresses
            succeed(library.cudnnGetRNNWeightParams(context, recurrence, *arguments))
            assert [(f.value or 0) - BASE for f in found] == [itemsize * n for n in expected]
            compared += 1
    print(compared)


def succeed(status: int) -> None:
    assert status == 0, f"cuDNN's status is {status}"


if __name__ == "__main__":
    main()
