"""Text from a char-RNN, drawn character by character (lecture row 13).

    jaxrnn.sample(params, prime="ROMEO:")                  # a string that begins with the prime
    jaxrnn.sample_many(params, prime="ROMEO:", count=8)    # eight of them, drawn side by side
    for piece in jaxrnn.stream(params, "ROMEO:"):          # the text of `sample`, piece by piece
        print(piece, end="", flush=True)
    jaxrnn.sample(params, "ROMEO:", stop="JULIET:")        # the text ends after "JULIET:"

The functions whose names contain `bytes` return the bytes of a model that was trained on bytes.
`charlm.options` describes the options. They and the length are arguments of the compiled program and
the prime is padded to the next power of two, so changing them does not recompile.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import SupportsIndex, Unpack

import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.decoder import Decoder
from jaxrnn.charlm.options import SamplingKeywords, SamplingOptions
from jaxrnn.charlm.stopping import Stop
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.shapes import Int


def sample(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> str:
    """Continue `prime` and return the text.

    The tokens of a model of bytes are bytes: `length` counts bytes, bytes that are not UTF-8 become
    U+FFFD, and a character that the end of the text cuts is left out. `sample_bytes` returns the bytes.

    Args:
      params: the model, from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training. The functions of
        `jaxrnn` also take a `jaxrnn.Run`, or the path of a run directory or a safetensors file.
      prime: how the text begins; at least one character. Bytes must be UTF-8, except for a model of
        bytes.
      length: number of tokens to add, from 0 to 2^30 - 1.
      stop: a string or several (str, or bytes in UTF-8; for a model of bytes any bytes). The text ends
        with the first occurrence of one of them in what was drawn, if that comes before `length`. The
        prime does not count: an occurrence must lie in the drawn text as a whole.
      **options: the fields of `SamplingOptions`:
        temperature (default 1.0) divides the logits; below 1 more conservative, above 1 more random.
        mode (default "categorical"): "categorical" draws every character, "argmax" always takes the
        most likely one, "after-space" draws the first character of each word only.
        top_k (default None): draw from the k most likely tokens only.
        top_p (default None): draw from the fewest tokens whose probabilities add up to at least p.
        seed (default 0): from 0 to 2^32 - 1; a seed gives the same text each time on the same machine.

    Returns:
      The text, which begins with the prime.

    Raises:
      InputError: for a value out of its range, an empty stop string, or a prime or stop string with
        characters or strings that the model has never seen.
    """
    decoder = Decoder(params, prime, SamplingOptions.of(options))
    return _decoded(params.vocabulary, decoder.texts(length, stop)[0])


def sample_many(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    count: SupportsIndex,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> list[str]:
    """Continue `prime` several times, side by side on the device, and return the texts.

    Args:
      params: as for `sample`.
      prime: as for `sample`.
      length: as for `sample`; the same for all texts.
      count: number of texts. Text i depends on the seed and on i, but not on `count`; text 0 is the
        text of `sample`.
      stop: as for `sample`; each text ends at its own first occurrence.
      **options: as for `sample`.

    Raises:
      InputError: as `sample` does, and for a count below 1.
    """
    decoder = Decoder(params, prime, SamplingOptions.of(options), count)
    return [_decoded(params.vocabulary, tokens) for tokens in decoder.texts(length, stop)]


def sample_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> bytes:
    """Continue `prime` by `length` bytes with a model of bytes and return all bytes.

    Arguments and errors are those of `sample`, and InputError for a model of characters.
    """
    _check_by_bytes(params)
    decoder = Decoder(params, prime, SamplingOptions.of(options))
    return params.vocabulary.to_bytes(decoder.texts(length, stop)[0])


def sample_bytes_many(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex = 500,
    *,
    count: SupportsIndex,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> list[bytes]:
    """Continue `prime` several times with a model of bytes and return the bytes of each text.

    Arguments and errors are those of `sample_many`, and InputError for a model of characters.
    """
    _check_by_bytes(params)
    decoder = Decoder(params, prime, SamplingOptions.of(options), count)
    return list(map(params.vocabulary.to_bytes, decoder.texts(length, stop)))


def stream(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    *,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> Iterator[str]:
    """Return an iterator over the text of `sample` in pieces, the prime first, as they are drawn.

    Arguments and errors are those of `sample`, but `length=None` never ends. Errors are raised by the
    call, before the first piece is asked for.
    """
    pieces = Decoder(params, prime, SamplingOptions.of(options)).pieces(length, stop)
    if not params.vocabulary.by_bytes:
        return map(params.vocabulary.decode, pieces)
    # A piece may end inside of a character.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return (decoder.decode(params.vocabulary.to_bytes(tokens)) for tokens in pieces)


def stream_bytes(
    params: charlm.Params,
    prime: str | bytes,
    length: SupportsIndex | None = None,
    *,
    stop: Stop = None,
    **options: Unpack[SamplingKeywords],
) -> Iterator[bytes]:
    """Return an iterator over the bytes of `sample_bytes` in pieces, the prime first, as they are drawn.

    Arguments and errors are those of `sample_bytes`, but `length=None` never ends. Errors are raised by
    the call, before the first piece is asked for.
    """
    _check_by_bytes(params)
    decoder = Decoder(params, prime, SamplingOptions.of(options))
    return map(params.vocabulary.to_bytes, decoder.pieces(length, stop))


def default_prime(vocabulary: Vocabulary) -> str:
    """Return the default prime: a new line, or the first token of a vocabulary without one."""
    return vocabulary.symbols[0] if vocabulary.newline is None else "\n"


def _decoded(vocabulary: Vocabulary, tokens: Int[np.ndarray, "N"]) -> str:
    """Return the text of tokens; of bytes without a character that the end cuts."""
    if not vocabulary.by_bytes:
        return vocabulary.decode(tokens)
    return codecs.utf_8_decode(vocabulary.to_bytes(tokens), "replace", False)[0]


def _check_by_bytes(params: charlm.Params) -> None:
    if not params.vocabulary.by_bytes:
        what = "strings" if params.vocabulary.pattern else "characters"
        raise InputError(f"this model's tokens are {what}, not bytes; use sample or stream")
