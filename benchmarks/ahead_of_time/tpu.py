"""Static bounds for the recurrence on TPUs that are not present, for each chip and size.

    python -m benchmarks.ahead_of_time --target tpu            # every chip and size, some minutes
    python -m benchmarks.ahead_of_time --target tpu --quick    # v5e at H = 512, under a minute

An LSTM in bfloat16, forward and backward, is compiled ahead of time by libtpu. No number is a time. For
one step of time the table shows

- bundles of the Pallas kernels: instruction words in their loop over time, each at least one cycle. This
  is a lower bound, since waits for memory and for the matrix unit are not included. If w_h does not fit
  the core and is streamed from HBM at every step, these waits may be the larger part.
- estimated cycles of "xla" and "scan": XLA's own model, summed over the operations in the body of their
  loop over time. This is a bound on neither side, and the model knows of no operations that overlap.

A bundle is not a cycle of that model, so their ratio is no speed-up. dw_h is computed inside scan's
backward loop, and after the loop in the two others, where it is not counted. The weights are float32,
cast in the program as in training. The JSON file has the raw numbers, and the operations in a loop's
body that read w_h from HBM.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import jaxrnn
from benchmarks import measure, tables
from benchmarks.ahead_of_time import compiler
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.kernels.tpu.tiles import tiles_for

HIDDEN_SIZES = (256, 512, 1024, 2048)
BATCH = 128
# Steps of time: every block of a kernel divides them, and no array of them has the size of a weight.
STEPS = 40
# Sweeps of an LSTM's step over the tiles of its units.
SWEEPS = {"forward": 1, "backward": 2}
PASSES = tuple(SWEEPS)
PACKAGES = ["libtpu"]
OUTPUT = measure.RESULTS / "tpu_static.json"


def compiled(chip: str, hidden: int, batch: int, implementation: str) -> compiler.Program:
    """Compile the recurrence and its gradients, for gx [T, B, 4H]."""
    cell = jaxrnn.lstm(hidden)

    def both(params: Any, gx: Any, d_ys: Any) -> Any:
        def run(params: Any, gx: Any) -> Any:
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
            return unroll_projected(cell, params, gx, implementation=implementation)[1]

        ys, pull = jax.vjp(run, params, gx)
        return ys, pull(d_ys)

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64))
    gx, d_ys = (
        jax.ShapeDtypeStruct((STEPS, batch, width), jnp.float32) for width in (4 * hidden, hidden)
    )
    return compiler.compile(compiler.devices(chip)[0], jax.jit(both), params, gx, d_ys)


def estimate(chip: str, hidden: int, batch: int, implementation: str) -> dict[str, Any]:
    """Return XLA's estimate for a step of each pass, and the operations that read w_h from HBM."""
    program = compiled(chip, hidden, batch, implementation)
    loops = [loop for loop in program.loops if loop.trips == STEPS]
    if len(loops) != len(PASSES):
        raise ValueError(f"{implementation} on {chip} has {len(loops)} loops over time, not 2")
    w_h = {4 * hidden * hidden}
    return {
        name: {"cycles": loop.cycles, "fetches": [o.name for o in loop.fetches(w_h)]}
        for name, loop in zip(PASSES, loops, strict=True)
    }


