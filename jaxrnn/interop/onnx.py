"""Networks and stacks of layers as graphs of ONNX, for other runtimes.

    model = to_onnx(net, params)
    onnx.save(model, "net.onnx")

The graph has one of ONNX's recurrent operators per layer, `LSTM`, `GRU` or `RNN`, and no loops. It
computes in float32. With N the number of directions, its values are

    inputs     xs                [T, B, D], or [B, T, D] with `batch_first`
               lengths           [B], int32, only where asked for
               hidden_k          [N, B, H], the state of layer k (from 0) before the first step
               cell_k            [N, B, H], only of an LSTM
    outputs    ys                [T, B, N H] or [B, T, N H]; [T, B, K] of a network with K outputs
               final_hidden_k    the state after the last step
               final_cell_k

T and B are free in every call. A sequence begins with states of zeros. A program that receives a
sequence piece by piece, even step by step, gives the final states of each call to the next; they are in
the order of the inputs. That is not possible with bidirectional layers, whose outputs need the whole
sequence. The backward direction is the second row of each state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn.interop.arrays import (
    PLAIN,
    cells_of,
    check_network,
    require_supported,
    unsupported_option,
)
from jaxrnn.interop.onnx_graph import Graph, add_layers, add_output_layer, unsupported_cell
from jaxrnn.layers import Stacked
from jaxrnn.layers.architecture import Architecture
from jaxrnn.recurrence.networks import Network


def unsupported_reason(net: Network | Stacked, lengths: bool = False) -> str | None:
    """Return why `to_onnx` cannot convert this network or stack of layers; None where it can.

    Dropout of outputs and of weights has no effect, because nothing is dropped outside of training.
    """
    check_network(net)
    plain = {name: value for name, value in PLAIN.items() if name != "residual"}
    reason = unsupported_cell(net.cell) or unsupported_option(net, "ONNX", plain)
    if reason or isinstance(net, Network):
        return reason
    if lengths and net.residual:
        return "lengths are not supported with residual, which would add the padding to the outputs"
    return None


def to_onnx(net: Network | Stacked, params: Any, *, lengths: bool = False) -> Any:
    """Return an `onnx.ModelProto` that computes what `net.apply` does.

    Args:
      net: made by `jaxrnn.network` or `jaxrnn.layers.stacked`, with a cell of `jaxrnn.rnn`,
        `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays; they are converted to float32.
      lengths: whether the graph has an input `lengths`, as the argument of `net.apply`: outputs at and
        after a row's length are those of a hidden state of zeros, and a backward direction begins at the
        row's last real step. They must be at least 1: ONNX does not say what 0 does, and the final
        state of such a row in onnxruntime is not its initial state.

    Raises:
      InputError: where `onnx` is not installed.
      ValueError: for what `unsupported_reason` names, for parameters of another network, and for
        parameters of more than 2 GiB.
    """
    require_supported(unsupported_reason(net, lengths))
    cells = cells_of(net, params)
    graph = Graph()
    batch_first = isinstance(net, Stacked) and net.batch_first
    axes = ("B", "T") if batch_first else ("T", "B")
    xs = graph.input("xs", (*axes, net.inputs))
    if batch_first:
        xs = graph.node("Transpose", [xs], "time_first", perm=[1, 0, 2])
    if isinstance(net, Network):
        width, stack = net.outputs, Architecture(net.cell, net.inputs)
    else:
        width, stack = net.width, net
    graph.output("ys", (*axes, width))
    given = graph.input("lengths", ("B",), np.int32) if lengths else ""
    ys = add_layers(graph, stack, cells, xs, given)
    if isinstance(net, Network):
        w_out = graph.constant("w_out", np.asarray(params.w_out, np.float32))
        add_output_layer(graph, ys, w_out, params.b_out, "ys")
    elif batch_first:
        graph.node("Transpose", [ys], "ys", perm=[1, 0, 2])
    else:
        graph.node("Identity", [ys], "ys")
    return graph.model("jaxrnn", {})
