"""Asks cuDNN itself, without a GPU, where it finds each matrix and bias of a vector of weights.

cuDNN gives the sizes and offsets of weights without using a GPU, but wants a context, which it can make
on a GPU alone. A block of zeros serves in its place with cuDNN 9.28. With another version it may crash,
so this is a program of its own. `tests/recurrence/kernels/test_cudnn_calls.py` starts it with the path
of the library. It prints how many offsets it compared.
"""

import ctypes
import itertools
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn import gru, lstm, rnn
from jaxrnn.recurrence.kernels.cudnn import algorithm, weights
from jaxrnn.recurrence.kernels.cudnn.setup import TYPES, Setup

FEATURES = 5
CELLS = (lstm(7), gru(7, reset="after"), rnn(7), rnn(7, activation="relu"), lstm(128))


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    context = ctypes.cast(ctypes.create_string_buffer(1 << 20), ctypes.c_void_p)

    def created(kind: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        succeed(getattr(library, f"cudnnCreate{kind}Descriptor")(ctypes.byref(found)))
        return found

    recurrence, dropout, matrix, bias = map(created, ("RNN", "Dropout", "Tensor", "Tensor"))
    compared = 0
    for cell, layers, both, dtype, number in itertools.product(
        CELLS, (1, 2, 3), (False, True), TYPES, algorithm.NUMBERS.values()
    ):
        if dtype == "float64" and number:
            # Only "standard" computes in float64.
            continue
        setup = Setup(cell, layers, both, dtype, True, "cuda")
        size, kind = cell.hidden_size, TYPES[dtype]
        precision = TYPES["float64" if dtype == "float64" else "float32"]
        # Double biases, linear inputs, default math, padded arrays.
        described = number, setup.mode, 2, int(both), 0, kind, precision, 0, FEATURES, size, size
        succeed(library.cudnnSetRNNDescriptor_v8(recurrence, *described, layers, dropout, 1))
        total = ctypes.c_size_t()
        succeed(library.cudnnGetRNNWeightSpaceSize(context, recurrence, ctypes.byref(total)))
        assert total.value == jnp.dtype(dtype).itemsize * weights.count(setup, FEATURES)
        for part, product, *want in places(setup):
            data = [ctypes.c_void_p(), ctypes.c_void_p()]
            base = ctypes.c_void_p(1 << 32)
            pair = matrix, ctypes.byref(data[0]), bias, ctypes.byref(data[1])
            given = part, total, base, product, *pair
            succeed(library.cudnnGetRNNWeightParams(context, recurrence, *given))
            assert [(found.value or 0) - (1 << 32) for found in data] == want
            compared += 1
    print(compared)


def places(setup: Setup) -> Any:
    """Yield (part, product, offset of the matrix, offset of the bias) in bytes."""
    size, products = setup.cell.hidden_size, 2 * len(setup.cell.GATES)
    both = list(itertools.product(range(setup.parts), range(products)))
    columns = [
        setup.inputs_of(part, FEATURES) if product < products // 2 else size
        for part, product in both
    ]
    lengths = [size * width for width in columns] + [size] * len(both)
    starts = np.concatenate([[0], np.cumsum(lengths)]) * jnp.dtype(setup.dtype).itemsize
    for n, (part, product) in enumerate(both):
        yield part, product, starts[n], starts[n + len(both)]


def succeed(status: int) -> None:
    assert status == 0, f"cuDNN's status is {status}"


if __name__ == "__main__":
    main()
