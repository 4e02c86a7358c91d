"""Available and required memory, and a limit to how much a long training's heap grows.

benchmarks/endurance/README.md, "An hour of training", has the measurements of that growth.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

# A dependency of orbax.
import tensorstore

from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError

try:
    import resource
except ImportError:
    # There is no such module on Windows.
    resource = None  # type: ignore[assignment]

# Size in bytes from which a freed buffer is returned to the system.
LARGE = 2**20
# The number of this option in glibc's malloc.h.
_M_MMAP_THRESHOLD = -3


def limit_heap_growth() -> None:
    """Make this process return freed memory to the system; call it once, before training.

    For commands, not for libraries: it changes memory allocation in the whole process and disables
    the metrics of tensorstore.
    """
    _fix_mmap_threshold()
    tensorstore.experimental_collect_matching_metrics = _no_metrics


def _fix_mmap_threshold() -> None:
    """Stop glibc from raising the size from which it serves blocks by mmap.

    glibc serves large blocks by mmap and unmaps them when they are freed, but each freed block
    raises the threshold, up to 32 MiB. The copies of parameters made at each save then come from
    the heap and leave holes between small blocks that live on.
    """
    # Other C libraries have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)


def _no_metrics(metric_prefix: str = "", include_zero_metrics: bool | None = None) -> list[object]:
    """Return no metrics, in place of tensorstore's function.

    orbax collects metrics for its log four times per save, and tensorstore never frees the lists.
    """
    return []


# --- available and required memory ---


def check(need: int, what: str, remedy: str) -> None:
    """Raise an error if something does not fit into the memory of the device in use.

    Args:
      need: number of bytes.
      what: name of what needs them, for the message.
      remedy: what the user can do about it, for the message.

    Raises:
      InputError: if fewer bytes are available; the message states both numbers.
    """
    there = available()
    if there is not None and need > there:
        raise InputError(
            f"{what} needs about {_size(need)} of memory, and there are {_size(there)}: {remedy}"
        )


def available() -> int | None:
    """Return the bytes that new arrays may take on the device in use, or None if unknown."""
    device = accelerator.device()
    if device.platform == "cpu":
        return available_on_host()
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that each device holds of a pytree.

    The leaves are arrays or `jax.ShapeDtypeStruct`s; a leaf without a sharding is whole.
    """

    def held(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize

    return sum(held(leaf) for leaf in jax.tree.leaves(tree))


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled program takes on each device while it runs.

    Arguments, results and temporary arrays are included. The result is 0 on platforms that do not
    report it.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


def available_on_host(root: Path = Path("/")) -> int | None:
    """Return the bytes of host memory that this process may still take, or None if unknown.

    That is the smallest of three: the system's available memory including swap, what the control
    groups of this process allow (containers, SLURM, systemd), and its resource limits
    (`ulimit -v`).

    Args:
      root: the folder that holds proc/ and sys/.
    """
    system = _fields(root / "proc/meminfo")
    swap = system.get("SwapFree", 0)
    limits = []
    if "MemAvailable" in system:
        limits.append(system["MemAvailable"] + swap)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits += [limit + swap for limit in _left_by_groups(root)]
    limits += _left_by_limits(_fields(root / "proc/self/status"))
    return max(0, min(limits)) if limits else None


def _left_by_groups(root: Path) -> list[int]:
    """Return the bytes left to this process by each of its control groups with a limit."""
    # The names of the limit and of the usage, and a prefix of the statistics: version 2, version 1.
    names = [
        ("memory.max", "memory.current", ""),
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
        # A container may see its own group as the top.
        if not group.is_dir():
            group = top
        for folder in [group, *group.parents]:
            allowed = _text(folder / limit).strip()
            used = _text(folder / usage).strip()
            if allowed.isdecimal() and used.isdecimal():
                stat = _fields(folder / "memory.stat", unit=1)
                # The system drops cached pages of files before it refuses memory.
                cached = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
                left.append(int(allowed) - int(used) + cached)
            if folder == top:
                break
    return left


def _left_by_limits(process: dict[str, int]) -> list[int]:
    """Return the bytes left to this process by each of its resource limits.

    Args:
      process: the numbers in /proc/self/status, in bytes.
    """
    if resource is None:
        return []
    limits = [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")]
    return [
        resource.getrlimit(limit)[0] - process.get(used, 0)
        for limit, used in limits
        if resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
    ]


def _fields(path: Path, unit: int = 1024) -> dict[str, int]:
    """Return the numbers in a file of lines such as "MemAvailable:  123 kB", times `unit`."""
    found = {}
    for line in _text(path).splitlines():
        name, *values = line.replace(":", " ").split()
        if values and values[0].isdecimal():
            found[name] = int(values[0]) * unit
    return found


def _text(path: Path) -> str:
    """Return the content of a file, "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _size(count: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
