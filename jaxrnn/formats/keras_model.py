"""Convert char-RNNs from and to Keras models, such as the lecture's own program.

    params = from_keras("lecture.keras", vocabulary)
    jaxrnn.sample(params, "ROMEO:")

The lecture's program is `Embedding(V, 256)`, `LSTM(1024)` and `Dense(V)`. An activation softmax of the
dense layer is left out, because a char-RNN returns logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.formats import models
from jaxrnn.interop import keras, keras_layers
from jaxrnn.interop.arrays import Reader
from jaxrnn.interop.keras_layers import RECURRENT, KerasLayer


def from_keras(model: Any, vocabulary: Vocabulary | str) -> charlm.Params:
    """Return the char-RNN of a Keras model.

    Args:
      model: a live model, or the path of a `.keras` or `.weights.h5` file of one. Its layers are one
        `Embedding` (or none, if characters are fed one-hot), recurrent layers of one kind and width, and
        a `Dense` layer; `Dropout` between them acts in training only and is not carried over.
      vocabulary: the vocabulary, or its characters in the order of the model's tokens.

    Raises:
      InputError: for a file of the wrong type or a damaged one.
      ValueError: for the first layer, option or shape that a char-RNN cannot have, and for a vocabulary
        that does not fit.
    """
    layers = [
        layer
        for layer in keras_layers.read(model)
        if layer.kind not in ("Dropout", "SpatialDropout1D")
    ]
    keras_layers.check_all_known(layers, ("Embedding", *RECURRENT, "Dense"))
    kinds = [layer.kind for layer in layers]
    first = int(kinds[:1] == ["Embedding"])
    recurrent, last = layers[first:-1], layers[-1:]
    if not last or last[0].kind != "Dense" or any(k not in RECURRENT for k in kinds[first:-1]):
        raise ValueError(
            "the layers must be an Embedding, recurrent layers and a Dense layer, in this order, not "
            f"{', '.join(kinds) or 'nothing'}"
        )
    net, params = keras.stack_of(recurrent)
    if net.bidirectional:
        raise ValueError("the model is bidirectional, and a char-RNN must be unidirectional")
    vocabulary = models.vocabulary_of(vocabulary)
    size = len(vocabulary)
    embedding = None
    if first:
        if layers[0].options.get("mask_zero"):
            raise ValueError(
                f"the layer {layers[0].name} has mask_zero=True, and char-RNNs do not support masking"
            )
        (embedding,) = _arrays(layers[0], {"embeddings": (size, net.inputs)})
    elif net.inputs != size:
        raise ValueError(
            f"there is no Embedding, so the first recurrent layer must have {size} inputs, one for each "
            f"character of the vocabulary, not {net.inputs}"
        )
    w_out, b_out = _dense(last[0], (net.cell.hidden_size, size))
    return models.make(vocabulary, net.cell, embedding, params.cells, w_out, b_out)


def to_keras(params: charlm.Params) -> list[np.ndarray]:
    """Return the arrays of a Keras model as `model.set_weights` takes them.

    Args:
      params: a char-RNN whose cell Keras has.

    Raises:
      ValueError: for a cell that Keras does not have.
    """
    embedding, w_out, b_out = models.parts_of(params)
    first = [] if embedding is None else [embedding]
    return [*first, *keras.to_keras(*models.stack_of(params)), w_out, b_out]


def _dense(layer: KerasLayer, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and the bias of the output layer."""
    activation = layer.options.get("activation", "linear")
    if activation not in ("linear", "softmax"):
        raise ValueError(
            f"the layer {layer.name} has activation={activation!r}, not 'linear' or 'softmax'"
        )
    if layer.options.get("use_bias", len(layer.arrays) > 1):
        kernel, bias = _arrays(layer, {"kernel": shape, "bias": shape[1:]})
        return kernel, bias
    (kernel,) = _arrays(layer, {"kernel": shape})
    return kernel, np.zeros(shape[1], kernel.dtype)


def _arrays(layer: KerasLayer, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    """Return the arrays of a layer. Raise ValueError for another number of them or another shape."""
    if len(layer.arrays) != len(shapes):
        raise ValueError(
            f"the layer {layer.name} must have {len(shapes)} arrays ({', '.join(shapes)}), not "
            f"{len(layer.arrays)}; quantized and LoRA layers are not converted"
        )
    named = {f"{layer.name}/{name}": a for name, a in zip(shapes, layer.arrays, strict=True)}
    reader = Reader(named, "this vocabulary")
    return [reader.take(f"{layer.name}/{name}", shape) for name, shape in shapes.items()]
