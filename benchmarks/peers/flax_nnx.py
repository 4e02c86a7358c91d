"""Flax nnx.RNN over its fastest cells: SimpleCell, OptimizedLSTMCell, GRUCell (reset after), time first.

It runs under plain `jax.jit` and `jax.value_and_grad` on the parameters, which costs less per call
than `nnx.jit`. Gates in its order: LSTM i f g o, GRU r z n. The one bias sits at dense_h in the LSTM
and at dense_i in the others; the GRU has no b_h and so computes no gradient of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from benchmarks.peers import Contender, Given, Task, Unserved, cast, jitted, numpy, require, swap_z_r

NAME = "flax nnx"


def check() -> None:
    require("flax.nnx", "flax")


def contender(cell: Any, given: Given) -> Contender:
    from flax import nnx

    if getattr(cell, "peephole", False):
        raise Unserved("OptimizedLSTMCell has no peepholes")
    if getattr(cell, "reset", "after") == "before":
        raise Unserved("GRUCell resets after the product")
    kind = {RNN: nnx.SimpleCell, LSTM: nnx.OptimizedLSTMCell, GRU: nnx.GRUCell}[type(cell)]
    dtype = jnp.dtype(given.dtype)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    options["recurrent_kernel_init"] = nnx.initializers.zeros  # its own cannot make bfloat16
    inner = kind(given.xs.shape[-1], cell.hidden_size, **options)
    layer = nnx.RNN(inner, time_major=True, rngs=False)
    graph, state = nnx.split(layer, nnx.Param)
    nnx.replace_by_pure_dict(state, {"cell": cast(to_nnx(cell, given.params), given.dtype)})

    def apply(params: Any, xs: Any, start: Any) -> Any:
        carry = (start.cell, start.hidden) if isinstance(cell, LSTM) else start.hidden
        return nnx.merge(graph, params)(xs, initial_carry=carry)

    xs, start, cotangent = (cast(a, given.dtype) for a in (given.xs, given.state, given.cotangent))
    forward, backward = jitted(apply, state, xs, start, cotangent)

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = result[1]
        d_params = numpy(nnx.to_pure_dict(d_params))["cell"]
        return from_nnx(cell, given.params, d_params), numpy(d_xs), numpy(d_state)

    return Contender(forward, backward, numpy, gradients)


def to_nnx(cell: Any, params: Any) -> dict[str, Any]:
    """jaxrnn's parameters as the cell's; a bias b_h of the GRU, which it lacks, is refused."""
    w_x, w_h, b = params[:3]
    if isinstance(cell, GRU):
        if params.b_h.any():
            raise Unserved("GRUCell has no b_h")
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
    made = {"dense_i": {"kernel": w_x}, "dense_h": {"kernel": w_h}}
    made["dense_h" if isinstance(cell, LSTM) else "dense_i"]["bias"] = b
    return made


def from_nnx(cell: Any, like: Any, made: dict[str, Any]) -> Any:
    """What `to_nnx` made, or its gradients, as jaxrnn's parameters."""
    w_x, w_h = made["dense_i"]["kernel"], made["dense_h"]["kernel"]
    b = made["dense_h" if isinstance(cell, LSTM) else "dense_i"]["bias"]
    if isinstance(cell, GRU):
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
        return like._replace(w_x=w_x, w_h=w_h, b=b, b_h=None)
    return like._replace(w_x=w_x, w_h=w_h, b=b)


def trainer(task: Task, dtype: str) -> Callable[[], np.ndarray]:
    """nnx.Embed, nnx.RNN over OptimizedLSTMCell, nnx.Linear; optax; one jitted call per step."""
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
        n: {"cell": to_nnx(cell, layer)} for n, layer in enumerate(task.params.layers)
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
