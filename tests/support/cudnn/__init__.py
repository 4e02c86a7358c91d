"""cuDNN's wrapper on a CPU, with a stand-in for cuDNN that computes on the host."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxrnn.recurrence.kernels import cplusplus
from jaxrnn.recurrence.kernels.cplusplus import Library
from jaxrnn.recurrence.kernels.cudnn import library
from jaxrnn.recurrence.kernels.cudnn.build import LIBRARY

HERE = Path(__file__).parent
WRAPPER = LIBRARY.source.parent
STAND_IN = Library(
    "cudnn-stand-in",
    HERE / "stand_in.cc",
    handlers=(),
    platform="cpu",
    systems=("Linux",),
    includes=(WRAPPER,),
)
HOST = Library(
    "cudnn-host",
    HERE / "host_calls.cc",
    handlers=LIBRARY.handlers,
    platform="cpu",
    systems=("Linux",),
    includes=(cplusplus.HERE, WRAPPER),
)


@functools.cache
def opened() -> ctypes.CDLL:
    """Return the wrapper for the host with the stand-in opened."""
    return library.with_cudnn(HOST.load(), [str(STAND_IN.path())])


def live_descriptors() -> int:
    """Return the number of descriptors that were created and not destroyed."""
    return ctypes.CDLL(str(STAND_IN.path())).stand_in_live_objects()


def skip_without_compiler() -> None:
    """Skip a test on a machine that cannot compile the wrapper. It is asked for when the test runs."""
    if HOST.missing:
        pytest.skip(f"waits for a C++ compiler: {HOST.missing}")


@contextmanager
def in_place_of_cudnn() -> Iterator[None]:
    """Let the library call the stand-in, in programs for a CPU; skip where it cannot be compiled."""
    skip_without_compiler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "opened", opened)
        library.sizes.cache_clear()
        yield
        library.sizes.cache_clear()
