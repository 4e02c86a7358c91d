"""The C++ of kernels/cudnn on a CPU, with a stand-in for cuDNN that computes on the host."""

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
CPLUSPLUS = LIBRARY.source.parent
STAND_IN = Library(
    "cudnn-stand-in",
    HERE / "stand_in.cc",
    handlers=(),
    platform="cpu",
    systems=("Linux",),
    includes=(CPLUSPLUS,),
)
HOST = Library(
    "cudnn-host",
    HERE / "host_calls.cc",
    handlers=LIBRARY.handlers,
    platform="cpu",
    systems=("Linux",),
    includes=(cplusplus.HERE, CPLUSPLUS),
)


@functools.cache
def load() -> ctypes.CDLL:
    """Return the C++ library, compiled for the host, after it has loaded the stand-in."""
    return library.load_cudnn(HOST.load(), [str(STAND_IN.path())])


def live_descriptors() -> int:
    """Return the number of descriptors that have been created and not destroyed."""
    return ctypes.CDLL(str(STAND_IN.path())).stand_in_live_objects()


def skip_without_compiler() -> None:
    """Skip a test if this machine cannot compile the C++. This is checked when the test runs."""
    if HOST.unavailable_reason:
        pytest.skip(f"waits for a C++ compiler: {HOST.unavailable_reason}")


@contextmanager
def use_stand_in() -> Iterator[None]:
    """Use the stand-in in place of cuDNN, in programs for a CPU. Skip if it cannot be compiled."""
    skip_without_compiler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load", load)
        library.memory_sizes.cache_clear()
        yield
        library.memory_sizes.cache_clear()
