"""The loss of quality by rounding the weights, measured on text that the model itself draws."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoder import Decoder
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.sampling import default_prime
from jaxrnn.devices import modes

# Number of tokens on which the models are compared.
LENGTH = 2000


class Loss(NamedTuple):
    """The difference of a model with rounded weights from the original.

    divergence: the Kullback-Leibler divergence of its predictions from those of the original, in nats
      per token, mean over the text: sum over v of p(v) (log p(v) - log q(v)), where p is the prediction
      of the original. It is what rounding adds to the cross-entropy on text that follows the original:
      at 0.001, a text of 1,000 tokens is on average e times less likely.
    same: the share of tokens of the text before which both have the same most likely one.
    """

    divergence: float
    same: float


# What weights lose that are not rounded.
NONE = Loss(0.0, 1.0)


@modes.fixed()
def measured(original: charlm.Params, rounded: charlm.Params) -> Loss:
    """Return the loss of a rounded model.

    Both read a text of LENGTH tokens that the original draws at temperature 1, so that no other text is
    needed. Both models compute in float32.
    """
    prime = default_prime(original.vocabulary)
    tokens = Decoder(original, prime, SamplingOptions()).texts(LENGTH)[0]
    p, q = (_log_probabilities(params, tokens) for params in (original, rounded))
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    return Loss(float(divergence), float((p.argmax(-1) == q.argmax(-1)).mean()))


def _log_probabilities(params: charlm.Params, tokens: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of every token that could follow a token of the text, [N, V]."""
    carry = charlm.initial_carry(params.config, 1)
    logits = _forward(params, jnp.asarray(tokens, jnp.int32)[:, None], carry)[1][:, 0]
    wide = np.asarray(logits, np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


_forward = jax.jit(charlm.forward)
