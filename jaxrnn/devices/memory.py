"""How much memory there is, and what keeps a process from growing while it trains for days.

The growth is measured in benchmarks/README.md, "An hour of training".
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore  # orbax brings it

from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LARGE = 2**20  # bytes of a buffer that goes back to the system when it is freed
_M_MMAP_THRESHOLD = -3  # its number in glibc's malloc.h


def limit_heap_growth() -> None:
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


# --- how much there is ---


def check(need: int, what: str, remedy: str) -> None:
    """Refuse what does not fit into the memory of the device in use.

    Args:
      need: bytes.
      what: what needs them, as the message names it.
      remedy: what to do about it.

    Raises:
      InputError: where fewer bytes are available; it says both numbers.
    """
    there = available()
    if there is not None and need > there:
        raise InputError(
            f"{what} needs about {_size(need)} of memory, and there are {_size(there)}: {remedy}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def available() -> int | None:
    """Return the bytes that new arrays may take on the device in use; None where nothing says."""
    device = accelerator.device()
    if device.platform == "cpu":
        return available_on_host()
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that a device holds of a pytree of arrays or their descriptions."""

    def held(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize

    return sum(held(leaf) for leaf in jax.tree.leaves(tree))


def program_bytes(compiled: Any) -> int:
    """Return the bytes that a compiled program takes on each device while it runs."""
    stats = compiled.memory_analysis()
    if stats is None:  # a platform that does not say
        return 0
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


def available_on_host(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may still take; None where nothing says.

    That is the least of what the system has available, swap included, of what the control groups
    of this process allow (containers, SLURM, systemd), and of its resource limits (`ulimit -v`).

    root: where /proc and /sys are.
    """
    system = _fields(root / "proc/meminfo")
    swap = system.get("SwapFree", 0)
    limits = []
    if "MemAvailable" in system:
        limits.append(system["MemAvailable"] + swap)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits += [limit + swap for limit in _of_groups(root)]
    limits += _of_limits(_fields(root / "proc/self/status"))
    return max(0, min(limits)) if limits else None


def _of_groups(root: Path) -> list[int]:
    """Return what each control group of this process that has a limit leaves of it, in bytes."""
    names = [
        ("memory.max", "memory.current", ""),  # version 2
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ]
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        limit, usage, prefix = names[bool(controllers)]
        group = top / path.strip("/")
        if not group.is_dir():  # a container may see itself as the top
            group = top
        for folder in [group, *group.parents]:
            allowed, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if allowed.isdecimal() and used.isdecimal():
                stat = _fields(folder / "memory.stat", unit=1)
                # the system drops cached pages of files before it refuses memory
                cached = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
                left.append(int(allowed) - int(used) + cached)
            if folder == top:
                break
    return left


def _of_limits(process: dict[str, int]) -> list[int]:
    """Return what the resource limits leave to this process, in bytes."""
    if resource is None:
        return []
    limits = [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")]
    return [
        resource.getrlimit(limit)[0] - process.get(used, 0)
        for limit, used in limits
        if resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
    ]


def _fields(path: Path, unit: int = 1024) -> dict[str, int]:
    """Return the numbers of a file of lines as in "MemAvailable:  123 kB", in bytes."""
    found = {}
    for line in _text(path).splitlines():
        name, *values = line.replace(":", " ").split()
        if values and values[0].isdecimal():
            found[name] = int(values[0]) * unit
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
