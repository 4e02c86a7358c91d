"""What keeps the memory of a process from growing while it trains and saves for days.

Measured in benchmarks/README.md, "An hour of training".
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import tensorstore  # orbax brings it

LARGE = 2**20  # bytes of a buffer that goes back to the system when it is freed
_M_MMAP_THRESHOLD = -3  # its number in glibc's malloc.h


def steady() -> None:
    """Let this process give back what it frees; call it once, before it trains.

    It is for a command, which owns its process: it changes how all of it allocates, and leaves
    tensorstore's metrics empty.
    """
    _give_back_large_buffers()
    tensorstore.experimental_collect_matching_metrics = _no_metrics


def _give_back_large_buffers() -> None:
    """glibc takes buffers that are large from the system and gives them back, but what is large
    grows up to 32 MiB with those that are freed; copies of parameters, made at every save, then leave
    holes between what is small and lasts."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, LARGE)


def _no_metrics(metric_prefix: str = "", include_zero_metrics: bool | None = None) -> list[Any]:
    """orbax asks for them four times a save, for its log; tensorstore never frees the lists in them."""
    return []
