"""Errors and times of the Hopper kernels in several tilings of the same problem.

    python -m benchmarks.hopper.ladder                   # on an H100 or H200, two minutes
    python -m benchmarks.hopper.ladder --compile         # without a GPU: compile for an H100
    python -m benchmarks.hopper.ladder --problems lstm,64,512 gru-after,16,1024

Each problem is a cell, B and H, in bfloat16. Its tilings are those with the least time by the model: the
best ones of each number of parts, each with every size of chunks, and every number of rows of the kernel
for small widths. Results are compared with "xla". Forward and backward kernels are timed separately,
without the products around them. Each is called many times in turn with other data, and its results must
be bit-identical. As soon as a tiling is measured, a line is printed and a JSON object is written to the
output; `python -m benchmarks.hopper.tiles --measured` writes the fastest tilings to the library's table.

Several processes compile at once, and one of them at a time runs on the GPU. A tiling that hangs or
crashes ends its process, which restarts with the next tiling.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks import measure
from benchmarks.ahead_of_time.programs import CELL_NAMES
from benchmarks.hopper.ladder_worker import DTYPE, Problem, work
from jaxrnn.recurrence.kernels.hopper import cost_model, search
from jaxrnn.recurrence.kernels.hopper.tiles import DIRECTIONS, Alone

USUAL = [
    Problem("gru-after", 1024, 128),
    Problem("lstm", 1024, 128),
    *(
        Problem(cell, batch, hidden)
        for cell, batches in (
            ("lstm", (64, 16, 128, 256, 1)),
            ("gru-after", (64, 16, 128, 256, 1)),
            ("gru-before", (64, 16)),
            ("rnn", (64,)),
        )
        for batch in batches
        for hidden in (512, 1024, 256, 128, 768)
    ),
]


def share(flags: Any, k: int, lock: Path, until: float) -> Iterator[dict[str, Any]]:
    """Yield the results of process k, which restarts after a tiling at which it hung or crashed."""
    skip = 0
    # It lives as long as the process.
    log = tempfile.TemporaryFile()  # noqa: SIM115
    # "xla" only serves to compare results, so its products need no tuning.
    flags_of_xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    env = measure.child_environment(XLA_FLAGS=flags_of_xla)
    while time.monotonic() < until:
        begun = skip - 1
        command = [sys.executable, "-m", "benchmarks.hopper.ladder"]
        command += ["--share", f"{k}/{flags.workers}"]
        command += ["--lock", str(lock), "--skip", str(skip), "--count", str(flags.count)]
        command += ["--problems", *(",".join(map(str, p)) for p in flags.problems)]
        command += ["--compile"] * flags.compile
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env) as process:
            timer = threading.Timer(until - time.monotonic(), process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                result = json.loads(line)
                begun = result.get("begin", begun)
                if "begin" not in result:
                    yield result
            timer.cancel()
        if not process.returncode or time.monotonic() >= until:
            return
        log.seek(0)
        last = " | ".join(log.read().decode(errors="replace").strip().splitlines()[-4:])
        yield {"failed": f"exit status {process.returncode} at its tiling {begun}: {last[-600:]}"}
        if begun < skip:
            # It did not reach its first tiling.
            return
        skip = begun + 1


def main() -> None:
    """Run the command."""
    flags = _flags()
    if flags.compile:
        # The devices of this machine take no part.
        jax.config.update("jax_platforms", "cpu")
    if flags.share:
        k, of = map(int, flags.share.split("/"))
        work(flags.problems[k::of], flags.count, flags.skip, flags.lock, flags.compile)
        return
    until = time.monotonic() + flags.seconds
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()
    with tempfile.NamedTemporaryFile() as lock, ThreadPoolExecutor(flags.workers) as pool:

        def one(k: int) -> None:
            for result in share(flags, k, Path(lock.name), until):
                with writing:
                    print(line_of(result), flush=True)
                    if flags.output:
                        with flags.output.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(result) + "\n")

        list(pool.map(one, range(flags.workers)))


def line_of(result: dict[str, Any]) -> str:
    """Return a result in one line."""
    if "tiles" not in result:
        return result["failed"]
    problem = Problem(*(result[name] for name in Problem._fields))
    tiles = search.read(result["tiles"])
    line = f"{problem.cell} B {problem.batch} H {problem.hidden}: "
    if isinstance(tiles, Alone):
        line += f"one CTA, rows {tiles.rows} x {tiles.blocks} F{tiles.forward} B{tiles.backward}"
    else:
        line += (
            f"{tiles.parts} x {tiles.groups} rows {tiles.rows} x {tiles.warpgroups} x {tiles.turns}"
        )
        line += "".join(f" {way[0].upper()}{tuple(getattr(tiles, way))}" for way in DIRECTIONS)
    if "failed" in result:
        return f"{line}: {result['failed']}"
    if "errors" not in result:
        return f"{line}: compiles"
    model = cost_model.microseconds(problem.make_cell(), tiles, DTYPE)
    times = [
        f"{way} {result['microseconds'][way]:.2f} (model {model[way]:.2f})" for way in DIRECTIONS
    ]
    errors = ", ".join(f"{name} {error:.1e}" for name, error in result["errors"].items())
    return f"{line}: {', '.join(times)} us; errors {errors}, moved {result['moved']:.1e}"


def _problem(text: str) -> Problem:
    cell, *size = text.split(",")
    if cell not in CELL_NAMES or len(size) != 2:
        names = ", ".join(CELL_NAMES)
        raise argparse.ArgumentTypeError(f"must be CELL,B,H with a cell of {names}, not {text!r}")
    return Problem(cell, *map(measure.positive, size))


def _flags() -> Any:
    parser = measure.Parser(description="Measure tilings of the Hopper kernels on a GPU.")
    add = parser.add_argument
    add("--problems", nargs="+", type=_problem, default=USUAL, metavar="CELL,B,H", help="problems")
    add("--count", type=measure.positive, default=4, help="kinds of tilings of each problem (4)")
    workers = max(1, measure.cores() // 2)
    add("--workers", type=measure.positive, default=workers, help=f"processes ({workers})")
    add("--seconds", type=measure.positive, default=3600, help="most seconds in all (3600)")
    add("--output", type=Path, metavar="FILE", help="file for a JSON object of each tiling")
    add("--compile", action="store_true", help="only compile, for an H100 that is not present")
    for hidden in ("--share", "--lock", "--skip"):
        kind = {"--share": str, "--lock": Path, "--skip": int}[hidden]
        add(hidden, type=kind, default=None if kind is not int else 0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
