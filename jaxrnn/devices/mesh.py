"""Meshes of devices, and the placement of arrays on them.

    mesh = make({"data": 4, "model": 2})
    state = jax.device_put(state, shardings(mesh, state))

The rows of a batch are divided over the axis `data`, the units of every layer over the axis `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

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

Tree = TypeVar("Tree")


def make(
    sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return a mesh with the axes `data` and `model`.

    Args:
      sizes: number of devices along each axis, 1 for an axis that is not named; None puts all
        devices on `data`.
      devices: devices of the mesh; None for the devices of all processes.

    Raises:
      InputError: if the product of the sizes is not the number of devices.
      ValueError: if a size is not a positive whole number.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = sizes or {DATA: len(devices)}
    shape = [whole_number(axis, sizes.get(axis, 1), 1) for axis in AXES]
    if math.prod(shape) != len(devices):
        product = " x ".join(map(str, shape))
        raise InputError(
            f"a mesh of {DATA}={shape[0]},{MODEL}={shape[1]} needs {product} = {math.prod(shape)} "
            f"devices, and there {'is' if len(devices) == 1 else 'are'} {len(devices)}; choose "
            f"sizes whose product is {len(devices)}, as in {DATA}={len(devices)}"
        )
    # An axis of a TPU slice may be divided between both axes of the mesh; jax.make_mesh refuses that.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def single() -> Mesh:
    """Return a mesh of one device, the one that new arrays are placed on."""
    return make(devices=[accelerator.device()])


def parse(text: str) -> dict[str, int]:
    """Return the sizes in a text such as "data=8,model=2", for `make`.

    Raises:
      InputError: if the text has another form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(f"`mesh` must be of the form data=8,model=2, not {text!r}")
        sizes[axis] = int(size)
    return sizes


def check(mesh: Mesh, batch: int, accumulate: int, hidden_size: int) -> None:
    """Raise an error if the rows or units of a training cannot be divided over a mesh.

    Args:
      mesh: the mesh.
      batch: rows of a step.
      accumulate: parts of the batch that are computed one after another.
      hidden_size: units of a layer.

    Raises:
      InputError: if they cannot be divided; the message says what would fit.
    """
    data, model = mesh.shape[DATA], mesh.shape[MODEL]
    if batch % (data * accumulate):
        parts = f" into `accumulate={accumulate}` parts" if accumulate > 1 else ""
        raise InputError(
            f"`batch={batch}` cannot be divided{parts} over {data} devices: make it a multiple of "
            f"{data * accumulate}, or choose another `mesh`"
        )
    if hidden_size % model:
        raise InputError(
            f"`hidden_size={hidden_size}` cannot be divided over {model} devices: make it a "
            f"multiple of {model}, or choose another `mesh`"
        )


# --- placement of arrays ---

# How arrays are divided, by the name of the field that holds them; all others are replicated.
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


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each leaf of a model, an optimizer's state or a recurrent state.

    A leaf is divided as `SPECS` says for the name of its field; other leaves are replicated.
    """

    def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "name", "") if path else ""
        return _named_sharding(mesh, SPECS.get(name, P()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract(mesh: Mesh, function: Callable[[], Any]) -> Any:
    """Return the result of a function as `jax.ShapeDtypeStruct`s, without computing it.

    Args:
      mesh: the mesh; the sharding of each leaf is the one that `shardings` gives.
      function: called without arguments, under `jax.eval_shape`; returns a pytree of arrays.
    """
    shapes = jax.eval_shape(function)
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        shardings(mesh, shapes),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that places the whole array on each device."""
    return _named_sharding(mesh, P())


def row_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding that divides an axis of an array, its rows, over `data`."""
    return _named_sharding(mesh, P(*[None] * axis, DATA))


def gather_full(tree: Any) -> Any:
    """Return a pytree whose divided arrays are replaced by whole ones, as numpy arrays on every host.

    Leaves that lie on one device are returned as they are. All processes must call it. Arrays are
    gathered one after another, so that a device holds one of them at a time.
    """

    def gathered(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)


def local_copy(tree: Tree) -> Tree:
    """Return the copies on one device of this process, if every array is replicated.

    If any array is divided, return the pytree as it is; all processes then have to compute with it
    together.
    """
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def constrain(mesh: Mesh, tree: Tree) -> Tree:
    """Return a pytree with the placement of `shardings`; call it inside `jax.jit`.

    Applied to results that become arguments of the next call, it prevents recompilation.
    """
    return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree))


def from_local_rows(
    mesh: Mesh, shape: tuple[int, ...], axis: int, read: Callable[[slice], np.ndarray]
) -> Array:
    """Return an array divided by rows over `data`, of which each process reads its own rows.

    Args:
      mesh: the mesh.
      shape: the shape of the whole array.
      axis: the axis of the rows.
      read: called with a slice of rows that a device of this process holds; returns that part of
        the array.
    """
    # Devices along `model` hold the same rows, which are read once.
    parts: dict[tuple[int, int, int], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        key = index[axis].indices(shape[axis])
        if key not in parts:
            parts[key] = read(slice(*key))
        return parts[key]

    return jax.make_array_from_callback(shape, row_sharding(mesh, axis), part)


def _named_sharding(mesh: Mesh, spec: P) -> NamedSharding:
    """Return a sharding without mesh axes of size 1, as XLA names it.

    Equal shardings with different names would be compiled separately.
    """
    axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in spec]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(mesh, P(*axes))
