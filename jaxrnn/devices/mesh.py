"""Meshes of devices, and where arrays are placed on them.

    mesh = make({"data": 4, "model": 2})         # of all devices, or of those given
    state = jax.device_put(state, shardings(mesh, state))

The rows of a batch are divided over the axis `data`, the units of every layer over `model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError, whole_number
from jaxrnn.shapes import Array

# The axes of a mesh: rows of the batch are divided over the first, units of a layer over the second.
DATA, MODEL = "data", "model"
AXES = (DATA, MODEL)


def make(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the axes `data` and `model`.

    Args:
      sizes: devices along each axis; one that is not named has 1. None puts all on `data`.
      devices: to make it of; None for all there are, of every process.

    Raises:
      InputError: where the sizes do not multiply to the number of devices.
      ValueError: for a size that is no positive whole number.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = sizes or {DATA: len(devices)}
    shape = [whole_number(axis, sizes.get(axis, 1), 1) for axis in AXES]
    if math.prod(shape) != len(devices):
        asked = " x ".join(map(str, shape))
        raise InputError(
            f"--mesh {DATA}={shape[0]},{MODEL}={shape[1]} is for {asked} = {math.prod(shape)} "
            f"devices, and there {'is' if len(devices) == 1 else 'are'} {len(devices)}; "
            f"the sizes must multiply to that, as in --mesh {DATA}={len(devices)}"
        )
    # an axis of a slice may be shared by both of ours, which jax.make_mesh refuses
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def single() -> Mesh:
    """The mesh of one device: the one that new arrays go to."""
    return make(devices=[accelerator.device()])


def parse(text: str) -> dict[str, int]:
    """Sizes from words, as in "data=8,model=2".

    Raises:
      InputError: for words that are not of that form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(f"--mesh must be as in data=8,model=2, not {text!r}")
        sizes[axis] = int(size)
    return sizes


def check(mesh: Mesh, batch: int, parts: int, hidden: int) -> None:
    """Raises InputError where rows or units do not divide over the mesh.

    Args:
      batch: rows of a step.
      parts: that they are computed in, one after the other.
      hidden: units of a layer.
    """
    data, model = mesh.shape[DATA], mesh.shape[MODEL]
    if batch % (data * parts):
        share = f" in --accumulate {parts} parts" if parts > 1 else ""
        raise InputError(
            f"--batch {batch} cannot be divided{share} over {data} devices: make it a multiple of "
            f"{data * parts}, or choose another --mesh"
        )
    if hidden % model:
        raise InputError(
            f"--hidden-size {hidden} cannot be divided over {model} devices: make it a multiple of {model}, "
            "or choose another --mesh"
        )


# --- where arrays lie ---


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Where each array of a model, an optimizer's state or a carry lies; those of no known name
    everywhere."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "name", "") if path else ""
        return _placed(mesh, SPECS.get(name, P()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


SPECS = {
    "w_x": P(None, MODEL),  # [D, G]
    "w_h": P(None, MODEL),  # [H, G]
    "w_c": P(None, MODEL),  # [3, H]
    "b": P(MODEL),  # [G]
    "b_h": P(MODEL),  # [H]
    "w_out": P(MODEL),  # [H, V]
    "hidden": P(DATA, MODEL),  # [B, H]
    "cell": P(DATA, MODEL),  # [B, H]
}


def abstract(mesh: Mesh, function: Any) -> Any:
    """The shapes of what a function makes, placed as `shardings` says; nothing is made."""
    shapes = jax.eval_shape(function)
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        shardings(mesh, shapes),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return _placed(mesh, P())


def gather_full(tree: Any) -> Any:
    """The arrays as they are, or of those divided over devices the whole of each, on every host.

    All processes must call it. One array after the other, so a device holds one whole at a time.
    """

    def gathered(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)


def local_copy(tree: Any) -> Any:
    """Where every device holds all of the arrays, those of one of this process' devices; divided ones
    as they are, to be computed with by all processes together."""
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def constrain(mesh: Mesh, tree: Any) -> Any:
    """Inside of jit: results that lie as `shardings` says, so that the next call finds them alike."""
    return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree))


def row_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Its rows, along this axis, over `data`."""
    return _placed(mesh, P(*[None] * axis, DATA))


def _placed(mesh: Mesh, spec: P) -> NamedSharding:
    """As XLA names it too, without axes of one device; or equal arrays would be compiled for apart."""
    axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in spec]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(mesh, P(*axes))


def from_local_rows(mesh: Mesh, shape: tuple[int, ...], axis: int, read: Any) -> Array:
    """An array divided by rows, of which each process makes its own.

    Args:
      mesh: where it goes.
      shape: of the whole.
      axis: of the rows.
      read: called with the slice of rows that a device of this process takes; makes their part.
    """
    made: dict[Any, np.ndarray] = {}  # devices along `model` take the same rows

    def part(index: Any) -> np.ndarray:
        key = index[axis].indices(shape[axis])
        if key not in made:
            made[key] = read(slice(*key))
        return made[key]

    return jax.make_array_from_callback(shape, row_sharding(mesh, axis), part)
