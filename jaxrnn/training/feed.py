"""The text as the training steps read it: on the devices, or in a file that the hosts read.

corpus = device_corpus(tokens, devices=mesh)
windows = corpus.windows(starts, seq_len)              # on the host, for each device call
windows = corpus.lookup(places)                        # the same for tokens at any places
batch = gather(corpus.tokens, windows[i], seq_len)     # inside of jit
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices import accelerator, mesh
from jaxrnn.errors import InputError
from jaxrnn.literals import MemoryMap
from jaxrnn.shapes import Array, Int, UInt

# Name of the file in a run directory that holds a memory-mapped text.
FILE = "tokens.npy"
# Most tokens on a device, where int32 counts them; a row that begins at the last one still fits.
LONGEST = 2**31 - 2**20
# Bytes of memory that are assumed if the device does not say what it has.
HOST_ROOM = 4 << 30
# Rows read from a file at a time; each makes some 64 kB of the file resident.
ROWS = 1024


class DeviceCorpus(NamedTuple):
    """A text as the training steps read it: on the devices, or in a file that the hosts read.

    tokens: [N] on each device, or only its shape and dtype; None if the hosts read the text.
    text: [N] on the host.
    devices: the mesh that the rows of a batch are divided over.
    """

    tokens: UInt[Array, "N"] | None
    text: np.ndarray
    devices: mesh.Mesh

    def windows(self, starts: np.ndarray, seq_len: int) -> Array:
        """Return the argument of a compiled step for rows of the text, from which `gather` makes tokens.

        Args:
          starts: [..., B], the index in the text of each row's first token.
          seq_len: T, the number of tokens that a row is trained on.

        Returns:
          The starts themselves, int32, if the devices hold the text, and otherwise the tokens
          [..., T + 1, B]. The rows are divided over the mesh, and each process reads only those of its
          own devices.
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

    def lookup(self, places: Int[np.ndarray, "*K T1 B"]) -> Array:
        """Return the argument of a compiled step for tokens at any places, which the host reads.

        Args:
          places: [..., T + 1, B], the indices in the text.

        Returns:
          The tokens, of the same shape, divided over the mesh as those of `windows`.
        """

        def read(part: slice) -> np.ndarray:
            found = np.asarray(self.text)[places[..., part]]
            _release_pages(self.text)
            return found

        return mesh.from_local_rows(self.devices, places.shape, places.ndim - 1, read)


def abstract_corpus(
    tokens: np.ndarray, memory_map: MemoryMap = "auto", devices: mesh.Mesh | None = None
) -> DeviceCorpus:
    """Return what `device_corpus` would return, but only the shape and dtype of an array on devices.

    No data is moved. Arguments and errors are those of `device_corpus`.
    """
    devices = mesh.single() if devices is None else devices
    is_mapped = isinstance(tokens, np.memmap)
    is_countable = len(tokens) <= LONGEST
    room = accelerator.memory_limit()
    if room is None:
        room = 0 if is_mapped else HOST_ROOM
    if memory_map == "never" and not is_countable:
        raise InputError(
            f'memory_map="never" holds at most {LONGEST:,} tokens, and the text has {len(tokens):,}; '
            "use auto"
        )
    fits = is_countable and tokens.nbytes <= room // 4 and not devices.is_multi_process
    if memory_map == "never" or (memory_map == "auto" and fits):
        sharding = mesh.replicated(devices)
        shape: Any = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=sharding)
        return DeviceCorpus(shape, tokens, devices)
    return DeviceCorpus(None, tokens, devices)


def device_corpus(
    tokens: np.ndarray,
    memory_map: MemoryMap = "auto",
    run: Path | None = None,
    devices: mesh.Mesh | None = None,
) -> DeviceCorpus:
    """Put a text where the training steps will read it.

    Args:
      tokens: [N] unsigned integers, in memory or memory-mapped. Mapped tokens that are not to be on the
        devices are read where they are.
      memory_map: "auto" puts the text on each device if it takes at most a quarter of the memory there
        and all devices belong to this process, and otherwise in a file; "always" uses a file and "never"
        the devices. If the devices share the memory of the host, "auto" leaves a mapped text as it is.
      run: the folder for the file FILE; None makes no file.
      devices: the mesh that the rows are divided over; None for one device.

    Raises:
      InputError: for "never" and a text longer than LONGEST.
    """
    planned = abstract_corpus(tokens, memory_map, devices)
    if planned.tokens is not None:
        placed = jax.device_put(tokens, planned.tokens.sharding).block_until_ready()
        _release_pages(tokens)
        return planned._replace(tokens=placed)
    if run is None or isinstance(tokens, np.memmap) or planned.devices.is_multi_process:
        return planned
    path = run / FILE
    np.save(path, tokens)
    return planned._replace(text=np.load(path, mmap_mode="r"))


def _read(text: np.ndarray, starts: np.ndarray, seq_len: int) -> np.ndarray:
    """Return the tokens [..., T + 1, B] of rows that begin at starts [..., B]."""
    _announce(text, starts, seq_len)
    plain = np.asarray(text)
    rows = starts.reshape(-1)
    windows = np.empty((len(rows), seq_len + 1), text.dtype)
    for at in range(0, len(rows), ROWS):
        places = rows[at : at + ROWS, None] + np.arange(seq_len + 1)
        windows[at : at + ROWS] = plain[np.minimum(places, len(text) - 1)]
        _release_pages(text)
    return np.moveaxis(windows.reshape(*starts.shape, seq_len + 1), -1, -2)


def _announce(text: np.ndarray, starts: np.ndarray, seq_len: int) -> None:
    """Let the system read all rows of a memory-mapped text at once, not each when it is needed.

    Rows of starts [..., B] that continue the rows before them are left out, since the system reads
    ahead on its own.
    """
    file = text.base
    if not (isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED")):
        return
    jumps = np.ones(starts.shape, bool)
    if starts.ndim > 1:
        jumps[1:] = starts[1:] != starts[:-1] + seq_len
    first = np.minimum(starts[jumps], len(text) - 1) * text.itemsize
    # An .npy file begins with a header.
    header = len(file) - text.nbytes
    for begin in (header + first).tolist():
        page = begin - begin % mmap.PAGESIZE
        size = begin - page + (seq_len + 1) * text.itemsize
        file.madvise(mmap.MADV_WILLNEED, page, size)


def _release_pages(text: np.ndarray) -> None:
    """Release the pages of a memory-mapped text, which would count as memory of this process.

    They stay in the system's cache for the next time.
    """
    if isinstance(text.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        text.base.madvise(mmap.MADV_DONTNEED)


def gather(tokens: Array | None, window: Array, seq_len: int) -> Int[Array, "T1 B"]:
    """Return the tokens [T + 1, B] of one batch; for use inside of jit.

    Args:
      tokens: `DeviceCorpus.tokens`.
      window: one step of `DeviceCorpus.windows` or `lookup`: [B] starts, or [T + 1, B] tokens.
      seq_len: T.
    """
    if tokens is None or window.ndim == 2:
        return window.astype(jnp.int32)
    places = window[None, :] + jnp.arange(seq_len + 1, dtype=jnp.int32)[:, None]
    return tokens[jnp.minimum(places, tokens.shape[0] - 1)].astype(jnp.int32)
