"""Text from a char-RNN, by the loop of `jaxrnn.decoding` (lecture row 13).

    jaxrnn.sample(params, prime="ROMEO:")            # a string that begins with the prime
    for piece in jaxrnn.stream(params, "ROMEO:"):    # the same text, as it is made
        print(piece, end="", flush=True)

Three ways to take the next character from the softmax of the logits: `"categorical"` draws from it,
`"argmax"` takes the likeliest (and ends in loops), `"after-space"` draws the first character of a word
and takes the likeliest inside it.

The loop's trip count, temperature, top-k, top-p and seed are arguments of the compiled program and
the prime is padded to the next power of two, so none of them compiles anything anew.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import accelerator, charlm, mesh
from jaxrnn.decoding import Mode, Settings, advance, begin, launch
from jaxrnn.errors import InputError
from jaxrnn.text import Vocabulary

Implementation = Literal["xla", "pallas"]

TEMPERATURES = (1e-30, 1e30)  # beyond them nothing changes but float32's patience
CHUNK = 16  # characters that `stream` draws in one call of the device
LAUNCH = (
    256  # characters at most that the sampling kernel draws at once; their noise is made before
)


def sample(
    params: charlm.Params,
    prime: str,
    length: int = 500,
    temperature: float = 1.0,
    mode: Mode = "categorical",
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    count: int = 1,
    implementation: Implementation | None = None,
) -> str | list[str]:
    """Write on from `prime`.

    Args:
      params: from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      prime: how the text begins; at least one character.
      length: characters to add; 0 gives back the prime. Tokens of a byte vocabulary are bytes.
      temperature: divides the logits; below 1 bolder on the likely, above 1 wilder.
      mode: "categorical", "argmax" or "after-space".
      top_k: draw among the k likeliest only.
      top_p: draw among the fewest characters whose probabilities reach p (Holtzman et al. 2020).
      seed: 0 to 2^32 - 1; the same seed gives the same text on the same machine.
      count: how many texts; each is the one that its place in the count always gives.
      implementation: "xla", or on a Hopper GPU "pallas", which draws all characters in one kernel with
        the weights on the chip, without top_k and top_p; None for "xla".

    Returns:
      The text, prime included; a list of texts where count > 1.

    Raises:
      InputError: for a value out of its range, a prime with characters that the model has never
        seen, or an implementation that cannot run this; it says which.
    """
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, count, implementation)
    _check_length(length)
    drawn = drawer.draw(length) if length else np.zeros((0, count), np.int32)
    texts = [prime + params.vocabulary.decode(drawn[:, row]) for row in range(count)]
    return texts if count > 1 else texts[0]


def stream(
    params: charlm.Params,
    prime: str,
    length: int | None = None,
    temperature: float = 1.0,
    mode: Mode = "categorical",
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    implementation: Implementation | None = None,
) -> Iterator[str]:
    """The text of `sample` in pieces, the prime first, each as soon as it is made.

    Arguments and errors are those of `sample`; `length=None` never ends.
    """
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, 1, implementation)
    if length is not None:
        _check_length(length)
    return _pieces(drawer, params, prime, length)


def default_prime(vocabulary: Vocabulary) -> str:
    """How a text begins where nobody says: a new line, or the first character that is known."""
    if vocabulary.by_bytes or "\n" in vocabulary.characters:
        return "\n"
    return vocabulary.characters[0]


def _pieces(
    drawer: _Drawer, params: charlm.Params, prime: str, length: int | None
) -> Iterator[str]:
    yield prime
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    left = math.inf if length is None else length
    while left > 0:
        tokens = drawer.draw(int(min(CHUNK, left)))[:, 0]
        left -= len(tokens)
        if params.vocabulary.by_bytes:  # a character may be cut by the end of a piece
            yield decoder.decode(tokens.astype(np.uint8).tobytes(), final=left <= 0)
        else:
            yield params.vocabulary.decode(tokens)


class _Drawer:
    """A text under way: checked arguments, the compiled loop's arguments, the state between calls."""

    def __init__(
        self,
        params: charlm.Params,
        prime: str,
        temperature: float,
        mode: Mode,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        count: int,
        implementation: Implementation | None = None,
    ) -> None:
        size = len(params.vocabulary)
        if not prime:
            raise InputError(
                "the prime is empty; give the text at least one character to begin with"
            )
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature must be a number above 0, not {temperature}")
        if top_k is not None and not 1 <= top_k <= size:
            raise InputError(f"top_k must be from 1 to {size}, the vocabulary, not {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {top_p}")
        if not 0 <= seed < 2**32:
            raise InputError(f"seed must be from 0 to 2^32 - 1, not {seed}")
        if count < 1:
            raise InputError(f"count must be at least 1, not {count}")
        self.config = params.config
        self.prepared = _prepare(params)
        self.mode = mode
        self.truncate = top_k is not None or top_p is not None
        self.settings = Settings(
            jnp.float32(np.clip(temperature, *TEMPERATURES)),
            jnp.int32(size if top_k is None else top_k),
            jnp.float32(1.0 if top_p is None else top_p),
            jnp.asarray(params.vocabulary.whitespace()),
        )
        self.prime = params.vocabulary.encode(prime).astype(np.int32)
        self.on_chip = None
        if implementation not in (None, "xla"):
            _check(implementation, params, count, self.truncate)
            self.on_chip = _arrange(self.config, self.prepared, count)
        self.state = begin(self.config, size, count, jnp.uint32(seed))

    def draw(self, length: int) -> np.ndarray:
        """The next `length` tokens, [length, B]; the first call reads the prime before it draws."""
        if self.on_chip is None:
            return self._advance(length)
        if len(self.prime):
            self._advance(0)
        drawn = [self._launch(min(LAUNCH, length - at)) for at in range(0, length, LAUNCH)]
        return np.concatenate(drawn)

    def _advance(self, length: int) -> np.ndarray:
        prime, self.prime = self.prime, self.prime[:0]
        padded = np.zeros(_bucket(len(prime)), np.int32)
        padded[: len(prime)] = prime
        self.state, drawn = advance(
            self.config,
            self.prepared,
            self.state,
            padded,
            np.int32(len(prime)),
            np.int32(length),
            self.settings,
            mode=self.mode,
            truncate=self.truncate,
            size=_bucket(length),
        )
        return np.asarray(mesh.whole(drawn))[:length]

    def _launch(self, length: int) -> np.ndarray:
        self.state, drawn = launch(
            self.config,
            self.on_chip,
            self.state,
            np.int32(length),
            self.settings,
            mode=self.mode,
            size=_bucket(length),
        )
        return np.asarray(drawn)[:length]


