"""The sampling kernel: a char-RNN's loop over characters in one launch, its weights on the chip.

A CTA ("part") keeps its units' weights of every layer in shared memory, and those of a few columns of
the output layer; all meet after every layer, with one block of at most 64 rows. A character:

    every part      reads all scores, takes the highest as the drawn token, and looks up its row
                    of the first layer's table: a product with the token one-hot
    layer by layer  product with the own hidden state of the character before, known while the parts
                    still meet; product with the hidden state of the layer below; the cell's
                    arithmetic; publish the own units
    output layer    publish the own columns of logits + noise: the scores of the next character

The noise is Gumbel's, times the temperature, since argmax(logits + temperature * noise) draws from
softmax(logits / temperature).

What is published lies in memory that L2 caches. Hidden states take one of two places in turn, as the
one before is still read; everything else is read by all before any part comes to write it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import steps as hopper_cells
from jaxrnn.recurrence.kernels.hopper.arrays import Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import cluster_fence, fence, load, turned
from jaxrnn.recurrence.kernels.hopper.tiles import M
from jaxrnn.shapes import Array

PIECE = 32  # columns of the vocabulary that are looked at together


class Cut(NamedTuple):
    """How the kernel is cut over the CTAs.

    parts: CTAs that share the units; where cluster is 1 and parts more, they meet at a counter in L2.
    cluster: parts, where they fit one cluster and meet at its barrier; else 1.
    rows: that are moved, a multiple of 8 and at most 64.
    units: of a part, in each layer; columns: of the output layer, in each part that has some.
    chunk: K of one product; slots: chunks of a hidden state on their way.
    """

    parts: int
    cluster: int
    rows: int
    units: int
    columns: int
    chunk: int
    slots: int


class Arrays(NamedTuple):
    """What the kernel is given; L layers of H units, n gates, V characters with their padding.

    weights: [parts, n * units, (2 L - 1) * H]: w_h of the first layer, then w_x and w_h of each other.
    table: [parts, n * units, 2 V]: the first layer's, as the sum of two in the weights' dtype.
    output: [V / columns, columns, H].
    vectors: [L, n + m, H] float32, the bias of each gate and m others, as the cells ask for them.
    output_bias: [V] float32, -inf where there is no character.
    state: [L, 64, H] float32 each, by name.
    scores: [64, V] float32, whose highest are the first to be drawn.
    noise: [T, 64, V] float32, added to the logits after each character, zeros after the last, so that
      the last scores are logits. None for none.
    whitespace: [V] float32, 1 where noise is added after this character; None for always.
    length: [1] int32, characters to draw.
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


