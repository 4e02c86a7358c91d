"""Weights of PyTorch's `nn.RNN`, `nn.LSTM`, `nn.GRU`, and of `nn.RNNCell`, `nn.LSTMCell`, `nn.GRUCell`.

    net, params = stacked_from_torch(layer.state_dict())     # make a stack from the weights
    params = from_torch(net, layer.state_dict())             # for an existing stack or cell
    state_dict = to_torch(net, params)

For each layer k and direction (`_reverse` is the backward one) PyTorch has, with G = H times the number
of gates (1, 4 or 3),

    weight_ih_lk  [G, D]    transposed w_x
    weight_hh_lk  [G, H]    transposed w_h
    bias_ih_lk    [G]       b
    bias_hh_lk    [G]       zero, except for the GRU's candidate n, where it is b_h
    weight_hr_lk  [H, C]    transposed w_r, only with `proj_size` H; the gates are then C wide

The `*Cell` classes have the same arrays without `_lk`. The gate order is i f g o for the LSTM, as in
jaxrnn, and r z n for the GRU, where jaxrnn has z r n. The GRU resets after the product. PyTorch's states
are (h, c), as jaxrnn's, each [layers * directions, B, H] in the order of `StackedParams.cells`. Written
from the documentation of torch 2.13; torch itself is not imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from jaxrnn.interop import arrays
from jaxrnn.interop.arrays import Reader, cell_of, make_params, swap_z_r
from jaxrnn.layers import stacked
from jaxrnn.layers.architecture import Architecture
from jaxrnn.recurrence import cells
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.variants.projection import (
    ProjectedLSTM,
    ProjectedLSTMParams,
    projected_lstm,
)

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_LAYER = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(_reverse)?")


def names(suffix: str = "_l0") -> tuple[str, str, str, str]:
    """Return PyTorch's names of a layer's input weights, recurrent weights and two biases.

    suffix: "_l0" and the like, "_l0_reverse" for the backward direction, "" for a `*Cell` class.
    """
    w_x, w_h, b, b_h = (name + suffix for name in _NAMES)
    return w_x, w_h, b, b_h


def is_name(name: str) -> bool:
    """Return whether a name is one of an array of `nn.RNN`, `nn.LSTM` or `nn.GRU`, without a prefix."""
    return _LAYER.fullmatch(name) is not None


def unsupported_reason(net: Any) -> str | None:
    """Return why PyTorch has no module that computes what a cell or stack does, or None."""
    cell = cell_of(net)
    if isinstance(cell, LSTM) and cell.peephole:
        return "nn.LSTM has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "nn.GRU resets after the product"
    if isinstance(cell, RNN) and cell.activation not in ("tanh", "relu"):
        return f"nn.RNN has no {cell.activation}"
    if not isinstance(cell, RNN | LSTM | GRU | ProjectedLSTM):
        return f"PyTorch has no layer for {type(cell).__name__}"
    if isinstance(cell, ProjectedLSTM) and cell.hidden_size >= cell.cell_size:
        return "proj_size of nn.LSTM must be smaller than its hidden_size"
    return arrays.unsupported_option(net, "PyTorch")


def to_torch(
    net: Any, params: Any, *, kind: Literal["layer", "cell"] = "layer"
) -> dict[str, np.ndarray]:
    """Return the state dict of a PyTorch module as numpy arrays, in the dtype of the parameters.

    `module.load_state_dict({name: torch.tensor(array) for name, array in state_dict.items()})` takes it.

    Args:
      net: a cell of `jaxrnn.rnn`, `lstm`, `gru` or `projected_lstm`, or `jaxrnn.layers.stacked` of one.
      params: its parameters, numpy or JAX arrays.
      kind: "layer" for the names of `nn.LSTM` and the like, "cell" for those of `nn.LSTMCell`.

    Raises:
      ValueError: for a cell or an option that PyTorch does not have, and for parameters of another cell.
    """
    arrays.require_supported(unsupported_reason(net))
    suffixes = _suffixes(net)
    if kind not in ("layer", "cell"):
        raise ValueError(f"kind must be 'layer' or 'cell', not {kind!r}")
    if kind == "cell":
        if len(suffixes) > 1 or isinstance(cell_of(net), ProjectedLSTM):
            raise ValueError(
                "kind='cell' needs one layer in one direction without proj_size, as nn.LSTMCell has"
            )
        suffixes = [""]
    found: dict[str, np.ndarray] = {}
    for suffix, each in zip(suffixes, arrays.cells_of(net, params), strict=True):
        found |= _to_names(cell_of(net), each, suffix)
    return found


def from_torch(net: Any, weights: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Return the parameters of a cell or stack from the state dict of a PyTorch module.

    Both bias vectors are used; a module with bias=False has zeros. Gradients are converted by
    `gradients_from_torch`.

    Args:
      net: a cell of `jaxrnn.rnn`, `lstm`, `gru` or `projected_lstm`, or `jaxrnn.layers.stacked` of one,
        with the module's sizes. For a cell the module has one layer and direction, or is a `*Cell`.
      weights: arrays or tensors by PyTorch's names. Each must be used, or have no such prefix.
      prefix: what the names of the module begin with inside of a larger model, such as "encoder.lstm.".

    Returns:
      The parameters as numpy arrays: `StackedParams` for a stack.

    Raises:
      ValueError: for a cell or an option that PyTorch does not have, and for the first array that is
        missing or unexpected, or has the wrong shape.
    """
    return _read(net, _below(weights, prefix), lambda b_ih, b_hh: b_ih + b_hh)


