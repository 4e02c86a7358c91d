"""The text as the training steps read it: on the devices, or from a file that the hosts read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import accelerator, mesh
from jaxrnn.shapes import Array, Int, UInt

MemoryMap = Literal["auto", "always", "never"]


class Feed(NamedTuple):
    """The text as the devices read it: windows gathered there, or here from a file, by their starts.

    tokens: [N] on each device; None where the hosts read the text.
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
            places = np.minimum(mine[..., None] + np.arange(seq_len + 1), len(self.text) - 1)
            return np.moveaxis(self.text[places], -1, -2)

        window = () if self.tokens is not None else (seq_len + 1,)
        shape = (*before, *window, rows)
        return mesh.own_rows(self.devices, shape, len(shape) - 1, read)


def place(
    tokens: np.ndarray,
    memory_map: MemoryMap = "auto",
    run: Path | None = None,
    devices: mesh.Mesh | None = None,
) -> Feed:
    """Put a text where the steps will read it.

    Args:
      tokens: [N] unsigned integers.
      memory_map: "auto" keeps the text on each device where it takes no more than a quarter of the
        memory there and all are this process', else in a file; "always" and "never" say so.
      run: the folder for that file, tokens.npy.
      devices: the mesh that the rows are divided over; None for one device.
    """
    devices = mesh.single() if devices is None else devices
    room = accelerator.memory() or HOST_ROOM
    fits = tokens.nbytes <= room // 4 and not devices.is_multi_process
    if memory_map == "never" or (memory_map == "auto" and fits):
        return Feed(jax.device_put(tokens, mesh.everywhere(devices)), tokens, devices)
    if run is None or devices.is_multi_process:
        return Feed(None, tokens, devices)
    path = run / "tokens.npy"
    np.save(path, tokens)
    return Feed(None, np.load(path, mmap_mode="r"), devices)


HOST_ROOM = 4 << 30  # bytes, where the device does not say what it has


def gather(tokens: Array | None, window: Array, seq_len: int) -> Int[Array, "T1 B"]:
    """tokens [T + 1, B] from the starts [B] of rows on the device, or as they came."""
    if tokens is None:
        return window.astype(jnp.int32)
    places = window[None, :] + jnp.arange(seq_len + 1, dtype=jnp.int32)[:, None]
    return tokens[jnp.minimum(places, tokens.shape[0] - 1)].astype(jnp.int32)
