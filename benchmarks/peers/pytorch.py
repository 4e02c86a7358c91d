"""PyTorch: nn.RNN, nn.LSTM, nn.GRU, on all cores, with the forward pass in inference mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.peers import Contender, Given, Missing, Stack, Task, Unserved, require
from jaxrnn.interop import torch as interop
from jaxrnn.layers import StackedParams, stacked
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


def layers(given: Stack) -> Contender:
    """Return nn.LSTM or nn.GRU with all layers; several parameter sets are several modules in a loop.

    Lengths are packed sequences. With resets, each step of time is one call of the module, since it
    takes no resets: the loop of CleanRL's recurrent agents.
    """
    import torch

    each = [_Module(given, n) for n in range(given.sets or 1)]

    def join(parts: list[Any]) -> Any:
        return jax.tree.map(lambda *a: np.stack(a) if given.sets else a[0], *parts)

    def forward() -> Any:
        with torch.inference_mode():
            ys = [module.run() for module in each]
        return _wait(ys)

    def backward() -> Any:
        return _wait([module.differentiate() for module in each])

    def outputs(ys: Any) -> np.ndarray:
        return join([_numpy(y) for y in ys])

    def gradients(results: Any) -> Any:
        return join([module.read(g) for module, g in zip(each, results, strict=True)])

    return Contender(forward, backward, outputs, gradients)


class _Module:
    """A PyTorch module with one parameter set of a `Stack`, and its inputs."""

    def __init__(self, given: Stack, number: int) -> None:
        import torch

        def chosen(tree: Any) -> Any:
            return jax.tree.map(lambda a: np.array(a[number] if given.sets else a), tree)

        def tensor(array: np.ndarray) -> Any:
            return torch.tensor(array, device="cuda" if _cuda() else "cpu")

        self.cell = given.cell
        params, xs, cotangent = chosen((given.params, given.xs, given.cotangent))
        kind = torch.nn.LSTM if isinstance(self.cell, LSTM) else torch.nn.GRU
        self.layer = kind(
            xs.shape[-1], self.cell.hidden_size, len(params), bidirectional=len(params[0]) == 2
        )
        self.net = stacked(
            self.cell, xs.shape[-1], layers=len(params), bidirectional=len(params[0]) == 2
        )
        cells = tuple(cell for directions in params for cell in directions)
        weights = interop.to_torch(self.net, StackedParams(cells))
        with torch.no_grad():
            for name, array in weights.items():
                getattr(self.layer, name).copy_(torch.tensor(array))
        self.layer.to("cuda" if _cuda() else "cpu")
        self.layer.flatten_parameters()
        self.xs, self.cotangent = tensor(xs).requires_grad_(), tensor(cotangent)
        self.lengths = None if given.lengths is None else torch.tensor(np.asarray(given.lengths))
        self.keep = None
        if given.resets is not None:
            # [T, 1 layer, B, 1]
            self.keep = tensor(1 - chosen(given.resets)[:, None, :, None].astype(np.float32))
        self.names = list(weights)

    def run(self) -> Any:
        if self.keep is not None:
            return self._by_step()
        if self.lengths is None:
            return self.layer(self.xs)[0]
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        packed = pack_padded_sequence(self.xs, self.lengths, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], total_length=len(self.xs))[0]

    def _by_step(self) -> Any:
        import torch

        ys, state = [], torch.zeros_like(self.keep[0]) * self.layer.weight_hh_l0[0]
        for x, keep in zip(self.xs[:, None], self.keep, strict=True):
            y, state = self.layer(x, state * keep)
            ys.append(y)
        return torch.cat(ys)

    def differentiate(self) -> Any:
        import torch

        loss = (self.run() * self.cotangent).sum()
        weights = [getattr(self.layer, name) for name in self.names]
        return loss, torch.autograd.grad(loss, [*weights, self.xs])

    def read(self, result: Any) -> Any:
        """Return the gradients of the parameters, in the form of `Stack.params`, and of xs."""
        *weights, d_xs = map(_numpy, result[1])
        found = dict(zip(self.names, weights, strict=True))
        cells = interop.gradients_from_torch(self.net, found).cells
        width = self.net.directions
        return [list(cells[n : n + width]) for n in range(0, len(cells), width)], d_xs


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
    net = stacked(model.make_cell(), model.embedding_size, layers=model.layers)
    weights = interop.to_torch(net, StackedParams(task.params.layers))
    pairs += [(getattr(lstm, name), array) for name, array in weights.items()]
    for n in range(model.layers):
        getattr(lstm, f"bias_hh_l{n}").requires_grad_(False)
    with torch.no_grad():
        for mine, array in pairs:
            mine.copy_(torch.tensor(np.ascontiguousarray(array)))
    module = torch.nn.ModuleList([embedding, lstm, linear]).to(device)
    lstm.flatten_parameters()
    learned = [p for p in module.parameters() if p.requires_grad]
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
