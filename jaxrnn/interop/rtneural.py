"""Files of RTNeural, a C++ library that runs networks step by step in audio software.

    write_rtneural(net, params, Path("amplifier.json"))
    net, params = read_rtneural(Path("amplifier.json"))

The files are JSON. `in_shape` ends with the number of inputs, and each of `layers` has a type, a shape
that ends with the number of its outputs, and weights:

    lstm     w_x [D, 4H], w_h [H, 4H], b [4H]; the gate order is i f g o, as in jaxrnn
    gru      w_x [D, 3H], w_h [H, 3H], two rows of biases [2, 3H]; the gate order is z r n, as in jaxrnn.
             The reset is after the product, and the second row is zero, except for n, where it is b_h
    dense    w_out [H, K], b_out [K]

RTNeural keeps the states itself and begins with zeros. It ignores the `activation` of an lstm or gru.
Written from its loader, RTNeural/model_loader.h, at commit 1fb1f07.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.interop.arrays import (
    PLAIN,
    cells_of,
    check_network,
    require_supported,
    short,
    unsupported_option,
)
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.layers import Stacked, StackedParams, stacked
from jaxrnn.recurrence.cells import GRU, LSTM, gru, lstm
from jaxrnn.recurrence.networks import Network, NetworkParams, network


def unsupported_reason(net: Network | Stacked) -> str | None:
    """Return why RTNeural cannot run this network or stack of layers; None where it can.

    Dropout of outputs and of weights has no effect, because nothing is dropped outside of training.
    """
    check_network(net)
    cell = net.cell
    if isinstance(cell, LSTM) and cell.peephole:
        return "the LSTM of RTNeural has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "the GRU of RTNeural resets after the product"
    if type(cell) not in (LSTM, GRU):
        return f"RTNeural has no layer for {type(cell).__name__}"
    return unsupported_option(net, "RTNeural", {**PLAIN, "bidirectional": False})


def to_rtneural(net: Network | Stacked, params: Any) -> dict[str, Any]:
    """Return the content of a file of RTNeural.

    Args:
      net: made by `jaxrnn.network`, or by `jaxrnn.layers.stacked` in one direction, with a cell of
        `jaxrnn.lstm` without peepholes or `jaxrnn.gru(reset="after")`.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for what `unsupported_reason` names, for parameters of another network, and for
        parameters that are not finite, which JSON cannot hold.
    """
    require_supported(unsupported_reason(net))
    cells = cells_of(net, params)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params)):
        raise ValueError("params must be finite: JSON has no infinities and no NaN")
    kind = "lstm" if isinstance(net.cell, LSTM) else "gru"
    layers = [
        _written(kind, "tanh", net.cell.hidden_size, to_keras(net.cell, cell)) for cell in cells
    ]
    if isinstance(net, Network):
        layers.append(_written("dense", "", net.outputs, [params.w_out, params.b_out]))
    return {"in_shape": [None, None, net.inputs], "layers": layers}


def _written(kind: str, activation: str, width: int, arrays: Sequence[Any]) -> dict[str, Any]:
    weights = [np.asarray(array, np.float64).tolist() for array in arrays]
    shape = [None, None, width]
    return {"type": kind, "activation": activation, "shape": shape, "weights": weights}


def from_rtneural(content: Any) -> tuple[Network | Stacked, Any]:
    """Return the network in the content of a file of RTNeural, and its parameters.

    One lstm or gru and a dense layer make a `jaxrnn.Network`; layers of one type and width without a
    dense layer make a `jaxrnn.layers.Stacked`.

    Args:
      content: what `to_rtneural` returns, or what `json` has read from a file.

    Returns:
      (net, params): `net.apply(params, xs)` computes what RTNeural does. The parameters are float32.

    Raises:
      ValueError: for other content; the message names the first layer, key or shape that is wrong.
    """
    inputs = _width(_entry(content, "in_shape", "the content"), "in_shape")
    layers = _entry(content, "layers", "the content")
    if content.get("in_skip"):
        raise ValueError("in_skip must be 0: jaxrnn adds no inputs to the outputs")
    if not isinstance(layers, list) or not layers:
        raise ValueError("layers must be a list with at least one layer")
    kind, dense = _architecture(
        [_entry(layer, "type", f"layers[{n}]") for n, layer in enumerate(layers)]
    )
    size = _width(_entry(layers[0], "shape", "layers[0]"), "layers[0].shape")
    cell = lstm(size) if kind == "lstm" else gru(size, reset="after")
    cells = tuple(
        _cell_params(cell, layer, f"layers[{number}]", size if number else inputs)
        for number, layer in enumerate(layers[:1] if dense else layers)
    )
    if not dense:
        return stacked(cell, inputs, layers=len(cells)), StackedParams(cells)
    w_out, b_out = _output_layer(layers[1], size)
    return network(cell, inputs, len(b_out)), NetworkParams(cells[0], w_out, b_out)


def write_rtneural(net: Network | Stacked, params: Any, path: str | os.PathLike[str]) -> None:
    """Write a network or stack of layers as a file of RTNeural.

    Args:
      net: as for `to_rtneural`.
      params: its parameters.
      path: the file, which is replaced.

    Raises:
      ValueError: as `to_rtneural`.
      OSError: if the file cannot be written.
    """
    atomic_write(Path(path), json.dumps(to_rtneural(net, params)) + "\n")


def read_rtneural(path: str | os.PathLike[str]) -> tuple[Network | Stacked, Any]:
    """Read a file of RTNeural; the results are those of `from_rtneural`.

    Raises:
      InputError: if the file cannot be read, is not JSON or does not hold such a network.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file of RTNeural: {error}") from None
    try:
        return from_rtneural(content)
    except ValueError as error:
        raise InputError(f"{path} has no network that jaxrnn can run: {error}") from None


