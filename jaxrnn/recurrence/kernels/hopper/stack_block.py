"""Several layers in one launch of the persistent Hopper kernel: a wavefront over layers and time.

Each CTA keeps one layer's share of units, and all layers advance in ticks: in tick n layer l takes step
n - LAG * l; on the way back the top layer is the first. All CTAs with the same rows, of every layer,
meet once a tick. By then the layer's own state is published, and what its neighbour hands on:

    forward   the output of the layer below                times its columns of w_x
    back      d_gx of the layer above                      times its rows of w_x

so that one meeting serves a step's two products, which share a ring. In a cluster a part meets the parts
of its layer and the layers of its part, each at a barrier of their own: what other parts of a neighbour
published it knows of a meeting later, hence the LAG.

In ticks before its first step and after its last a layer only meets the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import steps as hopper_cells
from jaxrnn.recurrence.kernels.hopper.arrays import Arrays, Steps, Tile
from jaxrnn.recurrence.kernels.hopper.block import Block
from jaxrnn.recurrence.kernels.hopper.launch import meeting, scratch_of
from jaxrnn.recurrence.kernels.hopper.mosaic import Like, launch
from jaxrnn.recurrence.kernels.hopper.steps import State
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiles, joined
from jaxrnn.recurrence.kernels.hopper.weights import Source
from jaxrnn.shapes import Array

LAG = 2  # ticks by which a layer follows its neighbour
SHARED = "gx", "marks", "d_ys"  # by all layers; all else begins with an axis of layers


def forward(cell: Any, keep: bool) -> Steps:
    """One step of a layer of this cell; keep: put out what its way back needs."""
    steps = hopper_cells.forward(cell, keep)
    step = partial(_forward, hopper_cells.step(cell), keep)
    return steps._replace(name=f"{steps.name}_stack", begin=_begin, step=step, published=2)


def backward(cell: Any) -> Steps:
    """The way back through one step of a layer of this cell."""
    steps = hopper_cells.backward(cell)
    step = partial(_backward, steps.step)
    return steps._replace(name=f"{steps.name}_stack", begin=_begin_back, step=step)


def ticks(steps: int, layers: int) -> int:
    """That steps of all layers take."""
    return steps + LAG * (layers - 1)


def call(
    steps: Steps,
    arrays: Arrays,
    bias: Array | None,
    tiles: Tiles,
    memory: Memory,
    reverse: bool,
    interpret: Any,
) -> dict[str, Array]:
    """As `hopper_kernel.call`; every array but gx, d_ys and the marks begins with an axis of L layers.

    arrays.weights: [L, parts, N, 2 K], the neighbour's after the layer's own.
    bias: [L, n, H] float32, of the gates of all layers but the first; forward only.
    """
    layers = len(arrays.weights)
    given = arrays.given | ({} if bias is None else {"bias": bias})
    made = arrays.made
    layer = _of_a_layer(arrays)

    def body(*refs: Any, **scratch: Any) -> None:
        named = dict(zip((*given, *made), refs, strict=True))
        Layer(layers, layer, tiles, memory, steps, reverse, named, scratch).run()

    body.__name__ = steps.name
    scratch = scratch_of(steps, layer, tiles, memory)
    if joined(tiles.parts, tiles.cluster, layers):
        scratch |= {"met": meeting(tiles, "peer"), "met_layers": meeting(tiles, "layer")}
        grid = {"group": tiles.groups, "bundle": 1}
        cluster = {"layer": layers, "peer": tiles.cluster}
    else:
        grid = {"group": tiles.groups, "layer": layers, "bundle": tiles.parts // tiles.cluster}
        cluster = {"peer": tiles.cluster}
    return launch(
        body,
        given,
        made,
        grid,
        cluster,
        interpret,
        scratch_types=scratch,
        num_threads=tiles.warpgroups,
        thread_name="warpgroup",
    )


def _of_a_layer(arrays: Arrays) -> Arrays:
    """The shapes of one layer's arrays, as a `Block` has them."""

    def one(name: str, x: Any) -> Like:
        return Like(x.shape if name in SHARED else x.shape[1:], x.dtype)

    each: dict[str, Any] = arrays._asdict()
    for name, value in each.items():
        if isinstance(value, dict) and name != "over":
            each[name] = {k: one(k, x) for k, x in value.items()}
        elif name in ("weights", "vectors") and value is not None:
            each[name] = one(name, value)
    return Arrays(**each)


