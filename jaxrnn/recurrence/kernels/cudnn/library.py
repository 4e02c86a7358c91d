"""cuDNN on this machine: where it is, which version, and how much memory its recurrences need."""

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

# The name by which JAX and the system find it.
NAME = "libcudnn.so.9"


class Sizes(NamedTuple):
    """Bytes of memory that a recurrence needs."""

    weights: int
    workspace: int
    reserve: int


class Numbers(NamedTuple):
    """A recurrence as cuDNN's numbers, in the order of `Numbers` in questions.h."""

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


class Refused(Exception):
    """What cuDNN says where it cannot run a recurrence."""


@functools.cache
def missing() -> Missing | None:
    """Return why this machine cannot call cuDNN, or None where it can."""
    try:
        opened()
    except (NotBuilt, OSError) as reason:
        return Missing(reason)
    return None


@functools.cache
def opened() -> ctypes.CDLL:
    """Return the C++ of this folder, with cuDNN opened.

    Raises:
      NotBuilt: where the C++ cannot be compiled, or cuDNN cannot be opened or is too old.
    """
    if LIBRARY.missing:
        raise NotBuilt(LIBRARY.missing)
    return with_cudnn(LIBRARY.load(), _files())


def with_cudnn(library: ctypes.CDLL, files: list[str]) -> ctypes.CDLL:
    """Return the library with the first of the files opened that is a usable cuDNN.

    Raises:
      NotBuilt: where none is; the message is that of the last.
    """
    for name in ("open", "sizes", "offsets"):
        getattr(library, f"jaxrnn_cudnn_{name}").restype = ctypes.c_char_p
    problem = ""
    for file in files:
        problem = library.jaxrnn_cudnn_open(file.encode()).decode(errors="replace")
        if not problem:
            return library
    raise NotBuilt(f'cuDNN cannot be used: {problem}; `pip install "jax[cuda13]"` has it')


def _files() -> list[str]:
    """Return where cuDNN may be, the likeliest first: JAX's, a package's, the system's."""
    with contextlib.suppress(OSError):
        # Two versions in one process would mix. JAX has loaded the one that it uses.
        ctypes.CDLL(NAME, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return [NAME]
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    installed = [str(path) for place in places for path in Path(place).glob(f"cudnn/lib/{NAME}")]
    return [*installed, NAME]


def version() -> str:
    """Return cuDNN's version, such as "9.28.1"."""
    function = opened().jaxrnn_cudnn_version
    function.restype = ctypes.c_int64
    number = function()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


@functools.lru_cache(maxsize=4096)
def sizes(numbers: Numbers) -> Sizes:
    """Return the memory that a recurrence needs.

    Raises:
      Refused: where cuDNN cannot run it.
    """
    found = (ctypes.c_int64 * 3)()
    problem = opened().jaxrnn_cudnn_sizes(_numbers(numbers), found)
    if problem:
        raise Refused(problem.decode(errors="replace"))
    return Sizes(*found)


def offsets(numbers: Numbers, part: int, product: int) -> tuple[int, int]:
    """Return the offsets in bytes of a matrix and of a bias in the vector of weights.

    Args:
      numbers: the recurrence.
      part: the number of a layer in one direction.
      product: the number of a gate for the product with the inputs, that plus the number of gates for
        the product with the state.

    Raises:
      Refused: where cuDNN cannot run it.
    """
    found = (ctypes.c_int64 * 2)()
    place = ctypes.c_int64(part), ctypes.c_int64(product)
    problem = opened().jaxrnn_cudnn_offsets(_numbers(numbers), *place, found)
    if problem:
        raise Refused(problem.decode(errors="replace"))
    return found[0], found[1]


def _numbers(numbers: Numbers) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(numbers))(*map(int, numbers))
