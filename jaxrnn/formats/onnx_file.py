"""Char-RNNs as ONNX, for programs with another runtime and without JAX.

`write` makes a file with one of ONNX's recurrent operators per layer and no loops:

    inputs     tokens            [T, B], int64, from 0 to V - 1
               hidden_k          [1, B, H], the state of layer k (from 0) before the first token
               cell_k            [1, B, H], only of an LSTM
    outputs    logits            [T, B, V], of the token after each token
               final_hidden_k    the state after the last token
               final_cell_k
    metadata   vocabulary        JSON: {"characters": "\\n !...", "by_bytes": false, "tokens": [],
                                 "pattern": ""}; token i stands for the character at index i (code
                                 points, not UTF-16), for byte i, or, with a pattern, for tokens[i]
               config            JSON: the fields of `jaxrnn.ModelConfig`

T and B are free in every call. A text begins with states of zeros, and the final states of each call are
the states of the next. This program continues a text, with numpy and onnxruntime alone (a model of
bytes has `text.encode()` for its tokens):

    import json

    import numpy as np
    import onnxruntime

    text, length, temperature = "ROMEO:", 500, 0.8
    session = onnxruntime.InferenceSession("play.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    characters = json.loads(metadata["vocabulary"])["characters"]
    _, *states = session.get_inputs()
    state = {s.name: np.zeros((1, 1, s.shape[2]), np.float32) for s in states}
    random = np.random.default_rng(0)

    tokens = [characters.index(c) for c in text]
    for _ in range(length):
        inputs = {"tokens": np.array(tokens)[:, None], **state}
        logits, *finals = session.run(None, inputs)
        state = dict(zip(state, finals))
        scaled = logits[-1, 0].astype(float) / temperature
        p = np.exp(scaled - scaled.max())
        tokens = [random.choice(len(p), p=p / p.sum())]
        text += characters[tokens[0]]
    print(text)
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import charlm
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.formats import models
from jaxrnn.interop.onnx_graph import Graph, add_layers, add_output_layer, unsupported_cell


def unsupported_reason(config: charlm.ModelConfig) -> str | None:
    """Return why `write` cannot write a char-RNN of this architecture; None where it can."""
    if config.lines:
        return (
            "ONNX's recurrent operators cannot reset the state at the start of each line (`lines`)"
        )
    return unsupported_cell(config.make_cell())


def write(params: charlm.Params, path: str | os.PathLike[str]) -> None:
    """Write a char-RNN as an ONNX file. It computes in float32, also where `dtype` is bfloat16.

    Args:
      params: the model, from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      path: the file. It is replaced as a whole or not at all.

    Raises:
      InputError: where `onnx` is not installed, for a cell that ONNX does not have, and for parameters
        of more than 2 GiB.
      OSError: if the file cannot be written.
    """
    if reason := unsupported_reason(params.config):
        raise InputError(reason)
    try:
        content = _model(params).SerializeToString()
    except ValueError as error:
        raise InputError(str(error)) from None
    atomic_write(Path(path), content)


def _model(params: charlm.Params) -> Any:
    """Return the `onnx.ModelProto`. Raises ValueError for parameters of more than 2 GiB."""
    config, size = params.config, len(params.vocabulary)
    graph = Graph()
    tokens = graph.input("tokens", ("T", "B"), np.int64)
    graph.output("logits", ("T", "B", size))
    if params.embedding is None:
        xs = _one_hot(graph, tokens, size)
    else:
        embedding = graph.constant("embedding", np.asarray(params.embedding, np.float32))
        xs = graph.node("Gather", [embedding, tokens], "embedded")
    net, layers = models.stack_of(params)
    hidden = add_layers(graph, net, layers.cells, xs)
    if params.w_out is None:
        # The file holds a tied embedding once.
        w_out = graph.node("Transpose", ["embedding"], "w_out", perm=[1, 0])
    else:
        w_out = graph.constant("w_out", np.asarray(params.w_out, np.float32))
    add_output_layer(graph, hidden, w_out, params.b_out, "logits")
    metadata = {
        "vocabulary": json.dumps(dataclasses.asdict(params.vocabulary)),
        "config": json.dumps(dataclasses.asdict(config)),
    }
    return graph.model("jaxrnn", metadata)


def _one_hot(graph: Graph, tokens: str, size: int) -> str:
    """Return the value with the tokens one-hot, [T, B, V]."""
    depth = graph.constant("vocabulary_size", np.array(size))
    values = graph.constant("off_and_on", np.array([0, 1], np.float32))
    return graph.node("OneHot", [tokens, depth, values], "embedded")
