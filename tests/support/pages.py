"""Small models with numbers that make interesting texts, and pages with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

TEXT = "ROMEO: What's in a name?\nThat which we call a rose, by any other name: é<€𝄞"
VOCABULARY = jaxrnn.Vocabulary.of(TEXT)
# How much the output weights are enlarged, so that predictions are neither flat nor certain.
SHARP = 4.0


def model(
    vocabulary: jaxrnn.Vocabulary = VOCABULARY, seed: int = 0, **config: Any
) -> jaxrnn.Params:
    """A model with random biases and peepholes, whose initial values are zero."""
    params = jaxrnn.init(jaxrnn.ModelConfig(**config), vocabulary, seed)
    numbers = np.random.default_rng(seed)

    def other(array: jax.Array) -> jax.Array:
        return array + jnp.asarray(0.3 * numbers.normal(size=array.shape), jnp.float32)

    layers = tuple(
        layer._replace(**{n: other(a) for n, a in layer._asdict().items() if n[0] != "w" or n == "w_c"
                          if a is not None})
        for layer in params.layers
    )  # fmt: skip
    # A tied model has no output weights; its embedding is enlarged instead.
    name = "embedding" if params.w_out is None else "w_out"
    enlarged = {name: SHARP * getattr(params, name)}
    return params.replace(layers=layers, b_out=other(params.b_out), **enlarged)  # type: ignore[attr-defined]
