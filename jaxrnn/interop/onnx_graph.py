"""Graphs of ONNX and its recurrent operators `LSTM`, `GRU` and `RNN`.

An operator runs one layer. With N the number of directions (1 or 2, forward first) and G = H times the
number of gates it has the arrays

    W    [N, G, D]     transposed w_x
    R    [N, G, H]     transposed w_h
    B    [N, 2 G]      b, then the recurrent bias: zero, except for the candidate of a GRU with the reset
                       after the product, where it is b_h
    P    [N, 3 H]      the peepholes of an LSTM, in the order i o f

The gate order is i o f c for the LSTM, where jaxrnn has i f g o, and z r h for the GRU, as in jaxrnn.
Written from the documentation of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrnn.errors import InputError
from jaxrnn.layers.architecture import Architecture
from jaxrnn.recurrence.cells import GRU, LSTM, is_builtin

# ONNX 1.12 of 2022 defined them, so that runtimes since then read the files. The recurrent operators of
# later versions differ in the supported dtypes alone.
OPSET, IR_VERSION = 17, 8

# The largest message of protobuf is 2 GiB. Names and nodes take the rest.
LARGEST = 2**31 - 2**20

ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}

# A shape in a graph: numbers, and names of the sizes that a caller chooses.
Shape = Sequence[int | str]


def package() -> Any:
    """Return the module `onnx`. Raises InputError where it is not installed."""
    try:
        import onnx
    except ImportError:
        raise InputError('ONNX needs another package: pip install "jaxrnn[onnx]"') from None
    return onnx


def unsupported_cell(cell: Any) -> str | None:
    """Return why ONNX has no operator that computes what this cell does; None where it has one."""
    return None if is_builtin(cell) else f"ONNX has no operator for {type(cell).__name__}"


def operator(cell: Any, directions: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the attributes of the operator that runs a layer of this cell."""
    attributes: dict[str, Any] = {"hidden_size": cell.hidden_size}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if isinstance(cell, LSTM):
        return "LSTM", attributes
    if isinstance(cell, GRU):
        return "GRU", attributes | {"linear_before_reset": int(cell.reset == "after")}
    return "RNN", attributes | {"activations": [ACTIVATIONS[cell.activation]] * directions}


def operator_arrays(cell: Any, layers: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the arrays of an operator by ONNX's names, float32.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      layers: the cell's parameters for each direction, numpy or JAX arrays.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        w_x, w_h, b = (np.asarray(array, np.float32) for array in layer[:3])
        b_h = np.zeros_like(b)
        if isinstance(cell, LSTM):
            w_x, w_h, b = (_i_o_f_c(array) for array in (w_x, w_h, b))
            if layer.w_c is not None:
                p_i, p_f, p_o = np.asarray(layer.w_c, np.float32)
                arrays.setdefault("P", []).append(np.concatenate([p_i, p_o, p_f]))
        elif isinstance(cell, GRU) and layer.b_h is not None:
            b_h[2 * cell.hidden_size :] = layer.b_h
        arrays.setdefault("W", []).append(w_x.T)
        arrays.setdefault("R", []).append(w_h.T)
        arrays.setdefault("B", []).append(np.concatenate([b, b_h]))
    return {name: np.stack(of_directions) for name, of_directions in arrays.items()}


def _i_o_f_c(array: np.ndarray) -> np.ndarray:
    """Return an LSTM's array [..., 4 H] with its gates i f g o in ONNX's order."""
    i, f, g, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, o, f, g], axis=-1)


