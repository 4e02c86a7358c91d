"""Compute the losses of models that are adapted to a text or combined after their training.

temperature: the logits are divided by a temperature, chosen on held-out training text.
ensemble: the probabilities of two models are averaged.
dynamic: the model goes on learning from the text that it has read (dynamic evaluation, Krause et al.
  2018, arXiv 1709.07432). Every SEGMENT characters, after they have been predicted, it takes a step
  down their gradient, scaled by the root mean square that the gradient had on the training text, and a
  part of the way back to its trained parameters.

The text is read as one row, with the state carried along.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.data import sources
from jaxrnn.data.corpus import make_corpus
from jaxrnn.shapes import Array
from jaxrnn.training.evaluation import WARM_UP

# Characters between two steps of dynamic evaluation.
SEGMENT = 20
# Characters of each device call of the others.
LONG = 1000
# The values that are tried on the choosing text.
TEMPERATURES = [round(0.8 + 0.02 * n, 2) for n in range(21)]
RATES, BACK = (1e-4, 3e-4, 1e-3, 3e-3), (0.0, 1e-3)
# Added to the root mean square of a gradient, as a part of its mean over the parameters.
FLOOR = 0.1


def all_columns(
    chosen_on: charlm.Params, first: charlm.Params, second: charlm.Params, choosing: Path
) -> dict[str, Any]:
    """Return what was chosen on the choosing text, and the losses on the official validation text.

    Args:
      chosen_on: the model that was trained without the last tenth of the training part.
      first: the model of the record.
      second: a model of the record from another seed.
      choosing: the file with the training part.
    """
    held_out = make_corpus(choosing.read_text(encoding="utf-8"))
    corpus = make_corpus(sources.read(("shakespeare",)).content)
    text, skip = held_out.tokens[held_out.split - WARM_UP :], WARM_UP - 1
    logs = log_probabilities(chosen_on, text)
    by_temperature = {t: loss(logs, text, t, skip) for t in TEMPERATURES}
    temperature = min(by_temperature, key=by_temperature.__getitem__)
    scale = gradient_scale(chosen_on, held_out.tokens[: held_out.split])
    by_rates = {
        (rate, back): dynamic(chosen_on, scale, text, rate, back, skip)
        for rate in RATES
        for back in BACK
    }
    rate, back = min(by_rates, key=by_rates.__getitem__)
    official = corpus.tokens[corpus.split - WARM_UP :]
    logs = log_probabilities(first, official)
    scale = gradient_scale(first, corpus.tokens[: corpus.split])
    return {
        "temperature": {str(t): nats for t, nats in by_temperature.items()},
        "dynamic": [[rate, back, nats] for (rate, back), nats in by_rates.items()],
        "chosen": {"temperature": temperature, "rate": rate, "back": back},
        "official": {
            "plain": loss(logs, official, skip=skip),
            "temperature": loss(logs, official, temperature, skip),
            "ensemble of two": ensemble([first, second], official, skip),
            "dynamic evaluation": dynamic(first, scale, official, rate, back, skip),
        },
    }


def log_probabilities(params: charlm.Params, tokens: np.ndarray) -> np.ndarray:
    """Return the log probabilities of all characters at each place after the first, [N - 1, V]."""

    @jax.jit
    def run(carry: charlm.Carry, tokens: Array) -> tuple[charlm.Carry, Array]:
        carry, logits = charlm.forward(params, tokens[:, None], carry)
        return carry, jax.nn.log_softmax(logits[:, 0])

    carry, found = charlm.initial_carry(params.config, 1), []
    inputs = tokens[:-1].astype(np.int32)
    for at in range(0, len(inputs), LONG):
        carry, logs = run(carry, inputs[at : at + LONG])
        found.append(np.asarray(logs))
    return np.concatenate(found)


def loss(logs: np.ndarray, tokens: np.ndarray, temperature: float = 1.0, skip: int = 0) -> float:
    """Return the mean loss in nats of log probabilities from `log_probabilities`, at a temperature.

    Args:
      logs: [N - 1, V].
      tokens: [N], the text that they are of.
      temperature: above 0.
      skip: number of first characters that do not count.
    """
    logs = np.asarray(jax.nn.log_softmax(logs / temperature))
    nats = -logs[np.arange(len(logs)), tokens[1:]]
    return float(nats[skip:].mean(dtype=np.float64))


def ensemble(models: Sequence[charlm.Params], tokens: np.ndarray, skip: int = 0) -> float:
    """Return the loss of the mean of the models' probabilities."""
    logs = np.stack([log_probabilities(params, tokens) for params in models])
    return loss(np.asarray(jax.nn.logsumexp(logs, axis=0)), tokens, skip=skip)


def gradient_scale(params: charlm.Params, tokens: np.ndarray, segments: int = 500) -> charlm.Params:
    """Return the root mean square gradient of each parameter, over segments of the training text."""
    places = np.linspace(0, len(tokens) - SEGMENT - 1, segments).astype(int)
    rows = np.stack([tokens[at : at + SEGMENT + 1] for at in places]).astype(np.int32)

    @jax.jit
    def add(total: Any, row: Array) -> Any:
        carry = charlm.initial_carry(params.config, 1)
        gradient = jax.grad(lambda p: charlm.loss(p, row[:, None], carry)[0])(params)
        return jax.tree.map(lambda t, g: t + g * g, total, gradient)

    total = functools.reduce(add, rows, jax.tree.map(jnp.zeros_like, params))
    return jax.tree.map(lambda t: jnp.sqrt(t / segments), total)


def dynamic(
    params: charlm.Params,
    scale: charlm.Params,
    tokens: np.ndarray,
    rate: float,
    back: float,
    skip: int = 0,
) -> float:
    """Return the loss of a model that learns from the text while it reads it.

    Args:
      params: the trained model.
      scale: `gradient_scale` of the model.
      tokens: [N].
      rate: learning rate of the steps.
      back: part of the way back to the trained parameters, at each step.
      skip: number of first characters that do not count.
    """
    mean = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(scale)) / charlm.count(params)
    factor = jax.tree.map(lambda s: 1 / (s + FLOOR * mean), scale)
    count = (len(tokens) - 1) // SEGMENT
    places = SEGMENT * np.arange(count)[:, None] + np.arange(SEGMENT + 1)

    def step(state: Any, row: Array) -> tuple[Any, Array]:
        now, carry = state

        def nats(model: charlm.Params) -> tuple[Array, tuple[charlm.Carry, Array]]:
            after, logits = charlm.forward(model, row[:-1, None], carry)
            logs = jax.nn.log_softmax(logits[:, 0])
            each = -jnp.take_along_axis(logs, row[1:, None], axis=1)[:, 0]
            return each.mean(), (after, each)

        gradient, (carry, each) = jax.grad(nats, has_aux=True)(now)
        now = jax.tree.map(
            lambda p, g, f, p0: p - rate * g * f + back * (p0 - p), now, gradient, factor, params
        )
        return (now, carry), each

    begin = params, charlm.initial_carry(params.config, 1)
    (now, carry), nats = jax.jit(lambda rows: jax.lax.scan(step, begin, rows))(
        jnp.asarray(tokens[places], jnp.int32)
    )
    rest = jnp.asarray(tokens[count * SEGMENT :], jnp.int32)[:, None]
    last = np.zeros(0)
    if len(rest) > 1:
        mean_of_rest, _ = charlm.loss(now, rest, carry)
        last = np.full(len(rest) - 1, float(mean_of_rest))
    every = np.concatenate([np.asarray(nats).reshape(-1), last])
    return float(every[skip:].mean(dtype=np.float64))
