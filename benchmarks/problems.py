"""Cells, sizes, vocabulary and tolerances that several benchmarks use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxrnn

# Functions that make a cell of a hidden size, by the names of `jaxrnn.recurrence.cells.cell_name`.
CELLS: dict[str, Callable[[int], Any]] = {
    "rnn": jaxrnn.rnn,
    "lstm": jaxrnn.lstm,
    "lstm-peephole": lambda hidden: jaxrnn.lstm(hidden, peephole=True),
    "gru-before": lambda hidden: jaxrnn.gru(hidden, reset="before"),
    "gru-after": lambda hidden: jaxrnn.gru(hidden, reset="after"),
}
PASSES = ("forward", "forward+backward")
DTYPES = ("float32", "bfloat16")

# Batch B, steps T, inputs I and hidden size H.
Size = tuple[int, ...]
SIZES: list[Size] = [
    (64, 100, 256, 1024),
    (64, 100, 256, 512),
    (50, 50, 128, 128),
    (1, 100, 128, 256),
    (16, 1000, 64, 64),
]
# These are measured as well on a GPU or TPU.
WIDE_SIZES: list[Size] = [
    (batch, 1024, hidden, hidden) for hidden in (256, 512, 1024, 2048) for batch in (1, 16, 64, 256)
]
QUICK_SIZES: list[Size] = [(16, 20, 32, 64), (1, 50, 32, 64)]

# 65 characters, as many as Tiny Shakespeare has.
VOCABULARY = jaxrnn.Vocabulary.of("".join(map(chr, range(32, 97))))

# The largest error of an output or gradient, in units of its array's largest entry. By default a float32
# product is made of TF32 parts on GPUs and of bfloat16 parts on TPUs, in jaxrnn and in its peers.
TOLERANCES = {
    ("cpu", "float32"): 1e-4,
    ("gpu", "float32"): 1e-2,
    ("tpu", "float32"): 5e-2,
    ("cpu", "bfloat16"): 1e-1,
    ("gpu", "bfloat16"): 1e-1,
    ("tpu", "bfloat16"): 1e-1,
}
