"""All measurements on one H100 or H200, in one command and nine minutes.

    benchmarks/hopper/run.sh [FOLDER] [FLAGS]           sets the environment and runs this
    python -m benchmarks.hopper --quick                 tiny sizes on any device; writes no file
    python -m benchmarks.hopper --from FILE             show a measured file; measure nothing
    benchmarks/hopper/run.sh FOLDER --after FILE        continue from a file with what it lacks
    benchmarks/hopper/run.sh FOLDER --stages flashrnn   give all the time to one stage

Each stage has a share of the time. Time that a stage does not use goes to the next stage, and time
that is left at the end goes to jobs that were not started:

    right       errors of the kernels relative to float64 on the CPU, beside those of "xla"
    others      errors of the peers
    table       times of all contenders in turns, T = 1024, I = H; the most important sizes come first
    latency     the recurrence alone, beside the derived floor
    training    steps of the char-RNN
    flashrnn    only on request: the table with FlashRNN, which compiles for minutes at each size

Everything runs in a child process, which is ended when it hangs and replaced when it crashes
(`child.py`). The file is written after every job. The goals are in `report.py`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import measure
from benchmarks.hopper import report
from benchmarks.hopper.child import Children
from benchmarks.hopper.jobs import CELLS, SHARES, USUAL, marks, out, plan, quick_plan

SECONDS, QUICK_SECONDS = 530, 300
REPEATS, QUICK_REPEATS = 5, 1
# Seconds by which the last job of a stage may exceed the stage's time.
GRACE = 20.0
CHILD = [sys.executable, "-m", "benchmarks.hopper.worker"]


def run(flags: Any, console: Console, begin: float) -> dict[str, Any]:
    """Measure until the time runs out. The file, if one is wanted, is written after every job."""
    end = begin + flags.seconds
    before = read(flags.after) if flags.after else {"results": []}
    children = Children(CHILD)
    try:
        there = children.result({"stage": "where"}, [], end)
        if "failed" in there:
            sys.exit(f"error: the child process fails: {there['failed']}\n" + _last(there))
        record = {"benchmark": "hopper"} | there["surroundings"] | {"missing": there["missing"]}
        if record["platform"] != "gpu" and not flags.quick:
            where = record["platform"].upper()
            lines = [
                f"error: this needs a GPU and not a {where}; try --quick",
                *children.tail()[-3:],
            ]
            sys.exit("\n".join(lines))
        if flags.after and any(before.get(k) != record[k] for k in ("device", "commit")):
            sys.exit(f"error: {flags.after} was measured on another device or commit")
        if not record["commit"]:
            console.print("the commit is unknown: set JAXRNN_COMMIT", markup=False)
        record |= {"seconds": flags.seconds, "pause": measure.PAUSE, "stages": {}}
        record["results"] = [r for r in before["results"] if "failed" not in r]
        output = flags.folder and flags.folder / f"hopper-{there['place']}.json"
        todo = plan(there, flags.repeats)
        todo = quick_plan(todo) if flags.quick else todo
        known = [result["job"] for result in record["results"]]
        for stage in flags.stages:
            cells = (None, *(flags.cells or CELLS))
            todo[stage] = [j for j in todo[stage] if j not in known and j.get("cell") in cells]
            record["stages"][stage] = {"seconds": 0.0, "done": 0, "left": len(todo[stage])}
        for stage, mark in marks(flags.stages, time.monotonic(), end):
            while todo[stage] and time.monotonic() < mark:
                start, job = time.monotonic(), todo[stage].pop(0)
                result = {"job": job, "without": out(job, record["results"])}
                result |= children.result(job, result["without"], min(mark + GRACE, end))
                result["took"] = time.monotonic() - start
                result["goals"] = report.goals(result)
                record["results"].append(result)
                state = record["stages"][stage]
                state["seconds"] += result["took"]
                state["done"] += 1
                state["left"] -= 1
                _report(console, result)
                if output:
                    measure.write(record, output)
    finally:
        children.stop()
    if output:
        measure.write(record, output)
        console.print(f"written to {output}", markup=False, soft_wrap=True)
    return record


def read(path: Path) -> dict[str, Any]:
    """Read a file that `run` wrote, or end the program with a line that says why it cannot be read."""
    record = measure.read(path)
    if record.get("benchmark") != "hopper":
        sys.exit(f"error: {path} is not a file of this benchmark")
    # Files of November 2026 have the implementation's former name.
    return json.loads(json.dumps(record).replace('"jaxrnn pallas"', '"jaxrnn hopper"'))


def _report(console: Console, result: dict[str, Any]) -> None:
    job = result["job"]
    place = (str(job[k]) for k in report.PLACE if k in job)
    line = f"{' '.join(place)}: {result['took']:.1f} s"
    line = "; ".join([line, *report.summary(result)])
    lost = [f"{name} {loss['why']}" for name, loss in result["lost"].items()]
    lost += [result["failed"]] if "failed" in result else []
    console.print("; ".join([line, *lost]), markup=False, soft_wrap=True)


def _last(result: dict[str, Any]) -> str:
    return "\n".join(result.get("tail", [])[-3:])


def main() -> None:
    """Run the command."""
    begin = time.monotonic()
    flags = _flags()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = measure.screen()
    record = read(flags.source) if flags.source else run(flags, console, begin)
    report.show(record, console)


def _flags() -> Any:
    parser = measure.Parser(description="Measure everything on one H100 or H200.")
    add = parser.add_argument
    stages = ", ".join(SHARES)
    stages_help = f"stages: {stages} (all but the last)"
    add("--stages", nargs="+", choices=SHARES, metavar="STAGE", help=stages_help)
    add("--cells", nargs="+", choices=CELLS, metavar="CELL", help=f"cells: {', '.join(CELLS)}")
    seconds_help = f"seconds in all ({SECONDS}; with --quick {QUICK_SECONDS})"
    add("--seconds", type=measure.positive, help=seconds_help)
    repeats_help = f"turns of each contender ({REPEATS}; with --quick {QUICK_REPEATS})"
    add("--repeats", type=measure.positive, help=repeats_help)
    add("--quick", action="store_true", help="the first job of every stage, tiny, on any device")
    folder_help = "folder for hopper-DEVICE.json (benchmarks/results; with --quick none)"
    add("--folder", type=Path, help=folder_help)
    add("--after", type=Path, metavar="FILE", help="continue from this file of the same device")
    add("--from", dest="source", type=Path, metavar="FILE", help="show this file; measure nothing")
    flags = parser.parse_args()
    flags.stages = [stage for stage in SHARES if stage in (flags.stages or USUAL)]
    flags.seconds = flags.seconds or (QUICK_SECONDS if flags.quick else SECONDS)
    flags.repeats = flags.repeats or (QUICK_REPEATS if flags.quick else REPEATS)
    flags.folder = flags.folder or (None if flags.quick else measure.RESULTS)
    return flags


if __name__ == "__main__":
    main()