class Part:
    """One CTA's units of the layer at hand, as `hopper_cells` asks for them, and all that is around.

    t: the character at hand.
    """

    def __init__(self, cell: Any, arrays: Arrays, cut: Cut, refs: Any) -> None:
        self._cell, self._arrays, self._cut, self._refs = cell, arrays, cut, refs
        self._gates = len(cell.GATES)
        self._layers, _, self._width = arrays.vectors.shape
        self._pieces = range(arrays.scores.shape[1] // PIECE)
        self._part = lax.axis_index("bundle")
        if cut.cluster > 1:
            self._part = lax.axis_index("peer")
        self._counter = None
        if cut.parts > cut.cluster:
            self._counter = pl.get_global(plgpu.SemaphoreType.REGULAR)
        owners = len(arrays.output)
        self._owns = self._part < owners  # columns of the output; the others repeat the last
        self._output = jnp.minimum(self._part, owners - 1)

    def run(self) -> None:
        """All characters, from the initial state to the final one."""
        refs, names = self._refs, list(self._arrays.state)
        self._load_weights()
        self._publications: Any = 0
        for layer in range(self._layers):
            for k, name in enumerate(names):
                initial = getattr(refs, f"initial_{name}").at[layer, :, self._units]
                refs.states[layer, k] = load(initial, layout=plgpu.Layout.WGMMA, optimized=False)
            hidden = self._state(layer)["hidden"]
            self._copy(hidden, refs.own_units, self._hidden(layer, 0).at[:, self._units])
        self._publish()
        self._meet()
        scores = refs.scores.at[:, self._columns]
        scores = load(scores, layout=plgpu.Layout.WGMMA, optimized=False)
        self._publish_scores(scores)
        first, length = self._publications, refs.length[0]
        step = hopper_cells.step(self._cell)
        each = self._layers * (1 + (getattr(self._cell, "reset", None) == "before")) + 1

        def character(t: Array, _: None) -> None:
            self.t, self._publications = t, first + t * each
            for layer in range(self._layers):
                self._layer = layer
                after, _kept = step(self, self._state(self._layer))
                for k, name in enumerate(names):
                    refs.states[self._layer, k] = after[name]
                place = self._hidden(self._layer, t + 1).at[:, self._units]
                self._copy(after["hidden"], refs.own_units, place)
                self._publish()
            self._put_out()

        lax.fori_loop(0, length, character, None)
        self._publications = first + length * each
        self._meet()  # nobody leaves while others still need its barrier
        plgpu.commit_smem()
        for layer in range(self._layers):
            for k, name in enumerate(names):
                target = getattr(refs, name).at[layer, self._rows, self._units]
                plgpu.copy_smem_to_gmem(self._own(refs.states.at[layer, k]), target)
        plgpu.wait_smem_to_gmem(0)

    def _load_weights(self) -> None:
        refs = self._refs
        for source, target in (
            (refs.weights.at[self._part], refs.kept),
            (refs.table.at[self._part], refs.kept_table),
            (refs.output.at[self._output], refs.kept_output),
        ):
            count, _, columns = target.shape
            for k in range(count):
                chunk = source.at[:, pl.ds(k * columns, columns)]
                plgpu.copy_gmem_to_smem(chunk, target.at[k], refs.loaded.at[0])
        plgpu.barrier_wait(refs.loaded.at[0])

    # --- what a cell's step asks for --------------------------------------------------------------

    def take(self, name: str) -> tuple[Tile, ...]:
        """The projected inputs of the layer at hand."""
        self._meet()
        if not self._layer:
            return self._apart(self._look_up(self._draw()), self._gates)
        below = self._hidden(self._layer - 1, self.t + 1)
        gates = self._apart(self._product(below, 2 * self._layer - 1, self._gates), self._gates)
        return tuple(x + self._vector(k) for k, x in enumerate(gates))

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1)
    ) -> tuple[Tile, ...]:
        """The hidden state of the character before, or what was published since, times these gates."""
        ((name, _),) = sources
        source = self._hidden(self._layer, self.t)
        if name == "reset_hidden":
            self._meet()
            source = self._refs.reset_hidden
        total = self._product(source, 2 * self._layer, len(gates), gates.start)
        return self._apart(total, len(gates))

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Any) -> None:
        """Own units of r * h, for every part to read at the next `product`."""
        place = self._refs.reset_hidden.at[:, self._units]
        self._copy(tiles["reset_hidden"][0], self._refs.own_units, place)
        self._publish()

    def vector(self, k: int) -> Tile:
        """The k-th vector beside the biases, the same in every row."""
        return self._vector(self._gates + k)

    def _vector(self, k: int) -> Tile:
        return _rows(self._refs.vectors.at[self._layer, k, self._units], self._cut.units)

    # --- the draw, and what it is made from -------------------------------------------------------

    def _draw(self) -> Array:
        """The column of each row's highest score, the first of equals: [64] int32."""
        refs = self._refs
        for p in self._pieces:
            scores = refs.scores_out.at[self._rows, pl.ds(p * PIECE, PIECE)]
            plgpu.copy_gmem_to_smem(scores, self._own(refs.seen.at[p]), refs.all_seen.at[0])
        plgpu.barrier_wait(refs.all_seen.at[0])
        highest, token = self._highest(0)
        for p in self._pieces[1:]:
            high, at = self._highest(p)
            token = jnp.where(high > highest, at, token)
            highest = jnp.maximum(high, highest)

        @pl.when(self._part == 0)
        def _() -> None:
            refs.tokens.at[self.t][...] = token

        return token

    def _highest(self, piece: int) -> tuple[Array, Array]:
        """Of each row's scores in this piece the highest, and its column in the vocabulary."""
        scores, column = load(self._refs.seen.at[piece], layout=plgpu.Layout.WGMMA), _columns(piece)
        high = jnp.max(scores, axis=1)
        none = jnp.full_like(column, len(self._pieces) * PIECE)
        return high, jnp.min(jnp.where(scores == _across(high, PIECE), column, none), axis=1)

    def _look_up(self, token: Array) -> Array:
        """The token's row of the table, [64, gates * units]."""
        refs, dtype = self._refs, self._arrays.table.dtype
        self._noisy = None
        noisy = jnp.zeros((M, PIECE), jnp.float32)
        for p in self._pieces:
            chosen = _columns(p) == _across(token, PIECE)
            one = jnp.where(chosen, jnp.ones_like(noisy), jnp.zeros_like(noisy))
            refs.one_hot[p] = one.astype(dtype)
            if self._arrays.whitespace is not None:
                here = refs.whitespace.at[pl.ds(p * PIECE, PIECE)]
                noisy = noisy + one * _rows(here, PIECE)
        if self._arrays.whitespace is not None:
            self._noisy = jnp.max(noisy, axis=1)
        plgpu.commit_smem()

        def multiply(accumulator: Any) -> Array:
            for k in range(2 * len(self._pieces)):
                one_hot = refs.one_hot.at[k % len(self._pieces)]
                plgpu.wgmma(accumulator, one_hot, turned(refs.kept_table.at[k]))
            plgpu.wgmma_wait(0)
            return accumulator[...]

        shape = (M, self._gates * self._cut.units)
        return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))

    def _put_out(self) -> None:
        """The output layer, and the scores of the next character."""
        refs, columns = self._refs, self._cut.columns
        noise = None
        if self._arrays.noise is not None:  # on its way while the parts meet
            noise = refs.noise.at[self.t, :, self._columns]
            noise = load(noise, layout=plgpu.Layout.WGMMA, optimized=False)
        bias = _rows(refs.output_bias.at[self._columns], columns)
        self._meet()
        weights = refs.kept_output.at
        scores = bias + self._stream(
            self._hidden(self._layers - 1, self.t + 1), lambda c: weights[c], columns
        )
        if noise is not None:
            scores += noise if self._noisy is None else noise * _across(self._noisy, columns)
        self._publish_scores(scores)

    def _publish_scores(self, scores: Tile) -> None:
        place = self._refs.scores_out.at[:, self._columns]
        self._copy(scores, self._refs.own_columns, place, when=self._owns)
        self._publish()

    # --- products ---------------------------------------------------------------------------------

    def _product(self, source: Any, k: int, gates: int, first: int = 0) -> Array:
        """A hidden state times the k-th of the resident weights, side by side from the first gate."""
        per, units = self._width // self._cut.chunk, self._cut.units
        rows = pl.ds(first * units, gates * units)
        return self._stream(source, lambda c: self._refs.kept.at[k * per + c, rows], gates * units)

    def _stream(self, source: Any, weights: Callable[[Any], Any], count: int) -> Array:
        """A hidden state, fetched chunk by chunk, times the weights of each chunk: [64, count]."""
        cut, refs = self._cut, self._refs
        chunks = self._width // cut.chunk

        def fetch(c: Any) -> None:
            columns, slot = pl.ds(c * cut.chunk, cut.chunk), lax.rem(c, cut.slots)
            place = self._own(refs.ring.at[slot])
            plgpu.copy_gmem_to_smem(source.at[self._rows, columns], place, refs.fetched.at[slot])

        plgpu.commit_smem()  # all four warps are done with what the ring held, of which one fetches
        lax.fori_loop(0, min(cut.slots, chunks), lambda c, _: fetch(c), None)

        def multiply(accumulator: Any) -> Array:
            def one(c: Any, _: None) -> None:
                slot = lax.rem(c, cut.slots)
                plgpu.barrier_wait(refs.fetched.at[slot])
                plgpu.wgmma(accumulator, refs.ring.at[slot], turned(weights(c)))
                plgpu.wgmma_wait(1)

                @pl.when((c > 0) & (c - 1 + cut.slots < chunks))
                def refill() -> None:
                    plgpu.commit_smem()
                    fetch(c - 1 + cut.slots)

            lax.fori_loop(0, chunks, one, None)
            return accumulator[...]

        return pl.run_scoped(multiply, plgpu.ACC((M, count), jnp.float32))

    def _apart(self, total: Array, gates: int) -> tuple[Tile, ...]:
        units = self._cut.units
        return tuple(lax.slice(total, (0, k * units), (M, (k + 1) * units)) for k in range(gates))

    # --- exchange ---------------------------------------------------------------------------------

    def _copy(self, tile: Tile, place: Any, target: Any, when: Any = True) -> None:
        """A tile to memory, by way of shared memory."""
        place[...] = tile.astype(place.dtype)
        plgpu.commit_smem()

        @pl.when(when)
        def _() -> None:
            plgpu.copy_smem_to_gmem(self._own(place), self._own(target))

        plgpu.wait_smem_to_gmem(0)

    def _publish(self) -> None:
        """What was copied is there for the others; a `_meet` follows every one of these."""
        self._publications = self._publications + 1
        if self._counter is not None:
            plgpu.semaphore_signal(self._counter, 1, memory_scope="gpu")
        elif self._cut.cluster > 1:
            cluster_fence()
            plgpu.barrier_arrive(self._refs.met.at[0])

    def _meet(self) -> None:
        """Wait until every part has published as often as this one."""
        if self._counter is not None:
            times = self._publications * self._cut.parts
            plgpu.semaphore_wait(self._counter, times, decrement=False, memory_scope="gpu")
        elif self._cut.cluster > 1:
            plgpu.barrier_wait(self._refs.met.at[0])
            cluster_fence()
        fence()

    # --- places -----------------------------------------------------------------------------------

    def _state(self, layer: int) -> dict[str, Tile]:
        states = self._refs.states
        return {
            name: load(states.at[layer, k], layout=plgpu.Layout.WGMMA)
            for k, name in enumerate(self._arrays.state)
        }

    def _hidden(self, layer: int, t: Any) -> Any:
        """Where a layer's hidden state lies that t characters left behind."""
        return self._refs.hidden_states.at[layer, t % 2 if isinstance(t, int) else lax.rem(t, 2)]

    @property
    def _rows(self) -> Any:
        return pl.ds(0, self._cut.rows)

    @property
    def _units(self) -> Any:
        return pl.ds(self._part * self._cut.units, self._cut.units)

    @property
    def _columns(self) -> Any:
        return pl.ds(self._output * self._cut.columns, self._cut.columns)

    def _own(self, place: Any) -> Any:
        """The rows of 64 that are moved."""
        return place.at[self._rows]


def _columns(piece: int) -> Array:
    """[64, PIECE] int32: in the vocabulary, those of a piece."""
    layout = plgpu.Layout.WGMMA
    return plgpu.broadcasted_iota(jnp.int32, (M, PIECE), 1, layout=layout) + piece * PIECE


def _across(column: Array, count: int) -> Array:
    """A number for every row in each of `count` columns."""
    return lax.broadcast_in_dim(column, (M, count), (0,))


def _rows(ref: Any, count: int) -> Tile:
    """A vector of `count` numbers in every row."""
    row = load(ref, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
    return lax.broadcast_in_dim(row, (M, count), (1,))
