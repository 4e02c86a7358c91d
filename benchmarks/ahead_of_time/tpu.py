"""Static bounds for the recurrence on TPUs that are not here, per chip and size. No number is a time.

    python benchmarks/tpu_static.py            # every chip and size, some minutes; writes the JSON
    python benchmarks/tpu_static.py --quick    # v5e at H = 512, under a minute; writes nothing

An LSTM in bfloat16, forward and backward, compiled ahead of time by libtpu. Side by side, for one step
of time:

- bundles of the Pallas kernels: instruction words in their loop over time, each at least one cycle. A
  lower bound: waits for memory and for the matrix unit are not in it. Where w_h does not fit the core
  and is streamed from HBM at every step, waits for it may well be the larger part.
- estimated cycles of "xla" and "scan": XLA's own model, added up over the operations in the body of
  their loop over time. No bound to either side, and it knows of no operations that overlap.

A bundle is not a cycle of that model, so their ratio is no speed-up. dw_h is inside scan's backward
loop and after the loop in the two others, and is not counted there. The weights are float32, cast in
the program as in training. Raw numbers, with what reads w_h from HBM in a loop's body, are in the JSON.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ahead_of_time import compiler
import jax
import jax.numpy as jnp
from benchmarks import measure
from rich.table import Table

import jaxrnn
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.kernels.tpu.tiles import tiles_for

SIZES = (256, 512, 1024, 2048)
STEPS = 40  # of time; every block of a kernel divides it, and no array of them has a weight's size
SWEEPS = {"forward": 1, "backward": 2}  # of an LSTM's step over the tiles of its units
PASSES = tuple(SWEEPS)
OUTPUT = measure.RESULTS / "tpu_static.json"


def compiled(chip: str, hidden: int, batch: int, implementation: str) -> compiler.Program:
    """The recurrence and its gradients for gx [T, B, 4H], w_h and the outputs' gradients."""
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
    """XLA's estimate for one step of each pass, and what there reads w_h from HBM."""
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
    """Bundles per step of each kernel, from what the compiler of a process of its own dumps."""
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"  # read when libtpu loads
        size = f"{chip},{hidden},{batch}"
        subprocess.run(
            [sys.executable, __file__, "--kernels-only", size],
            env=os.environ | {"LIBTPU_INIT_ARGS": dump},
            check=True,
        )
        found = {}
        for name in PASSES:
            (path,) = Path(folder).glob(f"*lstm_{name}*[0-9]-final_bundles.txt")
            found[name] = bundles_per_step(path.read_text(encoding="utf-8"), hidden, SWEEPS[name])
        return found


def bundles_per_step(text: str, hidden: int, sweeps: int) -> float:
    """Bundles that a kernel runs for one step of all rows, from its `final_bundles` text.

    A bundle is a line `address mark: >> { instructions }` with one `>` for each loop around it, and
    the mark LB where the innermost of them begins (a few, moved there by the scheduler, show fewer
    loops than are around them, and count as they show). The first loop is Pallas' own, over the turns
    of the grid: a block of steps, or where w_h is streamed a tile of one of a step's sweeps.

    Counted is what every turn runs, and of the stretches that a turn may jump over the sweeps, which
    are the last to store vectors: each runs for its own tiles. The others (the state at its first and
    last step, what enters a step) run once a step or less.

    Raises:
      ValueError: for a text of another form.
    """
    shapes = re.findall(r"window shape is \w+\[(.*?)\], while the full shape is \w+\[(.*?)\]", text)
    pairs = [[list(map(int, shape.split(","))) for shape in pair] for pair in shapes]
    by_step = [(block, whole) for block, whole in pairs if len(block) == 3]  # [T, B, N]
    if not by_step:
        raise ValueError("no array with an axis of time in the kernel's bundles")
    (steps, rows, columns), (_, batch, whole) = by_step[0]
    tiles = hidden // columns if columns < whole else 1  # of a sweep, each in its own turn
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
    """How often each bundle runs in a turn of the grid that comes by it; 0 for those around the grid."""
    ends = re.findall(
        r"scmp\.ge\.s32\.totalorder (?:\(%\w+\), )?(%\w+), (\d+) /\* loop exit test", text
    )
    bounds = {counter: int(bound) for counter, bound in ends}
    trips: list[int] = []  # of the loops around a bundle, the outermost first
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
    """The bundles that a branch in the grid's loop jumps over, as ranges, where no other is inside:
    what has others inside is a turn's work as a whole."""
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
    """Everything about one chip and size."""
    cell = jaxrnn.lstm(hidden)
    with jax.default_device(compiler.devices(chip)[0]):
        choice = jaxrnn.explain(cell, (STEPS, batch, 64), jnp.bfloat16)
        tiles = tiles_for(cell, STEPS, batch, jnp.bfloat16)
    serves = choice.implementation == "pallas"
    counted, unread = None, None
    if serves:
        try:
            counted = bundles(chip, hidden, batch)
        except ValueError as other_form:  # each chip's compiler writes its own
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
    made = Table(
        title="LSTM, bfloat16, one step of all rows: forward + backward. Not times.",
        caption="* reads w_h (or, in scan's backward pass, dw_h) from HBM at every step: once, or a "
        "kernel once for every block of rows",
    )
    for heading in ("chip", "H", "B", "Pallas: bundles", "xla: est. cycles", "scan: est. cycles"):
        made.add_column(heading, justify="right")
    for result in results:
        cells = [result["chip"], str(result["hidden"]), str(result["batch"])]
        kernel, missing = result["bundles"], "not read" if result["unread"] else "no kernel"
        star = "*" * bool(result["tiles"] and result["tiles"]["streamed"])
        cells.append(" + ".join(f"{kernel[p]:,.0f}{star}" for p in PASSES) if kernel else missing)
        for estimated in result["estimated"].values():
            passes = [estimated[p] for p in PASSES]
            cells.append(" + ".join(f"{p['cycles']:,}" + "*" * bool(p["fetches"]) for p in passes))
        made.add_row(*cells)
    return made


def chip_name(text: str) -> str:
    if text not in compiler.CHIPS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(compiler.CHIPS)}, not {text!r}")
    return text


def main() -> None:
    parser = measure.Parser(description="static bounds for the recurrence on TPUs")
    parser.add_argument("--chips", type=chip_name, nargs="+", default=list(compiler.CHIPS))
    parser.add_argument("--hidden-size", type=measure.positive, nargs="+", default=SIZES, metavar="H")
    parser.add_argument("--batch", type=measure.positive, default=128, metavar="B")
    parser.add_argument("--quick", action="store_true", help="one chip and size, nothing written")
    parser.add_argument("--output", type=Path, help=f"of the JSON (default {OUTPUT.name})")
    parser.add_argument("--kernels-only", help=argparse.SUPPRESS)  # see `bundles`
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # whatever is here takes no part
    if reason := compiler.missing():
        parser.error(reason)
    if flags.kernels_only:
        chip, hidden, batch = flags.kernels_only.split(",")
        compiled(chip, int(hidden), int(batch), "pallas")
        return
    console = measure.screen()
    chips, sizes = (["v5e"], [512]) if flags.quick else (flags.chips, flags.hidden_size)
    results = []
    for chip in chips:
        for hidden in sizes:
            console.print(f"{chip}, H = {hidden} ...")
            results.append(static(chip, hidden, flags.batch))
    console.print(table(results))
    output = flags.output or (None if flags.quick else OUTPUT)
    if output:
        measure.write(measure.surroundings(["libtpu"]) | {"results": results}, output)
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