def bundles(chip: str, hidden: int, batch: int) -> dict[str, float]:
    """Return the bundles per step of each kernel, from the compiler's dump in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        # libtpu reads these flags when it is loaded.
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.ahead_of_time.tpu", chip, str(hidden), str(batch)],
            env=measure.child_environment(LIBTPU_INIT_ARGS=dump),
            check=True,
        )
        found = {}
        for name in PASSES:
            (path,) = Path(folder).glob(f"*lstm_{name}*[0-9]-final_bundles.txt")
            found[name] = bundles_per_step(path.read_text(encoding="utf-8"), hidden, SWEEPS[name])
        return found


def bundles_per_step(text: str, hidden: int, sweeps: int) -> float:
    """Return the bundles that a kernel runs for one step of all rows, from its `final_bundles` text.

    A bundle is a line `address mark: >> { instructions }` with one `>` for each loop around it, and the
    mark LB where the innermost loop begins. (The scheduler moves a few bundles, which then show fewer
    loops than are around them; they count as they show.) The outermost loop is that of Pallas over the
    grid. One iteration of it is a block of steps, or if w_h is streamed a tile of one of a step's
    sweeps.

    The count has the bundles that every iteration runs, and among the stretches that an iteration may
    jump over the sweeps, which are the last ones that store vectors; each sweep runs for its own tiles.
    The other stretches (the state at its first and last step, what enters a step) run at most once a
    step and are not counted.

    Raises:
      ValueError: for a text of another form.
    """
    shapes = re.findall(r"window shape is \w+\[(.*?)\], while the full shape is \w+\[(.*?)\]", text)
    pairs = [[list(map(int, shape.split(","))) for shape in pair] for pair in shapes]
    # Arrays [T, B, N].
    by_step = [(block, whole) for block, whole in pairs if len(block) == 3]
    if not by_step:
        raise ValueError("no array with an axis of time in the kernel's bundles")
    (steps, rows, columns), (_, batch, whole) = by_step[0]
    # Tiles of a sweep, each in an iteration of its own.
    tiles = hidden // columns if columns < whole else 1
    lines = re.findall(r"^ *(?:0x[0-9a-f]+|0) +([A-Z]{2}|) *: (>*) *\{(.*)", text, re.MULTILINE)
    weights = _times_a_turn(text, lines)
    jumps = _stretches(lines)
    maybe = {place for begin, end in jumps for place in range(begin, end)}
    always = sum(weight for place, weight in enumerate(weights) if place not in maybe)
    if columns == whole:
        return always / steps * -(-batch // rows)
    storing = [(a, b) for a, b in jumps if any(" vst" in code for _, _, code in lines[a:b])]
    if len(storing) < sweeps:
        raise ValueError(f"{len(storing)} of the kernel's stretches store vectors, not {sweeps}")
    in_sweeps = sum(sum(weights[begin:end]) for begin, end in storing[-sweeps:])
    return tiles * (sweeps * always + in_sweeps) * -(-batch // rows)


def _times_a_turn(text: str, lines: list[tuple[str, str, str]]) -> list[int]:
    """Return how often each bundle runs in an iteration that reaches it; 0 outside of the grid."""
    ends = re.findall(
        r"scmp\.ge\.s32\.totalorder (?:\(%\w+\), )?(%\w+), (\d+) /\* loop exit test", text
    )
    bounds = {counter: int(bound) for counter, bound in ends}
    # Trip counts of the loops around a bundle, the outermost first.
    trips: list[int] = []
    times = []
    for mark, arrows, code in lines:
        depth = len(arrows)
        if mark == "LB":
            counters = re.findall(r"= sphi %\w+, (%\w+)", code)
            trips[depth - 1 :] = [bounds[counter] for counter in counters if counter in bounds][:1]
        if depth > len(trips):
            raise ValueError(f"a loop without a known trip count: {code[:200]}")
        times.append(math.prod(trips[1:depth]) if depth else 0)
    if not any(times):
        raise ValueError("no loop over the grid in the kernel's bundles")
    return times


def _stretches(lines: list[tuple[str, str, str]]) -> list[tuple[int, int]]:
    """Return the ranges of bundles that branches in the grid's loop jump over.

    A range with other ranges inside is left out: it is the work of a whole iteration.
    """
    labels = {
        region: place
        for place, (mark, _, code) in enumerate(lines)
        if mark in ("PF", "CT")
        for region in re.findall(r"empty region (\d+)", code)
    }
    jumps = [
        (place + 1, labels[region])
        for place, (_, arrows, code) in enumerate(lines)
        for region in re.findall(r"sbr\.rel .*?target = \$region(\d+)", code)
        if arrows and labels.get(region, -1) > place
    ]
    return [
        (a, b)
        for a, b in jumps
        if not any((a, b) != (c, d) and a <= c and d <= b for c, d in jumps)
    ]


def static(chip: str, hidden: int, batch: int) -> dict[str, Any]:
    """Return everything about one chip and size."""
    cell = jaxrnn.lstm(hidden)
    with jax.default_device(compiler.devices(chip)[0]):
        choice = jaxrnn.explain(cell, (STEPS, batch, 64), jnp.bfloat16)
        serves = choice.implementation == "tpu"
        tiles = tiles_for(cell, STEPS, batch, jnp.bfloat16) if serves else None
    counted, unread = None, None
    if serves:
        try:
            counted = bundles(chip, hidden, batch)
        except ValueError as other_form:
            # The compiler of each chip writes its own form.
            unread = str(other_form)[:100]
    return {
        "chip": chip,
        "hidden": hidden,
        "batch": batch,
        "steps": STEPS,
        "tiles": tiles and tiles._asdict(),
        "bundles": counted,
        "unread": unread,
        "no_kernel": None if serves else choice.why,
        "estimated": {name: estimate(chip, hidden, batch, name) for name in ("xla", "scan")},
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each chip and size."""
    rows = []
    for result in results:
        cells = [result["chip"], str(result["hidden"]), str(result["batch"])]
        kernel, missing = result["bundles"], "not read" if result["unread"] else "no kernel"
        star = "*" * bool(result["tiles"] and result["tiles"]["streamed"])
        cells.append(" + ".join(f"{kernel[p]:,.0f}{star}" for p in PASSES) if kernel else missing)
        for estimated in result["estimated"].values():
            passes = [estimated[p] for p in PASSES]
            cells.append(" + ".join(f"{p['cycles']:,}" + "*" * bool(p["fetches"]) for p in passes))
        rows.append(cells)
    return tables.table(
        "LSTM, bfloat16, one step of all rows: forward + backward. Not times.",
        ("chip", "H", "B", "tpu: bundles", "xla: est. cycles", "scan: est. cycles"),
        rows,
        caption="* reads w_h (or, in scan's backward pass, dw_h) from HBM at every step: once, or a "
        "kernel once for every block of rows",
    )


def run(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compile every chip and size that was asked for, print the table, and return the record."""
    chips = ["v5e"] if flags.quick else flags.chips or list(compiler.CHIPS)
    sizes = [512] if flags.quick else flags.hidden_size or HIDDEN_SIZES
    results = []
    for chip in chips:
        for hidden in sizes:
            console.print(f"{chip}, H = {hidden} ...")
            results.append(static(chip, hidden, flags.batch or BATCH))
    console.print(table(results))
    return {"results": results}


def main() -> None:
    """Compile the kernels of one size, given as CHIP H B, for `bundles` in another process."""
    jax.config.update("jax_platforms", "cpu")
    chip, hidden, batch = sys.argv[1:]
    compiled(chip, int(hidden), int(batch), "tpu")


if __name__ == "__main__":
    main()