class Layer(Block):
    """One warpgroup's block of rows, and its CTA's units of its layer, in the step at hand."""

    def __init__(
        self,
        layers: int,
        arrays: Arrays,
        tiles: Tiles,
        memory: Memory,
        steps: Steps,
        reverse: bool,
        refs: dict[str, Any],
        scratch: dict[str, Any],
    ) -> None:
        """arrays: of one layer. refs: of all."""
        self._layers, layer = layers, lax.axis_index("layer")
        self._back = "d_gx" in refs
        own = {k: ref if k in SHARED else ref.at[layer] for k, ref in refs.items()}
        if self._back:
            own["handed_on"] = refs["d_gx"].at[jnp.minimum(layer + 1, layers - 1)]
        else:
            own["handed_on"] = refs["outputs"].at[jnp.maximum(layer - 1, 0)]
        super().__init__(arrays, tiles, memory, steps, reverse, SimpleNamespace(**own, **scratch))
        if self._where == "cluster":
            self._met.append(self._refs.met_layers)
        self._earlier = LAG * (layers - 1 - layer if self._back else layer)

    @property
    def _where(self) -> str:
        tiles = self._tiles
        return "cluster" if joined(tiles.parts, tiles.cluster, self._layers) else "grid"

    @property
    def _meeting(self) -> int:
        return self._layers * self._tiles.parts

    # --- ticks ------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Let the ticks pass that come before the first step."""
        self._pass_ticks(0, self._earlier)

    def _leave(self) -> None:
        self._pass_ticks(self._earlier + self._total, self._ticks)

    @property
    def _ticks(self) -> int:
        return ticks(self._total, self._layers)

    def _pass_ticks(self, first: Any, last: Any) -> None:
        def tick(n: Any, _: None) -> None:
            if self._back:  # what a tick multiplies is published in it
                self._arrive()
            self._wait(n + 1)
            plgpu.commit_smem()  # all four warps have seen it, or the next could come before they do
            if not self._back:  # in the one before it
                self._arrive_for(n + 1)

        lax.fori_loop(first, last, tick, None)

    def _arrive_for(self, tick: Any) -> None:
        pl.when(tick < self._ticks)(self._arrive)

    # --- what passes between layers ---------------------------------------------------------------

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Of this layer's own; `handed_on` is then that of what the neighbour published with it."""
        self._meet()
        both = self._weights.multiply(
            self._rows, self._now(sources), gates, start, *self._neighbours()
        )
        self.handed_on = both[len(gates) :]
        return both[: len(gates)]

    def first_handed_on(self) -> tuple[Tile, ...]:
        """Back, what the neighbour hands on to the first step, once its own is over."""
        start = self._refs.d_gx.shape[-1] // self._hidden
        return self._weights.multiply(self._rows, [], range(1), start, *self._neighbours())

    def _neighbours(self) -> tuple[list[Source], Any]:
        """What the neighbour published of this step, back of the next, and whether there is any."""
        t, follows = self.t, self._earlier > 0
        if self._back:
            t, follows = self.next, follows & self.more
        gates = range(self._refs.handed_on.shape[-1] // self._hidden)
        return [("handed_on", k, t) for k in gates], follows

    def take(self, name: str) -> tuple[Tile, ...]:
        """The gates of an input at this time; of what the neighbour handed on, where there is one."""
        taken = super().take(name)
        if name not in ("gx", "d_ys"):
            return taken
        passed = self.handed_on
        if name == "gx":
            passed = tuple(x + self._vector(k, "bias") for k, x in enumerate(passed))
        leads = lax.broadcast_in_dim(self._earlier == 0, (M, self._units), ())
        return tuple(jnp.where(leads, x, y) for x, y in zip(taken, passed, strict=True))

    def hand_on(self, hidden: Tile, output: Tile) -> None:
        """Publish the state that enters the next step, and this one's output for the layer above."""
        self._stage([hidden, output])

        @pl.when(self.more)
        def _() -> None:
            self._put(0, "previous_hidden", 0, self.next)

        self._put(1, "outputs", 0, self.t)
        plgpu.wait_smem_to_gmem(0)
        self._arrive_for(self._earlier + self._s + 1)


def _begin(block: Layer, state: State) -> State:
    block.publish({"previous_hidden": {0: state["hidden"]}}, block.next)
    block.follow()
    return state


def _forward(step: Any, keep: bool, block: Layer, state: State) -> State:
    after, kept = step(block, state)
    y = block.moving(after["hidden"], jnp.zeros_like(after["hidden"]))
    after = {name: block.moving(x, state[name]) for name, x in after.items()}
    after = {name: block.surviving(x) for name, x in after.items()}
    block.hand_on(after["hidden"], y)
    block.finish({"ys": (y,)} | (kept if keep else {}))
    return after


def _begin_back(block: Layer, d: State) -> State:
    block.follow()
    (d_y,) = block.first_handed_on()
    return d | {"d_y": d_y}


def _backward(step: Any, block: Layer, d: State) -> State:
    """d["d_y"]: of this step's output, by the layer above, which a step multiplies for the next."""
    block.handed_on = (d["d_y"],)
    before = step(block, {name: x for name, x in d.items() if name != "d_y"})
    (d_y,) = block.handed_on
    return before | {"d_y": d_y}
