"""The tiling of the sampling kernel, and all of its arrays and barriers by name."""

from __future__ import annotations

from typing import NamedTuple

from jaxrnn.recurrence.kernels.hopper.mosaic import Ref
from jaxrnn.shapes import Array


class SamplingTiling(NamedTuple):
    """The division of the sampling kernel over CTAs.

    Attributes:
      parts: number of CTAs that share the units.
      cluster: `parts` where one cluster holds all CTAs, which then synchronise at its barrier; otherwise
        1, and they synchronise at a counter in L2.
      rows: rows that are moved, a multiple of 8 and at most 64.
      units: units of a part in each layer.
      columns: columns of the output layer in each part that has some.
      chunk: K of one product.
      slots: number of chunks of a hidden state in flight.
    """

    parts: int
    cluster: int
    rows: int
    units: int
    columns: int
    chunk: int
    slots: int


class SamplingArrays(NamedTuple):
    """The operands of the kernel; L layers of H units, n gates, V characters with their padding.

    Attributes:
      weights: [parts, n * units, (2 L - 1) * H], w_h of the first layer, then w_x and w_h of each other.
      table: [parts, n * units, 2 V], the first layer's table as the sum of two in the weights' dtype.
      output: [V / columns, columns, H], the weights of the output layer.
      vectors: [L, n + m, H] float32, the bias of each gate, and m other vectors of the cell.
      output_bias: [V] float32, -inf in the padding.
      state: [L, 64, H] float32 each, by name.
      scores: [64, V] float32, whose highest are the first characters.
      noise: [T, 64, V] float32, added to the logits after each character, and zeros after the last, so
        that the last scores are logits. None for none.
      whitespace: [V] float32, 1 for the characters after which noise is added; None for all.
      length: [1] int32, number of characters to draw.
    """

    weights: Array
    table: Array
    output: Array
    vectors: Array
    output_bias: Array
    state: dict[str, Array]
    scores: Array
    noise: Array | None
    whitespace: Array | None
    length: Array


class SamplingRefs(NamedTuple):
    """All memory that a CTA refers to: `_gmem` is the card's memory, `_smem` its own shared memory.

    References that a kernel does not use are None.

    Attributes:
      weights_gmem: see `SamplingArrays`; likewise those up to `length_gmem`.
      table_gmem: see above.
      output_gmem: see above.
      vectors_gmem: see above.
      output_bias_gmem: see above.
      initial_state_gmem: `SamplingArrays.state`.
      initial_scores_gmem: `SamplingArrays.scores`.
      noise_gmem: see above.
      whitespace_gmem: see above.
      length_gmem: see above.
      final_gmem: [L, 64, H] float32 each, the state after the last character.
      scores_gmem: [64, V] float32, published: the scores of the next character.
      tokens_gmem: [T, 64] int32, the drawn characters.
      hidden_gmem: [L, 2, 64, H], published: the hidden states of this character and the one before.
      reset_hidden_gmem: [64, H], published: r * h, of a GRU that resets before its product.
      weights_smem: [chunks, n * units, chunk], the part's weights of all layers.
      table_smem: [2 V / PIECE, n * units, PIECE].
      output_weights_smem: [chunks, columns, chunk].
      weights_barrier: [1], completed once the three above are loaded.
      state_smem: [L, states, 64, units] float32, the part's units of the state.
      operand_ring_smem: [slots, 64, chunk], chunks of a published hidden state.
      operand_barrier: [slots], completed when a slot of the ring is loaded.
      scores_smem: [V / PIECE, 64, PIECE] float32.
      scores_barrier: [1], completed when the scores are loaded.
      one_hot_smem: [V / PIECE, 64, PIECE], the drawn characters as one-hot rows.
      publish_units_smem: [64, units], a tile on its way to `hidden_gmem` or `reset_hidden_gmem`.
      publish_columns_smem: [64, columns] float32, a tile on its way to `scores_gmem`.
      parts_barrier: [1], completed when every part in the cluster has published.
    """

    weights_gmem: Ref
    table_gmem: Ref
    output_gmem: Ref
    vectors_gmem: Ref
    output_bias_gmem: Ref
    initial_state_gmem: dict[str, Ref]
    initial_scores_gmem: Ref
    noise_gmem: Ref
    whitespace_gmem: Ref
    length_gmem: Ref
    final_gmem: dict[str, Ref]
    scores_gmem: Ref
    tokens_gmem: Ref
    hidden_gmem: Ref
    reset_hidden_gmem: Ref
    weights_smem: Ref
    table_smem: Ref
    output_weights_smem: Ref
    weights_barrier: Ref
    state_smem: Ref
    operand_ring_smem: Ref
    operand_barrier: Ref
    scores_smem: Ref
    scores_barrier: Ref
    one_hot_smem: Ref
    publish_units_smem: Ref
    publish_columns_smem: Ref
    parts_barrier: Ref = None