# --- the parts of a file ---


def _entry(holder: Any, key: str, where: str) -> Any:
    """Return what an object holds under a key."""
    if not isinstance(holder, dict):
        raise ValueError(f"{where} must be an object, not {type(holder).__name__}")
    if key not in holder:
        raise ValueError(f"{where} has no {key!r}")
    return holder[key]


def _width(shape: Any, where: str) -> int:
    """Return the last number of a shape [..., width] of at most three axes."""
    if not isinstance(shape, list) or not 1 <= len(shape) <= 3:
        raise ValueError(f"{where} must be a list [null, null, width], not {short(shape)}")
    width = shape[-1]
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{where} must end with a positive whole number, not {short(width)}")
    return width


def _architecture(kinds: list[Any]) -> tuple[str, bool]:
    """Return the type of the recurrent layers, and whether a dense layer follows the only one."""
    first = kinds[0]
    dense = len(kinds) > 1 and kinds[1] in ("dense", "time-distributed-dense")
    wrong = [n for n, kind in enumerate(kinds) if kind != first and not (dense and n == 1)]
    if first not in ("lstm", "gru"):
        wrong = [0]
    elif dense and len(kinds) > 2:
        wrong = [2]
    if wrong:
        raise ValueError(
            f"layers[{wrong[0]}] of type {short(kinds[wrong[0]])} cannot be read: jaxrnn has one lstm "
            "or gru with a dense layer, or several of one type without a dense layer"
        )
    return first, dense


def _cell_params(cell: Any, layer: Any, where: str, inputs: int) -> Any:
    """Return the parameters of a recurrent layer."""
    size = cell.hidden_size
    width = _width(_entry(layer, "shape", where), f"{where}.shape")
    if width != size:
        raise ValueError(f"{where}.shape must end with {size} as layers[0].shape, not {width}")
    columns = len(cell.GATES) * size
    bias = (columns,) if isinstance(cell, LSTM) else (2, columns)
    arrays = _arrays(layer, where, [(inputs, columns), (size, columns), bias])
    return jax.tree.map(jnp.asarray, from_keras(cell, arrays))


def _output_layer(layer: Any, size: int) -> tuple[jax.Array, jax.Array]:
    """Return w_out [H, K] and b_out [K] of layers[1], a dense layer."""
    if activation := layer.get("activation"):
        raise ValueError(
            f"layers[1].activation must be empty, not {short(activation)}: the outputs of "
            "jaxrnn.network are linear"
        )
    outputs = _width(_entry(layer, "shape", "layers[1]"), "layers[1].shape")
    given = _entry(layer, "weights", "layers[1]")
    if isinstance(given, list) and len(given) == 1:
        # The biases of RTNeural's layer are then zeros.
        layer = layer | {"weights": [*given, [0.0] * outputs]}
    w_out, b_out = _arrays(layer, "layers[1]", [(size, outputs), (outputs,)])
    return jnp.asarray(w_out), jnp.asarray(b_out)


def _arrays(layer: Any, where: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the weights of a layer as float32 arrays of these shapes."""
    weights = _entry(layer, "weights", where)
    if not isinstance(weights, list) or len(weights) != len(shapes):
        found = len(weights) if isinstance(weights, list) else short(weights)
        raise ValueError(f"{where}.weights must be a list of {len(shapes)} arrays, not {found}")
    arrays = []
    for number, (given, shape) in enumerate(zip(weights, shapes, strict=True)):
        name = f"{where}.weights[{number}]"
        try:
            array = np.asarray(given)
        except ValueError:
            raise ValueError(
                f"{name} must be of shape {shape}; its rows differ in length"
            ) from None
        if array.shape != shape:
            raise ValueError(f"{name} must be of shape {shape}, not {array.shape}")
        if array.dtype.kind not in "iuf" or not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise ValueError(f"{name} must hold finite float32 numbers alone")
        arrays.append(array.astype(np.float32))
    return arrays
