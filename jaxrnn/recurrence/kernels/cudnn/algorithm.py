"""Choose the cuDNN algorithm of a recurrence.

    standard                  one product and one launch per step; every GPU, dtype and size
    persist-static            keeps the recurrent weights on the chip; float16, H a multiple of 128
    persist-static-small-h    keeps the recurrent weights in registers; small H

The choice follows PyTorch (`get_algo` in aten/src/ATen/native/cudnn/RNN.cpp), whose thresholds were
measured on several GPUs. There is one difference: both passes of a training step always use the same
algorithm, because they share the reserve space, whose layout cuDNN does not document. If cuDNN rejects
the chosen algorithm, "standard" is used. The environment variable `JAXRNN_CUDNN_ALGORITHM` forces an
algorithm; it is read when a program is traced.

According to cuDNN's documentation, results are bit-identical on the same GPU with the same version. With
"standard" this also requires the environment variable CUBLAS_WORKSPACE_CONFIG to name a single workspace
size, such as :4096:2. Otherwise cuBLAS may choose different kernels from call to call (release notes of
cuDNN 7.6.5).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.cudnn import library
from jaxrnn.recurrence.kernels.cudnn.config import TYPES, CallConfig
from jaxrnn.recurrence.kernels.cudnn.library import DescriptorArguments, RejectedError

VARIABLE = "JAXRNN_CUDNN_ALGORITHM"
# cuDNN's constants (cudnnRNNAlgo_t).
ALGORITHMS = {"standard": 0, "persist-static": 1, "persist-static-small-h": 3}


class GPU(NamedTuple):
    """Properties of a GPU that determine which algorithm is fastest.

    Attributes:
      major: major version of the compute capability, such as 9 for 9.0.
      minor: minor version of the compute capability.
      multiprocessors: number of multiprocessors.
    """

    major: int
    minor: int
    multiprocessors: int


class Size(NamedTuple):
    """The sizes of a call: T steps, B rows, inputs of width D."""

    steps: int
    batch: int
    features: int


def descriptor_for(config: CallConfig, size: Size, training: bool) -> DescriptorArguments:
    """Return the descriptor arguments of a call, including its algorithm.

    Raises:
      ValueError: if cuDNN supports the recurrence with none of the allowed algorithms, or if
        `JAXRNN_CUDNN_ALGORITHM` names an unknown algorithm.
    """
    forced = os.environ.get(VARIABLE)
    if forced is not None and forced not in ALGORITHMS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(ALGORITHMS)}, not {forced!r}")
    preferred = choose(config, size, _current_gpu(), training)
    for name in [forced] if forced else dict.fromkeys([preferred, "standard"]):
        descriptor = DescriptorArguments(
            mode=config.mode,
            type=TYPES[config.dtype],
            algorithm=ALGORITHMS[name],
            tf32=config.tf32,
            layers=config.layers,
            both_directions=config.both_directions,
            hidden=config.cell.hidden_size,
            training=training,
            **size._asdict(),
        )
        try:
            for batch in possible_shard_rows(size.batch):
                library.memory_sizes(descriptor._replace(batch=batch))
        except RejectedError as error:
            rejection = f'with algorithm "{name}": {error}'
        else:
            return descriptor
    raise ValueError(f"cuDNN cannot run {config.cell!r}, {config.dtype}, {size} {rejection}")


def rejection_reason(config: CallConfig, size: Size) -> str | None:
    """Return the reason why cuDNN rejects training with this configuration, or None if it accepts it."""
    try:
        descriptor_for(config, size, training=True)
    except ValueError as reason:
        return str(reason)
    return None


def possible_shard_rows(batch: int) -> list[int]:
    """Return how many rows a device can get if `jit` shards the batch over the available devices."""
    counts = range(1, jax.device_count() + 1)
    return [batch // devices for devices in counts if batch % devices == 0]


def choose(config: CallConfig, size: Size, gpu: GPU, training: bool) -> str:
    """Return the name of the algorithm that PyTorch would choose."""
    gated, width = config.cell.kind is not CellKind.RNN, config.cell.hidden_size
    # The largest H for the small-H algorithm, by (has gates, training).
    largest = {(True, True): 128, (True, False): 192, (False, True): 256, (False, False): 384}
    if config.dtype != "float64" and gpu.major >= 6 and width <= largest[gated, training]:
        return "persist-static-small-h"
    single = config.pseudo_layers == 1 and width <= 1024
    aligned = width % 128 == 0 and size.features % 128 == 0
    fits = config.dtype == "float16" and single and aligned
    return "persist-static" if fits and _persistent_is_faster(config, size, gpu) else "standard"


def _persistent_is_faster(config: CallConfig, size: Size, gpu: GPU) -> bool:
    """Return whether PyTorch's measurements favour "persist-static" on such a GPU."""
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
    if config.cell.kind is CellKind.GRU_AFTER:
        return False
    narrow = batch < 96 or config.cell.hidden_size < 896
    return batch % 8 == 0 and batch <= 128 and (config.cell.kind is CellKind.LSTM or narrow)


def _current_gpu() -> GPU:
    """Return the properties of the current device; zeros if it is not a GPU, which select "standard"."""
    device = accelerator.device()
    major, _, minor = str(getattr(device, "compute_capability", "0.0")).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return GPU(0, 0, 0)
    return GPU(int(major), int(minor), int(getattr(device, "core_count", 0)))
