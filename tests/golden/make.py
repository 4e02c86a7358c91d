"""Values and gradients that PyTorch and Keras compute, in jaxrnn's layout, as stored files.

    python -m tests.golden.make      (needs `pip install jaxrnn[peers]`)

writes one small .npz per case beside this file. `tests/recurrence/test_cells.py` compares jaxrnn with
these files, and `tests/test_peers.py` runs `answer` live. The weights are converted by `jaxrnn.interop`.

Neither peer has peepholes, so `lstm(peephole=True)` is compared with the equations alone
(`tests/support/oracle.py`). Keras runs on PyTorch here. Everything is float64, but Keras' own matrix
product rounds to float32, so its numbers are good to about seven digits (`oracle.TOLERANCES`).
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import gru, lstm, rnn
from jaxrnn.interop import keras as keras_weights
from jaxrnn.interop import torch as torch_weights
from jaxrnn.recurrence.cells import LSTM, RNN
from tests.support.problems import Problem, problem

HIDDEN = 4


class Case(NamedTuple):
    peer: str
    cell: Any


CASES = {
    "torch-rnn-tanh": Case("torch", rnn(HIDDEN)),
    "torch-rnn-relu": Case("torch", rnn(HIDDEN, activation="relu")),
    "torch-lstm": Case("torch", lstm(HIDDEN)),
    "torch-gru-after": Case("torch", gru(HIDDEN, reset="after")),
    "keras-rnn-tanh": Case("keras", rnn(HIDDEN)),
    "keras-rnn-relu": Case("keras", rnn(HIDDEN, activation="relu")),
    "keras-rnn-sigmoid": Case("keras", rnn(HIDDEN, activation="sigmoid")),
    "keras-lstm": Case("keras", lstm(HIDDEN)),
    "keras-gru-before": Case("keras", gru(HIDDEN, reset="before")),
    "keras-gru-after": Case("keras", gru(HIDDEN, reset="after")),
}


def answer(case: Case, given: Problem) -> tuple[Any, Any]:
    """Return the peer's ((final state, ys), gradients of the loss for params, xs and state).

    Both are in jaxrnn's layout, as `problems.library` returns them.
    """
    run = _torch if case.peer == "torch" else _keras
    return run(case.cell, given)


# --- PyTorch ------------------------------------------------------------------------------------


def _torch(cell: Any, given: Problem) -> tuple[Any, Any]:
    import torch

    features = given.xs.shape[-1]
    if isinstance(cell, RNN):
        layer = torch.nn.RNN(features, cell.hidden_size, nonlinearity=cell.activation)
    else:
        kind = torch.nn.LSTM if isinstance(cell, LSTM) else torch.nn.GRU
        layer = kind(features, cell.hidden_size)
    layer.double()
    for name, array in torch_weights.to_torch(cell, given.params).items():
        getattr(layer, name).data = torch.tensor(array)

    xs = torch.tensor(given.xs, requires_grad=True)
    state = [torch.tensor(s[None], requires_grad=True) for s in given.state]  # [1 layer, B, H]
    ys, final = layer(xs, tuple(state) if isinstance(cell, LSTM) else state[0])
    final = final if isinstance(cell, LSTM) else (final,)
    weights = [torch.tensor(w) for w in (given.weights[1], *given.weights[0])]
    results = [ys, *(s[0] for s in final)]
    sum((w * r).sum() for w, r in zip(weights, results, strict=True)).backward()

    gradients = {name: getattr(layer, name).grad.numpy() for name in torch_weights.names()}
    d_params = torch_weights.gradients_from_torch(cell, gradients)
    d_state = type(given.state)(*(s.grad[0].numpy() for s in state))
    ys, *final = (r.detach().numpy() for r in results)
    return (type(given.state)(*final), ys), (d_params, xs.grad.numpy(), d_state)


# --- Keras --------------------------------------------------------------------------------------


def _keras(cell: Any, given: Problem) -> tuple[Any, Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    options = {"return_sequences": True, "return_state": True, "dtype": "float64"}
    if isinstance(cell, RNN):
        layer = keras.layers.SimpleRNN(cell.hidden_size, activation=cell.activation, **options)
    elif isinstance(cell, LSTM):
        layer = keras.layers.LSTM(cell.hidden_size, **options)
    else:
        layer = keras.layers.GRU(cell.hidden_size, reset_after=cell.reset == "after", **options)
    xs = torch.tensor(given.xs.swapaxes(0, 1).copy(), requires_grad=True)  # [B, T, D]
    state = [torch.tensor(s, requires_grad=True) for s in given.state]
    layer.build(tuple(xs.shape))
    layer.set_weights(keras_weights.to_keras(cell, given.params))

    ys, *final = layer(xs, initial_state=state)
    results = [ys.transpose(0, 1), *final]
    weights = [torch.tensor(w) for w in (given.weights[1], *given.weights[0])]
    sum((w * r).sum() for w, r in zip(weights, results, strict=True)).backward()

    gradients = [variable.value.grad.numpy() for variable in layer.trainable_variables]
    d_params = keras_weights.gradients_from_keras(cell, gradients)
    d_xs = xs.grad.numpy().swapaxes(0, 1)
    d_state = type(given.state)(*(s.grad.numpy() for s in state))
    ys, *final = (r.detach().numpy() for r in results)
    return (type(given.state)(*final), ys), (d_params, d_xs, d_state)


# --- the files ----------------------------------------------------------------------------------


def save(name: str) -> None:
    cell = CASES[name].cell
    given = problem(cell, steps=6, batch=3)
    leaves = jax.tree.leaves((given, answer(CASES[name], given)))
    np.savez_compressed(_path(name), *leaves)


def load(name: str) -> tuple[Problem, tuple[Any, Any]]:
    """Return the problem of a case, and the peer's answer to it."""
    like = problem(CASES[name].cell)
    results, gradients = (like.state, like.xs), like.inputs
    structure = jax.tree.structure((like, (results, gradients)))
    with np.load(_path(name)) as arrays:
        return jax.tree.unflatten(structure, arrays.values())


def _path(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.npz")


if __name__ == "__main__":
    for name in CASES:
        save(name)
        print(name, _path(name).stat().st_size, "bytes")
