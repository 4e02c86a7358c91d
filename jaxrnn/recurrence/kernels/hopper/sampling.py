"""Sampling from a char-RNN on a Hopper GPU (H100, H200): the loop over characters as one kernel.

    table, w_h, w_x, w_out     in shared memory from the first character to the last
    h of every layer, logits   published in memory that L2 caches, for all multiprocessors
    c, h                       in shared memory, float32
    noise [T, B, V]            drawn before the launch, with the keys of `jaxrnn.charlm.decoding`

It draws the characters that the loop of `jaxrnn.charlm.decoding` draws, up to rounding of the logits.

This module divides the weights over the multiprocessors and launches the kernel; `sampling_cta` is what
each multiprocessor does in it. Products of bfloat16 and float16 accumulate in float32; products of
float32 are TF32's, with 10 bits of mantissa.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper import cost_model, search, tiles
from jaxrnn.recurrence.kernels.hopper.mosaic import Like, Ref, call_kernel, smem
from jaxrnn.recurrence.kernels.hopper.sampling_arrays import (
    SamplingArrays,
    SamplingRefs,
    SamplingTiling,
)
from jaxrnn.recurrence.kernels.hopper.sampling_cta import PIECE, SamplingCTA, exchanges
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell, DoesNotFitError, M
from jaxrnn.shapes import Array, Bool, Float, Int


class SamplingWeights(NamedTuple):
    """A `charlm.StepParams` in the form of the kernel; `SamplingArrays` describes the arrays."""

    weights: Array
    table: Array
    output: Array
    vectors: Array
    output_bias: Array


def arrange(cell: BuiltinCell, params: Any, batch: int) -> SamplingWeights:
    """Divide the weights over the multiprocessors, with all axes padded.

    Args:
      cell: the cell of every layer.
      params: a `charlm.StepParams` in bfloat16, float16 or float32.
      batch: number of texts that are drawn at once, at most 64.

    Raises:
      ValueError: where `unsupported_reason` gives a reason.
    """
    gates = len(cell.GATES)
    dtype = params.w_out.dtype
    vocabulary = len(params.b_out)
    tiling = _checked_tiling(cell, len(params.layers), vocabulary, batch, dtype)
    width = tiling.parts * tiling.units
    columns = _padded(vocabulary)

    def shares(w: Array, depth: int) -> Array:
        """Return [parts, n * units, depth]: of w [K, n * H] the columns of each part's units."""
        w = _fill(w.reshape(len(w), gates, cell.hidden_size), (depth, gates, width))
        w = w.reshape(depth, gates, tiling.parts, tiling.units)
        return w.transpose(2, 1, 3, 0).reshape(tiling.parts, -1, depth)

    first, *others = params.layers
    weights = [first.w_h] + [w for layer in others for w in (layer.w_x, layer.w_h)]
    # The table as the sum of two in the weights' dtype; the products of float32 are TF32's.
    kind = jnp.finfo(dtype)
    mantissa = 10 if dtype == jnp.float32 else kind.nmant
    high = lax.reduce_precision(params.table, kind.nexp, mantissa)
    halves = high, params.table - high
    vectors = [_vectors(layer, cell.hidden_size) for layer in params.layers]
    output = _fill(params.w_out, (width, columns)).T
    return SamplingWeights(
        weights=jnp.concatenate([shares(w, width) for w in weights], axis=2),
        table=jnp.concatenate([shares(half.astype(dtype), columns) for half in halves], axis=2),
        output=output.reshape(-1, tiling.columns, width),
        vectors=jnp.stack([_fill(rows, (len(rows), width)) for rows in vectors]),
        output_bias=_fill(params.b_out.astype(jnp.float32), (columns,), -jnp.inf),
    )


