"""Read the layers of a Keras model from live objects, `.keras` files and `.weights.h5` files.

A model is a chain of layers: a Sequential model, or a functional one in which each layer reads the one
before it. Other models are refused, because their layers could be put together in several ways.

A `.keras` file is a zip archive with `config.json`, which describes the layers, and `model.weights.h5`.
That file, or a `.weights.h5` file, has one group per layer:

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

from jaxrnn.devices import memory
from jaxrnn.errors import InputError
from jaxrnn.interop.arrays import as_numpy, short
from jaxrnn.recurrence import cells

RECURRENT = ("SimpleRNN", "LSTM", "GRU")
# The number of gates of each class.
_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
# The classes of layers whose groups a file of weights may have, by the names of the groups.
_GROUPS = {
    "embedding": "Embedding",
    "bidirectional": "Bidirectional",
    "simple_rnn": "SimpleRNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "dense": "Dense",
}
# Options that a layer must have at these values, with Keras' name of the option.
_FIXED: dict[str, dict[str, Any]] = {
    "SimpleRNN": {"go_backwards": False},
    "LSTM": {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False},
    "GRU": {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False},
}
# Options in which both directions of `Bidirectional` must agree.
_SHARED = ("units", "activation", "recurrent_activation", "use_bias", "reset_after")
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
        directions = 2 if self.bidirectional else 1
        if len(self.arrays) != 2 * directions:
            return self.arrays
        found = []
        for kernel, recurrent in zip(self.arrays[::2], self.arrays[1::2], strict=True):
            two_rows = self.kind == "GRU" and self.options.get("reset_after", True)
            shape = (2, kernel.shape[1]) if two_rows else kernel.shape[1:]
            found += [kernel, recurrent, np.zeros(shape, kernel.dtype)]
        return found


def read(model: Any) -> list[KerasLayer]:
    """Return the layers of a Keras layer, model or file, in order, without `InputLayer`.

    Args:
      model: a live layer or model, or the path of a `.keras` or `.weights.h5` file.

    Raises:
      InputError: for a file of the wrong type, a damaged file, or one that cannot be read.
      ValueError: for an object that is not a layer or model of Keras, and for a model whose layers are
        not connected one after another.
    """
    if isinstance(model, str | os.PathLike):
        return _read_file(Path(model))
    kind = type(model).__name__
    of_keras = type(model).__module__.split(".")[0] == "keras"
    if of_keras and kind in (*RECURRENT, "Bidirectional"):
        description = _Description(kind, model.name, model.get_config())
        return [_layer(description, [np.asarray(array) for array in model.get_weights()])]
    if not of_keras or kind not in ("Sequential", "Functional"):
        hint = ""
        if hasattr(model, "set_weights"):
            hint = "; make the same layers as a Sequential model, and give it the weights by set_weights"
        raise ValueError(
            "model must be a recurrent layer of Keras, a Sequential or functional model, or the path of "
            f"a file, not {kind}{hint}"
        )
    live = {layer.name: layer for layer in model.layers}
    return [
        _layer(each, [np.asarray(array) for array in live[each.name].get_weights()])
        for each in _descriptions({"class_name": kind, "config": model.get_config()})
    ]


def check_all_known(layers: Iterable[KerasLayer], kinds: Sequence[str]) -> None:
    """Raise ValueError for the first layer whose class is not one of `kinds`."""
    for layer in layers:
        if layer.kind not in kinds:
            raise ValueError(
                f"the layer {layer.name} has the type {layer.kind}; supported types are "
                f"{', '.join(kinds)}"
            )


def recurrent_cell(layer: KerasLayer) -> Any:
    """Return the cell of a recurrent layer.

    Raises:
      ValueError: for an option that jaxrnn's cell does not have.
    """
    for option, value in _FIXED[layer.kind].items():
        given = layer.options.get(option, value)
        if given != value:
            raise ValueError(f"the layer {layer.name} has {option}={short(given)}, not {value!r}")
    _, size = sizes_of(layer)
    if layer.kind == "LSTM":
        return cells.lstm(size)
    if layer.kind == "GRU":
        after = layer.options.get("reset_after", layer.with_biases()[2].ndim == 2)
        return cells.gru(size, reset="after" if after else "before")
    activation = layer.options.get("activation", "tanh")
    if activation not in ("tanh", "relu", "sigmoid"):
        raise ValueError(
            f"the layer {layer.name} has activation={short(activation)}, which jaxrnn does not have"
        )
    return cells.rnn(size, activation=activation)


def sizes_of(layer: KerasLayer) -> tuple[int, int]:
    """Return the number of inputs and the hidden size of a recurrent layer."""
    if len(layer.arrays) < 2 or any(
        array.ndim != 2 or not array.size for array in layer.arrays[:2]
    ):
        raise ValueError(f"the layer {layer.name} has no weights yet; build the model first")
    kernel, recurrent = layer.arrays[:2]
    return kernel.shape[0], recurrent.shape[0]


# --- the description of a model ---


class _Description(NamedTuple):
    """The entry of a layer in the configuration of a model: its class, its name and its options."""

    kind: str
    name: str
    options: Mapping[str, Any]


def _layer(description: _Description, arrays: list[np.ndarray]) -> KerasLayer:
    """Return a layer from its description and arrays. Raise ValueError if its directions differ."""
    kind, name, options = description
    if kind != "Bidirectional":
        return KerasLayer(kind, name, options, arrays)
    if options.get("merge_mode", "concat") != "concat":
        raise ValueError(
            f"the layer {name} has merge_mode={options['merge_mode']!r}, not 'concat', in which the "
            "outputs of both directions are side by side"
        )
    forward, backward = options["layer"], options.get("backward_layer", options["layer"])
    if forward["class_name"] != backward["class_name"]:
        raise ValueError(f"the two directions of the layer {name} have different layer types")
    for option in _SHARED:
        both = [direction["config"].get(option) for direction in (forward, backward)]
        if both[0] != both[1]:
            raise ValueError(
                f"the directions of the layer {name} have {option}={short(both[0])} and {short(both[1])}"
            )
    return KerasLayer(forward["class_name"], name, forward["config"], arrays, bidirectional=True)


def _descriptions(model: Any) -> list[_Description]:
    """Return the descriptions of a model's layers in order, without `InputLayer`.

    Raises:
      KeyError, TypeError, AttributeError: for a damaged configuration.
      ValueError: for a model whose layers are not connected one after another.
    """
    if model["class_name"] not in ("Sequential", "Functional"):
        raise ValueError(
            f"the model has the type {short(model['class_name'])}; only Sequential and functional "
            "models are supported, because their files describe how the layers are connected"
        )
    entries = list(model["config"]["layers"])
    for entry in entries:
        if not str(entry.get("module", "keras")).startswith("keras"):
            raise ValueError(
                f"the layer {entry['config'].get('name')} is a custom layer, which cannot be converted"
            )
    if model["class_name"] == "Functional":
        _check_chain(model["config"], entries)
    described = [_Description(e["class_name"], e["config"]["name"], e["config"]) for e in entries]
    return [each for each in described if each.kind != "InputLayer"]


def _check_chain(config: Any, entries: Sequence[Any]) -> None:
    """Raise ValueError for a functional model whose layers are not connected one after another."""
    for before, entry in zip([None, *entries], entries, strict=False):
        name, nodes = entry["config"]["name"], entry["inbound_nodes"]
        if entry["class_name"] == "InputLayer":
            right = before is None
        else:
            right = before is not None and len(nodes) == 1
            right = right and _sources(nodes[0]) == [[before["config"]["name"], 0, 0]]
        if not right:
            raise ValueError(
                f"the layer {name} must have exactly one input, the output of the previous layer; other "
                "models are not supported"
            )
    outputs = config["output_layers"]
    last = [entries[-1]["config"]["name"], 0, 0]
    if outputs not in (last, [last]):
        raise ValueError("the model must have exactly one output, that of its last layer")


def _sources(tree: Any) -> list[Any]:
    """Return the input tensors of a layer's call, each as [layer, call, output]."""
    if isinstance(tree, Mapping):
        if tree.get("class_name") == "__keras_tensor__":
            return [list(tree["config"]["keras_history"])]
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [source for part in tree for source in _sources(part)]
    return []


