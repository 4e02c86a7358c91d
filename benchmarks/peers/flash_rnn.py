"""FlashRNN's CUDA kernels (`flashrnn`, fused backend) in PyTorch, with one head as wide as the layer.

The package leaves the input product to its caller; here it is one matrix product over all steps, and it
is included in the time. Kernels are compiled with nvcc at the first call. Gate orders: LSTM i f g o; GRU
r z n for the inputs, n r z for the state, and b_h r z n for the biases. Written from the package's
sources; not yet run on a CUDA device.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.peers import Contender, Given, Missing, Unserved, require
from jaxrnn.interop.arrays import swap_z_r
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

NAME = "flashrnn"


def check() -> None:
    if jax.default_backend() != "gpu":
        raise Missing("FlashRNN needs CUDA")
    torch = require("torch", "torch")
    if not torch.cuda.is_available():
        raise Missing(f"PyTorch {torch.__version__} sees no CUDA device")
    require("flashrnn", "flashrnn")


def contender(cell: Any, given: Given) -> Contender:
    import torch
    from flashrnn import flashrnn

    if isinstance(cell, RNN) and cell.activation != "tanh":
        raise Unserved(f"FlashRNN's elman cell has no {cell.activation}")
    if getattr(cell, "peephole", False):
        raise Unserved("FlashRNN's LSTM has no peepholes")
    if getattr(cell, "reset", "after") == "before":
        raise Unserved("FlashRNN's GRU resets after the product")
    function = {RNN: "elman", LSTM: "lstm", GRU: "gru"}[type(cell)]
    width, dtype = cell.hidden_size, getattr(torch, given.dtype)

    def tensor(array: np.ndarray, learned: bool = True) -> Any:
        return torch.tensor(
            np.ascontiguousarray(array), device="cuda", dtype=dtype, requires_grad=learned
        )

    weights = [tensor(w) for w in to_flash(cell, given.params)]
    xs = tensor(given.xs.swapaxes(0, 1))  # [B, T, D]
    cotangent = tensor(given.cotangent.swapaxes(0, 1), learned=False)
    state = [tensor(s) for s in given.state]

    def apply() -> Any:
        w_x, r, b = weights
        wx = torch.matmul(xs, w_x).unflatten(-1, (-1, 1, width))  # [B, T, G, 1 head, H]
        start = torch.stack(state)[:, :, None, None]  # [S, B, 1, 1 head, H]
        return flashrnn(wx, r, b, states=start, function=function, dtype=given.dtype)[0][0, :, :, 0]

    def forward() -> Any:
        with torch.no_grad():
            ys = apply()
        torch.cuda.synchronize()
        return ys

    def backward() -> Any:
        loss = (apply() * cotangent).sum()
        result = loss, torch.autograd.grad(loss, [*weights, xs, *state])
        torch.cuda.synchronize()
        return result

    def read(t: Any) -> np.ndarray:
        return t.detach().cpu().double().numpy()

    def gradients(result: Any) -> Any:
        arrays = [read(g) for g in result[1]]
        d_state = type(given.state)(*arrays[4:])
        return from_flash(cell, given.params, arrays[:3]), arrays[3].swapaxes(0, 1), d_state

    return Contender(forward, backward, lambda ys: read(ys).swapaxes(0, 1), gradients)


def to_flash(cell: Any, params: Any) -> list[np.ndarray]:
    """Return jaxrnn's parameters as w_x [D, G H], recurrent weights [G, 1, H, H], biases [G, 1, H]."""
    w_x, w_h, b = params[:3]
    blocks = np.split(w_h, w_h.shape[1] // cell.hidden_size, axis=-1)
    biases = np.split(b, len(blocks))
    if isinstance(cell, GRU):
        w_x, (z, r, n), (b_z, b_r, b_n) = swap_z_r(w_x), blocks, biases
        blocks, biases = [n, r, z], [params.b_h, b_r, b_z, b_n]
    return [w_x, np.stack([w.T[None] for w in blocks]), np.stack(biases)[:, None]]


def from_flash(cell: Any, like: Any, arrays: list[np.ndarray]) -> Any:
    """Return the arrays of `to_flash`, or their gradients, in jaxrnn's layout."""
    w_x, blocks, biases = arrays[0], [w[0].T for w in arrays[1]], [b[0] for b in arrays[2]]
    if isinstance(cell, GRU):
        (n, r, z), (b_h, b_r, b_z, b_n) = blocks, biases
        w_h, b = np.concatenate([z, r, n], axis=-1), np.concatenate([b_z, b_r, b_n])
        return like._replace(w_x=swap_z_r(w_x), w_h=w_h, b=b, b_h=b_h)
    return like._replace(w_x=w_x, w_h=np.concatenate(blocks, axis=-1), b=np.concatenate(biases))
