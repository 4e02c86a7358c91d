"""Small models with varied output, and helpers that write texts with them in a browser."""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks.page import chromium

TEXT = "ROMEO: What's in a name?\nThat which we call a rose, by any other name: é<€𝄞"
VOCABULARY = jaxrnn.Vocabulary.of(TEXT)
# How much the output weights are enlarged, so that predictions are neither flat nor certain.
SHARP = 4.0
PRIME = "ROMEO: "
LENGTH = 300
MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn", "hidden_size": 21, "embedding_size": 5},
    "rnn-relu-2": {
        "cell": "rnn", "activation": "relu", "layers": 2, "hidden_size": 8, "embedding_size": 0
    },
    "rnn-sigmoid": {
        "cell": "rnn", "activation": "sigmoid", "hidden_size": 16, "embedding_size": 16, "tie": True
    },
    "lstm": {"cell": "lstm", "hidden_size": 30, "embedding_size": 7},
    "lstm-peephole-2-tied": {
        "cell": "lstm", "peephole": True, "layers": 2, "hidden_size": 12, "embedding_size": 12,
        "tie": True,
    },
    "lstm-one-hot": {"cell": "lstm", "hidden_size": 13, "embedding_size": 0},
    "lstm-lines": {"cell": "lstm", "hidden_size": 9, "embedding_size": 4, "lines": True},
    "gru-before": {"cell": "gru", "hidden_size": 16, "embedding_size": 9},
    "gru-after-2": {
        "cell": "gru", "reset": "after", "layers": 2, "hidden_size": 11, "embedding_size": 0
    },
}  # fmt: skip
PLAIN = {"temperature": 1, "topK": None, "topP": None, "mode": "categorical", "seed": 0}


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


def tokens(
    browser: chromium.Browser, prime: str = PRIME, length: int = LENGTH, **options: Any
) -> Any:
    """Return what `written` yields."""
    given = json.dumps(PLAIN | {"prime": prime, "length": length} | options)
    listed = "chances: [...token.chances ?? []], units: [...token.units]"
    return browser.value(
        f"[...written(network, vocabulary, {given})].map((token) => ({{...token, {listed}}}))"
    )


def text_of(tokens: Any) -> str:
    return "".join(token["text"] for token in tokens)


def write(browser: chromium.Browser, prime: str = PRIME, length: int = LENGTH) -> None:
    """Write a text with the controls of the page."""
    browser.value(f"byId('prime').value = {json.dumps(prime)}; byId('length').value = {length};")
    browser.click("#write")
    wait(browser)


def wait(browser: chromium.Browser) -> None:
    """Wait until the page has stopped writing."""
    until = time.monotonic() + 60
    while not browser.value("run.stopped"):
        assert time.monotonic() < until
        time.sleep(0.02)