# --- files ---


def _read_file(path: Path) -> list[KerasLayer]:
    try:
        size = path.stat().st_size
        memory.check(size, f"the model in {path}", "use a machine with more")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if content.startswith(b"PK\x03\x04"):
        return _read_archive(path, content)
    if content.startswith(b"\x89HDF\r\n\x1a\n"):
        return _by_groups(path, _read_arrays(path, content))
    raise InputError(
        f"{path} is neither a .keras nor a .weights.h5 file; save the model with "
        "model.save('model.keras')"
    )


def _read_archive(path: Path, content: bytes) -> list[KerasLayer]:
    """Return the layers of a `.keras` file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            model = json.loads(archive.read("config.json"))
            weights = archive.read("model.weights.h5")
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RecursionError) as error:
        raise InputError(f"{path} is not a .keras file, or it is damaged: {error}") from None
    arrays = _read_arrays(path, weights)
    counts: dict[str, int] = {}
    layers = []
    try:
        for description in _descriptions(model):
            group = _snake_case(description.kind)
            number = counts[group] = counts.get(group, -1) + 1
            place = f"layers/{group}_{number}/" if number else f"layers/{group}/"
            own = {name: array for name, array in arrays.items() if name.startswith(place)}
            layers.append(_layer(description, _ordered(own)))
            for name in own:
                del arrays[name]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} has a damaged config.json: {error!r}") from None
    if arrays:
        raise InputError(f"{path} has arrays that its config.json does not describe: {min(arrays)}")
    return layers


def _read_arrays(path: Path, content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of the layers in an HDF5 file by the paths of their groups."""
    try:
        import h5py
    except ImportError:
        raise InputError(f'reading {path} needs h5py: pip install "jaxrnn[keras]"') from None
    found: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset) or _OF_TRAINING.search(name):
            return
        if node.external or node.is_virtual:
            raise InputError(
                f"{path}: {name} is stored in another file; files with external data are not supported"
            )
        memory.check(node.nbytes, f"{name} in {path}", "use a machine with more")
        found[name] = as_numpy(node[()], name)

    try:
        with h5py.File(io.BytesIO(content), "r") as opened:
            opened.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a damaged HDF5 file: {error}") from None
    if not any("/vars/" in f"/{name}" for name in found):
        raise InputError(
            f"{path} does not hold weights of Keras 3; save them with Keras 3 as .weights.h5"
        )
    return found


