"""Keras on its JAX backend: SimpleRNN, LSTM, GRU in both forms, each a jitted `stateless_call`.

Keras' layers take batch-major inputs, [B, T, D], and get them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Contender, Given, Missing, Task, Unserved, cast, jitted, numpy, require
from jaxrnn.devices import accelerator
from jaxrnn.interop import keras as interop
from jaxrnn.recurrence.cells import LSTM, RNN

NAME = "keras"


def check() -> None:
    # Keras reads this once, when it is imported.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = require("keras", "keras")
    if keras.backend.backend() != "jax":
        raise Missing(f"keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=jax")


def contender(cell: Any, given: Given) -> Contender:
    import keras

    if reason := interop.unsupported_reason(cell):
        raise Unserved(reason)
    options: dict[str, Any] = {"return_sequences": True, "dtype": given.dtype}
    # The default initializer cannot make bfloat16.
    options["recurrent_initializer"] = "zeros"
    if isinstance(cell, RNN):
        layer = keras.layers.SimpleRNN(cell.hidden_size, activation=cell.activation, **options)
    elif isinstance(cell, LSTM):
        layer = keras.layers.LSTM(cell.hidden_size, **options)
    else:
        layer = keras.layers.GRU(cell.hidden_size, reset_after=cell.reset == "after", **options)
    xs, cotangent = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (given.xs, given.cotangent))
    layer.build(xs.shape)
    fixed = [v.value for v in layer.non_trainable_variables]

    def apply(params: Any, xs: Any, state: Any) -> Any:
        return layer.stateless_call(params, fixed, xs, initial_state=list(state))[0]

    problem = interop.to_keras(cell, given.params), xs, given.state, cotangent
    forward, backward = jitted(apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return interop.gradients_from_keras(cell, d_params), d_xs.swapaxes(0, 1), d_state

    return Contender(forward, backward, lambda ys: numpy(ys).swapaxes(0, 1), gradients)


def trainer(task: Task, dtype: str) -> Callable[[], np.ndarray]:
    """Return a trainer of Embedding, LSTM and Dense with Keras' Adam.

    Each stateless step is one jitted call.
    """
    import keras

    config, model = task.config, task.config.model
    policy = keras.DTypePolicy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
    tokens = keras.Input((config.seq_len,), config.batch, "int32")
    states = [keras.Input((model.hidden_size,), config.batch) for _ in range(2 * model.layers)]
    hidden = keras.layers.Embedding(len(task.params.b_out), model.embedding_size, dtype=policy)(
        tokens
    )
    after: list[Any] = []
    # Each layer has two states: hidden and cell.
    for n in range(0, len(states), 2):
        layer = keras.layers.LSTM(
            model.hidden_size, return_sequences=True, return_state=True, dtype=policy
        )
        hidden, *last = layer(hidden, initial_state=states[n : n + 2])
        after += last
    logits = keras.layers.Dense(len(task.params.b_out), dtype=policy)(hidden)
    net = keras.Model([tokens, *states], [logits, *after])
    # These are seeds, and nothing here draws from them.
    fixed = [v.value for v in net.non_trainable_variables]
    cells = [w for layer in task.params.layers for w in interop.to_keras(model.make_cell(), layer)]
    weights = [task.params.embedding, *cells, task.params.w_out, task.params.b_out]
    for variable, weight in zip(net.trainable_variables, weights, strict=True):
        variable.assign(weight)
    optimizer = keras.optimizers.Adam(
        config.learning_rate,
        beta_2=config.beta2,
        # Keras adds epsilon before the bias correction.
        epsilon=1e-8 * (1 - config.beta2) ** 0.5,
        global_clipnorm=config.clip_norm or None,
    )
    optimizer.build(net.trainable_variables)

    def loss(params: Any, carry: Any, tokens: Any) -> Any:
        (logits, *carry), _ = net.stateless_call(params, fixed, [tokens[:, :-1], *carry])
        nats = keras.ops.sparse_categorical_crossentropy(
            tokens[:, 1:], keras.ops.cast(logits, "float32"), from_logits=True
        )
        return keras.ops.mean(nats), carry

    @partial(jax.jit, donate_argnums=(0, 2))
    def step(params: Any, carry: Any, moments: Any, tokens: Any) -> Any:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (nats, carry), gradient = value_and_grad(params, carry, tokens)
        params, moments = optimizer.stateless_apply(moments, gradient, params)
        return params, carry, moments, nats

    def values(variables: Any) -> list[Any]:
        # Copies, since `step` donates its arguments.
        return [jax.device_put(np.array(v.value), accelerator.device()) for v in variables]

    zero = [jnp.zeros((config.batch, model.hidden_size), s.dtype) for s in after]
    params, moments = values(net.trainable_variables), values(optimizer.variables)
    rows = [np.ascontiguousarray(tokens.T) for tokens in task.tokens]
    batches = [jax.device_put(tokens, accelerator.device()) for tokens in rows]

    def run() -> np.ndarray:
        nonlocal params, moments
        losses, carry = [], zero
        for tokens in batches:
            params, after, moments, nats = step(params, carry, moments, tokens)
            carry = zero if config.shuffle else after
            losses.append(nats)
        return np.asarray(jax.device_get(losses))

    return run