def run(
    cell: BuiltinCell,
    weights: SamplingWeights,
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
      cell: the cell of every layer.
      weights: from `arrange`, for this batch.
      carry: the state of each layer after the last character.
      logits: the logits of the next character.
      last: the last character of each text.
      length: number of characters to draw, at most `size`.
      noise: Gumbel noise times the temperature, to draw from softmax(logits / temperature), with
        T = size; None to take the most probable characters.
      whitespace: the characters after which noise is added; None for all.
      size: T, the length of the returned tokens.
      interpret: to run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Returns:
      (carry, logits, tokens [T, B]): the state after the last character, its logits, and the tokens, of
      which the first `length` are drawn.

    Raises:
      ValueError: where `unsupported_reason` gives a reason.
    """
    batch, vocabulary = logits.shape
    tiling = _checked_tiling(cell, len(carry), vocabulary, batch, weights.weights.dtype)
    columns = _padded(vocabulary)
    width = tiling.parts * tiling.units
    scores = logits
    later_noise = noisy_after = None
    if noise is not None:
        is_drawn = jnp.arange(size)[:, None, None] < length
        noise = jnp.where(is_drawn, noise, jnp.zeros_like(noise))
        later_noise = _fill(noise[1:], (size, M, columns))
        first = noise[0]
        if whitespace is not None:
            first = jnp.where(whitespace[last][:, None], first, jnp.zeros_like(first))
            noisy_after = _fill(whitespace.astype(jnp.float32), (columns,))
        scores = logits + first
    state = {
        name: jnp.stack([_fill(getattr(layer, name), (M, width)) for layer in carry])
        for name in carry[0]._fields
    }
    arrays = SamplingArrays(
        **weights._asdict(),
        state=state,
        scores=_fill(_fill(scores, (batch, columns), -jnp.inf), (M, columns)),
        noise=later_noise,
        whitespace=noisy_after,
        length=jnp.reshape(length, 1),
    )
    out = _call(cell, arrays, tiling, size, interpret)
    after = tuple(
        type(layer)(
            *(out["final_gmem"][name][k, :batch, : cell.hidden_size] for name in layer._fields)
        )
        for k, layer in enumerate(carry)
    )
    return after, out["scores_gmem"][:batch, :vocabulary], out["tokens_gmem"][:, :batch]


def _vectors(layer: Any, hidden_size: int) -> Array:
    """Return [n, H] float32: the gates' biases, then an LSTM's peepholes or a GRU's b_h."""
    vectors = [getattr(layer, name, None) for name in ("b", "w_c", "b_h")]
    rows = [v.reshape(-1, hidden_size) for v in vectors if v is not None]
    return jnp.concatenate(rows).astype(jnp.float32)


def _fill(x: Array, shape: tuple[int, ...], value: float = 0) -> Array:
    """Return an array of a shape with x at its beginning and `value` in the rest."""
    after = [(0, to - size) for size, to in zip(x.shape, shape, strict=True)]
    return jnp.pad(x, after, constant_values=value)


def _padded(vocabulary: int) -> int:
    return -(-vocabulary // PIECE) * PIECE


# --- the launch -----------------------------------------------------------------------------------


def _call(
    cell: BuiltinCell, arrays: SamplingArrays, tiling: SamplingTiling, size: int, interpret: Any
) -> dict[str, Any]:
    """Launch the kernel and return its results, by the names that they have in `SamplingRefs`.

    size: length of the tokens, at least `arrays.length`.
    """
    layers, _, width = arrays.vectors.shape
    dtype = arrays.weights.dtype
    operands = {
        f"initial_{name}_gmem" if name in ("state", "scores") else f"{name}_gmem": x
        for name, x in arrays._asdict().items()
    }
    results = {
        "final_gmem": {name: Like(x.shape, x.dtype) for name, x in arrays.state.items()},
        "scores_gmem": Like(arrays.scores.shape, jnp.float32),
        "tokens_gmem": Like((size, M), jnp.int32),
        "hidden_gmem": Like((layers, 2, M, width), dtype),
        "reset_hidden_gmem": Like((M, width), dtype),
    }

    def body(operands: dict[str, Any], results: dict[str, Any], scratch: dict[str, Ref]) -> None:
        SamplingCTA(cell, arrays, tiling, SamplingRefs(**operands, **results, **scratch)).run()

    return call_kernel(
        f"{type(cell).__name__.lower()}_sampling",
        body,
        operands,
        results,
        grid={"bundle": tiling.parts // tiling.cluster},
        cluster={"peer": tiling.cluster},
        approximate=dtype.itemsize < 4,
        interpret=interpret,
        scratch_types=_scratch_types(arrays, tiling),
    )


def _scratch_types(arrays: SamplingArrays, tiling: SamplingTiling) -> dict[str, Any]:
    """Return the types of a CTA's shared memory and barriers; `SamplingRefs` describes them."""
    dtype = arrays.weights.dtype
    _, count, depth = arrays.weights.shape
    pieces = arrays.scores.shape[1] // PIECE
    output_chunks = arrays.output.shape[2] // tiling.chunk
    layers = len(arrays.vectors)
    chunks = depth // tiling.chunk
    # TMA moves rows narrower than 32 bytes only where they are not swizzled.
    is_swizzled = tiling.units * dtype.itemsize >= 32
    units_type = smem if is_swizzled else plgpu.SMEM
    scratch = {
        "weights_smem": smem((chunks, count, tiling.chunk), dtype),
        "table_smem": smem((2 * pieces, count, PIECE), dtype),
        "output_weights_smem": smem((output_chunks, tiling.columns, tiling.chunk), dtype),
        "weights_barrier": plgpu.Barrier(
            num_arrivals=chunks + 2 * pieces + output_chunks, num_barriers=1
        ),
        "state_smem": smem((layers, len(arrays.state), M, tiling.units), jnp.float32),
        "operand_ring_smem": smem((tiling.slots, M, tiling.chunk), dtype),
        "operand_barrier": plgpu.Barrier(num_barriers=tiling.slots),
        "scores_smem": smem((pieces, M, PIECE), jnp.float32),
        "scores_barrier": plgpu.Barrier(num_arrivals=pieces, num_barriers=1),
        "one_hot_smem": smem((pieces, M, PIECE), dtype),
        "publish_units_smem": units_type((M, tiling.units), dtype),
        "publish_columns_smem": smem((M, tiling.columns), jnp.float32),
    }
    if tiling.cluster > 1:
        scratch["parts_barrier"] = plgpu.ClusterBarrier(collective_axes=("peer",), num_barriers=1)
    return scratch


def shared_bytes(
    gates: int,
    layers: int,
    states: int,
    width: int,
    columns: int,
    tiling: SamplingTiling,
    itemsize: int,
) -> int:
    """Return the bytes of shared memory of a CTA.

    Args:
      gates: number of gates of the cell.
      layers: number of layers.
      states: number of arrays in the state of a layer.
      width: number of units with their padding.
      columns: size of the vocabulary with its padding.
      tiling: the division over CTAs.
      itemsize: bytes of a weight.
    """
    count = gates * tiling.units
    weights = count * ((2 * layers - 1) * width + 2 * columns) + tiling.columns * width
    moved = M * (tiling.slots * tiling.chunk + columns + tiling.units)
    wide = M * (layers * states * tiling.units + columns + tiling.columns)
    barriers = 8 * (tiling.slots + 3)
    return itemsize * (weights + moved) + 4 * wide + barriers


# --- whether it can run, and in which tiling ------------------------------------------------------

# Microseconds to publish and to wait for all parts, at a cluster's barrier or at a counter in L2, and
# until data fetched from L2 arrives (benchmarks/results/h100/1-first-run/latencies.txt).
EXCHANGE = {"cluster": 0.70, "grid": 1.15}
FETCH = 0.55
# Bytes of a row of the operands.
CHUNK = 128
# Number of CTAs of a cluster that every GPU can place.
CLUSTER = 8


def unsupported_reason(
    cell: BuiltinCell, layers: int, vocabulary: int, batch: int, dtype: Any
) -> str | None:
    """Return why the kernel cannot run a char-RNN on the GPU in use, or None where it can.

    Args:
      cell: the cell of every layer.
      layers: number of layers.
      vocabulary: V, the number of characters.
      batch: number of texts that are drawn at once.
      dtype: dtype of the parameters.
    """
    reason = search.unsupported_here(dtype)
    if reason:
        return reason
    if batch > M:
        return f"it writes at most {M} texts at once, not {batch}; use 'xla'"
    try:
        tiling_for(cell, layers, vocabulary, batch, dtype)
    except DoesNotFitError as error:
        return f"{error}; use 'xla'"
    return None


def tiling_for(
    cell: BuiltinCell, layers: int, vocabulary: int, batch: int, dtype: Any
) -> SamplingTiling:
    """Return the tiling with the least time by a cost model; see `unsupported_reason`.

    Raises:
      DoesNotFitError: where none fits.
    """
    processors = search.multiprocessors()
    tiling = _search(cell, layers, vocabulary, batch, jnp.dtype(dtype), processors)
    if tiling is None:
        raise DoesNotFitError(
            f"{layers} layers of H = {cell.hidden_size} with V = {vocabulary} in {jnp.dtype(dtype)} do "
            f"not fit the shared memory of {processors} multiprocessors"
        )
    return tiling


def _checked_tiling(
    cell: BuiltinCell, layers: int, vocabulary: int, batch: int, dtype: Any
) -> SamplingTiling:
    reason = unsupported_reason(cell, layers, vocabulary, batch, dtype)
    if reason:
        raise ValueError(f"the sampling kernel cannot run this: {reason}")
    return tiling_for(cell, layers, vocabulary, batch, dtype)


@functools.cache
def _search(
    cell: BuiltinCell, layers: int, vocabulary: int, batch: int, dtype: Any, processors: int
) -> SamplingTiling | None:
    gates = len(cell.GATES)
    states = 2 if cell.kind is CellKind.LSTM else 1
    width = tiles.width(cell.hidden_size)
    size = _padded(vocabulary)
    chunk = CHUNK // dtype.itemsize
    found = []
    for units in range(8, tiles.COLUMNS // gates + 1, 8):
        parts = width // units
        if width % units or parts > processors:
            continue
        columns = next(n for n in range(8, size + 1, 8) if size % n == 0 and size // n <= parts)
        cluster = parts if parts <= CLUSTER else 1
        tiling = SamplingTiling(parts, cluster, -(-batch // 8) * 8, units, columns, chunk, 0)
        taken = shared_bytes(gates, layers, states, width, size, tiling, dtype.itemsize)
        slots = min(width // chunk, (tiles.SHARED - taken) // (M * CHUNK))
        if columns <= tiles.COLUMNS and slots >= min(2, width // chunk):
            tiling = tiling._replace(slots=slots)
            found.append((_microseconds(cell, layers, width, size, tiling, dtype), tiling))
    return min(found, default=(0, None))[1]


def _microseconds(
    cell: BuiltinCell, layers: int, width: int, size: int, tiling: SamplingTiling, dtype: Any
) -> float:
    """Return the model's time of a character: its exchanges, and what each multiprocessor reads."""
    products = layers * (3 if cell.kind is CellKind.GRU_BEFORE else 2)
    rounds = products * -(-width // (tiling.chunk * tiling.slots))
    exchange = EXCHANGE["cluster" if tiling.parts == tiling.cluster else "grid"]
    moved = tiling.rows * (products * width * dtype.itemsize + size * 4)
    resident = (products * width + 2 * size) * len(cell.GATES) * tiling.units * dtype.itemsize
    return (
        exchanges(cell, layers) * exchange
        + rounds * FETCH
        + moved / cost_model.L2
        + resident / (cost_model.READ * cost_model.CLOCK)
    )
