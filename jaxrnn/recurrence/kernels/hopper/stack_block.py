"""The persistent Hopper kernel for several layers: a wavefront over layers and time.

Each CTA keeps one part of one layer, and all layers advance in ticks: in tick n layer l runs step n -
LAG * l; backward, the top layer is the first. All CTAs with the same rows, of every layer, synchronise
once in a tick. By then the layer's own state is published, and what its neighbour hands on:

    forward    the output of the layer below              times its columns of w_x
    backward   d_gx of the layer above                    times its rows of w_x

so that one exchange serves a step's two products, which share a ring. In a cluster a part synchronises
with the parts of its layer and with the layers of its part, each at a barrier of their own. What other
parts of a neighbour published is then known one exchange later, hence the LAG.

In ticks before its first step and after its last a layer only synchronises with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import launch, steps
from jaxrnn.recurrence.kernels.hopper.block import Block
from jaxrnn.recurrence.kernels.hopper.launch import (
    Arrays,
    Refs,
    Results,
    State,
    StepFunctions,
    Tile,
)
from jaxrnn.recurrence.kernels.hopper.mosaic import Like, Ref, Scalar, call_kernel
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell, M, Memory, Tiling, in_one_cluster
from jaxrnn.recurrence.kernels.hopper.weights import Source

# Ticks by which a layer follows its neighbour.
LAG = 2
# Inputs that are only the first layer's; all other arrays but the masks begin with an axis of layers.
WITHOUT_LAYERS = "gx", "d_ys"


def forward(cell: BuiltinCell, keep: bool) -> StepFunctions:
    """Return the forward pass of a layer; `keep`: with the outputs that the backward pass needs."""
    one_layer = steps.forward(cell, keep)
    step = partial(_forward, steps.forward_step(cell), keep)
    return one_layer._replace(
        name=f"{one_layer.name}_stack", begin=_begin_forward, step=step, published=2
    )


def backward(cell: BuiltinCell) -> StepFunctions:
    """Return the backward pass of a layer."""
    one_layer = steps.backward(cell)
    step = partial(_backward, one_layer.step)
    return one_layer._replace(name=f"{one_layer.name}_stack", begin=_begin_backward, step=step)


def ticks(count: int, layers: int) -> int:
    """Return the number of ticks for `count` steps of `layers` layers."""
    return count + LAG * (layers - 1)


def call(
    functions: StepFunctions,
    arrays: Arrays,
    tiling: Tiling,
    memory: Memory,
    reverse: bool,
    interpret: Any,
) -> Results:
    """Launch the kernel and return its results; the arguments are those of `block.call`.

    Every array but gx, d_ys and the masks begins with an axis of L layers. `arrays.weights` is
    [L, parts, N, 2 K], the weights of the neighbour's product after those of the layer's own.
    """
    layers = len(arrays.weights)
    one_layer = _of_one_layer(arrays)

    def body(operands: dict[str, Any], results: Results, scratch: dict[str, Ref]) -> None:
        refs = launch.make_refs(operands, results, scratch)
        StackBlock(layers, one_layer, tiling, memory, functions, reverse, refs).run()

    scratch = launch.scratch_types(functions, one_layer, tiling, memory)
    if in_one_cluster(tiling.parts, tiling.cluster, layers):
        scratch["parts_barrier"] = launch.exchange_barrier(tiling, "peer")
        scratch["layers_barrier"] = launch.exchange_barrier(tiling, "layer")
        grid = {"group": tiling.groups, "bundle": 1}
        cluster = {"layer": layers, "peer": tiling.cluster}
    else:
        grid = {"group": tiling.groups, "layer": layers, "bundle": tiling.parts // tiling.cluster}
        cluster = {"peer": tiling.cluster}
    return call_kernel(
        functions.name,
        body,
        arrays.operands,
        arrays.results,
        grid=grid,
        cluster=cluster,
        approximate=arrays.weights.dtype.itemsize < 4,
        interpret=interpret,
        scratch_types=scratch,
        num_threads=tiling.warpgroups,
        thread_name="warpgroup",
    )


def _of_one_layer(arrays: Arrays) -> Arrays:
    """Return the types of one layer's arrays."""

    def one(x: Any) -> Any:
        return None if x is None else Like(x.shape[1:], x.dtype)

    def each(named: dict[str, Any]) -> dict[str, Any]:
        return {name: x if name in WITHOUT_LAYERS else one(x) for name, x in named.items()}

    return arrays._replace(
        weights=one(arrays.weights),
        initial=each(arrays.initial),
        inputs=each(arrays.inputs),
        vectors=one(arrays.vectors),
        exchanged=each(arrays.exchanged),
        outputs=each(arrays.outputs),
        bias=one(arrays.bias),
    )


