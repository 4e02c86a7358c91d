"""How well a char-RNN predicts a text it did not learn from: mean loss over all of it, nothing twice."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import charlm, mesh
from jaxrnn.feed import Feed, gather
from jaxrnn.shapes import Array, Bool, Scalar
from jaxrnn.text import Corpus

WARM_UP = 256  # characters that each part of the validation text is read in with, not counted


def evaluate(
    params: charlm.Params, source: Feed, corpus: Corpus, batch: int, seq_len: int
) -> float:
    """Mean loss over the whole validation text, nats per character, the state carried through.

    The text is read in up to `batch` parts side by side, each from WARM_UP characters before its
    begin, so every character is predicted once, with a state that knows what came before. The parts
    are the same however many devices read them; those without a part read what is not counted.
    """
    devices = source.devices
    first, total = corpus.split, len(corpus.tokens)
    parts = max(1, min(batch, (total - first) // (2 * WARM_UP)))
    span = -(-(total - first) // parts)
    rows = -(-parts // devices.shape[mesh.DATA]) * devices.shape[mesh.DATA]
    begin = np.minimum(first + span * np.arange(rows), total)
    end = np.minimum(begin + span, total)
    read = np.maximum(begin - 1 - WARM_UP, 0)
    carry = _begin(params.config, rows, devices)
    nats = 0.0
    for offset in range(0, int((end - 1 - read).max()), seq_len):
        target = read + offset + 1 + np.arange(seq_len)[:, None]
        counted = (begin <= target) & (target < end)
        windows = source.windows(read + offset, seq_len)
        carry, part = _evaluate(seq_len, devices, params, source.tokens, windows, carry, counted)
        nats += float(part)
    return nats / (total - first)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(config: charlm.Config, rows: int, devices: mesh.Mesh) -> charlm.Carry:
    return mesh.keep(devices, charlm.initial_carry(config, rows))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    seq_len: int,
    devices: mesh.Mesh,
    params: charlm.Params,
    tokens: Array | None,
    windows: Array,
    carry: charlm.Carry,
    counted: Bool[Array, "T B"],
) -> tuple[charlm.Carry, Scalar]:
    batch = gather(tokens, windows, seq_len)
    carry, logits = charlm.forward(params, batch[:-1], carry, devices=devices)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1:])
    total = jnp.sum(nats, where=counted)
    return mesh.keep(devices, (carry, total))
