"""Helpers shared by the converters: reading named arrays, checking networks, reordering gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.layers.architecture import Architecture, StackedParams
from jaxrnn.recurrence.cells import GRU, LSTM, GRUParams, LSTMParams, RNNParams
from jaxrnn.recurrence.networks import Network, NetworkParams


class Reader:
    """A reader of another library's arrays by name, which checks each array's shape.

    Args:
      weights: arrays by name: numpy's, JAX's, or PyTorch's tensors.
      owner: description of the network that the arrays belong to, for error messages.

    Raises:
      ValueError: for weights that are not a dict with text as keys.
    """

    def __init__(self, weights: Mapping[str, Any], owner: str) -> None:
        check_mapping(weights, "a dict of arrays by name")
        self._weights = dict(weights)
        self._left = dict.fromkeys(self._weights)
        self._owner = owner

    def __contains__(self, name: str) -> bool:
        """Return whether there is an array of this name."""
        return name in self._weights

    def size(self, name: str, axis: int) -> int:
        """Return the length of an axis of an array, or 0 if the array is missing (see `take`)."""
        array = as_numpy(self._weights[name], name) if name in self else np.zeros(0)
        return array.shape[axis] if array.ndim > 1 else 0

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array as numpy's.

        Raises:
          ValueError: if the array is missing, has the wrong shape, or is not an array of numbers.
        """
        if name not in self._weights:
            there = ", ".join(sorted(self._left)) or "none"
            raise ValueError(
                f"{name} is missing for {self._owner}; the remaining names are {there}"
            )
        self._left.pop(name, None)
        array = as_numpy(self._weights[name], name)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for {self._owner}, not {array.shape}")
        return array

    def finish(self) -> None:
        """Raise ValueError if there are arrays that were never taken."""
        if self._left:
            raise ValueError(f"unexpected weights for {self._owner}: {', '.join(self._left)}")


def check_mapping(given: Any, wanted: str) -> None:
    """Raise ValueError unless `given` is a dict with text as keys; `wanted` describes it."""
    if not isinstance(given, Mapping):
        hint = ""
        if hasattr(given, "state_dict"):
            hint = "; give its state_dict()"
        raise ValueError(f"the weights must be {wanted}, not {type(given).__name__}{hint}")
    for name in given:
        if not isinstance(name, str):
            raise ValueError(f"the names of weights must be text, not {name!r}")


