"""Sampling from a char-RNN on a Hopper GPU (H100, H200): the loop over characters as one kernel.

    table, w_h, w_x, w_out     in shared memory from the first character to the last
    h of every layer, logits   published in memory that L2 caches, for all multiprocessors
    c, h                       in shared memory, float32
    noise [T, B, V]            made before, from the keys with which `jaxrnn.charlm.decoding` draws

so that it draws the characters that `jaxrnn.charlm.decoding`'s loop draws, up to the rounding of the logits.
This file arranges the arrays and cuts them over the multiprocessors, `hopper_sampling_kernel` launches
the kernel, and `hopper_sampling_part` is what each multiprocessor does in it. bfloat16 and float16
products accumulate in float32; float32 products are TF32's, with 10 bits of mantissa.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import sampling_kernel as hopper_sampling_kernel
from jaxrnn.recurrence.kernels.hopper import search as hopper_search
from jaxrnn.recurrence.kernels.hopper import tiles as hopper_tiles
from jaxrnn.recurrence.kernels.hopper.sampling_cta import PIECE, Arrays, Cut
from jaxrnn.recurrence.kernels.hopper.sampling_kernel import shared
from jaxrnn.recurrence.kernels.hopper.tiles import M
from jaxrnn.shapes import Array, Bool, Float, Int


class Weights(NamedTuple):
    """A `charlm.StepParams` as the kernel has it, its arrays described in `Arrays`."""

    weights: Array
    table: Array
    output: Array
    vectors: Array
    output_bias: Array


def arrange(cell: Any, prepared: Any, batch: int) -> Weights:
    """Cut the weights over the multiprocessors, all axes padded.

    Args:
      cell: of every layer.
      prepared: a `charlm.StepParams` in bfloat16, float16 or float32.
      batch: texts that are to be written at once, at most 64.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    gates, dtype = len(cell.GATES), prepared.w_out.dtype
    cut = _cut(cell, len(prepared.layers), len(prepared.b_out), batch, dtype)
    width, columns = cut.parts * cut.units, _padded(len(prepared.b_out))

    def shares(w: Array, depth: int) -> Array:
        """[parts, n * units, depth]: of [K, n * H] the columns of each part's units."""
        w = _fill(w.reshape(len(w), gates, cell.hidden_size), (depth, gates, width))
        w = w.reshape(depth, gates, cut.parts, cut.units)
        return w.transpose(2, 1, 3, 0).reshape(cut.parts, -1, depth)

    first, *others = prepared.layers
    weights = [first.w_h] + [w for layer in others for w in (layer.w_x, layer.w_h)]
    kind, float32 = jnp.finfo(dtype), dtype == jnp.float32  # whose products are TF32's
    high = lax.reduce_precision(prepared.table, kind.nexp, 10 if float32 else kind.nmant)
    halves = high, prepared.table - high
    vectors = [_vectors(layer, cell.hidden_size) for layer in prepared.layers]
    output = _fill(prepared.w_out, (width, columns)).T
    return Weights(
        weights=jnp.concatenate([shares(w, width) for w in weights], axis=2),
        table=jnp.concatenate([shares(half.astype(dtype), columns) for half in halves], axis=2),
        output=output.reshape(-1, cut.columns, width),
        vectors=jnp.stack([_fill(rows, (len(rows), width)) for rows in vectors]),
        output_bias=_fill(prepared.b_out.astype(jnp.float32), (columns,), -jnp.inf),
    )


def run(
    cell: Any,
    weights: Weights,
    carry: tuple[Any, ...],
    logits: Float[Array, "B V"],
    last: Int[Array, "B"],
    length: Int[Array, ""],
    noise: Float[Array, "T B V"] | None,
    whitespace: Bool[Array, "V"] | None,
    *,
    size: int,
    interpret: Any = False,
) -> tuple[tuple[Any, ...], Float[Array, "B V"], Int[Array, "T B"]]:
    """Draw `length` characters, each the first argmax of logits + noise.

    Args:
      cell: of every layer.
      weights: from `arrange`, for this batch.
      carry, logits, last: where the texts stand, as in `decoding.DecodingState`.
      length: characters to draw, at most `size`.
      noise: Gumbel noise times the temperature, to draw from softmax(logits / temperature), with
        T = size; None takes the likeliest characters.
      whitespace: characters after which noise is added; None for all.
      size: of the drawn tokens.
      interpret: run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Returns:
      (carry, logits, tokens [T, B]): the state after the last character, its logits, and the drawn
      tokens, of which the first `length` count.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    batch, count = logits.shape
    cut = _cut(cell, len(carry), count, batch, weights.weights.dtype)
    scores, later, noisy_after = logits, None, None
    columns, width = _padded(count), cut.parts * cut.units
    if noise is not None:
        drawn = jnp.arange(size)[:, None, None] < length
        noise = jnp.where(drawn, noise, jnp.zeros_like(noise))
        later = _fill(noise[1:], (size, M, columns))
        first = noise[0]
        if whitespace is not None:
            first = jnp.where(whitespace[last][:, None], first, jnp.zeros_like(first))
            noisy_after = _fill(whitespace.astype(jnp.float32), (columns,))
        scores = logits + first
    state = {
        name: jnp.stack([_fill(getattr(layer, name), (M, width)) for layer in carry])
        for name in carry[0]._fields
    }
    arrays = Arrays(
        **weights._asdict(),
        state=state,
        scores=_fill(_fill(scores, (batch, columns), -jnp.inf), (M, columns)),
        noise=later,
        whitespace=noisy_after,
        length=jnp.reshape(length, 1),
    )
    out = hopper_sampling_kernel.call(cell, arrays, cut, size, interpret)
    after = tuple(
        type(layer)(*(out[name][k, :batch, : cell.hidden_size] for name in layer._fields))
        for k, layer in enumerate(carry)
    )
    return after, out["scores_out"][:batch, :count], out["tokens"][:, :batch]


def _vectors(layer: Any, hidden: int) -> Array:
    """[n, H] float32: the gates' biases, then an LSTM's peepholes or a GRU's b_h."""
    vectors = [getattr(layer, name, None) for name in ("b", "w_c", "b_h")]
    rows = [v.reshape(-1, hidden) for v in vectors if v is not None]
    return jnp.concatenate(rows).astype(jnp.float32)


