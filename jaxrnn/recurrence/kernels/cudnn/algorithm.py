"""Which of cuDNN's algorithms runs a recurrence.

    standard                  a product and a launch for every step; every GPU, dtype and size
    persist-static            the recurrent weights stay on the chip; float16, widths of multiples of 128
    persist-static-small-h    the same in registers, for small widths

The choice is PyTorch's (`get_algo` of aten/src/ATen/native/cudnn/RNN.cpp), which its authors measured on
several GPUs, with one difference: forward and backward pass of a training step run by the same
algorithm, since they share memory whose layout cuDNN does not describe. What cuDNN then refuses runs by
"standard". `JAXRNN_CUDNN_ALGORITHM` names another one; it is read when a program is traced.

By cuDNN's documentation the same inputs give the same bits on the same GPU and version. For "standard"
the environment variable CUBLAS_WORKSPACE_CONFIG must name one size of workspace, such as :4096:2, since
cuBLAS may otherwise choose another product where the usual workspace is in use (release notes of 7.6.5).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.cudnn import library
from jaxrnn.recurrence.kernels.cudnn.library import Numbers, Refused
from jaxrnn.recurrence.kernels.cudnn.setup import TYPES, Setup

VARIABLE = "JAXRNN_CUDNN_ALGORITHM"
# cuDNN's numbers.
NUMBERS = {"standard": 0, "persist-static": 1, "persist-static-small-h": 3}


class GPU(NamedTuple):
    """What the choice depends on.

    Attributes:
      major: the first part of the compute capability, such as 9 of 9.0.
      minor: the second part.
      multiprocessors: their number.
    """

    major: int
    minor: int
    multiprocessors: int


class Size(NamedTuple):
    """The sizes of a call: steps T, rows B, width of the inputs D."""

    steps: int
    batch: int
    features: int


def numbers_of(setup: Setup, size: Size, training: bool) -> Numbers:
    """Return a recurrence in cuDNN's numbers, with the algorithm that runs it.

    Raises:
      ValueError: where cuDNN cannot run it by the algorithm of `JAXRNN_CUDNN_ALGORITHM`, or by any; and
        where that names no algorithm.
    """
    forced = os.environ.get(VARIABLE)
    if forced is not None and forced not in NUMBERS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(NUMBERS)}, not {forced!r}")
    usual = choose(setup, size, _gpu(), training)
    refused = ""
    for name in [forced] if forced else dict.fromkeys([usual, "standard"]):
        numbers = Numbers(
            mode=setup.mode,
            type=TYPES[setup.dtype],
            algorithm=NUMBERS[name],
            tf32=setup.tf32,
            layers=setup.layers,
            both_directions=setup.both_directions,
            hidden=setup.cell.hidden_size,
            training=training,
            **size._asdict(),
        )
        try:
            for batch in divided(size.batch):
                library.sizes(numbers._replace(batch=batch))
        except Refused as problem:
            refused = f'by algorithm "{name}": {problem}'
        else:
            return numbers
    raise ValueError(f"cuDNN cannot run {setup.cell!r}, {setup.dtype}, {size} {refused}")


def refusal(setup: Setup, size: Size) -> str | None:
    """Return why cuDNN itself refuses to train such a recurrence, or None if it does not."""
    try:
        numbers_of(setup, size, training=True)
    except ValueError as reason:
        return str(reason)
    return None


def divided(batch: int) -> list[int]:
    """Return the numbers of rows that a device may get, where a `jit` divides them over several."""
    counts = range(1, jax.device_count() + 1)
    return [batch // devices for devices in counts if batch % devices == 0]


def choose(setup: Setup, size: Size, gpu: GPU, training: bool) -> str:
    """Return the name of the algorithm that PyTorch would choose."""
    gated, width = setup.cell.kind is not CellKind.RNN, setup.cell.hidden_size
    most = {(True, True): 128, (True, False): 192, (False, True): 256, (False, False): 384}
    if setup.dtype != "float64" and gpu.major >= 6 and width <= most[gated, training]:
        return "persist-static-small-h"
    one = setup.parts == 1 and width <= 1024
    aligned = width % 128 == 0 and size.features % 128 == 0
    if setup.dtype == "float16" and one and aligned and _persists(setup, size, gpu):
        return "persist-static"
    return "standard"


def _persists(setup: Setup, size: Size, gpu: GPU) -> bool:
    """Return whether a persistent kernel was measured to be faster on such a GPU."""
    steps, batch, _ = size
    if (gpu.major, gpu.minor) == (7, 0):
        few_enough = (
            (batch <= 128 and steps >= 40)
            or (batch <= 96 and steps >= 20)
            or (batch <= 32 and steps >= 10)
        )
        return few_enough and (batch == 8 or (batch % 16 == 0 and batch not in (80, 112)))
    if gpu.major < 8 or gpu.minor == 6 or gpu.multiprocessors < 98:
        return False
    if setup.cell.kind is CellKind.GRU_AFTER:
        return False
    narrow = batch < 96 or setup.cell.hidden_size < 896
    return batch % 8 == 0 and batch <= 128 and (setup.cell.kind is CellKind.LSTM or narrow)


def _gpu() -> GPU:
    """Return the device at hand; where it is no GPU, one for which only "standard" is chosen."""
    device = accelerator.device()
    major, _, minor = str(getattr(device, "compute_capability", "0.0")).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return GPU(0, 0, 0)
    return GPU(int(major), int(minor), int(getattr(device, "core_count", 0)))