def gradients_from_torch(net: Any, gradients: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Return the gradients of the parameters from those of a PyTorch module's arrays.

    Unlike weights, the gradients of PyTorch's two biases are not added: jaxrnn's `b` has the gradient of
    the first one.

    Args and errors: as for `from_torch`.
    """
    return _read(net, _below(gradients, prefix), lambda b_ih, b_hh: b_ih)


def stacked_from_torch(
    weights: Mapping[str, Any],
    *,
    prefix: str = "",
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    **options: Any,
) -> tuple[Any, Any]:
    """Return (net, params): the stack of layers that a state dict describes.

    Args:
      weights: as for `from_torch`. Their names and shapes give the cell, the sizes, the number of
        layers, the directions and `proj_size`.
      prefix: as for `from_torch`.
      nonlinearity: that of an `nn.RNN`, which its weights do not show.
      **options: further arguments of `jaxrnn.layers.stacked`, such as `dropout` and `batch_first`.

    Raises:
      ValueError: for weights that are of no recurrent module, and as `from_torch`.
    """
    found = _below(weights, prefix)
    layers = 0
    for name in found:
        place = _LAYER.fullmatch(name)
        layers = max(layers, 1 + int(place[1])) if place else layers
    suffix = "_l0" if layers else ""
    for name in names(suffix)[:2]:
        if name not in found:
            raise ValueError(_no_module(name, weights))
    w_x, w_h = (arrays.as_numpy(found[name], name) for name in names(suffix)[:2])
    if w_x.ndim != 2 or w_h.ndim != 2:
        raise ValueError(
            f"weight_ih must be [G, D] and weight_hh [G, H], not {w_x.shape}, {w_h.shape}"
        )
    projection = found.get(f"weight_hr{suffix}")
    hidden = w_h.shape[1]
    cell: Any
    if projection is not None:
        cell = projected_lstm(hidden, w_h.shape[0] // 4)
    elif w_h.shape[0] == 4 * hidden:
        cell = cells.lstm(hidden)
    elif w_h.shape[0] == 3 * hidden:
        cell = cells.gru(hidden, reset="after")
    elif w_h.shape[0] == hidden:
        cell = cells.rnn(hidden, activation=nonlinearity)
    else:
        raise ValueError(
            f"weight_hh{suffix} must be [H, H], [3H, H] or [4H, H] (nn.RNN, nn.GRU, nn.LSTM), not "
            f"{w_h.shape}"
        )
    both = any(name.endswith("_reverse") for name in found)
    net = stacked(cell, w_x.shape[1], layers=max(layers, 1), bidirectional=both, **options)
    return net, from_torch(net, found)


def _below(weights: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """Return the arrays whose names begin with a prefix, without it.

    Raises:
      ValueError: for weights that are not a state dict, and if no name begins with the prefix.
    """
    arrays.check_mapping(weights, "a state dict, arrays by name")
    if not prefix:
        return weights
    found = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not found:
        raise ValueError(f"no name begins with {prefix!r}; the names are {', '.join(weights)}")
    return found


def _no_module(name: str, weights: Mapping[str, Any]) -> str:
    if any("parametrizations" in key for key in weights):
        return (
            "the module is parametrized, as by weight_norm; call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    ends = [key for key in weights if _LAYER.search(key) or key.endswith(_NAMES)]
    prefixes = {re.split(r"(?:weight|bias)_(?:ih|hh|hr)", key)[0] for key in ends} - {""}
    if prefixes:
        return f"{name} is missing; give the prefix of one module: {', '.join(sorted(prefixes))}"
    there = ", ".join(weights) or "none"
    return f"{name} is missing for an nn.RNN, nn.LSTM or nn.GRU; the names are {there}"


def _suffixes(net: Any) -> list[str]:
    """Return the suffix of the names of each pseudo-layer's arrays."""
    if not isinstance(net, Architecture):
        return ["_l0"]
    directions = ("", "_reverse")[: net.directions]
    return [f"_l{layer}{direction}" for layer in range(net.layers) for direction in directions]


def _to_names(cell: Any, params: Any, suffix: str) -> dict[str, np.ndarray]:
    """Return the arrays of one layer and direction by PyTorch's names."""
    w_x, w_h, b = params[:3]
    b_h = np.zeros_like(b)
    if isinstance(cell, GRU):
        b_h[2 * cell.hidden_size :] = params.b_h
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
    made = dict(zip(names(suffix), (_transposed(w_x), _transposed(w_h), b, b_h), strict=True))
    if isinstance(cell, ProjectedLSTM):
        made[f"weight_hr{suffix}"] = _transposed(params.w_r)
    return made


def _transposed(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix.T)


def _read(net: Any, weights: Mapping[str, Any], add: Callable[[Any, Any], Any]) -> Any:
    """Return the parameters from arrays; `add` joins two biases that act alike."""
    arrays.require_supported(unsupported_reason(net))
    suffixes = _suffixes(net)
    if len(suffixes) == 1 and "weight_ih" in weights:
        suffixes = [""]
    stack = isinstance(net, Architecture)
    reader = Reader(weights, f"{'a stack of ' if stack else ''}{cell_of(net)}")
    found = []
    for number, suffix in enumerate(suffixes):
        if stack:
            inputs = net.input_width(number // net.directions)
        else:
            # A cell takes inputs of any width.
            inputs = reader.size(names(suffix)[0], -1)
        found.append(_from_names(cell_of(net), reader, suffix, inputs, add))
    reader.finish()
    return arrays.joined(net, found)


def _from_names(
    cell: Any, reader: Reader, suffix: str, inputs: int, add: Callable[[Any, Any], Any]
) -> Any:
    """Return the parameters of one layer and direction."""
    units = cell.cell_size if isinstance(cell, ProjectedLSTM) else cell.hidden_size
    gates = len(cell.GATES) * units
    n_x, n_h, n_b, n_bh = names(suffix)
    w_x = reader.take(n_x, (gates, inputs)).T
    w_h = reader.take(n_h, (gates, cell.hidden_size)).T
    if n_b in reader or n_bh in reader:
        b, b_h = reader.take(n_b, (gates,)), reader.take(n_bh, (gates,))
    else:
        b = b_h = np.zeros(gates, w_h.dtype)
    if isinstance(cell, ProjectedLSTM):
        w_r = reader.take(f"weight_hr{suffix}", (cell.hidden_size, units)).T
        made: Any = ProjectedLSTMParams
        return made(w_x, w_h, add(b, b_h), w_r)
    if not isinstance(cell, GRU):
        return make_params(cell, w_x, w_h, add(b, b_h))
    # Outside of the reset both biases of r and z act alike, and those of n do not.
    both = np.concatenate([add(b[: 2 * units], b_h[: 2 * units]), b[2 * units :]])
    return make_params(cell, swap_z_r(w_x), swap_z_r(w_h), swap_z_r(both), b_h[2 * units :])