def _fill(x: Array, shape: tuple[int, ...], value: float = 0) -> Array:
    """x at the beginning of an array of this shape, `value` in the rest."""
    after = [(0, to - size) for size, to in zip(x.shape, shape, strict=True)]
    return jnp.pad(x, after, constant_values=value)


def _padded(vocabulary: int) -> int:
    return -(-vocabulary // PIECE) * PIECE


# --- the cut --------------------------------------------------------------------------------------

# Microseconds to publish and to wait for all parts, at a cluster's barrier or at a counter in L2, and
# until what was fetched from L2 is there (benchmarks/results/h100-first-run/latencies.txt).
MEET, FETCH = {"cluster": 0.70, "grid": 1.15}, 0.55
CHUNK = 128  # bytes of a row of the operands
CLUSTER = 8  # CTAs of a cluster that every GPU can place


def unsupported_reason(
    cell: Any, layers: int, vocabulary: int, batch: int, dtype: Any
) -> str | None:
    """Why the kernel cannot run a char-RNN on the GPU at hand; None where it can."""
    reason = hopper_search.unserved(dtype)
    if reason:
        return reason
    if batch > M:
        return f"it writes at most {M} texts at once, not {batch}; use 'xla'"
    if cut_for(cell, layers, vocabulary, batch, dtype) is None:
        return (
            f"{layers} layers of H = {cell.hidden_size} with V = {vocabulary} in {jnp.dtype(dtype)} do "
            f"not fit the shared memory of {hopper_search.multiprocessors()} multiprocessors; "
            "use 'xla'"
        )
    return None


def cut_for(cell: Any, layers: int, vocabulary: int, batch: int, dtype: Any) -> Cut | None:
    """The cut with the least time by a model; None where none fits."""
    processors = hopper_search.multiprocessors()
    return _search(cell, layers, vocabulary, batch, jnp.dtype(dtype), processors)


def _cut(cell: Any, layers: int, vocabulary: int, batch: int, dtype: Any) -> Cut:
    reason = unsupported_reason(cell, layers, vocabulary, batch, dtype)
    if reason:
        raise ValueError(f"the sampling kernel cannot run this: {reason}")
    cut = cut_for(cell, layers, vocabulary, batch, dtype)
    assert cut is not None
    return cut


@functools.cache
def _search(
    cell: Any, layers: int, vocabulary: int, batch: int, dtype: Any, processors: int
) -> Cut | None:
    gates, states = len(cell.GATES), 2 if isinstance(cell, LSTM) else 1
    width, size = hopper_tiles.width(cell.hidden_size), _padded(vocabulary)
    chunk, found = CHUNK // dtype.itemsize, []
    for units in range(8, hopper_tiles.COLUMNS // gates + 1, 8):
        parts = width // units
        if width % units or parts > processors:
            continue
        columns = next(n for n in range(8, size + 1, 8) if size % n == 0 and size // n <= parts)
        cluster = parts if parts <= CLUSTER else 1
        cut = Cut(parts, cluster, -(-batch // 8) * 8, units, columns, chunk, 0)
        taken = shared(gates, layers, states, width, size, cut, dtype.itemsize)
        slots = min(width // chunk, (hopper_tiles.SHARED - taken) // (M * CHUNK))
        if columns <= hopper_tiles.COLUMNS and slots >= min(2, width // chunk):
            cut = cut._replace(slots=slots)
            found.append((_microseconds(cell, layers, width, size, cut, dtype), cut))
    return min(found, default=(0, None))[1]


def _microseconds(cell: Any, layers: int, width: int, size: int, cut: Cut, dtype: Any) -> float:
    """The model's time of a character: its meetings, and what each multiprocessor reads."""
    before = isinstance(cell, GRU) and cell.reset == "before"
    meetings, products = layers * (1 + before) + 1, layers * (2 + before)
    rounds = products * -(-width // (cut.chunk * cut.slots))
    where = "cluster" if cut.parts == cut.cluster else "grid"
    moved = cut.rows * (products * width * dtype.itemsize + size * 4)
    resident = (products * width + 2 * size) * len(cell.GATES) * cut.units * dtype.itemsize
    return (
        meetings * MEET[where]
        + rounds * FETCH
        + moved / hopper_model.L2
        + resident / (hopper_model.READ * hopper_model.CLOCK)
    )
