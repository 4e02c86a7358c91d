"""The number of CTAs that a GPU runs at once, by the size of their clusters.

CTAs that wait for a CTA that is not on the GPU wait forever, so a kernel whose CTAs synchronise may only
be launched where all of them are resident. A cluster must fit in one GPC, whose number of
multiprocessors differs from GPC to GPC and from card to card, so fewer CTAs fit in larger clusters. The
driver knows how many; `ROOM` is for machines without a driver.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels.hopper.tiles import CLUSTERS, SHARED

# Number of CTAs that are resident at once, for each of CLUSTERS.
Room = tuple[int, ...]

# The room of an H100 or H200 with 132 multiprocessors, no larger than that of any card. One that was
# asked has 132, 132, 120, 120, 112; a GPC may have 16 multiprocessors or 18.
ROOM: Room = (132, 132, 116, 112, 96)

THREADS = 128
# PTX of an empty kernel to ask the driver about.
_PTX = b""".version 8.0
.target sm_90
.address_size 64
.visible .entry nothing() .maxntid 256, 1, 1 { ret; }
"""
# Numbers of CUfunction_attribute in cuda.h.
_MAX_DYNAMIC_SHARED = 8
_NON_PORTABLE_CLUSTER = 14
# Number of CUlaunchAttributeID in cuda.h.
_CLUSTER_DIMENSION = 4


def room() -> Room:
    """Return the room of the GPU in use, from its driver, and elsewhere `ROOM`."""
    device = accelerator.device()
    ordinal = getattr(device, "local_hardware_id", None)
    if device.platform == "gpu" and ordinal is not None:
        return asked(ordinal)
    # Another platform, or a GPU that is only compiled for.
    return smaller(getattr(device, "core_count", None) or ROOM[0])


def smaller(multiprocessors: int) -> Room:
    """Return `ROOM` for a GPU with fewer multiprocessors: without all CTAs that may be missing."""
    missing = max(0, ROOM[0] - multiprocessors)
    return tuple(
        max(0, (ctas - missing) // size * size) for size, ctas in zip(CLUSTERS, ROOM, strict=True)
    )


@functools.cache
def asked(ordinal: int) -> Room:
    """Return the room of the device with this number, as the CUDA driver says.

    Raises:
      RuntimeError: where the driver cannot be asked.
    """
    driver = _Driver(ordinal)
    try:
        return tuple(size * driver.clusters(size) for size in CLUSTERS)
    finally:
        driver.close()


class _LaunchAttribute(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_uint * 13),
    ]


class _LaunchConfig(ctypes.Structure):
    _fields_ = [
        *((f"{what}_{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class _Driver:
    """The CUDA driver, in the context that JAX uses, which is left as it was."""

    def __init__(self, ordinal: int) -> None:
        """Load the driver, and the empty kernel on the device with this number."""
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"the CUDA driver cannot be loaded: {error}") from None
        self._device = ctypes.c_int()
        self._module = ctypes.c_void_p()
        self._kernel = ctypes.c_void_p()
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), ordinal)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxPushCurrent_v2", context)
        self._call("cuModuleLoadData", ctypes.byref(self._module), _PTX)
        self._call("cuModuleGetFunction", ctypes.byref(self._kernel), self._module, b"nothing")
        self._call("cuFuncSetAttribute", self._kernel, _MAX_DYNAMIC_SHARED, SHARED)
        self._call("cuFuncSetAttribute", self._kernel, _NON_PORTABLE_CLUSTER, 1)

    def clusters(self, size: int) -> int:
        """Return the number of clusters of this size that are resident at once."""
        attribute = _LaunchAttribute(id=_CLUSTER_DIMENSION, cluster=(size, 1, 1))
        config = _LaunchConfig(
            grid_x=size,
            grid_y=1,
            grid_z=1,
            block_x=THREADS,
            block_y=1,
            block_z=1,
            shared_bytes=SHARED,
            attributes=ctypes.addressof(attribute),
            attribute_count=1,
        )
        count = ctypes.c_int()
        self._call(
            "cuOccupancyMaxActiveClusters",
            ctypes.byref(count),
            self._kernel,
            ctypes.byref(config),
        )
        return count.value

    def close(self) -> None:
        """Unload the kernel and restore the previous context."""
        previous = ctypes.c_void_p()
        self._call("cuModuleUnload", self._module)
        self._call("cuCtxPopCurrent_v2", ctypes.byref(previous))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise RuntimeError(f"the CUDA driver's {name} failed with error {status}")
