"""The validation loss: how well a char-RNN predicts text that it was not trained on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import charlm
from jaxrnn.charlm.scoring import WARM_UP
from jaxrnn.data.corpus import Corpus
from jaxrnn.devices import mesh, modes
from jaxrnn.shapes import Array, Bool, Scalar
from jaxrnn.training.feed import DeviceCorpus, gather


@modes.fixed()
def evaluate(
    params: charlm.Params, source: DeviceCorpus, corpus: Corpus, batch: int, seq_len: int
) -> float:
    """Return the mean loss over the whole validation text, in nats per character.

    The text is read in up to `batch` parts side by side. Reading starts WARM_UP characters before each
    part, which do not count, so every character is predicted once, with a state that knows what came
    before. The parts of a text of lines begin at lines, and reading starts with the line break before
    them. The parts are the same for any number of devices; a row without a part reads characters that
    do not count.

    Args:
      params: the model.
      source: the text on the devices.
      corpus: the same text, with its split.
      batch: most rows at a time.
      seq_len: characters of each row per device call.
    """
    devices = source.devices
    parts = _parts(corpus, batch, devices)
    carry = _begin(params.config, len(parts.read), devices)
    nats = 0.0
    for offset in range(0, int((parts.end - 1 - parts.read).max()), seq_len):
        windows = source.windows(parts.read + offset, seq_len)
        counted = parts.counted(offset, seq_len)
        carry, part = _evaluate(seq_len, devices, params, source.tokens, windows, carry, counted)
        nats += float(part)
    return nats / (len(corpus.tokens) - corpus.split)


def compile_ahead(
    params: charlm.Params, source: DeviceCorpus, corpus: Corpus, batch: int, seq_len: int
) -> jax.stages.Compiled:
    """Compile the program of `evaluate` from the shapes and dtypes of its arrays.

    Args:
      params: the model, or ShapeDtypeStructs.
      source: from `device_corpus` or `abstract_corpus`.
      corpus: as in `evaluate`.
      batch: as in `evaluate`.
      seq_len: as in `evaluate`.

    Returns:
      The compiled program, a `jax.stages.Compiled`.
    """
    devices, parts = source.devices, _parts(corpus, batch, source.devices)
    rows = len(parts.read)
    carry = mesh.abstract(devices, lambda: charlm.initial_carry(params.config, rows))
    given = params, source.tokens, source.windows(parts.read, seq_len), carry
    return _evaluate.lower(seq_len, devices, *given, parts.counted(0, seq_len)).compile()


class _Parts(NamedTuple):
    """The parts of the text that are read side by side, as indices [rows] of tokens.

    read: where reading starts.
    begin: the first token that counts.
    end: the token after the last one that counts.
    """

    read: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def counted(self, offset: int, seq_len: int) -> np.ndarray:
        """Return which targets count, [T, rows] bool, if reading is `offset` tokens after `read`."""
        target = self.read + offset + 1 + np.arange(seq_len)[:, None]
        return (self.begin <= target) & (target < self.end)


def _parts(corpus: Corpus, batch: int, devices: mesh.Mesh) -> _Parts:
    first, total = corpus.split, len(corpus.tokens)
    parts = max(1, min(batch, (total - first) // (2 * WARM_UP)))
    span = -(-(total - first) // parts)
    rows = -(-parts // devices.shape[mesh.DATA]) * devices.shape[mesh.DATA]
    begin = np.minimum(first + span * np.arange(rows), total)
    if corpus.lines is not None:
        # The state is reset at every line: there is nothing to warm up.
        begins = np.append(first, corpus.lines.ends[corpus.lines.training :])
        begin = begins[np.searchsorted(begins, begin)]
        return _Parts(begin - 1, begin, np.append(begin[1:], total))
    end = np.minimum(begin + span, total)
    return _Parts(np.maximum(begin - 1 - WARM_UP, 0), begin, end)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(config: charlm.ModelConfig, rows: int, devices: mesh.Mesh) -> charlm.Carry:
    return mesh.constrain(devices, charlm.initial_carry(config, rows))


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
    return mesh.constrain(devices, (carry, total))
