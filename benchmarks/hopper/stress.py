"""Stress test of the Hopper kernels: a race would show as a result that changes from call to call.

    python -m benchmarks.hopper.stress [--rounds 1000]       # on an H100 or H200, under a minute

Tilings that synchronise at a cluster's barrier run in turn with calls on other data, so that memory that
is used again holds wrong numbers, and every result is compared bit for bit with the first one. Each runs
without fences around the barrier, with fences of cluster scope and with fences of GPU scope. This shows
which fences the order of memory operations needs, and what they cost.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.hopper import ladder
from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.hopper import mosaic as hopper_mosaic
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiling

SCOPES = "", "cluster", "gpu"
PROBLEMS = [
    (
        ladder.Problem("lstm", 64, 256),
        Tiling(16, 16, 16, 1, 4, 1, Memory(64, 4, 2), Memory(64, 16, 2)),
    ),
    (
        ladder.Problem("lstm", 64, 256),
        Tiling(8, 8, 8, 1, 8, 1, Memory(64, 4, 2), Memory(128, 8, 2)),
    ),
]


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Check that results of the Hopper kernels do not change.")
    add = parser.add_argument
    add("--rounds", type=measure.positive, default=1000, help="calls of each kernel (1000)")
    add("--output", type=Path, metavar="FILE", help="file for a JSON object of each tiling")
    flags = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        made = []
        for scope in SCOPES:
            hopper_mosaic.SCOPE = scope
            jax.clear_caches()
            for problem, tiles in PROBLEMS:
                given = jax.eval_shape(partial(ladder.draw, problem))
                made.append(
                    (scope, problem, tiles, ladder.programs_of(problem, tiles, given, pool))
                )
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
        total = len(PROBLEMS) * 2 * flags.rounds
        print(f"fences of scope {scope or 'none'}: {count} of {total} results changed")


def stressed(problem: ladder.Problem, tiles: Tiling, programs: list[Any], rounds: int) -> Any:
    """Count the calls of each kernel whose result differs from the first; say where, and time them."""
    forward, backward = programs
    given = jax.jit(partial(ladder.draw, problem))()
    rows = tiles.rows * tiles.blocks
    d_ys = fused.pad_rows(given[3], 1, to=rows)
    _, residuals = forward(*given)
    others = given[0], -given[1], *given[2:]
    _, other = forward(*others)
    calls = {
        "forward": (forward, given, others),
        "backward": (
            backward,
            (given[0], residuals, given[2], d_ys),
            (given[0], other, given[2], d_ys),
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
            off = ladder.moved_by(got, want)
            count, largest = count + (off > 0), jnp.maximum(largest, off)
            if n % 50 == 0 and first is None and bool(off > 0):
                first = _where(got, want)
        found[f"{name}_moved"] = int(count)
        found[f"{name}_largest"] = float(largest)
        found[f"{name}_where"] = first
        found[f"{name}_seconds"] = round(time.perf_counter() - begin, 1)
        found[f"{name}_microseconds"] = round(ladder.microseconds_of(partial(run, *arguments)), 3)
    return found


def _where(got: Any, want: Any) -> dict[str, Any]:
    """Return by array the number of entries that differ, and the first step, rows and units."""
    wanted = {jax.tree_util.keystr(path): array for path, array in jax.tree.leaves_with_path(want)}
    places = {}
    for path, array in jax.tree.leaves_with_path(got):
        name = jax.tree_util.keystr(path)
        differs = jnp.asarray(array != wanted[name])
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
