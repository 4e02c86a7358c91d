"""Whether the Hopper kernels give the same results call after call: a race shows as one that moves.

    python benchmarks/hopper/stress.py [--rounds 1000]       # on an H100 or H200, under a minute

Tilings that synchronise at a cluster's barrier run in turn with calls on other data, so that memory that
is used again holds other numbers than the right ones, and every result is compared bit for bit with the
first. Each runs with fences of no scope, of the cluster's and of the GPU's around the barrier, to see
which of them the order of memory operations needs, and what they cost.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
from benchmarks.hopper import ladder
from benchmarks import measure

from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.hopper import mosaic as hopper_mosaic
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiles

SCOPES = "", "cluster", "gpu"
PROBLEMS = [
    (
        ladder.Problem("lstm", 64, 256),
        Tiles(16, 16, 16, 1, 4, 1, Memory(64, 4, 4, 2), Memory(64, 16, 16, 2)),
    ),
    (
        ladder.Problem("lstm", 64, 256),
        Tiles(8, 8, 8, 1, 8, 1, Memory(64, 4, 4, 2), Memory(128, 8, 8, 2)),
    ),
]


def main() -> None:
    parser = measure.Parser(description="whether results of the Hopper kernels move")
    parser.add_argument("--rounds", type=measure.positive, default=1000)
    parser.add_argument("--output", type=Path, help="where a JSON object goes for each")
    flags = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        made = []
        for scope in SCOPES:
            hopper_mosaic.SCOPE = scope
            jax.clear_caches()
            for problem, tiles in PROBLEMS:
                given = jax.eval_shape(partial(ladder._draw, problem))
                made.append((scope, problem, tiles, ladder._programs(problem, tiles, given, pool)))
        moved = dict.fromkeys(SCOPES, 0)
        for scope, problem, tiles, programs in made:
            result = {"scope": scope, **problem._asdict(), "tiles": ladder.as_json(tiles)}
            result |= stressed(problem, tiles, [p.result() for p in programs], flags.rounds)
            moved[scope] += result["forward_moved"] + result["backward_moved"]
            line = {k: v for k, v in result.items() if k != "tiles"}
            print(f"{tiles.parts} x {tiles.groups} cluster {tiles.cluster}: {line}", flush=True)
            if flags.output:
                with flags.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
    for scope, count in moved.items():
        print(
            f"fences of scope {scope or 'none'}: {count} of {len(PROBLEMS) * 2 * flags.rounds} moved"
        )


def stressed(problem: ladder.Problem, tiles: Tiles, programs: list[Any], rounds: int) -> Any:
    """Calls of each kernel that gave another result than the first, where that was, and its time."""
    forward, backward = programs
    given = jax.jit(partial(ladder._draw, problem))()
    rows = tiles.rows * tiles.blocks
    d_ys = fused._more_rows(given[3], 1, to=rows)
    out = forward(*given)
    kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
    others = given[0], -given[1], *given[2:]
    other = forward(*others)
    calls = {
        "forward": (forward, given, others),
        "backward": (
            backward,
            (given[0], kept, given[2], d_ys),
            (given[0], {k: other[k] for k in kept}, given[2], d_ys),
        ),
    }
    found: dict[str, Any] = {}
    for name, (run, arguments, different) in calls.items():
        want = run(*arguments)
        count, largest, first = jnp.int32(0), jnp.float32(0), None
        begin = time.perf_counter()
        for n in range(rounds):
            run(*different)
            got = run(*arguments)
            off = ladder._moved(got, want)
            count, largest = count + (off > 0), jnp.maximum(largest, off)
            if n % 50 == 0 and first is None and bool(off > 0):
                first = _where(got, want)
        found[f"{name}_moved"] = int(count)
        found[f"{name}_largest"] = float(largest)
        found[f"{name}_where"] = first
        found[f"{name}_seconds"] = round(time.perf_counter() - begin, 1)
        found[f"{name}_microseconds"] = round(ladder._timed(partial(run, *arguments)), 3)
    return found


def _where(got: Any, want: Any) -> dict[str, Any]:
    """By array: how many entries differ, and the first step, rows and units in which they do."""
    places = {}
    for name in want:
        differs = jnp.asarray(got[name] != want[name])
        if not bool(differs.any()):
            continue
        if differs.ndim == 3:
            step = int(differs.any((1, 2)).argmax())
            at = jnp.argwhere(differs[step])
            places[name] = {
                "entries": int(differs.sum()),
                "first_step": step,
                "rows": sorted(set(at[:, 0].tolist()))[:16],
                "units": sorted(set(at[:, 1].tolist()))[:64],
                "differ_there": int(differs[step].sum()),
            }
    return places


if __name__ == "__main__":
    main()