class Graph:
    """A graph that is being built; the values in it are named by strings.

    Raises:
      InputError: where `onnx` is not installed.
    """

    def __init__(self) -> None:
        self._onnx = package()
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._bytes = 0

    def input(self, name: str, shape: Shape, dtype: Any = np.float32) -> str:
        """Add an input and return its name."""
        self._inputs.append(self._described(name, shape, dtype))
        return name

    def output(self, name: str, shape: Shape) -> None:
        """Make a float32 value an output of the graph."""
        self._outputs.append(self._described(name, shape, np.float32))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant and return its name.

        Raises:
          ValueError: where all constants together are larger than a file of ONNX can be.
        """
        self._bytes += array.nbytes
        if self._bytes > LARGEST:
            raise ValueError("a file of ONNX holds at most 2 GiB, and the parameters are larger")
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node that computes `outputs`, and return the name of the first one."""
        node = self._onnx.helper.make_node(kind, inputs, outputs, outputs[0], **attributes)
        self._nodes.append(node)
        return outputs[0]

    def model(self, name: str, metadata: dict[str, str]) -> Any:
        """Return the `onnx.ModelProto` of the graph, which `onnx.checker` has found valid."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=self._constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="jaxrnn",
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _described(self, name: str, shape: Shape, dtype: Any) -> Any:
        helper = self._onnx.helper
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
        )


def add_layers(
    graph: Graph, net: Architecture, cells: Sequence[Any], xs: str, lengths: str = ""
) -> str:
    """Add the layers of a stack, the inputs for their initial states and the outputs for the final ones.

    The states of layer k are `hidden_k` and, for an LSTM, `cell_k`, each [N, B, H]; the final ones are
    `final_hidden_k` and `final_cell_k`.

    Args:
      graph: where to add them.
      net: the architecture.
      cells: the parameters of each pseudo-layer.
      xs: the value with the inputs of the first layer, [T, B, D].
      lengths: the value with the lengths [B] of the rows, int32; empty where all steps are real.

    Returns:
      The value with the outputs of the last layer, [T, B, N H].
    """
    shape = (net.directions, "B", net.cell.hidden_size)
    for layer in range(net.layers):
        of_layer = cells[layer * net.directions : (layer + 1) * net.directions]
        kind, attributes = operator(net.cell, net.directions)
        arrays = {
            name: graph.constant(f"layer_{layer}_{name}", array)
            for name, array in operator_arrays(net.cell, of_layer).items()
        }
        parts = ("hidden", "cell") if kind == "LSTM" else ("hidden",)
        states = [graph.input(f"{part}_{layer}", shape) for part in parts]
        inputs = [xs, arrays["W"], arrays["R"], arrays["B"], lengths, *states]
        if "P" in arrays:
            inputs.append(arrays["P"])
        finals = [f"final_{state}" for state in states]
        ys = graph.node(kind, inputs, f"layer_{layer}", *finals, **attributes)
        for final in finals:
            graph.output(final, shape)
        ys = _side_by_side(graph, ys, net.directions)
        if net.residual and net.input_width(layer) == net.width:
            ys = graph.node("Add", [xs, ys], f"layer_{layer}_residual")
        xs = ys
    return xs


def add_output_layer(graph: Graph, hidden: str, w_out: str, b_out: Any, name: str) -> None:
    """Add a linear output layer.

    Args:
      graph: where to add it.
      hidden: the value with the hidden states, [T, B, H].
      w_out: the value with the weights, [H, K].
      b_out: [K], the biases, an array.
      name: the name of the outputs, [T, B, K].
    """
    product = graph.node("MatMul", [hidden, w_out], f"{name}_product")
    graph.node("Add", [product, graph.constant("b_out", np.asarray(b_out, np.float32))], name)


def _side_by_side(graph: Graph, ys: str, directions: int) -> str:
    """Return outputs [T, N, B, H] of an operator as [T, B, N H]."""
    if directions == 1:
        axes = graph.constant(f"{ys}_axes", np.array([1]))
        return graph.node("Squeeze", [ys, axes], f"{ys}_ys")
    swapped = graph.node("Transpose", [ys], f"{ys}_swapped", perm=[0, 2, 1, 3])
    # 0 keeps the size of an axis, -1 joins the rest.
    shape = graph.constant(f"{ys}_shape", np.array([0, 0, -1]))
    return graph.node("Reshape", [swapped, shape], f"{ys}_ys")