def _refs_of_layer(refs: Refs, layer: Scalar, neighbour: Scalar, handed_on: str) -> Refs:
    """Return the references of one layer.

    Args:
      refs: references to the arrays of all layers.
      layer: the layer.
      neighbour: the layer below it (backward: above), or the layer itself where there is none.
      handed_on: the exchanged array of the neighbour that the layer reads, as "handed_on".
    """

    def one(ref: Ref | None) -> Ref | None:
        return None if ref is None else ref.at[layer]

    def each(named: dict[str, Ref]) -> dict[str, Ref]:
        return {name: ref if name in WITHOUT_LAYERS else one(ref) for name, ref in named.items()}

    handed_on_gmem = refs.exchanged_gmem[handed_on].at[neighbour]
    return refs._replace(
        weights_gmem=one(refs.weights_gmem),
        initial_gmem=each(refs.initial_gmem),
        inputs_gmem=each(refs.inputs_gmem),
        vectors_gmem=one(refs.vectors_gmem),
        bias_gmem=one(refs.bias_gmem),
        exchanged_gmem=each(refs.exchanged_gmem) | {"handed_on": handed_on_gmem},
        outputs_gmem=each(refs.outputs_gmem),
        final_gmem=each(refs.final_gmem),
    )


class StackBlock(Block):
    """One warpgroup's block of rows and its part's units of its layer, in the current step.

    Attributes:
      handed_on: the product of what the neighbour published, after `product`.
    """

    def __init__(
        self,
        layers: int,
        arrays: Arrays,
        tiling: Tiling,
        memory: Memory,
        functions: StepFunctions,
        reverse: bool,
        refs: Refs,
    ) -> None:
        """Read the position in the grid; arrays: of one layer, refs: of all layers."""
        self._layers = layers
        layer = lax.axis_index("layer")
        self._is_backward = "d_gx" in arrays.exchanged
        if self._is_backward:
            own = _refs_of_layer(refs, layer, jnp.minimum(layer + 1, layers - 1), "d_gx")
        else:
            own = _refs_of_layer(refs, layer, jnp.maximum(layer - 1, 0), "outputs")
        super().__init__(arrays, tiling, memory, functions, reverse, own)
        if self._exchange_by == "cluster":
            self._cluster_barriers.append(refs.layers_barrier)
        # There is one exchange in a tick, so this is also the tick of the first step.
        self._exchanges_before = LAG * (layers - 1 - layer if self._is_backward else layer)
        self.handed_on: tuple[Tile, ...] = ()

    @property
    def _exchange_by(self) -> Literal["cluster", "grid"]:
        tiling = self._tiling
        together = in_one_cluster(tiling.parts, tiling.cluster, self._layers)
        return "cluster" if together else "grid"

    @property
    def _participants(self) -> int:
        return self._layers * self._tiling.parts

    # --- ticks ------------------------------------------------------------------------------------

    def wait_for_first_step(self) -> None:
        """Take part in the ticks before the first step."""
        self._take_part(0, self._exchanges_before)

    def _leave(self) -> None:
        """Take part in the ticks after the last step."""
        self._take_part(self._exchanges_before + self._total, self._ticks)

    @property
    def _ticks(self) -> int:
        return ticks(self._total, self._layers)

    def _take_part(self, first: Scalar, last: Scalar) -> None:
        """Synchronise with the other layers in the ticks from `first` to `last`."""

        def tick(n: Scalar, _: None) -> None:
            # Backward, what a tick multiplies is published in the same tick; forward, in the one before.
            if self._is_backward:
                self._arrive()
            self._wait(n + 1)
            # All four warps must have seen the barrier before the next arrival.
            plgpu.commit_smem()
            if not self._is_backward:
                self._arrive_for(n + 1)

        lax.fori_loop(first, last, tick, None)

    def _arrive_for(self, tick: Scalar) -> None:
        pl.when(tick < self._ticks)(self._arrive)

    # --- exchange between layers ------------------------------------------------------------------

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return the product of this layer's own arrays, and set `handed_on`; see `Block.product`."""
        self._wait_for_parts()
        both = self._weights.multiply(
            self._rows, self._at_this_time(sources), gates, start, *self._neighbours()
        )
        self.handed_on = both[len(gates) :]
        return both[: len(gates)]

    def first_handed_on(self) -> tuple[Tile, ...]:
        """Return, backward, what the neighbour hands on to the first step, once its own is over."""
        start = self._arrays.gates(self._arrays.exchanged["d_gx"])
        return self._weights.multiply(self._rows, [], range(1), start, *self._neighbours())

    def _neighbours(self) -> tuple[list[Source], Scalar]:
        """Return what the neighbour published for this step, and whether there is a neighbour.

        Backward it is what the neighbour published for the next step, if there is one.
        """
        t = self.t
        exists = self._exchanges_before > 0
        if self._is_backward:
            t = self.next_t
            exists = exists & self.has_next
        name = "d_gx" if self._is_backward else "outputs"
        gates = range(self._arrays.gates(self._arrays.exchanged[name]))
        return [Source("handed_on", gate, t) for gate in gates], exists

    def load_input(self, name: str) -> tuple[Tile, ...]:
        """Return the gates of an input of this step; where there is a neighbour, what it handed on."""
        loaded = super().load_input(name)
        if name not in WITHOUT_LAYERS:
            return loaded
        handed_on = self.handed_on
        if name == "gx":
            handed_on = tuple(
                x + self._in_every_row(self._refs.bias_gmem, k) for k, x in enumerate(handed_on)
            )
        is_first = lax.broadcast_in_dim(self._exchanges_before == 0, (M, self._units), ())
        return tuple(jnp.where(is_first, x, y) for x, y in zip(loaded, handed_on, strict=True))

    def hand_on(self, hidden: Tile, output: Tile) -> None:
        """Publish the state that enters the next step, and this one's output for the layer above."""
        self._stage([hidden, output])

        @pl.when(self.has_next)
        def _() -> None:
            self._copy_out(0, "previous_hidden", 0, self.next_t)

        self._copy_out(1, "outputs", 0, self.t)
        plgpu.wait_smem_to_gmem(0)
        self._arrive_for(self._exchanges_before + self._s + 1)


def _begin_forward(block: StackBlock, state: State) -> State:
    block.publish({"previous_hidden": {0: state["hidden"]}}, block.next_t)
    block.wait_for_first_step()
    return state


def _forward(
    step: Callable[[Any, State], tuple[State, steps.Kept]],
    keep: bool,
    block: StackBlock,
    state: State,
) -> State:
    y, after, kept = steps.masked_step(step, block, state)
    block.hand_on(after["hidden"], y)
    block.finish({"ys": (y,)} | (kept if keep else {}))
    return after


def _begin_backward(block: StackBlock, d: State) -> State:
    block.wait_for_first_step()
    (d_y,) = block.first_handed_on()
    return d | {"d_y": d_y}


def _backward(step: Callable[[Any, State], State], block: StackBlock, d: State) -> State:
    """Run a step; d["d_y"] is the derivative of its output, which the step before multiplied."""
    block.handed_on = (d["d_y"],)
    before = step(block, {name: x for name, x in d.items() if name != "d_y"})
    (d_y,) = block.handed_on
    return before | {"d_y": d_y}