def _by_groups(path: Path, arrays: dict[str, np.ndarray]) -> list[KerasLayer]:
    """Return the layers of a `.weights.h5` file: embeddings, then recurrent layers, then the others."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        group = re.sub(r"/(?:(?:forward|backward)_layer/)?(?:cell/)?vars/\d+$", "", name)
        groups.setdefault(group, {})[name] = array
    layers = []
    for group in sorted(groups, key=_natural):
        place = re.fullmatch(r"layers/([a-z_]+?)(?:_\d+)?", group)
        if place is None or place[1] not in _GROUPS:
            raise ValueError(
                f"{path} has weights of {group}, and how that layer is connected is unknown; save the "
                "whole model with model.save('model.keras')"
            )
        ordered = _ordered(groups[group])
        kind, both = _GROUPS[place[1]], place[1] == "bidirectional"
        name = group.removeprefix("layers/")
        layers.append(KerasLayer(_inner_kind(ordered) if both else kind, name, {}, ordered, both))
    order = ("Embedding", *RECURRENT, "Dense")
    return sorted(layers, key=lambda layer: order.index(layer.kind))


def _inner_kind(arrays: list[np.ndarray]) -> str:
    """Return the class of the layers in `Bidirectional`, by the shape of the recurrent kernel."""
    kernel = arrays[1] if len(arrays) > 1 else np.zeros(0)
    if kernel.ndim == 2 and kernel.size:
        for kind, gates in _GATES.items():
            if kernel.shape[1] == gates * kernel.shape[0]:
                return kind
    raise ValueError("the layer in Bidirectional must be a SimpleRNN, LSTM or GRU")


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
