"""The layers of a Keras model: from live layers, from `.keras` files and from `.weights.h5` files.

A `.keras` file is a zip archive with `config.json`, which describes the layers in order, and
`model.weights.h5`. That file, or a `.weights.h5` file, has one group per layer:

    layers/embedding/vars/0                              the arrays of a layer by number
    layers/lstm/cell/vars/0 .. 2                         those of a recurrent layer
    layers/bidirectional/forward_layer/cell/vars/0 .. 2

A group has the name of the layer's class in snake case; the second layer of a class has `_1` behind it,
and so on. A trained model has a group `optimizer` besides, and layers with dropout may have a group
`seed_generator`; both belong to training and are left out. Only JSON and arrays are read, so no file can
run code. Read in Keras 3.15.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.errors import InputError
from jaxrnn.interop.arrays import as_numpy
from jaxrnn.recurrence import cells

RECURRENT = ("SimpleRNN", "LSTM", "GRU")
# The number of gates of each class.
_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
# Options that a layer must have at these values, with Keras' name of the option.
_FIXED: dict[str, dict[str, Any]] = {
    "SimpleRNN": {"go_backwards": False},
    "LSTM": {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False},
    "GRU": {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False},
}


# Arrays that are not part of a model.
_OF_TRAINING = re.compile(r"^optimizer/|(^|/)seed_generator/")


class KerasLayer(NamedTuple):
    """A layer of Keras.

    Attributes:
      kind: the name of its class; for `Bidirectional` that of the layers in it.
      name: the name of the layer.
      options: its configuration; empty where only the weights are known.
      arrays: its arrays in Keras' order, those of the forward direction first.
      bidirectional: whether it is in `Bidirectional`.
    """

    kind: str
    name: str
    options: Mapping[str, Any]
    arrays: list[np.ndarray]
    bidirectional: bool = False

    def with_biases(self) -> list[np.ndarray]:
        """Return the arrays of a recurrent layer, with zeros for the biases that it lacks."""
        if self.options.get("use_bias", True):
            return self.arrays
        found = []
        for kernel, recurrent in zip(self.arrays[::2], self.arrays[1::2], strict=True):
            two_rows = self.kind == "GRU" and self.options.get("reset_after", True)
            shape = (2, kernel.shape[1]) if two_rows else kernel.shape[1:]
            found += [kernel, recurrent, np.zeros(shape, kernel.dtype)]
        return found


def read(model: Any) -> list[KerasLayer]:
    """Return the layers of a Keras layer, model or file, in order.

    Args:
      model: a live layer or model, or the path of a `.keras` or `.weights.h5` file.

    Raises:
      InputError: for a file of another kind, a damaged file, or one that cannot be read.
      ValueError: for an object that is no layer of Keras.
    """
    if isinstance(model, str | os.PathLike):
        return _read_file(Path(model))
    if not hasattr(model, "get_weights") or not hasattr(model, "get_config"):
        raise ValueError(
            f"model must be a layer or model of Keras, or the path of its file, not "
            f"{type(model).__name__}"
        )
    layers = [model] if type(model).__name__ in (*RECURRENT, "Bidirectional") else model.layers
    return [
        _described(
            {"class_name": type(layer).__name__, "config": layer.get_config()},
            [np.asarray(array) for array in layer.get_weights()],
        )
        for layer in layers
    ]


def check_all_known(layers: Iterable[KerasLayer], kinds: Sequence[str]) -> None:
    """Raise ValueError for the first layer whose class is not one of `kinds`."""
    for layer in layers:
        if layer.kind not in kinds:
            raise ValueError(
                f"the layer {layer.name} is a {layer.kind}, and only {', '.join(kinds)} are converted"
            )


def recurrent_cell(layer: KerasLayer) -> Any:
    """Return the cell of a recurrent layer.

    Raises:
      ValueError: for an option that jaxrnn's cell does not have.
    """
    for option, value in _FIXED[layer.kind].items():
        given = layer.options.get(option, value)
        if given != value:
            raise ValueError(f"the layer {layer.name} has {option}={given!r}, not {value!r}")
    _, size = sizes_of(layer)
    if layer.kind == "LSTM":
        return cells.lstm(size)
    if layer.kind == "GRU":
        after = layer.options.get("reset_after", layer.arrays[2].ndim == 2)
        return cells.gru(size, reset="after" if after else "before")
    activation = layer.options.get("activation", "tanh")
    if activation not in ("tanh", "relu", "sigmoid"):
        raise ValueError(
            f"the layer {layer.name} has activation={activation!r}, which jaxrnn lacks"
        )
    return cells.rnn(size, activation=activation)


def sizes_of(layer: KerasLayer) -> tuple[int, int]:
    """Return the number of inputs and the hidden size of a recurrent layer."""
    if len(layer.arrays) < 2 or any(array.ndim != 2 for array in layer.arrays[:2]):
        raise ValueError(f"the layer {layer.name} has no weights yet; build the model first")
    kernel, recurrent = layer.arrays[:2]
    return kernel.shape[0], recurrent.shape[0]


def _described(description: Mapping[str, Any], arrays: list[np.ndarray]) -> KerasLayer:
    """Return a layer from its entry in a model's configuration and its arrays."""
    kind, options = description["class_name"], description["config"]
    name = str(options.get("name", kind))
    if kind != "Bidirectional":
        return KerasLayer(kind, name, options, arrays)
    if options.get("merge_mode", "concat") != "concat":
        raise ValueError(
            f"the layer {name} has merge_mode={options['merge_mode']!r}, not 'concat', in which the "
            "outputs of both directions are side by side"
        )
    inner = options["layer"]
    return KerasLayer(inner["class_name"], name, inner["config"], arrays, bidirectional=True)


