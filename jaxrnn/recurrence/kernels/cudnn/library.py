"""Find and load cuDNN, and query its version and the memory that a recurrence needs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from jaxrnn.recurrence.kernels import Missing
from jaxrnn.recurrence.kernels.cplusplus import NotBuilt
from jaxrnn.recurrence.kernels.cudnn.build import LIBRARY

# The file name under which JAX and the system load cuDNN.
NAME = "libcudnn.so.9"


class MemorySizes(NamedTuple):
    """Memory that a recurrence needs, in bytes."""

    weights: int
    workspace: int
    reserve: int


class DescriptorArguments(NamedTuple):
    """The values from which the C++ creates cuDNN's descriptors.

    The fields are in the order of the C++ struct of the same name in queries.h.
    """

    mode: int
    type: int
    algorithm: int
    tf32: bool
    layers: int
    both_directions: bool
    steps: int
    batch: int
    features: int
    hidden: int
    training: bool


class RejectedError(Exception):
    """cuDNN returned an error for a recurrence; the message contains cuDNN's own text."""


@functools.cache
def unavailable_reason() -> Missing | None:
    """Return why cuDNN cannot be used on this machine, or None if it can."""
    try:
        load()
    except (NotBuilt, OSError) as reason:
        return Missing(reason)
    return None


@functools.cache
def load() -> ctypes.CDLL:
    """Compile and load the C++ of this folder, and load cuDNN.

    Raises:
      NotBuilt: if the C++ cannot be compiled, or cuDNN cannot be loaded or is too old.
    """
    if LIBRARY.unavailable_reason:
        raise NotBuilt(LIBRARY.unavailable_reason)
    return load_cudnn(LIBRARY.load(), _candidate_files())


def load_cudnn(library: ctypes.CDLL, files: list[str]) -> ctypes.CDLL:
    """Let the C++ load cuDNN from the first of the files that works, and return the C++ library.

    Raises:
      NotBuilt: if none of the files works; the message is that of the last file.
    """
    for name in ("open", "sizes", "offsets"):
        getattr(library, f"jaxrnn_cudnn_{name}").restype = ctypes.c_char_p
    error = ""
    for file in files:
        error = library.jaxrnn_cudnn_open(file.encode()).decode(errors="replace")
        if not error:
            return library
    raise NotBuilt(f'cuDNN cannot be used: {error}; `pip install "jax[cuda13]"` installs it')


def _candidate_files() -> list[str]:
    """Return the files to try, in order: already loaded, in a Python package, in the system."""
    with contextlib.suppress(OSError):
        # JAX has loaded cuDNN. A second version in the same process would conflict with it.
        ctypes.CDLL(NAME, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return [NAME]
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    installed = [str(path) for folder in folders for path in Path(folder).glob(f"cudnn/lib/{NAME}")]
    return [*installed, NAME]


def version() -> str:
    """Return cuDNN's version, such as "9.28.1"."""
    function = load().jaxrnn_cudnn_version
    function.restype = ctypes.c_int64
    number = function()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


@functools.lru_cache(maxsize=4096)
def memory_sizes(descriptor: DescriptorArguments) -> MemorySizes:
    """Return the memory that a recurrence needs.

    Raises:
      RejectedError: if cuDNN does not support the recurrence.
    """
    sizes = (ctypes.c_int64 * 3)()
    error = load().jaxrnn_cudnn_sizes(_c_array(descriptor), sizes)
    if error:
        raise RejectedError(error.decode(errors="replace"))
    return MemorySizes(*sizes)


def offsets(descriptor: DescriptorArguments, pseudo_layer: int, product: int) -> tuple[int, int]:
    """Return the offsets of a matrix and its bias in the weight vector, in bytes.

    Args:
      descriptor: the recurrence.
      pseudo_layer: the index of the pseudo-layer.
      product: the index of the matrix within the pseudo-layer. The matrices of the inputs come first,
        one for each gate, then those of the hidden state.

    Raises:
      RejectedError: if cuDNN does not support the recurrence.
    """
    found = (ctypes.c_int64 * 2)()
    indices = ctypes.c_int64(pseudo_layer), ctypes.c_int64(product)
    error = load().jaxrnn_cudnn_offsets(_c_array(descriptor), *indices, found)
    if error:
        raise RejectedError(error.decode(errors="replace"))
    return found[0], found[1]


def _c_array(descriptor: DescriptorArguments) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(descriptor))(*map(int, descriptor))
