"""Flax nnx.RNN over its fastest cells: SimpleCell, OptimizedLSTMCell, GRUCell (reset after), time-major.

It runs under plain `jax.jit` and `jax.value_and_grad` on the parameters, which costs less per call
than `nnx.jit`. The GRU has no b_h, so there is no gradient of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import (
    Contender,
    Given,
    Stack,
    Task,
    Unserved,
    cast,
    jitted,
    jitted_layers,
    numpy,
    require,
)
from jaxrnn.devices import accelerator
from jaxrnn.interop import flax
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

NAME = "flax nnx"
_DIRECTIONS = ("forward_rnn", "backward_rnn")


def check() -> None:
    require("flax.nnx", "flax")


def contender(cell: Any, given: Given) -> Contender:
    from flax import nnx

    if reason := flax.unsupported_reason(cell):
        raise Unserved(reason)
    kind = {RNN: nnx.SimpleCell, LSTM: nnx.OptimizedLSTMCell, GRU: nnx.GRUCell}[type(cell)]
    dtype = jnp.dtype(given.dtype)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    # The default initializer cannot make bfloat16.
    options["recurrent_kernel_init"] = nnx.initializers.zeros
    inner = kind(given.xs.shape[-1], cell.hidden_size, **options)
    layer = nnx.RNN(inner, time_major=True, rngs=False)
    graph, state = nnx.split(layer, nnx.Param)
    try:
        weights = flax.to_nnx(cell, given.params)
    except ValueError as why:
        raise Unserved(str(why)) from None
    nnx.replace_by_pure_dict(state, {"cell": cast(weights, given.dtype)})

    def apply(params: Any, xs: Any, start: Any) -> Any:
        carry = (start.cell, start.hidden) if isinstance(cell, LSTM) else start.hidden
        return nnx.merge(graph, params)(xs, initial_carry=carry)

    xs, start, cotangent = (cast(a, given.dtype) for a in (given.xs, given.state, given.cotangent))
    forward, backward = jitted(apply, state, xs, start, cotangent)

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = result[1]
        d_params = numpy(nnx.to_pure_dict(d_params))["cell"]
        d_params = flax.from_nnx(cell, d_params)
        if isinstance(cell, GRU):
            d_params = d_params._replace(b_h=None)
        return d_params, numpy(d_xs), numpy(d_state)

    return Contender(forward, backward, numpy, gradients)


def layers(given: Stack, ours: ModuleType | None = None) -> Contender:
    """Return RNN or Bidirectional for each layer, and ScannedRNN where there are resets.

    Args:
      given: the problem.
      ours: jaxrnn's module with the same names; None for flax's own.
    """
    from flax import nnx

    library, cell = ours or nnx, given.cell
    kind = library.OptimizedLSTMCell if isinstance(cell, LSTM) else library.GRUCell
    scanned = ours.ScannedRNN if ours else _scanned_rnn()

    def layer(inputs: int, directions: int) -> Any:
        sizes = inputs, cell.hidden_size
        if given.resets is not None:
            return scanned(*sizes, rngs=nnx.Rngs(0))
        cells = [kind(*sizes, rngs=nnx.Rngs(0)) for _ in range(directions)]
        runs = [library.RNN(inner, time_major=True, rngs=False) for inner in cells]
        return library.Bidirectional(*runs, time_major=True, rngs=False) if runs[1:] else runs[0]

    graphs, states = [], []
    for directions in given.params:
        made = layer(directions[0].w_x.shape[-2], len(directions))
        graph, state = nnx.split(made, nnx.Param)
        convert = partial(flax.to_nnx, cell)
        arrays = [cast(given.converted(convert, params), "float32") for params in directions]
        nnx.replace_by_pure_dict(state, as_layer(arrays))
        graphs.append(graph)
        states.append(state)

    def apply(params: Any, xs: Any, resets: Any, lengths: Any) -> Any:
        for graph, state in zip(graphs, params, strict=True):
            module = nnx.merge(graph, state)
            if resets is not None:
                carry = jnp.zeros((xs.shape[1], cell.hidden_size), xs.dtype)
                xs = module(carry, (xs, resets))[1]
            else:
                xs = module(xs, seq_lengths=lengths, rngs=nnx.Rngs(0))
        return xs

    def converted(weights: Any) -> Any:
        made = flax.from_nnx(cell, weights)
        return made._replace(b_h=None) if isinstance(cell, GRU) else made

    def gradients(found: Any) -> Any:
        dicts = [numpy(nnx.to_pure_dict(state)) for state in found]
        return [[given.converted(converted, d) for d in as_directions(made)] for made in dicts]

    return jitted_layers(given, states, apply, gradients)


def as_layer(directions: list[Any]) -> dict[str, Any]:
    """Return arrays of cells under the names of RNN, or of Bidirectional for two directions."""
    cells = [{"cell": arrays} for arrays in directions]
    return dict(zip(_DIRECTIONS, cells, strict=True)) if cells[1:] else cells[0]


def as_directions(layer: dict[str, Any]) -> list[Any]:
    """Return the arrays of the cells, the inverse of `as_layer`."""
    cells = [layer] if "cell" in layer else [layer[name] for name in _DIRECTIONS]
    return [arrays["cell"] for arrays in cells]


def _scanned_rnn() -> Any:
    """Return a module for agents: nnx.scan over a GRUCell that drops a row's state at a reset."""
    from flax import nnx

    class ScannedRNN(nnx.Module):
        def __init__(self, inputs: int, hidden: int, *, rngs: Any) -> None:
            self.cell = nnx.GRUCell(inputs, hidden, rngs=rngs)

        def __call__(self, carry: Any, sequence: Any) -> Any:
            def step(cell: Any, carry: Any, at: Any) -> Any:
                x, reset = at
                return cell(jnp.where(reset[:, None], 0, carry), x)

            scan = nnx.scan(step, in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
            return scan(self.cell, carry, sequence)

    return ScannedRNN


def trainer(task: Task, dtype: str) -> Callable[[], np.ndarray]:
    """Return a trainer of nnx.Embed, nnx.RNN over OptimizedLSTMCell, nnx.Linear, with optax.

    Each step is one jitted call.
    """
    import optax
    from flax import nnx

    config, model = task.config, task.config.model
    options = {"dtype": jnp.dtype(dtype), "rngs": nnx.Rngs(0)}
    widths = [model.embedding_size] + [model.hidden_size] * (model.layers - 1)

    class Net(nnx.Module):
        def __init__(self) -> None:
            size = len(task.params.b_out)
            self.embed = nnx.Embed(size, model.embedding_size, **options)
            cells = [nnx.OptimizedLSTMCell(width, model.hidden_size, **options) for width in widths]
            self.layers = nnx.List(nnx.RNN(c, time_major=True, rngs=False) for c in cells)
            self.out = nnx.Linear(model.hidden_size, size, **options)

        def __call__(self, tokens: Any, carries: Any) -> Any:
            hidden, after = self.embed(tokens), []
            for layer, carry in zip(self.layers, carries, strict=True):
                carry, hidden = layer(hidden, initial_carry=carry, return_carry=True)
                after.append(carry)
            return after, self.out(hidden)

    graph, params = nnx.split(Net(), nnx.Param)
    cell = model.make_cell()
    given = {"embed": {"embedding": task.params.embedding}}
    given["layers"] = {
        n: {"cell": flax.to_nnx(cell, layer)} for n, layer in enumerate(task.params.layers)
    }
    given["out"] = {"kernel": task.params.w_out, "bias": task.params.b_out}
    nnx.replace_by_pure_dict(params, cast(given, "float32"))
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, optax.adam(config.learning_rate, b2=config.beta2))

    def loss(params: Any, tokens: Any, carries: Any) -> Any:
        carries, logits = nnx.merge(graph, params)(tokens[:-1], carries)
        logits = logits.astype(jnp.float32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
        return nats.mean(), carries

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, moments: Any, tokens: Any, carries: Any) -> Any:
        (nats, carries), gradient = jax.value_and_grad(loss, has_aux=True)(params, tokens, carries)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, carries, nats

    zero = [(jnp.zeros((config.batch, model.hidden_size), dtype),) * 2] * model.layers
    state = jax.device_put((params, optimizer.init(params)), accelerator.device())
    batches = [jax.device_put(jnp.asarray(tokens), accelerator.device()) for tokens in task.tokens]

    def run() -> np.ndarray:
        nonlocal state
        losses, carries = [], zero
        for tokens in batches:
            *state, after, nats = step(*state, tokens, carries)
            carries = zero if config.shuffle else after
            losses.append(nats)
        return np.asarray(jax.device_get(losses))

    return run
