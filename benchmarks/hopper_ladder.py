"""One recurrence in several cuts on a card: right beside "xla", and microseconds a step. A line each, at once.

    timeout 120 python3 benchmarks/hopper_ladder.py            # from the repository's root, on an H100 or H200
    python3 benchmarks/hopper_ladder.py --compile              # no card: only that they compile for one

The first cuts need no cluster and meet at a counter, all their CTAs fit; the table's own come last, since they
may hang or take two waves. What is measured here says what `hopper_tiles.microseconds` should say.
"""

import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn.kernels import hopper, hopper_tiles, xla
from jaxrnn.kernels.hopper_tiles import Memory, Tiles
from jaxrnn.kernels.inputs import Masks

T = 256


def cut(parts, groups, cluster, rows, forward, backward):
    return Tiles(parts, cluster, rows, 1, groups, 1, Memory(*forward), Memory(*backward))


LADDER = [  # batch, hidden, cut; Memory: chunk, slots, resident, depth
    (64, 512, cut(32, 4, 1, 16, (64, 8, 8, 2), (64, 12, 32, 2))),
    (64, 512, cut(32, 4, 1, 16, (64, 4, 8, 2), (64, 4, 32, 2))),
    (64, 512, cut(32, 4, 1, 16, (64, 2, 8, 2), (64, 2, 32, 2))),
    (64, 512, cut(32, 2, 2, 32, (64, 8, 8, 2), (128, 6, 16, 2))),
    (16, 1024, cut(64, 2, 1, 8, (64, 8, 16, 1), (64, 6, 64, 1))),
    (64, 1024, cut(64, 2, 1, 32, (64, 8, 16, 1), (64, 6, 64, 1))),
    (64, 1024, cut(64, 2, 2, 32, (64, 8, 16, 1), (64, 6, 64, 1))),
    (64, 256, cut(16, 4, 16, 16, (128, 2, 2, 2), (128, 8, 8, 2))),
    (64, 512, None),
    (64, 1024, None),
]


def main() -> None:
    usual, compiling = hopper.tiles_for, "--compile" in sys.argv
    if compiling:
        jax.config.update("jax_platforms", "cpu")
    with ThreadPoolExecutor() as pool:
        made = []
        for batch, hidden, tiles in LADDER:
            cell = dataclasses.replace(jaxrnn.lstm(1), hidden=hidden)
            tiles = tiles or usual(cell, batch, jnp.bfloat16)
            hopper.tiles_for = lambda *_, tiles=tiles: tiles
            name = f"B {batch} H {hidden} {tiles.parts}x{tiles.groups} cluster {tiles.cluster} rows {tiles.rows} "
            name += f"F{tuple(tiles.forward)} B{tuple(tiles.backward)}"
            made.append((name, cell, batch, lower(pool, cell, batch, compiling)))
        for name, cell, batch, programs in made:
            try:
                print(name, one(cell, batch, programs, compiling), flush=True)
            except Exception as failure:
                print(name, type(failure).__name__, str(failure).splitlines()[0][:200], flush=True)


def draw(cell, batch, key):
    keys = jax.random.split(key, 4)
    params = jax.eval_shape(lambda: cell.init(key, 64, jnp.bfloat16))
    params = jax.tree.map(
        lambda p: (jax.random.normal(keys[0], p.shape) / cell.hidden**0.5).astype(p.dtype), params
    )
    gx = jax.random.normal(keys[1], (T, batch, 4 * cell.hidden))
    return params, gx, cell.initial_state(batch), jax.random.normal(keys[2], (T, batch, cell.hidden))


def lower(pool, cell, batch, compiling):
    """Traces here, compiles in the pool: our forward pass, our both passes, those of "xla"."""

    def forward(run, params, gx, state, d_ys):
        return run(cell, params, gx, state, Masks(None, None), False)[1]

    def both(run, params, gx, state, d_ys):
        def apply(*a):
            return run(cell, *a, Masks(None, None), False)[1]

        ys, pull = jax.vjp(apply, params, gx, state)
        return ys, pull(d_ys)

    shapes = jax.eval_shape(partial(draw, cell, batch), jax.random.key(0))
    device = None
    if compiling:
        import aot
        import gpu_static
        from jax.sharding import SingleDeviceSharding

        device = gpu_static.h100()
        shapes = aot.placed_on(SingleDeviceSharding(device), shapes)
    with jax.default_device(device):
        passes = [(forward, hopper.run), (both, hopper.run), (both, xla.run)]
        lowered = [jax.jit(partial(f, run)).lower(*shapes) for f, run in passes[: 2 if compiling else 3]]
    return [pool.submit(low.compile) for low in lowered]


def one(cell, batch, programs, compiling):
    programs = [program.result() for program in programs]
    if compiling:
        return "compiles"
    forward, step, plain = programs
    given = jax.jit(partial(draw, cell, batch))(jax.random.key(0))
    want, got = plain(*given), step(*given)
    again = step(*given)
    off, moved = (
        max(
            float(jnp.max(jnp.abs(a.astype(float) - b.astype(float))) / jnp.max(jnp.abs(b.astype(float))))
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(other), strict=True)
            if a.dtype != jax.dtypes.float0 and a.size and jnp.any(b != 0)
        )
        for other in (want, again)
    )
    times = [timed(run, given) for run in (forward, step, plain)]
    return (
        f"off xla {off:.1e}, moved {moved:.1e}; us a step: forward {times[0]:.2f}, "
        f"with backward and dW {times[1]:.2f}, xla's {times[2]:.2f}"
    )


def timed(run, given, calls=20):
    jax.block_until_ready(run(*given))
    begin = time.perf_counter()
    for _ in range(calls):
        result = run(*given)
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / calls / T * 1e6


main()
