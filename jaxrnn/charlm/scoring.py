"""The information of each token of a text under a char-RNN, in nats.

    nats = jaxrnn.score(params, "To be, or not to be")     # [N] float32
    scorer = Scorer(params, "\n")                          # a text of any length, in pieces
    for tokens in pieces:
        nats = scorer.score(tokens)

The state is carried through the whole text, so each token is predicted from all tokens before it.
"""

from __future__ import annotations

import functools
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn import charlm
from jaxrnn.charlm.sampling import default_prime
from jaxrnn.devices import modes
from jaxrnn.errors import InputError, whole_number
from jaxrnn.shapes import Array, Float, Int

# Tokens per row of a device call. A text of any length is read in windows of these sizes, longest first,
# so that only four programs are compiled.
WINDOWS = (1024, 128, 16, 1)
# Tokens that are read before each part after the first, for the state.
WARM_UP = 256


def score(
    params: charlm.Params, text: str | bytes, prime: str | bytes | None = None
) -> Float[np.ndarray, "N"]:
    """Return the information of each token of a text: -ln P(token | prime, tokens before it).

    The sum is the negative log-likelihood of the text, and the mean its loss in nats per token. The
    memory of the device does not depend on the length of the text.

    Args:
      params: the model, from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      text: N tokens, perhaps none; for a model of bytes any bytes.
      prime: what the model reads before the text, at least one token; None for a line break, or the
        first character of a vocabulary without one.

    Returns:
      float32 [N], in nats.

    Raises:
      InputError: for an empty prime, and for characters that the model has never seen.
    """
    return Scorer(params, prime).score(params.vocabulary.encode(text))


class Scorer:
    """A text that is scored piece by piece; the state is carried from piece to piece.

    Args:
      params: the model.
      prime: as for `score`.
      parts: number of parts into which each piece is cut and which are read side by side. 1 is exact.
        Otherwise all parts of a piece but the first begin with the zero state WARM_UP tokens before
        their first token. A short piece is cut into fewer parts, of 2 * WARM_UP tokens at least.

    Raises:
      InputError: for an empty prime, for characters in it that the model has never seen, and for fewer
        parts than 1.
    """

    @modes.fixed()
    def __init__(
        self,
        params: charlm.Params,
        prime: str | bytes | None = None,
        parts: SupportsIndex = 1,
    ) -> None:
        try:
            self._parts = whole_number("parts", parts, 1)
        except ValueError as error:
            raise InputError(str(error)) from None
        self._params = params
        tokens = prime_tokens(params, prime)
        self._last = tokens[:1]
        self._carry = first_carry(params, 1)
        self.score(tokens[1:])

    @modes.fixed()
    def score(self, tokens: np.ndarray) -> Float[np.ndarray, "N"]:
        """Return the information of the next N tokens in nats, float32 [N]."""
        unread = np.concatenate([self._last, tokens]).astype(np.int32)
        parts = min(self._parts, len(tokens) // (2 * WARM_UP))
        side_by_side = self._score_parts(unread, parts)
        # The parts are equally long, and fewer tokens than parts may be left.
        rest = unread[len(side_by_side) :]
        self._carry, nats = read(self._params, self._carry, rest[:, None])
        self._last = unread[-1:]
        return np.concatenate([side_by_side, nats[:, 0]])

    def _score_parts(self, unread: Int[np.ndarray, "N1"], parts: int) -> Float[np.ndarray, "M"]:
        """Score as many tokens as can be divided into parts, side by side.

        All rows have the same length. The first one does not warm up, so its part is longer.
        """
        if parts < 2:
            return np.zeros(0, np.float32)
        span = (len(unread) - 1 - WARM_UP) // parts
        rows = unread[span * np.arange(parts) + np.arange(WARM_UP + span + 1)[:, None]]
        zeros = first_carry(self._params, parts - 1)
        carry = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self._carry, zeros)
        carry, nats = read(self._params, carry, rows)
        self._carry = jax.tree.map(lambda a: a[-1:], carry)
        return np.concatenate([nats[:WARM_UP, 0], nats[WARM_UP:].T.ravel()])


def prime_tokens(params: charlm.Params, prime: str | bytes | None) -> np.ndarray:
    """Return the tokens [N] of a prime; None is the default prime.

    Raises:
      InputError: for an empty prime, and for characters that the model has never seen.
    """
    vocabulary = params.vocabulary
    tokens = vocabulary.encode(default_prime(vocabulary) if prime is None else prime)
    if not len(tokens):
        raise InputError("the `prime` is empty; give at least one character to begin with")
    return tokens


@functools.partial(jax.jit, static_argnums=1)
def first_carry(params: charlm.Params, rows: int) -> charlm.Carry:
    """Return the zero state of a model for a number of rows."""
    return charlm.initial_carry(params.config, rows)


def read(
    params: charlm.Params, carry: charlm.Carry, tokens: Int[np.ndarray, "T1 B"]
) -> tuple[charlm.Carry, Float[np.ndarray, "T B"]]:
    """Return the state after all tokens but the last, and the information of all but the first."""
    at, found = 0, [np.zeros((0, tokens.shape[1]), np.float32)]
    for window in WINDOWS:
        while at + window < len(tokens):
            carry, nats = _score(params, tokens[at : at + window + 1], carry)
            # Waiting for each window keeps the logits of one window in memory, not those of all.
            found.append(np.asarray(nats))
            at += window
    return carry, np.concatenate(found)


@jax.jit
def _score(
    params: charlm.Params, tokens: Int[Array, "T1 B"], carry: charlm.Carry
) -> tuple[charlm.Carry, Float[Array, "T B"]]:
    carry, logits = charlm.forward(params, tokens[:-1], carry)
    return carry, optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
