"""Text from a char-RNN, drawn character by character (lecture row 13).

    jaxrnn.sample(params, prime="ROMEO:")                  # a string that begins with the prime
    jaxrnn.sample_many(params, prime="ROMEO:", count=8)    # eight of them, drawn side by side
    for piece in jaxrnn.stream(params, "ROMEO:"):          # the text of `sample`, piece by piece
        print(piece, end="", flush=True)

The functions whose names contain `bytes` return the bytes of a model that was trained on bytes.
`charlm.options` describes the options. They and the length are arguments of the compiled program and
the prime is padded to the next power of two, so changing them does not recompile.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from typing import SupportsIndex, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoding import TracedOptions, advance, initial_state
from jaxrnn.charlm.options import SamplingKeywords, SamplingOptions
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import memory, mesh, modes
from jaxrnn.errors import InputError, whole_number
from jaxrnn.shapes import Int

# Temperatures outside of this range draw the same characters, but overflow or underflow float32.
TEMPERATURE_RANGE = (1e-30, 1e30)

# Characters that `stream` draws per device call.
STREAM_CHUNK = 16


def sample(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    **options: Unpack[SamplingKeywords],
) -> str:
    """Continue `prime` and return the text.

    The tokens of a model of bytes are bytes: `length` counts bytes, bytes that are not UTF-8 become
    U+FFFD, and a character that the end of the text cuts is left out. `sample_bytes` returns the bytes.

    Args:
      params: the model, from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      prime: how the text begins; at least one character. Bytes must be UTF-8, except for a model of
        bytes.
      length: number of tokens to add, from 0 to 2^30 - 1.
      **options: the fields of `SamplingOptions`:
        temperature (default 1.0) divides the logits; below 1 more conservative, above 1 more random.
        mode (default "categorical"): "categorical" draws every character, "argmax" always takes the
        most likely one, "after-space" draws the first character of each word only.
        top_k (default None): draw from the k most likely characters only.
        top_p (default None): draw from the fewest characters whose probabilities add up to at least p.
        seed (default 0): from 0 to 2^32 - 1; a seed gives the same text each time on the same machine.

    Returns:
      The text, which begins with the prime.

    Raises:
      InputError: for a value out of its range, or a prime with characters that the model has never
        seen.
    """
    decoder = Decoder(params, prime, SamplingOptions.of(options))
    return _decoded(params.vocabulary, decoder.texts(length)[0])


def sample_many(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    count: SupportsIndex,
    **options: Unpack[SamplingKeywords],
) -> list[str]:
    """Continue `prime` several times, side by side on the device, and return the texts.

    Args:
      params: as for `sample`.
      prime: as for `sample`.
      length: as for `sample`; the same for all texts.
      count: number of texts. Text i depends on the seed and on i, but not on `count`; text 0 is the
        text of `sample`.
      **options: as for `sample`.

    Raises:
      InputError: as `sample` does, and for a count below 1.
    """
    decoder = Decoder(params, prime, SamplingOptions.of(options), count)
    return [_decoded(params.vocabulary, tokens) for tokens in decoder.texts(length)]


def sample_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    **options: Unpack[SamplingKeywords],
) -> bytes:
    """Continue `prime` by `length` bytes with a model of bytes and return all bytes.

    Arguments and errors are those of `sample`, and InputError for a model of characters.
    """
    _check_by_bytes(params)
    decoder = Decoder(params, prime, SamplingOptions.of(options))
    return _as_bytes(decoder.texts(length)[0])


def sample_bytes_many(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    count: SupportsIndex,
    **options: Unpack[SamplingKeywords],
) -> list[bytes]:
    """Continue `prime` several times with a model of bytes and return the bytes of each text.

    Arguments and errors are those of `sample_many`, and InputError for a model of characters.
    """
    _check_by_bytes(params)
    decoder = Decoder(params, prime, SamplingOptions.of(options), count)
    return [_as_bytes(tokens) for tokens in decoder.texts(length)]


def stream(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    **options: Unpack[SamplingKeywords],
) -> Iterator[str]:
    """Return an iterator over the text of `sample` in pieces, the prime first, as they are drawn.

    Arguments and errors are those of `sample`, but `length=None` never ends. Errors are raised by the
    call, before the first piece is asked for.
    """
    pieces = Decoder(params, prime, SamplingOptions.of(options)).pieces(length)
    if not params.vocabulary.by_bytes:
        return map(params.vocabulary.decode, pieces)
    # A piece may end inside of a character.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return (decoder.decode(_as_bytes(tokens)) for tokens in pieces)


def stream_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    **options: Unpack[SamplingKeywords],
) -> Iterator[bytes]:
    """Return an iterator over the bytes of `sample_bytes` in pieces, the prime first, as they are drawn.

    Arguments and errors are those of `sample_bytes`, but `length=None` never ends. Errors are raised by
    the call, before the first piece is asked for.
    """
    _check_by_bytes(params)
    return map(_as_bytes, Decoder(params, prime, SamplingOptions.of(options)).pieces(length))


def default_prime(vocabulary: Vocabulary) -> str:
    """Return the default prime: a new line, or the first character of a vocabulary without one."""
    if vocabulary.by_bytes or "\n" in vocabulary.characters:
        return "\n"
    return vocabulary.characters[0]


class Decoder:
    """Texts that are being drawn side by side from the same prime.

    Attributes:
      prime: [P] int32, the tokens that every text begins with.
      count: number of texts B.
      state: `decoding.DecodingState` after the tokens that were drawn so far.
    """

    @modes.fixed()
    def __init__(
        self,
        params: charlm.Params,
        prime: str | bytes,
        options: SamplingOptions,
        count: SupportsIndex = 1,
    ) -> None:
        """Check the arguments, which are those of `sample_many`, and place the weights."""
        if not isinstance(prime, (str, bytes)):
            raise InputError(f"the prime must be a str or bytes, not {type(prime).__name__}")
        if not prime:
            raise InputError(
                "the prime is empty; give the text at least one character to begin with"
            )
        size = len(params.vocabulary)
        self.prime = params.vocabulary.encode(prime).astype(np.int32)
        self.count = _whole_number("count", count, 1)
        self._unread = self.prime
        self._config = params.config
        self._weights = step_params(params)
        self._mode = options.mode
        self._truncate = options.truncates
        self._options = traced(options, params.vocabulary)
        one = jax.eval_shape(lambda: initial_state(self._config, size, 1, jnp.uint32(0)))
        _check_room(self.count, memory.bytes_per_device(one))
        self.state = initial_state(self._config, size, self.count, jnp.uint32(options.seed))

    def texts(self, length: SupportsIndex) -> list[Int[np.ndarray, "N"]]:
        """Draw `length` tokens and return the tokens of each text, prime included."""
        number = _checked_length(length)
        _check_room(self.count, 4 * bucket(number))
        drawn = self.draw(number) if number else np.zeros((0, self.count), np.int32)
        return [np.concatenate([self.prime, row]) for row in drawn.T]

    def pieces(self, length: SupportsIndex | None) -> Iterator[Int[np.ndarray, "N"]]:
        """Return an iterator over the tokens of the first text: the prime, then `length` more.

        `length=None` never ends.
        """
        left = math.inf if length is None else float(_checked_length(length))

        def draw(left: float) -> Iterator[np.ndarray]:
            yield self.prime
            while left > 0:
                tokens = self.draw(int(min(STREAM_CHUNK, left)))[:, 0]
                left -= len(tokens)
                yield tokens

        return draw(left)

    @modes.fixed()
    def draw(self, length: int) -> Int[np.ndarray, "N B"]:
        """Return the next `length` tokens of each text, [length, B]. The first call reads the prime."""
        unread = self._unread
        self._unread = unread[:0]
        padded = np.zeros(bucket(len(unread)), np.int32)
        padded[: len(unread)] = unread
        self.state, tokens = advance(
            self._config,
            self._weights,
            self.state,
            padded,
            np.int32(len(unread)),
            np.int32(length),
            self._options,
            mode=self._mode,
            truncate=self._truncate,
            size=bucket(length),
        )
        return np.asarray(mesh.gather_full(tokens))[:length]


step_params = jax.jit(charlm.step_params)


def traced(options: SamplingOptions, vocabulary: Vocabulary) -> TracedOptions:
    """Return the options in the form that compiled programs take."""
    size = len(vocabulary)
    return TracedOptions(
        temperature=jnp.float32(np.clip(options.temperature, *TEMPERATURE_RANGE)),
        top_k=jnp.int32(size if options.top_k is None else min(options.top_k, size)),
        top_p=jnp.float32(1.0 if options.top_p is None else options.top_p),
        whitespace=jnp.asarray(vocabulary.whitespace()),
    )


def bucket(n: int) -> int:
    """Return the next power of two, at least STREAM_CHUNK: few sizes, so few compiled programs."""
    return max(STREAM_CHUNK, 1 << (n - 1).bit_length())


def _decoded(vocabulary: Vocabulary, tokens: Int[np.ndarray, "N"]) -> str:
    """Return the text of tokens; of bytes without a character that the end cuts."""
    if not vocabulary.by_bytes:
        return vocabulary.decode(tokens)
    return codecs.utf_8_decode(_as_bytes(tokens), "replace", False)[0]


def _as_bytes(tokens: Int[np.ndarray, "N"]) -> bytes:
    return tokens.astype(np.uint8).tobytes()


def _check_by_bytes(params: charlm.Params) -> None:
    if not params.vocabulary.by_bytes:
        raise InputError("this model's tokens are characters, not bytes; use sample or stream")


def _check_room(count: int, bytes_each: int) -> None:
    """Raise InputError if `count` texts of `bytes_each` bytes do not fit the memory of the device."""
    what = "the text" if count == 1 else f"writing {count:,} texts at once"
    memory.check(count * bytes_each, what, "ask for fewer or shorter texts")


def _checked_length(length: SupportsIndex) -> int:
    number = _whole_number("length", length)
    if not 0 <= number < 2**30:
        raise InputError(f"length must be from 0 to 2^30 - 1, not {number}")
    return number


def _whole_number(name: str, value: object, least: int | None = None) -> int:
    try:
        return whole_number(name, value, least)
    except ValueError as error:
        raise InputError(str(error)) from None