_prepare = jax.jit(charlm.prepare)


@partial(jax.jit, static_argnums=(0, 2))
def _arrange(config: charlm.Config, prepared: charlm.Prepared, count: int) -> Any:
    from jaxrnn.kernels import hopper_sampling

    return hopper_sampling.arrange(config.make_cell(), prepared, count)


def _bucket(n: int) -> int:
    """The next power of two, at least CHUNK: few sizes, few programs."""
    return max(CHUNK, 1 << (n - 1).bit_length())


def _check_length(length: int) -> None:
    if not 0 <= length < 2**30:
        raise InputError(f"length must be from 0 to 2^30 - 1, not {length}")


def _check(implementation: str, params: charlm.Params, count: int, truncate: bool) -> None:
    """An InputError where the sampling kernel was asked for and cannot run."""
    if implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise InputError(f"implementation must be one of {names} or None, not {implementation!r}")
    platform = accelerator.device().platform
    reason: str | None
    if platform != "gpu":
        reason = f"it runs on a Hopper GPU and this is a {platform.upper()}"
    elif truncate:
        reason = "it draws without top_k and top_p; use 'xla'"
    else:
        from jaxrnn.kernels import hopper_sampling

        config, size = params.config, len(params.vocabulary)
        cell, dtype = config.make_cell(), config.dtype
        reason = hopper_sampling.obstacle(cell, config.layers, size, count, dtype)
    if reason:
        raise InputError(f"implementation {implementation!r} cannot run this: {reason}")
