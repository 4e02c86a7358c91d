"""What PyTorch and Keras compute, values and gradients, in jaxrnn's own layout.

    python tests/golden/make.py      (needs `pip install jaxrnn[peers]`)

writes one small .npz per case beside this file; `tests/test_cells.py` holds jaxrnn to them, and
`tests/test_peers.py` runs `answer` live. This file is the one home of the weight conversions.

Neither peer has peepholes, so `lstm(peephole=True)` is held to the equations alone
(`tests/oracle.py`). Keras runs on PyTorch here. All is float64, but Keras' own matrix product
rounds to float32, so that its numbers are good to about seven digits (`oracle.TOLERANCES`).

    gates     jaxrnn              PyTorch                       Keras
    LSTM      i f g o             i f g o                       i f c o
    GRU       z r n               r z n                         z r h
    biases    b (and b_h of n)    b_ih, b_hh [G] each           b, or [2, G] with reset_after
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import jax
import numpy as np
from oracle import Problem, problem

from jaxrnn import gru, lstm, rnn

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
    """((final state, ys), gradients of the loss for params, xs and state), from the peer.

    The peer's results and gradients come back in jaxrnn's layout, as `oracle.library` gives them.
    """
    return {"torch": _torch, "keras": _keras}[case.peer](case.cell, given)


# --- PyTorch ------------------------------------------------------------------------------------


def _torch(cell: Any, given: Problem) -> tuple[Any, Any]:
    import torch

    features = given.xs.shape[-1]
    if isinstance(cell, rnn):
        layer = torch.nn.RNN(features, cell.hidden_size, nonlinearity=cell.activation)
    else:
        layer = {lstm: torch.nn.LSTM, gru: torch.nn.GRU}[type(cell)](features, cell.hidden_size)
    layer.double()
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    for name, array in zip(names, _to_torch(cell, given.params), strict=True):
        getattr(layer, name).data = torch.tensor(array)

    xs = torch.tensor(given.xs, requires_grad=True)
    state = [torch.tensor(s[None], requires_grad=True) for s in given.state]  # [1 layer, B, H]
    ys, final = layer(xs, tuple(state) if isinstance(cell, lstm) else state[0])
    final = final if isinstance(cell, lstm) else (final,)
    weights = [torch.tensor(w) for w in (given.weights[1], *given.weights[0])]
    results = [ys, *(s[0] for s in final)]
    sum((w * r).sum() for w, r in zip(weights, results, strict=True)).backward()

    d_params = _from_torch(cell, [getattr(layer, name).grad.numpy() for name in names])
    d_state = type(given.state)(*(s.grad[0].numpy() for s in state))
    ys, *final = (r.detach().numpy() for r in results)
    return (type(given.state)(*final), ys), (d_params, xs.grad.numpy(), d_state)


def _swap_z_r(cell: Any, array: np.ndarray) -> np.ndarray:
    """The last axis from z r n to r z n, or back; other cells' as it is."""
    if not isinstance(cell, gru):
        return array
    z, r, n = np.split(array, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1)


def _to_torch(cell: Any, params: Any) -> list[np.ndarray]:
    b_h = np.zeros_like(params.b)
    if isinstance(cell, gru):
        b_h[2 * cell.hidden_size :] = params.b_h
    w_x, w_h, b = (_swap_z_r(cell, a) for a in params[:3])
    return [w_x.T, w_h.T, b, b_h]


def _from_torch(cell: Any, arrays: list[np.ndarray]) -> Any:
    w_x, w_h, b = (_swap_z_r(cell, a.T) for a in arrays[:3])
    return _params(cell, w_x, w_h, b, arrays[3][2 * cell.hidden_size :])


# --- Keras --------------------------------------------------------------------------------------


def _keras(cell: Any, given: Problem) -> tuple[Any, Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    options = {"return_sequences": True, "return_state": True, "dtype": "float64"}
    if isinstance(cell, rnn):
        layer = keras.layers.SimpleRNN(cell.hidden_size, activation=cell.activation, **options)
    elif isinstance(cell, lstm):
        layer = keras.layers.LSTM(cell.hidden_size, **options)
    else:
        layer = keras.layers.GRU(cell.hidden_size, reset_after=cell.reset == "after", **options)
    xs = torch.tensor(given.xs.swapaxes(0, 1).copy(), requires_grad=True)  # [B, T, D]
    state = [torch.tensor(s, requires_grad=True) for s in given.state]
    layer.build(tuple(xs.shape))
    layer.set_weights(_to_keras(cell, given.params))

    ys, *final = layer(xs, initial_state=state)
    results = [ys.transpose(0, 1), *final]
    weights = [torch.tensor(w) for w in (given.weights[1], *given.weights[0])]
    sum((w * r).sum() for w, r in zip(weights, results, strict=True)).backward()

    d_weights = [variable.value.grad.numpy() for variable in layer.trainable_variables]
    d_xs = xs.grad.numpy().swapaxes(0, 1)
    d_state = type(given.state)(*(s.grad.numpy() for s in state))
    ys, *final = (r.detach().numpy() for r in results)
    return (type(given.state)(*final), ys), (_from_keras(cell, d_weights), d_xs, d_state)


def _to_keras(cell: Any, params: Any) -> list[np.ndarray]:
    bias = params.b
    if isinstance(cell, gru) and cell.reset == "after":
        bias = np.stack([bias, np.zeros_like(bias)])
        bias[1, 2 * cell.hidden_size :] = params.b_h
    return [params.w_x, params.w_h, bias]


def _from_keras(cell: Any, arrays: list[np.ndarray]) -> Any:
    w_x, w_h, bias = arrays
    b, b_h = bias if bias.ndim == 2 else (bias, bias)
    return _params(cell, w_x, w_h, b, b_h[2 * cell.hidden_size :])


def _params(cell: Any, w_x: np.ndarray, w_h: np.ndarray, b: np.ndarray, b_h: np.ndarray) -> Any:
    extra = {"b_h": b_h} if isinstance(cell, gru) and cell.reset == "after" else {}
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), w_x.shape[0]))
    return type(like)(w_x, w_h, b, **extra)


# --- the files ----------------------------------------------------------------------------------


def save(name: str) -> None:
    cell = CASES[name].cell
    given = problem(cell, steps=6, batch=3)
    leaves = jax.tree.leaves((given, answer(CASES[name], given)))
    np.savez_compressed(_path(name), *leaves)


def load(name: str) -> tuple[Problem, tuple[Any, Any]]:
    """The problem of a case and the peer's answer to it."""
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
