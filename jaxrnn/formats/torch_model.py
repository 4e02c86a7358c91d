"""Convert char-RNNs from and to PyTorch: an embedding, one recurrent module, a linear layer.

    params = from_torch(model.state_dict(), vocabulary)
    jaxrnn.sample(params, "ROMEO:")

Such models name their parts in many ways: karpathy-style programs `encoder`, `rnn`, `decoder`, others
`embedding`, `lstm`, `fc`. The parts are found by their shapes instead:

    NAME.weight                        [V, E]     the embedding; absent where characters are one-hot
    NAME.weight_ih_l0, weight_hh_l0 …             the recurrent module, as `interop.torch` describes it
    NAME.weight, NAME.bias             [V, H], [V]  the output layer; without a bias zeros
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.formats import models
from jaxrnn.interop import arrays, torch
from jaxrnn.interop.arrays import as_numpy


def from_torch(
    state_dict: Mapping[str, Any],
    vocabulary: Vocabulary | str,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
) -> charlm.Params:
    """Return the char-RNN of a PyTorch model.

    Args:
      state_dict: tensors or numpy arrays by name: `model.state_dict()`,
        `torch.load(path, weights_only=True)` or `safetensors.numpy.load_file(path)`. Wider dtypes than
        float32 are rounded to it.
      vocabulary: the vocabulary, or its characters in the order of the model's tokens.
      nonlinearity: that of an `nn.RNN`, which its weights do not show.

    Raises:
      ValueError: for the first part that is missing or unexpected, or has the wrong shape, for several
        recurrent modules, for a bidirectional module or one with `proj_size`, which a char-RNN cannot
        have, and for a vocabulary that does not fit.
    """
    arrays.check_mapping(
        state_dict, "a state dict, such as torch.load(path, weights_only=True) returns"
    )
    prefix = _prefix(state_dict)
    net, params = torch.stacked_from_torch(state_dict, prefix=prefix, nonlinearity=nonlinearity)
    if net.bidirectional:
        raise ValueError("the module is bidirectional, and a char-RNN must be unidirectional")
    others = {
        name: as_numpy(array, name)
        for name, array in state_dict.items()
        if not (name.startswith(prefix) and torch.is_name(name.removeprefix(prefix)))
    }
    vocabulary = models.vocabulary_of(vocabulary)
    size = len(vocabulary)
    hidden = net.cell.hidden_size
    output = _output(others, (size, hidden))
    w_out = others.pop(f"{output}.weight")
    bias = others.pop(f"{output}.bias", None)
    b_out = np.zeros(size, w_out.dtype) if bias is None else bias
    if b_out.shape != (size,):
        raise ValueError(f"{output}.bias must have shape {(size,)}, not {b_out.shape}")
    embedding = None
    if not others and bias is None and net.inputs == hidden == size:
        raise ValueError(
            f"{output}.weight could be the embedding or the output layer; add a bias of zeros, "
            "NAME.bias [V], to the output layer to identify it"
        )
    if others:
        embedding = _embedding(others, (size, net.inputs))
    elif net.inputs != size:
        raise ValueError(
            f"there is no embedding, so the recurrent module must have {size} inputs, one for each "
            f"character of the vocabulary, not {net.inputs}"
        )
    return models.make(vocabulary, net.cell, embedding, params.cells, w_out.T, b_out)


def to_torch(
    params: charlm.Params,
    *,
    encoder: str = "encoder",
    rnn: str = "rnn",
    decoder: str = "decoder",
) -> dict[str, np.ndarray]:
    """Return the state dict of a PyTorch model as numpy arrays.

    Args:
      params: a char-RNN whose cell PyTorch has.
      encoder: the name of the `nn.Embedding`; not used where characters are fed one-hot.
      rnn: the name of the `nn.RNN`, `nn.LSTM` or `nn.GRU`.
      decoder: the name of the `nn.Linear`.

    Raises:
      ValueError: for a cell that PyTorch does not have.
    """
    embedding, w_out, b_out = models.parts_of(params)
    found = {} if embedding is None else {f"{encoder}.weight": embedding}
    for name, array in torch.to_torch(*models.stack_of(params)).items():
        found[f"{rnn}.{name}"] = array
    return found | {f"{decoder}.weight": np.ascontiguousarray(w_out.T), f"{decoder}.bias": b_out}


def _prefix(state_dict: Mapping[str, Any]) -> str:
    """Return the prefix of the names of the only recurrent module."""
    ends = [name for name in state_dict if name.endswith("weight_ih_l0")]
    if len(ends) != 1:
        found = ", ".join(ends) or "none among " + ", ".join(state_dict)
        raise ValueError(
            "the model must have exactly one nn.RNN, nn.LSTM or nn.GRU, which has a weight_ih_l0; "
            f"found {found}"
        )
    return ends[0].removesuffix("weight_ih_l0")


def _output(others: Mapping[str, np.ndarray], shape: tuple[int, int]) -> str:
    """Return the name of the output layer: the one with a bias, or the only one of the right shape."""
    names = [name.removesuffix(".weight") for name in others if name.endswith(".weight")]
    fitting = [name for name in names if others[f"{name}.weight"].shape == shape]
    with_bias = [name for name in fitting if f"{name}.bias" in others]
    if not fitting:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in others.items()) or "nothing"
        raise ValueError(
            f"the output layer must have a weight [V, H] = {shape}, with V the size of the vocabulary; "
            f"found {shapes}"
        )
    found = with_bias or fitting
    first = others[f"{found[0]}.weight"]
    if not all(np.array_equal(first, others[f"{name}.weight"]) for name in found):
        raise ValueError(
            f"the output layer could be any of {', '.join(found)}; add a bias of zeros, NAME.bias [V], "
            "to the output layer to identify it"
        )
    return found[-1]


def _embedding(others: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the embedding, which must be the only array in `others`."""
    (name, array), *more = others.items()
    if array.shape != shape:
        raise ValueError(f"{name} must be the embedding [V, E] = {shape}, not {array.shape}")
    if more:
        raise ValueError(
            f"unexpected weights for a char-RNN: {', '.join(name for name, _ in more)}"
        )
    return array
