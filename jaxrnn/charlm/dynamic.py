"""Dynamic evaluation: a char-RNN that learns from the text while it is scored (Krause et al. 2018).

After each segment of the text the parameters take a gradient step on it and decay towards the trained
ones, arXiv 1709.07432, equation 6 without the statistics of the training text:

    parameters += decay * (trained - parameters) - learning_rate * gradient

A segment is scored before the model learns from it, so the scores are those of a model that has never
seen it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxrnn import charlm
from jaxrnn.charlm.scoring import first_carry, prime_tokens, read
from jaxrnn.devices import modes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Float, Int, Scalar

# Most segments per device call.
SEGMENTS = 64


@dataclasses.dataclass(frozen=True)
class DynamicOptions:
    """Options of dynamic evaluation.

    Raises:
      InputError: for a value out of its range.
    """

    segment: int = 20
    """Tokens per gradient step of the dynamic evaluation."""
    learning_rate: float = 0.3
    """Learning rate of the dynamic evaluation, for gradients of the mean loss of a segment."""
    decay: float = 0.001
    """Fraction of the way back to the trained parameters in each step of the dynamic evaluation."""

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise InputError(f"segment must be at least 1, not {self.segment}")
        if not 0 <= self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be from 0 upwards, not {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must be from 0 to 1, not {self.decay}")


class DynamicScorer:
    """A text that is scored piece by piece by a model that learns from it.

    Args:
      params: the trained model, which is not changed.
      prime: as for `scoring.score`; the model does not learn from it.
      options: the options.

    Raises:
      InputError: for an empty prime, and for characters in it that the model has never seen.
    """

    @modes.fixed()
    def __init__(
        self,
        params: charlm.Params,
        prime: str | bytes | None = None,
        options: DynamicOptions | None = None,
    ) -> None:
        self._options = DynamicOptions() if options is None else options
        self._trained = self._params = params
        tokens = prime_tokens(params, prime).astype(np.int32)
        self._carry, _ = read(params, first_carry(params, 1), tokens[:, None])
        # The last token that was scored, and those that do not fill a segment.
        self._unread = tokens[-1:]

    @modes.fixed()
    def score(self, tokens: np.ndarray) -> Float[np.ndarray, "M"]:
        """Return the information in nats of all segments that the next tokens complete, float32 [M].

        Raises:
          InputError: if the model has diverged.
        """
        unread = np.concatenate([self._unread, tokens]).astype(np.int32)
        size = self._options.segment
        segments = (len(unread) - 1) // size
        found = [np.zeros(0, np.float32)]
        for at in range(0, segments, SEGMENTS):
            found.append(self._learn(unread, at * size, min(SEGMENTS, segments - at)))
        self._unread = unread[segments * size :]
        return np.concatenate(found)

    @modes.fixed()
    def finish(self) -> Float[np.ndarray, "M"]:
        """Return the information of the tokens that do not fill a segment, the end of the text."""
        self._carry, nats = read(self._params, self._carry, self._unread[:, None])
        self._unread = self._unread[-1:]
        return nats[:, 0]

    def _learn(self, unread: Int[np.ndarray, "N1"], at: int, count: int) -> np.ndarray:
        """Score `count` segments from a place on, and learn from each."""
        size = self._options.segment
        windows = np.zeros((SEGMENTS, size + 1, 1), np.int32)
        places = at + size * np.arange(count)[:, None] + np.arange(size + 1)
        windows[:count, :, 0] = unread[places]
        self._params, self._carry, nats = _learn(
            self._params,
            self._trained,
            self._carry,
            windows,
            np.int32(count),
            np.float32(self._options.learning_rate),
            np.float32(self._options.decay),
        )
        found = np.asarray(nats)[:count].ravel()
        if not np.isfinite(found).all():
            raise InputError("the dynamic evaluation has diverged; lower its `learning_rate`")
        return found


# Parameters, state and the information found so far, between two segments.
_State = tuple[charlm.Params, charlm.Carry, Float[Array, "S T"]]


@jax.jit
def _learn(
    params: charlm.Params,
    trained: charlm.Params,
    carry: charlm.Carry,
    windows: Int[Array, "S T1 1"],
    count: Int[Array, ""],
    learning_rate: Scalar,
    decay: Scalar,
) -> tuple[charlm.Params, charlm.Carry, Float[Array, "S T"]]:
    """Score the first `count` segments, each before learning from it; the others are not read."""

    def segment(i: Array, state: _State) -> _State:
        params, carry, found = state
        gradient, (carry, nats) = jax.grad(_loss, has_aux=True)(params, windows[i], carry)
        params = jax.tree.map(
            lambda now, then, g: now + decay * (then - now) - learning_rate * g,
            params,
            trained,
            gradient,
        )
        return params, carry, found.at[i].set(nats[:, 0])

    found = jnp.zeros((windows.shape[0], windows.shape[1] - 1))
    return lax.fori_loop(0, count, segment, (params, carry, found))


def _loss(
    params: charlm.Params, tokens: Int[Array, "T1 1"], carry: charlm.Carry
) -> tuple[Scalar, tuple[charlm.Carry, Float[Array, "T 1"]]]:
    """Return the mean loss of a segment, and with it the state after it and the nats of its tokens."""
    carry, logits = charlm.forward(params, tokens[:-1], carry)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return nats.mean(), (carry, nats)
