"""Helpers that the converters share: reading named arrays, parameters from arrays, gate orders."""

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
    """The arrays of another library by name, of which each is taken once and checked.

    Args:
      weights: arrays by name: numpy's, JAX's, or PyTorch's tensors.
      owner: what the arrays are for, for the messages.
    """

    def __init__(self, weights: Mapping[str, Any], owner: str) -> None:
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"the weights must be a dict of arrays by name, not {type(weights).__name__}"
            )
        self._weights = dict(weights)
        self._left = dict.fromkeys(self._weights)
        self._owner = owner

    def __contains__(self, name: str) -> bool:
        """Return whether there is an array of this name."""
        return name in self._weights

    def size(self, name: str, axis: int) -> int:
        """Return the length of an axis of an array, or 0 where there is none, which `take` reports."""
        shape = np.shape(self._weights.get(name, ()))
        return shape[axis] if len(shape) > 1 else 0

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array as numpy's.

        Raises:
          ValueError: if there is none of this name, or it has another shape or is no array of numbers.
        """
        if name not in self._weights:
            there = ", ".join(sorted(map(str, self._left))) or "nothing else"
            raise ValueError(f"{name} is missing for {self._owner}; there is {there}")
        self._left.pop(name, None)
        array = as_numpy(self._weights[name], name)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for {self._owner}, not {array.shape}")
        return array

    def finish(self) -> None:
        """Raise ValueError if arrays are left that were not taken."""
        if self._left:
            names = ", ".join(map(str, self._left))
            raise ValueError(f"{self._owner} has no place for {names}")


def as_numpy(given: Any, name: str) -> np.ndarray:
    """Return a numpy array of numbers.

    Args:
      given: an array, or a tensor of PyTorch on any device.
      name: its name, for the message.

    Raises:
      ValueError: if it is not numbers.
    """
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        # numpy has no bfloat16 of its own.
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    array = np.asarray(given)
    if array.dtype.kind not in "fiuV" or (array.dtype.kind == "V" and array.dtype.names):
        raise ValueError(f"{name} must be an array of numbers, not {array.dtype}")
    return array


def cells_of(net: Any, params: Any) -> tuple[Any, ...]:
    """Return the cell's parameters of each pseudo-layer of a network as numpy arrays, after checks.

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
        if isinstance(net, Architecture):
            inputs = net.input_width(number // net.directions)
        else:
            inputs = getattr(net, "inputs", None) or np.shape(getattr(each, "w_x", [[]]))[0]
        _check_shapes(cell_of(net), each, inputs)
    return found


def _check_shapes(cell: Any, params: Any, inputs: int) -> None:
    """Raise ValueError for the first array of a cell that is missing or of another shape."""
    for name, shape in shapes(cell, inputs)._asdict().items():
        array = getattr(params, name, None)
        found = None if array is None else array.shape
        if found != shape:
            raise ValueError(f"{name} must have shape {shape} for {cell}, not {found}")


def joined(net: Any, cells: Sequence[Any]) -> Any:
    """Return the parameters of a stack, or of the one cell, from those of each pseudo-layer."""
    return StackedParams(tuple(cells)) if isinstance(net, Architecture) else cells[0]


def cell_of(net: Any) -> Any:
    """Return the cell of a stack or network, or the cell itself."""
    return net.cell if isinstance(net, Architecture | Network) else net


def shapes(cell: Any, inputs: int) -> Any:
    """Return the parameters of a cell for D = `inputs` with shapes in place of arrays."""
    made = jax.eval_shape(lambda: cell.init(jax.random.key(0), inputs))
    return jax.tree.map(lambda array: tuple(array.shape), made)


def unsupported_stack(net: Any, library: str) -> str | None:
    """Return which option of a stack the layers of other libraries lack; None where they have all."""
    if not isinstance(net, Architecture):
        return None
    for name, plain in (
        ("residual", False),
        ("learned_state", False),
        ("zoneout", 0.0),
        ("blocks", 1),
    ):
        if getattr(net, name) != plain:
            return f"{library} has no layers with {name}={getattr(net, name)}"
    return None


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
