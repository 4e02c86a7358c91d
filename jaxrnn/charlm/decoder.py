"""The drawing of texts in steps, with the state between the device calls.

decoder = Decoder(params, "ROMEO:", SamplingOptions(seed=1))
decoder.draw(100)        # [100, 1]: the prime is read, then 100 tokens are drawn
decoder.read("JULIET:")  # the next draw reads it first
place = decoder.place    # `decoder.restore(place)` returns to it

`sampling` has the functions that return whole texts, `dialogue` the text that grows in turns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoding import DecodingState, TracedOptions, advance, initial_state
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.stopping import Search, Stop, stop_strings
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import memory, mesh, modes
from jaxrnn.errors import InputError, whole_number
from jaxrnn.shapes import Int

# Temperatures outside of this range draw the same characters, but overflow or underflow float32.
TEMPERATURE_RANGE = (1e-30, 1e30)

# Characters that `stream` draws per device call.
STREAM_CHUNK = 16

# Most characters of a text or a line, and most lines.
LONGEST = 2**30 - 1


class Place(NamedTuple):
    """A place in the texts of a `Decoder`, to which `Decoder.restore` returns.

    state: `decoding.DecodingState` after the tokens that were read and drawn.
    unread: [P] int32, the tokens that the next draw reads first.
    """

    state: DecodingState
    unread: Int[np.ndarray, "P"]


class Decoder:
    """Texts that are being drawn side by side from the same prime.

    Attributes:
      prime: [P] int32, the tokens that every text begins with.
      count: number of texts B.
      options: the options of the next draw; `change` sets others.
      place: the `Place` that the texts have reached. Its arrays never change, so keeping a place to
        return to costs no copy.
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
        self.prime = params.vocabulary.encode(prime).astype(np.int32)
        self.count = _whole_number("count", count, 1)
        self._vocabulary = params.vocabulary
        self._config = params.config
        self._weights = step_params(params)
        one = jax.eval_shape(lambda: self._initial_state(1, 0))
        _check_room(self.count, memory.bytes_per_device(one))
        self.place = Place(self._initial_state(self.count, options.seed), self.prime)
        self._set(options)

    @property
    def state(self) -> DecodingState:
        """The state after the tokens that were read and drawn so far."""
        return self.place.state

    def read(self, text: str | bytes) -> Int[np.ndarray, "N"]:
        """Continue every text by `text`, which the next draw reads first, and return its tokens.

        Raises:
          InputError: for characters that the model has never seen; the texts are then as before.
        """
        tokens = self._vocabulary.encode(text).astype(np.int32)
        unread = np.concatenate([self.place.unread, tokens])
        self.place = self.place._replace(unread=unread)
        return tokens

    @modes.fixed()
    def change(self, options: SamplingOptions) -> None:
        """Draw with other options from the next token on."""
        self._set(options)
        self._set_keys(self._initial_state(self.count, options.seed))

    def restore(self, place: Place) -> None:
        """Return to an earlier place. The options, their seed included, stay those of now."""
        now = self.state
        self.place = place
        self._set_keys(now)

    def texts(self, length: SupportsIndex, stop: Stop = None) -> list[Int[np.ndarray, "N"]]:
        """Draw `length` tokens and return the tokens of each text, prime included.

        With `stop`, the tokens are drawn in chunks until every text has ended.
        """
        number = checked_length(length)
        strings = stop_strings(self._vocabulary, stop)
        _check_room(self.count, 4 * bucket(number))
        searches = [Search(self._vocabulary, strings) for _ in range(self.count)]
        chunks = [np.zeros((0, self.count), np.int32)]
        chunk = STREAM_CHUNK if strings else max(number, 1)
        for first in range(0, number, chunk):
            chunks.append(self.draw(min(chunk, number - first)))
            for search, tokens in zip(searches, chunks[-1].T, strict=True):
                if strings and search.end is None:
                    search.feed(tokens)
            if all(search.end is not None for search in searches):
                break
        rows = np.concatenate(chunks).T
        pairs = zip(rows, searches, strict=True)
        return [np.concatenate([self.prime, row[: search.end]]) for row, search in pairs]

    def pieces(
        self, length: SupportsIndex | None, stop: Stop = None
    ) -> Iterator[Int[np.ndarray, "N"]]:
        """Return an iterator over the tokens of the first text: the prime, then those of `more`."""
        return itertools.chain([self.prime], self.more(length, stop))

    def more(
        self, length: SupportsIndex | None, stop: Stop = None
    ) -> Iterator[Int[np.ndarray, "N"]]:
        """Return an iterator over the next `length` tokens of the first text, in pieces.

        `length=None` never ends, unless at a stop string. After each piece, `place` is the place after
        exactly the tokens that were returned.
        """
        left = math.inf if length is None else float(checked_length(length))
        strings = stop_strings(self._vocabulary, stop)

        def draw(left: float) -> Iterator[np.ndarray]:
            search = Search(self._vocabulary, strings)
            while left > 0 and search.end is None:
                before = self.place
                tokens = self.draw(int(min(STREAM_CHUNK, left)))[:, 0]
                search.feed(tokens)
                if search.end is not None and search.end < search.fed:
                    # The chunk continues after the stop string: return to its start, draw up to there.
                    self.place = before
                    tokens = self.draw(len(tokens) - search.fed + search.end)[:, 0]
                left -= len(tokens)
                yield tokens

        return draw(left)

    @modes.fixed()
    def draw(self, length: int) -> Int[np.ndarray, "N B"]:
        """Return the next `length` tokens of each text, [length, B], after reading what is unread."""
        state, unread = self.place
        padded = np.zeros(bucket(len(unread)), np.int32)
        padded[: len(unread)] = unread
        state, tokens = advance(
            self._config,
            self._weights,
            state,
            padded,
            np.int32(len(unread)),
            np.int32(length),
            self._options,
            mode=self.options.mode,
            truncate=self.options.truncates,
            size=bucket(length),
        )
        self.place = Place(state, unread[:0])
        return np.asarray(mesh.gather_full(tokens))[:length]

    def _initial_state(self, count: int, seed: int) -> DecodingState:
        return initial_state(self._config, len(self._vocabulary), count, jnp.uint32(seed))

    def _set(self, options: SamplingOptions) -> None:
        self.options = options
        self._options = traced(options, self._vocabulary)

    def _set_keys(self, other: DecodingState) -> None:
        """Take the PRNG keys of another state."""
        self.place = self.place._replace(state=self.state._replace(keys=other.keys))


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


def _check_room(count: int, bytes_each: int) -> None:
    """Raise InputError if `count` texts of `bytes_each` bytes do not fit the memory of the device."""
    what = "the text" if count == 1 else f"writing {count:,} texts at once"
    memory.check(count * bytes_each, what, "ask for fewer or shorter texts")


def checked_length(length: SupportsIndex) -> int:
    """Return a length as an int. Raises InputError unless it is from 0 to 2^30 - 1."""
    return checked_number("length", length, 0)


def checked_number(name: str, value: SupportsIndex, least: int) -> int:
    """Return a number as an int. Raises InputError unless it is from `least` to LONGEST."""
    number = _whole_number(name, value)
    if not least <= number <= LONGEST:
        raise InputError(f"{name} must be from {least} to 2^30 - 1, not {number}")
    return number


def _whole_number(name: str, value: object, least: int | None = None) -> int:
    try:
        return whole_number(name, value, least)
    except ValueError as error:
        raise InputError(str(error)) from None
