"""Models whose vocabulary grows: `extended` gives a trained model tokens that it did not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.charlm.model import Params, init, log_frequencies
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import modes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Int


@modes.fixed()
def extended(
    params: Params, vocabulary: Vocabulary, counts: Int[Array | np.ndarray, "V"], seed: int = 0
) -> Params:
    """Return a model with the vocabulary of another text, whose first tokens are those of the model.

    The parameters of the old tokens keep their bits. Those of the new tokens (rows of the embedding, or
    of the first layer's input weights if characters are fed one-hot, and columns of the output weights)
    are those with which `init` begins a model of the larger vocabulary. Until it is trained, the model
    has the logits that it had for the old tokens.

    The output bias of a new token is such that the output biases alone predict it with its frequency in
    the text. Zero would not do: the softmax is relative to the old biases, which may all be far below
    zero. Where they are logarithms of frequencies, zero would make every new token as likely as all old
    ones together.

    Args:
      params: the model.
      vocabulary: the larger vocabulary.
      counts: [V], how often each token of the larger vocabulary occurs in the text.
      seed: random seed of the new parameters.

    Returns:
      The larger model with numpy arrays.

    Raises:
      InputError: if the vocabulary does not begin with the tokens of the model.
    """
    old = len(params.vocabulary)
    if params.vocabulary.by_bytes or vocabulary.symbols[:old] != params.vocabulary.symbols:
        raise InputError("the larger vocabulary must begin with the tokens of the model")
    fresh = init(params.config, vocabulary, seed)
    logs = log_frequencies(jnp.asarray(counts, jnp.int32))
    # The old tokens have together the probability that their frequencies add up to.
    shift = jax.nn.logsumexp(jnp.asarray(params.b_out)) - jax.nn.logsumexp(logs[:old])
    fresh = fresh.replace(b_out=logs + shift)  # type: ignore[attr-defined]

    def joined(new: Array, trained: Array | np.ndarray) -> np.ndarray:
        # An array is larger along the axis of the tokens, if it has one.
        array = np.array(new)
        array[tuple(slice(size) for size in trained.shape)] = trained
        return array

    # The leaves are joined, and so the static parts of both trees must be equal.
    small = params.replace(config=fresh.config, vocabulary=vocabulary)  # type: ignore[attr-defined]
    return jax.tree.map(joined, fresh, small)
