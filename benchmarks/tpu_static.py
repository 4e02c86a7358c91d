"""Static bounds for the recurrence on TPUs that are not here, per chip and size. No number is a time.

    python benchmarks/tpu_static.py            # every chip and size; writes the JSON
    python benchmarks/tpu_static.py --quick    # v5e at H = 512, writes nothing

An LSTM with bfloat16 weights, forward and backward, compiled ahead of time (needs libtpu). For every
step of time it sets side by side

- bundles of the Pallas kernels: instruction words in the loop over time, each at least one cycle. A
  lower bound: waiting for data, for the matrix unit or for a predicate is not in it.
- estimated cycles of "scan" and "xla": XLA's own cost model, summed over the operations in the body of
  the loop over time. Not a bound on either side, and blind to what overlaps.

What either side does outside of its loops over time (dw_h, and for scan nothing of it) is not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import aot
import jax
import jax.numpy as jnp
import measure
from rich.console import Console
from rich.table import Table

import jaxrnn
from jaxrnn.unroll import unroll_projected

SIZES = (256, 512, 1024, 2048)
STEPS = 64  # of time, divisible by every block
DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"  # read once, when libtpu is loaded
OUTPUT = measure.RESULTS / "tpu_static.json"
PASSES = ("forward", "backward")


class Block(NamedTuple):
    """A loop in a kernel's machine code: its trip count, its own bundles and the loops in it."""

    trips: int
    bundles: int
    inner: list[Any]

    @property
    def executed(self) -> int:
        return self.trips * (self.bundles + sum(block.executed for block in self.inner))


def kernel_bundles(text: str) -> float:
    """Bundles per step of time in a kernel's `final_bundles` text, over all rows of the batch.

    The text has a line for each bundle, `address  mark: > > { ... }`, with as many `>` as loops around
    it. The first loop is Pallas' own, over the blocks of the grid; what is in the loops inside it, over
    the steps of a block and the tiles of a step, is counted here.
    """
    grid = _block(_lines(text), 0)
    pairs = re.findall(r"window shape is \w+\[([\d,]+)\], while the full shape is \w+\[([\d,]+)\]", text)
    windows = [[tuple(map(int, shape.split(","))) for shape in pair] for pair in pairs]
    window, full = next(pair for pair in windows if len(pair[0]) == 3)  # [T, B, N], streamed
    rows = -(-full[1] // window[1])
    in_a_block = sum(loop.executed for outer in grid.inner for loop in outer.inner)
    return rows * in_a_block / window[0]


def _lines(text: str) -> list[tuple[int, bool, int | None]]:
    """Of each bundle: how many loops are around it, whether one begins, the bound of one that ends."""
    found = re.findall(r"^ *(?:0x[0-9a-f]+|0) +(?:([A-Z]{2}): )? *: *((?:> ?)*)\{(.*)|^ *(?:0x[0-9a-f]+|0) +([A-Z]{2}): ((?:> ?)*)\{(.*)", text, re.M)
    raise NotImplementedError
