"""Weights of Keras' `SimpleRNN`, `LSTM` and `GRU`: single layers, `Bidirectional`, and stacks.

    net, params = stacked_from_keras(model)          # a layer, a model of such layers, or its file
    params = from_keras(net, model.get_weights())    # for an existing stack or cell
    model.set_weights(to_keras(net, params))

A layer has three arrays, in the order of `layer.get_weights()`, with G = H times the number of gates:

    kernel            [D, G]    w_x
    recurrent_kernel  [H, G]    w_h
    bias              [G]       b; for a GRU with `reset_after` [2, G], the second row zero except for
                                the candidate, where it is b_h

`Bidirectional` has the three of the forward layer, then the three of the backward one, and a model has
those of its layers in order. The gate order is i f c o for the LSTM and z r h for the GRU, as in jaxrnn.
Keras' states are [h, c], as jaxrnn's. Written from Keras 3; `keras_layers` says how its files are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrnn.interop import arrays
from jaxrnn.interop.arrays import Reader, cell_of, make_params
from jaxrnn.interop.keras_layers import KerasLayer, check_all_known, recurrent_cell, sizes_of
from jaxrnn.interop.keras_layers import read as read_layers
from jaxrnn.layers import stacked
from jaxrnn.layers.architecture import Architecture
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

_ARRAYS = ("kernel", "recurrent_kernel", "bias")


def unsupported_reason(net: Any) -> str | None:
    """Return why Keras has no layer that computes what a cell or stack does, or None."""
    cell = cell_of(net)
    if isinstance(cell, LSTM) and cell.peephole:
        return "keras.layers.LSTM has no peepholes"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"Keras has no layer for {type(cell).__name__}"
    return arrays.unsupported_option(net, "Keras")


def to_keras(net: Any, params: Any) -> list[np.ndarray]:
    """Return the arrays of a Keras layer, or of a model of such layers, as `set_weights` takes them.

    Args:
      net: a cell of `jaxrnn.rnn`, `lstm` or `gru`, or `jaxrnn.layers.stacked` of one.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for a cell or an option that Keras does not have, and for parameters of another cell.
    """
    arrays.require_supported(unsupported_reason(net))
    return [
        array for each in arrays.cells_of(net, params) for array in _to_arrays(cell_of(net), each)
    ]


def from_keras(net: Any, weights: Sequence[Any]) -> Any:
    """Return the parameters of a cell or stack from the arrays of a Keras layer or model.

    Args:
      net: a cell of `jaxrnn.rnn`, `lstm` or `gru`, or `jaxrnn.layers.stacked` of one, with the sizes of
        the layer and, for a GRU, the same reset.
      weights: arrays in the order of `get_weights()`.

    Returns:
      The parameters as numpy arrays: `StackedParams` for a stack.

    Raises:
      ValueError: for a cell or an option that Keras does not have, and for the first array that is
        missing or unexpected, or has the wrong shape.
    """
    return _read(net, weights, lambda first, second: first + second)


def gradients_from_keras(net: Any, gradients: Sequence[Any]) -> Any:
    """Return the gradients of the parameters from those of a Keras layer's arrays.

    Unlike weights, the gradients of the two rows of biases are not added: jaxrnn's `b` has the gradient
    of the first row.

    Args and errors: as for `from_keras`.
    """
    return _read(net, gradients, lambda first, second: first)


def stacked_from_keras(model: Any) -> tuple[Any, Any]:
    """Return (net, params): the stack of layers that a Keras layer, model or file describes.

    Args:
      model: a live `SimpleRNN`, `LSTM`, `GRU` or `Bidirectional` of one, or a Sequential or functional
        model with such layers connected one after another; or the path of a `.keras` or
        `.weights.h5` file of such a model. A `.weights.h5` file says neither which options its layers
        have nor how they are connected: it is read as a Sequential model with Keras' default options.
        Dropout acts in training only and is not carried over, nor is the dtype policy: the parameters
        have the dtype of the weights.

    Returns:
      A `jaxrnn.layers.Stacked` with `batch_first`, as Keras' layers are, and its parameters.

    Raises:
      InputError: for a file of the wrong type or a damaged one.
      ValueError: for the first layer or option that a stack cannot express, and for layers of
        different kinds or widths.
    """
    layers = [layer for layer in read_layers(model) if layer.kind != "Dropout"]
    check_all_known(layers, ("SimpleRNN", "LSTM", "GRU"))
    return stack_of(layers)


def stack_of(layers: Sequence[KerasLayer]) -> tuple[Any, Any]:
    """Return (net, params) of recurrent layers. Raises ValueError as `stacked_from_keras` does."""
    if not layers:
        raise ValueError("the model has no recurrent layer")
    first = layers[0]
    cell = recurrent_cell(first)
    for layer in layers[1:]:
        other = recurrent_cell(layer)
        if other != cell or layer.bidirectional != first.bidirectional:
            raise ValueError(
                f"the layers of a stack must be equal: {first.name} is {cell}, {layer.name} {other}; "
                "convert them one by one"
            )
    inputs, _ = sizes_of(first)
    net = stacked(
        cell, inputs, layers=len(layers), bidirectional=first.bidirectional, batch_first=True
    )
    return net, from_keras(net, [array for layer in layers for array in layer.with_biases()])


def _to_arrays(cell: Any, params: Any) -> list[np.ndarray]:
    """Return the arrays of one layer and direction."""
    w_x, w_h, bias = params[:3]
    if isinstance(cell, GRU) and cell.reset == "after":
        bias = np.stack([bias, np.zeros_like(bias)])
        bias[1, 2 * cell.hidden_size :] = params.b_h
    return [w_x, w_h, bias]


def _read(net: Any, weights: Sequence[Any], add: Callable[[Any, Any], Any]) -> Any:
    """Return the parameters from arrays; `add` joins two biases that act alike."""
    arrays.require_supported(unsupported_reason(net))
    cell, stack = cell_of(net), isinstance(net, Architecture)
    places = _places(net)
    if isinstance(weights, str | os.PathLike):
        raise ValueError("the weights must be arrays; stacked_from_keras reads files")
    if not isinstance(weights, list | tuple):
        raise ValueError(
            f"the weights must be a list of arrays, such as layer.get_weights(), not "
            f"{type(weights).__name__}"
        )
    reader = Reader(_by_place(places, weights), f"{'a stack of ' if stack else ''}{cell}")
    found = []
    for number, place in enumerate(places):
        inputs = reader.size("kernel", 0)
        if stack:
            inputs = net.input_width(number // net.directions)
        gates = len(cell.GATES) * cell.hidden_size
        w_x = reader.take(f"{place}kernel", (inputs, gates))
        w_h = reader.take(f"{place}recurrent_kernel", (cell.hidden_size, gates))
        if not (isinstance(cell, GRU) and cell.reset == "after"):
            found.append(make_params(cell, w_x, w_h, reader.take(f"{place}bias", (gates,))))
            continue
        bias, size = reader.take(f"{place}bias", (2, gates)), 2 * cell.hidden_size
        # Outside of the reset both biases of z and r act alike, and those of the candidate do not.
        b = np.concatenate([add(bias[0, :size], bias[1, :size]), bias[0, size:]])
        found.append(make_params(cell, w_x, w_h, b, bias[1, size:]))
    reader.finish()
    return arrays.joined(net, found)


def _places(net: Any) -> list[str]:
    """Return what the names of the arrays of each pseudo-layer begin with, for messages."""
    if not isinstance(net, Architecture):
        return [""]
    directions = ("forward ", "backward ") if net.bidirectional else ("",)
    return [
        f"layer {layer} {direction}"
        for layer in range(1, net.layers + 1)
        for direction in directions
    ]


def _by_place(places: Sequence[str], weights: Sequence[Any]) -> dict[str, Any]:
    """Return the arrays by name: those beyond the last place are named by their number."""
    known = [place + name for place in places for name in _ARRAYS]
    more = [f"array {number}" for number in range(len(known), len(weights))]
    return dict(zip([*known, *more], weights, strict=False))
