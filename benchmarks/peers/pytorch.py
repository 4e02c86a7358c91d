"""PyTorch: nn.RNN, nn.LSTM, nn.GRU, on all cores, with the forward pass in inference mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.peers import Contender, Given, Missing, Task, Unserved, require
from jaxrnn.interop import torch as interop
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

NAME = "torch"


def check() -> None:
    torch = require("torch", "torch")
    if jax.default_backend() == "tpu" or (jax.default_backend() == "gpu" and not _cuda()):
        raise Missing(f"PyTorch {torch.__version__} cannot use this {jax.default_backend()}")
    torch.set_num_threads(measure.cores())


def contender(cell: Any, given: Given) -> Contender:
    import torch

    if reason := interop.unsupported_reason(cell):
        raise Unserved(reason)
    options = {"nonlinearity": cell.activation} if isinstance(cell, RNN) else {}
    kind = {RNN: torch.nn.RNN, LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}[type(cell)]
    layer = kind(given.xs.shape[-1], cell.hidden_size, **options)

    device, dtype = "cuda" if _cuda() else "cpu", getattr(torch, given.dtype)
    layer.to(device, dtype)
    with torch.no_grad():
        for name, array in interop.to_torch(cell, given.params).items():
            getattr(layer, name).copy_(torch.tensor(array))
    layer.flatten_parameters()
    weights = [getattr(layer, name) for name in interop.names()]

    def tensor(array: np.ndarray, learned: bool = True) -> Any:
        return torch.tensor(array, device=device, dtype=dtype, requires_grad=learned)

    xs, cotangent = tensor(given.xs), tensor(given.cotangent, learned=False)
    state = [tensor(s[None]) for s in given.state]  # [1 layer, B, H]
    start = tuple(state) if isinstance(cell, LSTM) else state[0]

    def forward() -> Any:
        with torch.inference_mode():
            ys = layer(xs, start)[0]
        return _wait(ys)

    def backward() -> Any:
        loss = (layer(xs, start)[0] * cotangent).sum()
        return _wait((loss, torch.autograd.grad(loss, [*weights, xs, *state])))

    def gradients(result: Any) -> Any:
        arrays = [_numpy(g) for g in result[1]]
        d_state = type(given.state)(*(s[0] for s in arrays[5:]))
        d_weights = dict(zip(interop.names(), arrays[:4], strict=True))
        return interop.gradients_from_torch(cell, d_weights), arrays[4], d_state

    return Contender(forward, backward, _numpy, gradients)


def trainer(task: Task, dtype: str) -> Callable[[], np.ndarray]:
    """Return a trainer of nn.Embedding, nn.LSTM, nn.Linear with fused Adam, bfloat16 by autocast.

    Only one of each layer's two bias vectors is trained, so that the model is the same as jaxrnn's.
    """
    import torch

    config, model = task.config, task.config.model
    device, size = "cuda" if _cuda() else "cpu", len(task.params.b_out)
    embedding = torch.nn.Embedding(size, model.embedding_size)
    lstm = torch.nn.LSTM(model.embedding_size, model.hidden_size, model.layers)
    linear = torch.nn.Linear(model.hidden_size, size)
    pairs = [(embedding.weight, task.params.embedding)]
    pairs += [(linear.weight, task.params.w_out.T), (linear.bias, task.params.b_out)]
    for n, layer in enumerate(task.params.layers):
        weights = interop.to_torch(model.make_cell(), layer, n)
        pairs += [(getattr(lstm, name), array) for name, array in weights.items()]
        getattr(lstm, interop.names(n)[3]).requires_grad_(False)
    with torch.no_grad():
        for mine, array in pairs:
            mine.copy_(torch.tensor(np.ascontiguousarray(array)))
    net = torch.nn.ModuleList([embedding, lstm, linear]).to(device)
    lstm.flatten_parameters()
    learned = [p for p in net.parameters() if p.requires_grad]
    betas = (0.9, config.beta2)
    optimizer = torch.optim.Adam(learned, config.learning_rate, betas, fused=True)
    batches = [torch.tensor(tokens.astype(np.int64), device=device) for tokens in task.tokens]

    def run() -> np.ndarray:
        losses, state = [], None
        for tokens in batches:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                hidden, after = lstm(embedding(tokens[:-1]), state)
                logits = linear(hidden).flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits, tokens[1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(learned, config.clip_norm)
            optimizer.step()
            state = None if config.shuffle else tuple(s.detach() for s in after)
            losses.append(loss.detach())
        return torch.stack(losses).cpu().numpy()

    return run


def _cuda() -> bool:
    import torch

    return jax.default_backend() == "gpu" and torch.cuda.is_available()


def _wait(result: Any) -> Any:
    if _cuda():
        import torch

        torch.cuda.synchronize()
    return result


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