def flat(weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arrays of a dict of dicts by their paths, such as "dense_h/kernel".

    Raises:
      ValueError: for weights that are not a dict of dicts with text as keys.
    """
    wanted = "a dict of layers, each a dict of arrays by name"
    check_mapping(weights, wanted)
    found: dict[str, Any] = {}
    for layer, leaves in weights.items():
        check_mapping(leaves, f"{wanted}; the entry {layer!r} must be a dict")
        found |= {f"{layer}/{name}": array for name, array in leaves.items()}
    return found


def as_numpy(given: Any, name: str) -> np.ndarray:
    """Return a numpy array of floating-point numbers.

    Args:
      given: an array, or a tensor of PyTorch on any device.
      name: its name, for the message.

    Raises:
      ValueError: if it is not such an array. Integers are rejected because quantized weights are
        meaningless without their scale.
    """
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        # numpy has no bfloat16 of its own.
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    try:
        array = np.asarray(given)
    except ValueError:
        raise ValueError(f"{name} must be an array; its rows differ in length") from None
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} must be an array of floating-point numbers, not of {array.dtype}")
    return array


def short(value: Any) -> str:
    """Return a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cells_of(net: Any, params: Any) -> tuple[Any, ...]:
    """Check the parameters of a network, and return those of each pseudo-layer as numpy arrays.

    Args:
      net: a cell, which is one pseudo-layer, a `Network`, or a stack of layers.
      params: its parameters.

    Raises:
      ValueError: for parameters of another network.
    """
    given = (params,)
    for net_kind, kind in ((Network, NetworkParams), (Architecture, StackedParams)):
        if isinstance(net, net_kind) and not isinstance(params, kind):
            raise ValueError(f"params must be {kind.__name__}, not {type(params).__name__}")
    if isinstance(net, Network):
        # The output layer checks its own parameters.
        jax.eval_shape(
            net.output, params, jax.ShapeDtypeStruct((net.cell.hidden_size,), jnp.float32)
        )
        given = (params.cell,)
    elif isinstance(net, Architecture):
        if len(params.cells) != net.pseudo_layers:
            raise ValueError(
                f"params must be StackedParams of {net.layers} layers in {net.directions} direction(s), "
                f"{net.pseudo_layers} in all, not of {len(params.cells)}"
            )
        given = params.cells
    found = tuple(jax.tree.map(np.asarray, each) for each in given)
    for number, each in enumerate(found):
        place = ""
        if isinstance(net, Architecture):
            place = f"cells[{number}]."
            inputs = net.input_width(number // net.directions)
        else:
            inputs = getattr(net, "inputs", None) or np.shape(getattr(each, "w_x", [[]]))[0]
        _check_shapes(cell_of(net), each, inputs, place)
    return found


def _check_shapes(cell: Any, params: Any, inputs: int, place: str) -> None:
    """Raise ValueError for the first array of a cell that is missing or has the wrong shape."""
    for name, shape in shapes(cell, inputs)._asdict().items():
        array = getattr(params, name, None)
        found = None if array is None else array.shape
        if found != shape:
            raise ValueError(f"{place}{name} must have shape {shape} for {cell}, not {found}")


def joined(net: Any, cells: Sequence[Any]) -> Any:
    """Return the parameters of a stack or of a single cell, given those of each pseudo-layer."""
    return StackedParams(tuple(cells)) if isinstance(net, Architecture) else cells[0]


def cell_of(net: Any) -> Any:
    """Return the cell of a stack or network, or the cell itself."""
    return net.cell if isinstance(net, Architecture | Network) else net


def shapes(cell: Any, inputs: int) -> Any:
    """Return the shapes of a cell's parameters for D = `inputs`, in the cell's NamedTuple."""
    made = jax.eval_shape(lambda: cell.init(jax.random.key(0), inputs))
    return jax.tree.map(lambda array: tuple(array.shape), made)


# Options of a stack that most libraries do not support, with the values that have no effect.
PLAIN: dict[str, Any] = {"residual": False, "learned_state": False, "zoneout": 0.0, "blocks": 1}


def unsupported_option(net: Any, library: str, plain: Mapping[str, Any] = PLAIN) -> str | None:
    """Return why a library does not support an option of a stack, or None if it supports all.

    Args:
      net: a cell, a `Network`, or a stack of layers.
      library: its name, for the message.
      plain: the unsupported options, with the values at which they have no effect.
    """
    if isinstance(net, Architecture):
        for name, value in plain.items():
            if getattr(net, name) != value:
                return f"{library} does not support {name}={getattr(net, name)}"
    return None


def require_supported(reason: str | None) -> None:
    """Raise ValueError with `reason`, from an `unsupported_reason`, unless it is None."""
    if reason:
        raise ValueError(reason)


def check_network(net: Any) -> None:
    """Raise ValueError unless `net` is a `Network` or a stack of layers."""
    if not isinstance(net, Network | Architecture):
        raise ValueError(
            f"net must be made by jaxrnn.network or jaxrnn.layers.stacked, not {type(net).__name__}"
        )


def make_params(cell: Any, w_x: Any, w_h: Any, b: Any, b_h: Any = None) -> Any:
    """Return the parameters of a cell: `RNNParams`, `LSTMParams` or `GRUParams`.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` without peepholes, or `jaxrnn.gru`.
      w_x: [D, G], with the gates in jaxrnn's order.
      w_h: [H, G].
      b: [G].
      b_h: [H], only of a GRU with the reset after the product.
    """
    if isinstance(cell, GRU):
        return GRUParams(w_x, w_h, b, b_h)
    if isinstance(cell, LSTM):
        return LSTMParams(w_x, w_h, b)
    return RNNParams(w_x, w_h, b)


def swap_z_r(w: np.ndarray) -> np.ndarray:
    """Return a GRU's array with the blocks z and r of its last axis exchanged: z r n to r z n, or back.

    w: [..., 3H].
    """
    first, second, n = np.split(w, 3, axis=-1)
    return np.concatenate([second, first, n], axis=-1)
