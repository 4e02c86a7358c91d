"""Lines from a char-RNN that was trained with `lines`, many side by side.

    jaxrnn.sample_lines(params, 1000)                  # a list of 1000 lines

Every row of a batch draws a line. Once it has ended, which resets the state, the row begins the next
line that no row has begun, until all are drawn: nothing is padded. The key of line i is
fold_in(key(seed), i), and that of its token j is fold_in(key of the line, j). So a line depends neither
on the number of lines nor on its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, SupportsIndex, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import charlm
from jaxrnn.charlm import decoder
from jaxrnn.charlm.decoding import TracedOptions, draw, in_fast_memory
from jaxrnn.charlm.options import LINE_LENGTH, Mode, SamplingKeywords, SamplingOptions
from jaxrnn.devices import mesh, modes
from jaxrnn.errors import InputError, warn
from jaxrnn.shapes import Array, Bool, Float, Int, Key

# Most rows, and most steps of a device call.
ROWS, STEPS = 128, 256


class Line(NamedTuple):
    """A line that was drawn.

    tokens: [N], the prime included, without the line break.
    cut: whether it was cut because it did not end within its length.
    """

    tokens: Int[np.ndarray, "N"]
    cut: bool


def sample_lines(
    params: charlm.Params,
    count: SupportsIndex,
    prime: str | bytes = "",
    length: SupportsIndex = LINE_LENGTH,
    **options: Unpack[SamplingKeywords],
) -> list[str]:
    """Return lines drawn with a model of lines, each from its start to its end, without line breaks.

    Args:
      params: the model, trained with `lines`.
      count: number of lines, from 1 to 2^30 - 1. Line i depends on the seed and on i only.
      prime: how every line begins; it may be empty.
      length: most characters drawn of a line, from 1 to 2^30 - 1. A longer line is cut, and a
        RuntimeWarning reports how many were.
      **options: as for `jaxrnn.sample`.

    Raises:
      InputError: for a model that was not trained with `lines`, a value out of its range, and a prime
        with a line break or with characters that the model has never seen.
    """
    lines = list(draw_lines(params, count, prime, length, SamplingOptions.of(options)))
    cut = sum(line.cut for line in lines)
    if cut:
        warn(cut_note(cut, length))
    return [params.vocabulary.decode(line.tokens) for line in lines]


def cut_note(cut: int, length: SupportsIndex) -> str:
    """Return the report of lines that were cut."""
    many = "line was" if cut == 1 else "lines were"
    return f"{cut:,} {many} cut at `length` {length}"


def draw_lines(
    params: charlm.Params,
    count: SupportsIndex,
    prime: str | bytes,
    length: SupportsIndex,
    options: SamplingOptions,
) -> Iterator[Line]:
    """Return an iterator over the lines of `sample_lines`, in order.

    Arguments and errors are those of `sample_lines`. The errors are raised by the call.
    """
    drawing = _Drawing(params, count, prime, length, options)

    def lines() -> Iterator[Line]:
        begun: dict[int, list[np.ndarray]] = {}
        finished: dict[int, Line] = {}
        number = 0
        while number < drawing.count:
            for piece in drawing.advance():
                parts = begun.setdefault(piece.line, [])
                parts.append(piece.tokens)
                if piece.ended:
                    # The last token is the line break, or the one after the longest line.
                    tokens = np.concatenate(begun.pop(piece.line))
                    cut = tokens[-1] != drawing.newline
                    finished[piece.line] = Line(tokens[:-1], bool(cut))
            while number in finished:
                yield finished.pop(number)
                number += 1

    return lines()


class _Piece(NamedTuple):
    """The tokens of a line that a device call has drawn.

    line: number of the line.
    tokens: [N].
    ended: whether they are the last ones.
    """

    line: int
    tokens: np.ndarray
    ended: bool


class _State(NamedTuple):
    """The state of lines that are being drawn, one per row.

    carry: the recurrent state of every layer.
    logits: [R, V], of the next token.
    last: [R], the token before it.
    line: [R], number of the line; `count` in a row that has none left.
    position: [R], number of tokens of the line so far.
    begun: number of lines that rows have begun, at most `count`.
    """

    carry: charlm.Carry
    logits: Float[Array, "R V"]
    last: Int[Array, "R"]
    line: Int[Array, "R"]
    position: Int[Array, "R"]
    begun: Int[Array, ""]


class _Limits(NamedTuple):
    """The numbers of a drawing that are arguments of its compiled program.

    lines: number of lines.
    length: most tokens drawn of a line.
    prime: [P], the tokens that every line begins with, padded.
    prime_length: number of tokens of the prime.
    """

    lines: Int[Array, ""]
    length: Int[Array, ""]
    prime: Int[Array, "P"]
    prime_length: Int[Array, ""]


class _Drawn(NamedTuple):
    """The result of a device call: tokens, their lines, and whether they end them, each [STEPS, R]."""

    tokens: Int[Array, "S R"]
    lines: Int[Array, "S R"]
    ended: Bool[Array, "S R"]


class _Drawing:
    """Lines that are being drawn. The arguments are those of `sample_lines`, which are checked."""

    @modes.fixed()
    def __init__(
        self,
        params: charlm.Params,
        count: SupportsIndex,
        prime: str | bytes,
        length: SupportsIndex,
        options: SamplingOptions,
    ) -> None:
        if not params.config.lines:
            raise InputError("the model was not trained with `lines`; use sample_many")
        self.count = decoder.checked_number("count", count, 1)
        most = decoder.checked_number("length", length, 1)
        self.newline = charlm.newline_of(params.vocabulary)
        tokens = params.vocabulary.encode(prime).astype(np.int32)
        if self.newline in tokens:
            raise InputError("the prime has a line break; give the beginning of one line")
        padded = np.zeros(decoder.bucket(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        self._limits = _Limits(
            np.int32(self.count),  # type: ignore[arg-type]
            np.int32(most),  # type: ignore[arg-type]
            padded,  # type: ignore[arg-type]
            np.int32(len(tokens)),  # type: ignore[arg-type]
        )
        self._config, self._how = params.config, (options.mode, options.truncates)
        self._weights = decoder.step_params(params)
        self._options = decoder.traced(options, params.vocabulary)
        self._key = jax.random.key(jnp.uint32(options.seed))
        self._state = _begin(self._config, self._weights, min(self.count, ROWS))

    @modes.fixed()
    def advance(self) -> list[_Piece]:
        """Draw up to STEPS tokens in every row and return what they add to the lines."""
        self._state, steps, drawn = _advance(
            self._config,
            *self._how,
            self._weights,
            self._state,
            self._key,
            self._limits,
            self._options,
        )
        length = int(mesh.gather_full(steps))
        # One row after the other: then the tokens of a line are side by side.
        tokens, lines, ended = (np.asarray(mesh.gather_full(a))[:length].T.ravel() for a in drawn)
        starts = np.flatnonzero(np.diff(lines, prepend=-1))
        pieces = np.split(tokens, starts[1:])
        lasts = np.append(starts[1:], len(lines)) - 1
        found = zip(lines[starts].tolist(), pieces, ended[lasts].tolist(), strict=True)
        return [_Piece(*piece) for piece in found if piece[0] < self.count]


@partial(jax.jit, static_argnums=(0, 2))
def _begin(config: charlm.ModelConfig, weights: charlm.StepParams, rows: int) -> _State:
    """Return the state at the beginning of the first lines, one per row."""
    assert weights.newline is not None
    newline = jnp.full(rows, weights.newline, jnp.int32)
    carry, logits = charlm.step(config, weights, charlm.initial_carry(config, rows), newline)
    numbers = jnp.arange(rows, dtype=jnp.int32)
    return _State(carry, logits, newline, numbers, jnp.zeros_like(numbers), jnp.int32(rows))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    config: charlm.ModelConfig,
    mode: Mode,
    truncate: bool,
    weights: charlm.StepParams,
    state: _State,
    key: Key,
    limits: _Limits,
    options: TracedOptions,
) -> tuple[_State, Int[Array, ""], _Drawn]:
    """Draw a token in every row, up to STEPS times, until all lines are drawn.

    Args:
      config: of the model.
      mode: as in `SamplingOptions`.
      truncate: whether top_k and top_p are applied.
      weights: from `charlm.step_params`.
      state: from `_begin` or from the call before.
      key: PRNG key of all lines.
      limits: see there.
      options: see there.

    Returns:
      (state, steps, drawn): the state after the last token, the number of steps, and what they drew, of
      which only the first `steps` are meaningful.
    """
    weights = in_fast_memory(weights, limits.lines)
    newline = weights.newline
    assert newline is not None
    nothing = jnp.zeros((STEPS, *state.line.shape), jnp.int32)

    def unfinished(loop: tuple[Array, _State, _Drawn]) -> Array:
        step, state, _ = loop
        return (step < STEPS) & jnp.any(state.line < limits.lines)

    def body(loop: tuple[Array, _State, _Drawn]) -> tuple[Array, _State, _Drawn]:
        step, state, drawn = loop
        token = _next(state, key, limits, options, mode, truncate)
        # The token after the longest line only shows whether the line has ended.
        most = limits.prime_length + limits.length
        in_prime = state.position < limits.prime_length
        ended = ~in_prime & ((token == newline) | (state.position == most))
        now = _Drawn(token, state.line, ended)
        drawn = jax.tree.map(lambda all_, one: all_.at[step].set(one), drawn, now)
        read = jnp.where(ended, newline, token)
        carry, logits = charlm.step(config, weights, state.carry, read, repeated=True)
        order = state.begun + jnp.cumsum(ended, dtype=jnp.int32)
        line = jnp.where(ended, jnp.minimum(order - 1, limits.lines), state.line)
        position = jnp.where(ended, 0, state.position + 1)
        begun = jnp.minimum(order[-1], limits.lines)
        return step + 1, _State(carry, logits, read, line, position, begun), drawn

    empty = _Drawn(nothing, nothing, nothing.astype(bool))
    step, state, drawn = lax.while_loop(unfinished, body, (jnp.int32(0), state, empty))
    return state, step, drawn


def _next(
    state: _State, key: Key, limits: _Limits, options: TracedOptions, mode: Mode, truncate: bool
) -> Int[Array, "R"]:
    """Return the next token of every row: of the prime, or drawn."""
    of_lines = jax.vmap(jax.random.fold_in, (None, 0))(key, state.line)
    keys = jax.vmap(jax.random.fold_in)(of_lines, state.position)
    drawn = draw(state.logits, state.last, keys, options, mode, truncate)
    given = limits.prime[jnp.minimum(state.position, limits.prime.shape[0] - 1)]
    return jnp.where(state.position < limits.prime_length, given, drawn)