# --- files ---


def _read_file(path: Path) -> list[KerasLayer]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if head.startswith(b"PK\x03\x04"):
                return _read_archive(path, io.BytesIO(file.read()))
            if head == b"\x89HDF\r\n\x1a\n":
                return _by_groups(_read_arrays(path, io.BytesIO(file.read())))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    raise InputError(
        f"{path} is no .keras and no .weights.h5 file; save the model with model.save('model.keras')"
    )


def _read_archive(path: Path, file: io.BytesIO) -> list[KerasLayer]:
    """Return the layers of a `.keras` file in the order of its config.json."""
    try:
        with zipfile.ZipFile(file) as archive:
            config = json.loads(archive.read("config.json"))
            arrays = _read_arrays(path, io.BytesIO(archive.read("model.weights.h5")))
        descriptions = config["config"]["layers"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no .keras file, or a damaged one: {error}") from None
    counts: dict[str, int] = {}
    layers = []
    for description in descriptions:
        group = _snake_case(description["class_name"])
        number = counts[group] = counts.get(group, -1) + 1
        place = f"layers/{group}_{number}/" if number else f"layers/{group}/"
        own = {name: array for name, array in arrays.items() if name.startswith(place)}
        layers.append(_described(description, _ordered(own)))
        for name in own:
            del arrays[name]
    if arrays:
        raise InputError(f"{path} has arrays that its config.json does not describe: {min(arrays)}")
    return layers


def _read_arrays(path: Path, file: io.BytesIO) -> dict[str, np.ndarray]:
    """Return the arrays of the layers in an HDF5 file by the paths of their groups."""
    try:
        import h5py
    except ImportError:
        raise InputError(f'reading {path} needs h5py: pip install "jaxrnn[keras]"') from None
    found: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and not _OF_TRAINING.search(name):
            found[name] = as_numpy(node[()], name)

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a damaged HDF5 file: {error}") from None
    if not any("/vars/" in f"/{name}" for name in found):
        raise InputError(
            f"{path} holds no weights of Keras 3; save them with Keras 3 as .weights.h5"
        )
    return found


def _by_groups(arrays: dict[str, np.ndarray]) -> list[KerasLayer]:
    """Return the layers of a `.weights.h5` file: embeddings, then recurrent layers, then the others."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        group = re.sub(r"/(?:(?:forward|backward)_layer/)?(?:cell/)?vars/\d+$", "", name)
        groups.setdefault(group, {})[name] = array
    layers = []
    for group in sorted(groups, key=_natural):
        ordered = _ordered(groups[group])
        both = any("/backward_layer/" in name for name in groups[group])
        recurrent = any("/cell/vars/" in name for name in groups[group])
        name = group.rpartition("/")[2]
        layers.append(KerasLayer(_kind(name, ordered, recurrent), name, {}, ordered, both))
    order = ("Embedding", *RECURRENT, "Dense")
    return sorted(layers, key=lambda layer: order.index(layer.kind) if layer.kind in order else 9)


def _kind(name: str, arrays: list[np.ndarray], recurrent: bool) -> str:
    """Return the class of a layer, which a file of weights shows by the shapes of its arrays."""
    if recurrent and len(arrays) > 1 and arrays[0].ndim == arrays[1].ndim == 2:
        gates, rest = divmod(arrays[1].shape[1], arrays[1].shape[0])
        kinds = [kind for kind, number in _GATES.items() if number == gates and not rest]
        return kinds[0] if kinds else name
    shapes = [array.ndim for array in arrays]
    return {(2,): "Embedding", (2, 1): "Dense"}.get(tuple(shapes), name)


def _ordered(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays of a layer in Keras' order: the forward direction, then the backward one."""
    return [
        arrays[name]
        for name in sorted(arrays, key=lambda n: ("/backward_layer/" in n, _natural(n)))
    ]


def _natural(name: str) -> list[Any]:
    """Return a key that sorts numbers in names by value, and names without one first."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _snake_case(name: str) -> str:
    """Return the name of a class as Keras names groups, such as simple_rnn for SimpleRNN."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name))
    return name.lower()
