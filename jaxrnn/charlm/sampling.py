"""Text from a char-RNN, by the loop of `jaxrnn.charlm.decoding` (lecture row 13).

    jaxrnn.sample(params, prime="ROMEO:")            # a string that begins with the prime
    for piece in jaxrnn.stream(params, "ROMEO:"):    # the same text, as it is made
        print(piece, end="", flush=True)
    jaxrnn.sample_bytes(params, b"\xff\xd8")          # of a model of bytes, the bytes themselves

Three ways to take the next character from the softmax of the logits: `"categorical"` draws from it,
`"argmax"` takes the likeliest (and ends in loops), `"after-space"` draws the first character of a word
and takes the likeliest inside it.

The loop's trip count, temperature, top-k, top-p and seed are arguments of the compiled program and
the prime is padded to the next power of two, so changing them compiles nothing.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, SupportsFloat, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoding import Mode, Settings, advance, begin, launch
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory, mesh, modes
from jaxrnn.errors import InputError, whole_number

Implementation = Literal["xla", "pallas"]

TEMPERATURES = (1e-30, 1e30)  # beyond them nothing changes but float32's patience
CHUNK = 16  # characters that `stream` draws in one call of the device
LAUNCH = (
    256  # characters at most that the sampling kernel draws at once; their noise is made before
)


def sample(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    temperature: SupportsFloat = 1.0,
    mode: Mode = "categorical",
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    seed: SupportsIndex = 0,
    count: SupportsIndex = 1,
    implementation: Implementation | None = None,
) -> str | list[str]:
    """Write on from `prime`.

    The tokens of a model of bytes are bytes: `length` counts them, what is not UTF-8 becomes U+FFFD, and
    a character that the end cuts is left out. `sample_bytes` returns the bytes as they are.

    Args:
      params: from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      prime: how the text begins; at least one character. Bytes are UTF-8, or for a model of bytes any.
      length: tokens to add; 0 returns the prime.
      temperature: divides the logits; below 1 bolder on the likely, above 1 wilder.
      mode: "categorical", "argmax" or "after-space".
      top_k: draw among the k likeliest only; more than there are tokens is all of them.
      top_p: draw among the fewest characters whose probabilities reach p (Holtzman et al. 2020).
      seed: 0 to 2^32 - 1; the same seed gives the same text on the same machine.
      count: number of texts; each is the one that its place in the count always gives.
      implementation: "xla", or on a Hopper GPU "pallas", which draws all characters in one kernel with
        the weights on the chip, without top_k and top_p; None for "xla".

    Returns:
      The text, prime included; a list of texts where count > 1.

    Raises:
      InputError: for a value out of its range, a prime with characters that the model has never
        seen, or an implementation that cannot run this; it says which.
    """
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, count, implementation)
    decode = _decode_cut if params.vocabulary.by_bytes else params.vocabulary.decode
    texts = [decode(tokens) for tokens in _whole(drawer, length)]
    return texts if drawer.count > 1 else texts[0]


def sample_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    temperature: SupportsFloat = 1.0,
    mode: Mode = "categorical",
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    seed: SupportsIndex = 0,
    count: SupportsIndex = 1,
    implementation: Implementation | None = None,
) -> bytes | list[bytes]:
    """Continue `prime` with a model of bytes (`--bytes`) and return the bytes that it draws.

    Arguments and errors are those of `sample`, and InputError for a model of characters.

    Returns:
      The prime and `length` bytes; a list of such where count > 1.
    """
    _check_bytes(params)
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, count, implementation)
    texts = [tokens.astype(np.uint8).tobytes() for tokens in _whole(drawer, length)]
    return texts if drawer.count > 1 else texts[0]


def stream(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    temperature: SupportsFloat = 1.0,
    mode: Mode = "categorical",
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    seed: SupportsIndex = 0,
    implementation: Implementation | None = None,
) -> Iterator[str]:
    """The text of `sample` in pieces, the prime first, each as soon as it is made.

    Arguments and errors are those of `sample`; `length=None` never ends.
    """
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, 1, implementation)
    pieces = _pieces(drawer, length)
    if not params.vocabulary.by_bytes:
        return map(params.vocabulary.decode, pieces)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a piece may cut a character
    return (decoder.decode(tokens.astype(np.uint8).tobytes()) for tokens in pieces)


def stream_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    temperature: SupportsFloat = 1.0,
    mode: Mode = "categorical",
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    seed: SupportsIndex = 0,
    implementation: Implementation | None = None,
) -> Iterator[bytes]:
    """The bytes of `sample_bytes` in pieces, the prime first, each as soon as it is made.

    Arguments and errors are those of `sample_bytes`; `length=None` never ends.
    """
    _check_bytes(params)
    drawer = _Drawer(params, prime, temperature, mode, top_k, top_p, seed, 1, implementation)
    return (tokens.astype(np.uint8).tobytes() for tokens in _pieces(drawer, length))


def default_prime(vocabulary: Vocabulary) -> str:
    """Return the default prime: a new line, or the first character of a vocabulary without one."""
    if vocabulary.by_bytes or "\n" in vocabulary.characters:
        return "\n"
    return vocabulary.characters[0]


def _whole(drawer: _Drawer, length: SupportsIndex) -> list[np.ndarray]:
    """Return the tokens of each text, prime included."""
    number, prime = _length(length), drawer.prime
    _check_room(drawer.count, 4 * _bucket(number))
    drawn = drawer.draw(number) if number else np.zeros((0, drawer.count), np.int32)
    return [np.concatenate([prime, row]) for row in drawn.T]


def _pieces(drawer: _Drawer, length: SupportsIndex | None) -> Iterator[np.ndarray]:
    """Yield the tokens of a text: the prime, then `length` more, or without end for None."""
    left = math.inf if length is None else float(_length(length))

    def draw(left: float) -> Iterator[np.ndarray]:
        yield drawer.prime
        while left > 0:
            tokens = drawer.draw(int(min(CHUNK, left)))[:, 0]
            left -= len(tokens)
            yield tokens

    return draw(left)


def _decode_cut(tokens: np.ndarray) -> str:
    """Return the text of bytes, without a character that is cut at the end."""
    return codecs.utf_8_decode(tokens.astype(np.uint8).tobytes(), "replace", False)[0]


class _Drawer:
    """The state of a text that is being drawn: checked arguments and the state of the loop.

    prime: [P] the tokens that the text begins with.
    count: number of texts.
    """

    @modes.fixed()
    def __init__(
        self,
        params: charlm.Params,
        prime: str | bytes,
        temperature: SupportsFloat,
        mode: Mode,
        top_k: SupportsIndex | None,
        top_p: SupportsFloat | None,
        seed: SupportsIndex,
        count: SupportsIndex,
        implementation: Implementation | None = None,
    ) -> None:
        size = len(params.vocabulary)
        if not isinstance(prime, (str, bytes)):
            raise InputError(f"the prime must be a str or bytes, not {type(prime).__name__}")
        if not prime:
            raise InputError(
                "the prime is empty; give the text at least one character to begin with"
            )
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        divisor = _number("temperature", temperature)
        if not (math.isfinite(divisor) and divisor > 0):
            raise InputError(
                f"temperature must be a number above 0, not {divisor}; "
                'mode="argmax" always takes the likeliest character'
            )
        kept = size if top_k is None else min(_at_least("top_k", top_k, 1), size)
        share = 1.0 if top_p is None else _number("top_p", top_p)
        if not 0 < share <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {share}")
        number = _at_least("seed", seed)
        if not 0 <= number < 2**32:
            raise InputError(f"seed must be from 0 to 2^32 - 1, not {number}")
        self.count = _at_least("count", count, 1)
        self.config = params.config
        self.prepared = _prepare(params)
        self.mode = mode
        self.truncate = top_k is not None or top_p is not None
        self.settings = Settings(
            jnp.float32(np.clip(divisor, *TEMPERATURES)),
            jnp.int32(kept),
            jnp.float32(share),
            jnp.asarray(params.vocabulary.whitespace()),
        )
        self.prime = self._unread = params.vocabulary.encode(prime).astype(np.int32)
        self.on_chip = None
        if implementation not in (None, "xla"):
            _check(implementation, params, self.count, self.truncate)
            self.on_chip = _arrange(self.config, self.prepared, self.count)
        one = jax.eval_shape(lambda: begin(self.config, size, 1, jnp.uint32(0)))
        _check_room(self.count, memory.bytes_per_device(one))
        self.state = begin(self.config, size, self.count, jnp.uint32(number))

    @modes.fixed()
    def draw(self, length: int) -> np.ndarray:
        """The next `length` tokens, [length, B]; the first call reads the prime before it draws."""
        if self.on_chip is None:
            return self._advance(length)
        if len(self._unread):
            self._advance(0)
        drawn = [self._launch(min(LAUNCH, length - at)) for at in range(0, length, LAUNCH)]
        return np.concatenate(drawn)

    def _advance(self, length: int) -> np.ndarray:
        prime, self._unread = self._unread, self._unread[:0]
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
        return np.asarray(mesh.gather_full(drawn))[:length]

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
def _arrange(config: charlm.ModelConfig, prepared: charlm.Prepared, count: int) -> Any:
    from jaxrnn.recurrence.kernels.hopper import sampling as hopper_sampling

    return hopper_sampling.arrange(config.make_cell(), prepared, count)


def _bucket(n: int) -> int:
    """The next power of two, at least CHUNK: few sizes, few programs."""
    return max(CHUNK, 1 << (n - 1).bit_length())


def _check_room(count: int, each: int) -> None:
    """Raise InputError where `count` texts, each of so many bytes on the device, do not fit there."""
    what = "the text" if count == 1 else f"writing {count:,} texts at once"
    memory.check(count * each, what, "ask for fewer or shorter texts")


def _length(length: SupportsIndex) -> int:
    number = _at_least("length", length)
    if not 0 <= number < 2**30:
        raise InputError(f"length must be from 0 to 2^30 - 1, not {number}")
    return number


def _at_least(name: str, value: object, least: int | None = None) -> int:
    try:
        return whole_number(name, value, least)
    except ValueError as error:
        raise InputError(str(error)) from None


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, not {value!r}") from None


def _check_bytes(params: charlm.Params) -> None:
    if not params.vocabulary.by_bytes:
        raise InputError("this model's tokens are characters, not bytes; use sample or stream")


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
        from jaxrnn.recurrence.kernels.hopper import sampling as hopper_sampling

        config, size = params.config, len(params.vocabulary)
        cell, dtype = config.make_cell(), config.dtype
        reason = hopper_sampling.unsupported_reason(cell, config.layers, size, count, dtype)
    if reason:
        raise InputError(f"implementation {implementation!r} cannot run this: {reason}")
