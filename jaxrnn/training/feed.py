"""The text as the training steps read it: on the devices, or from a file that the hosts read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices import accelerator, mesh
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Int, UInt

MemoryMap = Literal["auto", "always", "never"]
FILE = "tokens.npy"  # of a run directory, where the text is memory-mapped


class Feed(NamedTuple):
    """The text as the devices read it: windows gathered there, or here from a file, by their starts.

    tokens: [N] on each device, or in a plan only their description; None where the hosts read the text.
    text: [N] on the host.
    devices: the mesh that the rows are divided over.
    """

    tokens: UInt[Array, "N"] | None
    text: np.ndarray
    devices: mesh.Mesh

    def windows(self, starts: np.ndarray, seq_len: int) -> Array:
        """What the compiled step is given for rows that begin at starts [..., B].

        The starts themselves where the devices hold the text, else the tokens [..., T + 1, B]; rows
        divided over the mesh. Each process reads those of its own devices and no others.
        """
        *before, rows = starts.shape

        def read(part: slice) -> np.ndarray:
            mine = starts[..., part]
            if self.tokens is not None:
                return mine.astype(np.int32)
            return _read(self.text, mine, seq_len)

        window = () if self.tokens is not None else (seq_len + 1,)
        shape = (*before, *window, rows)
        return mesh.from_local_rows(self.devices, shape, len(shape) - 1, read)


def plan(
    tokens: np.ndarray, memory_map: MemoryMap = "auto", devices: mesh.Mesh | None = None
) -> Feed:
    """Return what `place` would return, with shapes and dtypes for arrays on devices. Moves no data.

    Arguments and errors are those of `place`.
    """
    devices = mesh.single() if devices is None else devices
    mapped, countable = isinstance(tokens, np.memmap), len(tokens) <= LONGEST
    room = accelerator.memory_limit()
    if room is None:
        room = 0 if mapped else HOST_ROOM
    if memory_map == "never" and not countable:
        raise InputError(
            f"a text of {len(tokens):,} tokens is too long for --memory-map never, which counts "
            f"to {LONGEST:,}; use auto"
        )
    fits = countable and tokens.nbytes <= room // 4 and not devices.is_multi_process
    if memory_map == "never" or (memory_map == "auto" and fits):
        where = mesh.replicated(devices)
        there: Any = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=where)
        return Feed(there, tokens, devices)
    return Feed(None, tokens, devices)


def place(
    tokens: np.ndarray,
    memory_map: MemoryMap = "auto",
    run: Path | None = None,
    devices: mesh.Mesh | None = None,
) -> Feed:
    """Put a text where the steps will read it.

    Args:
      tokens: [N] unsigned integers, in memory or memory-mapped. Those mapped already are read where
        they are, if they are not to be on the devices.
      memory_map: "auto" keeps the text on each device where it takes no more than a quarter of the
        memory there and all are this process', else in a file; "always" and "never" say so. Where the
        devices share the host's memory, "auto" leaves a text that is mapped already as it is.
      run: the folder for that file, FILE.
      devices: the mesh that the rows are divided over; None for one device.

    Raises:
      InputError: "never" for a text longer than the devices can count.
    """
    planned = plan(tokens, memory_map, devices)
    if planned.tokens is not None:
        there = jax.device_put(tokens, planned.tokens.sharding).block_until_ready()
        _let_go(tokens)
        return planned._replace(tokens=there)
    if run is None or isinstance(tokens, np.memmap) or planned.devices.is_multi_process:
        return planned
    path = run / FILE
    np.save(path, tokens)
    return planned._replace(text=np.load(path, mmap_mode="r"))


LONGEST = 2**31 - 2**20  # tokens on the device, whose places are int32, with room for a row beyond
HOST_ROOM = 4 << 30  # bytes, where the device does not say what it has
ROWS = 1024  # read from a file at a time; each makes some 64 kB of it resident


def _read(text: np.ndarray, starts: np.ndarray, seq_len: int) -> np.ndarray:
    """The tokens [..., T + 1, B] of rows that begin at starts [..., B]."""
    _announce(text, starts, seq_len)
    plain, rows = np.asarray(text), starts.reshape(-1)
    windows = np.empty((len(rows), seq_len + 1), text.dtype)
    for at in range(0, len(rows), ROWS):
        places = rows[at : at + ROWS, None] + np.arange(seq_len + 1)
        windows[at : at + ROWS] = plain[np.minimum(places, len(text) - 1)]
        _let_go(text)
    return np.moveaxis(windows.reshape(*starts.shape, seq_len + 1), -1, -2)


def _announce(text: np.ndarray, starts: np.ndarray, seq_len: int) -> None:
    """Let the system read the rows of a memory-mapped text all at once, not each when it is needed.

    Rows that go on from those before them in starts [..., B] it foresees by itself.
    """
    file = text.base
    if not (isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED")):
        return
    jumps = np.ones(starts.shape, bool)
    if starts.ndim > 1:
        jumps[1:] = starts[1:] != starts[:-1] + seq_len
    first = np.minimum(starts[jumps], len(text) - 1) * text.itemsize
    header = len(file) - text.nbytes  # of an .npy file
    for begin in (header + first).tolist():
        page = begin - begin % mmap.PAGESIZE
        size = begin - page + (seq_len + 1) * text.itemsize
        file.madvise(mmap.MADV_WILLNEED, page, size)


def _let_go(text: np.ndarray) -> None:
    """Let go of the pages of a memory-mapped text, which else count as this process's memory.

    They stay in the system's cache for the next time.
    """
    if isinstance(text.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        text.base.madvise(mmap.MADV_DONTNEED)


def gather(tokens: Array | None, window: Array, seq_len: int) -> Int[Array, "T1 B"]:
    """tokens [T + 1, B] from the starts [B] of rows on the device, or as they came."""
    if tokens is None:
        return window.astype(jnp.int32)
    places = window[None, :] + jnp.arange(seq_len + 1, dtype=jnp.int32)[:, None]
    return tokens[jnp.minimum(places, tokens.shape[0] - 1)].astype(jnp.int32)
