"""All that is measured on one H100 or H200, in one command and nine minutes.

    benchmarks/hopper.sh [FOLDER] [FLAGS]             sets the environment and runs this
    python benchmarks/hopper.py --quick               tiny sizes on any device, nothing written
    python benchmarks/hopper.py --from FILE           show a measured file, measure nothing
    benchmarks/hopper.sh FOLDER --after FILE          go on from it, with what it has not got
    benchmarks/hopper.sh FOLDER --stages flashrnn     one stage has all the time

The stages, each with its share of the time; what one does not use goes to the next, and what is left in
the end to jobs that were not begun:

    right       errors of the kernels against float64 on the CPU, beside those of "xla"
    others      the same for the peers
    table       everybody in turns, T = 1024, D = H; the sizes that matter most come first
    latency     the recurrence alone, beside the derived floor
    layers      several at once, beside one after the other (`hopper_layers`)
    training    steps of the char-RNN
    sampling    characters one by one (`hopper_sampling`)
    flashrnn    only when asked for: the table with FlashRNN, which compiles for minutes at each size

All of it runs in a child process, which is given up when it hangs or dies (`hopper_child`). The file is
written after every job. The goals are in `hopper_report`.
"""

from __future__ import annotations

import collections
import itertools
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.hopper import report
from benchmarks import measure
from benchmarks.hopper.child import Children
from rich.console import Console

Job = dict[str, Any]

SHARES = {  # of the time
    "right": 0.22,
    "others": 0.03,
    "table": 0.44,
    "latency": 0.08,
    "layers": 0.05,
    "training": 0.10,
    "sampling": 0.08,
    "flashrnn": 0.50,
}
USUAL = [stage for stage in SHARES if stage != "flashrnn"]
AGAIN = ("table", "latency", "right", "layers", "training", "sampling", "others", "flashrnn")
SECONDS, QUICK_SECONDS = 530, 300
GRACE = 20.0  # seconds that the last job of a stage may go on for
STRIKES = 2  # hangs and deaths at one cell, dtype and H until a contender is not asked again
REPEATS, QUICK_REPEATS = 5, 1
CELLS = ("lstm", "gru-after", "gru-before", "lstm-peephole", "rnn")
HIDDEN, BATCH = (512, 1024, 768, 256, 2048), (64, 16, 128, 256, 1)
STEPS = 1024
KERNELS = ["jaxrnn pallas", "jaxrnn xla"]
PEERS = ["jaxrnn cudnn float32", "torch float16", "torch", "flax nnx"]
SLOW = ["jaxrnn scan", "flax linen"]  # at the first size alone
CHILD = [sys.executable, str(Path(__file__).parent / "hopper_worker.py")]


def plan(there: dict[str, Any], repeats: int) -> dict[str, list[Job]]:
    """Every stage's jobs, the most important first. there: what `hopper_worker.where` found."""

    def rows(stage: str, cells: tuple[str, ...], sizes: list[Any], contenders: Any) -> list[Job]:
        return [
            {"stage": stage, "cell": cell, "dtype": "bfloat16", "size": [b, STEPS, h, h]}
            | {"contenders": contenders, "repeats": repeats}
            for b, h in sizes
            for cell in cells
        ]

    sizes = [(b, h) for b in BATCH for h in HIDDEN]
    first = [(b, h) for b, h in sizes if b in report.BATCHES and h in report.WIDTHS]
    rest = [size for size in sizes if size not in first]
    table = rows("table", CELLS[:2], first[:1], KERNELS + PEERS + SLOW)
    table += rows("table", CELLS[:2], first[1:] + rest, KERNELS + PEERS)
    table += rows("table", CELLS[2:3], first, KERNELS + PEERS)
    flash = [(16, 768), *(size for size in first if size != (16, 768))]  # its own published size
    contenders = ["jaxrnn pallas", "torch float16", "torch", "flashrnn"]
    here = "flashrnn" not in there["missing"]
    settings = itertools.product(("lecture", "lecture, older"), (None, "xla", "pallas"))
    return {
        "right": _right(there["dtypes"]),
        "others": [
            {"stage": "others", "cell": cell, "dtype": dtype, "size": [16, 32, 512, 512]}
            | {"contenders": ["torch", "flax nnx", *SLOW[1:]]}
            for dtype in ("bfloat16", "float16")
            for cell in CELLS[:2]
        ],
        "table": table,
        "latency": rows("latency", CELLS[:2], first + rest, KERNELS),
        "layers": [
            job | {"layers": count}
            for size in ((64, 512), (16, 256), (1, 512), (128, 256))
            for count in (2, 4)
            for job in rows("layers", CELLS[:2], [size], [report.AT_ONCE, *KERNELS])
        ],
        "training": [
            {"stage": "training", "setting": setting, "implementation": implementation}
            | {"steps": 20, "peers": [] if implementation else ["torch", "flax nnx"]}
            | {"repeats": repeats, "quick": False}
            for setting, implementation in settings
        ],
        "sampling": [
            {"stage": "sampling", "size": size, "dtype": dtype, "length": 500}
            | {"contenders": [*reversed(KERNELS), "torch"], "repeats": repeats}
            for dtype in ("bfloat16", "float32")
            for size in ([1, 2, 512], [64, 2, 512], [1, 1, 1024])
        ],
        "flashrnn": rows("flashrnn", CELLS[:2], flash, contenders) if here else [],
    }


def _right(dtypes: list[str]) -> list[Job]:
    """Masks and dtypes of all cells in the first few jobs, then every width and batch, then the rest."""

    def jobs(cells: Any, sizes: Any, dtype: str = "bfloat16", mode: str = "plain") -> list[Job]:
        return [
            {"stage": "right", "cell": cell, "dtype": dtype, "size": [b, 32, 64, h]}
            | {"mode": mode, "contenders": KERNELS}
            for b, h in sizes
            for cell in cells
        ]

    usual, two = [(64, 512)], CELLS[:2]
    narrow = [dtype for dtype in ("float16", "float32") if dtype in dtypes]
    made = jobs(CELLS, usual, mode="masked")
    for dtype in narrow:
        made += jobs(two[:1], usual, dtype)
    made += jobs(two, [(16, 1024), (1, 256)]) + jobs(two[:1], [(16, 1024)], mode="reverse")
    made += jobs(CELLS, usual) + jobs(two[:1], [(200, 2048)])
    for dtype in narrow:
        made += jobs(two[1:], usual, dtype)
    made += jobs(two[1:], [(16, 1024)], mode="reverse") + jobs(CELLS[1:], [(200, 2048)])
    for dtype in narrow:
        made += jobs(CELLS[2:], usual, dtype) + jobs(CELLS, [(16, 1024)], dtype, "masked")
    every = list(itertools.product((1, 16, 64, 200), (256, 512, 1024, 2048)))
    made += jobs(CELLS, every) + jobs(CELLS, every, mode="masked")
    return [job for n, job in enumerate(made) if job not in made[:n]]


def quick_plan(jobs: dict[str, list[Job]]) -> dict[str, list[Job]]:
    """The first of every stage, tiny."""
    usual = {"size": [3, 8, 16, 16]}
    return {
        stage: [job | _TINY.get(stage, {}) | (usual if "cell" in job else {}) for job in jobs[:1]]
        for stage, jobs in jobs.items()
    }


_TINY = {
    "others": {"contenders": ["torch"]},
    "table": {"contenders": [*KERNELS, "torch", "flax nnx"]},
    "training": {"steps": 2, "quick": True, "peers": []},
    "sampling": {"size": [2, 1, 16], "length": 8},
}


def out(job: Job, results: list[dict[str, Any]]) -> list[str]:
    """The contenders that hung or died too often at this cell, dtype and H to be asked again."""

    def kind(job: Job) -> Any:
        return [job.get(k) for k in ("cell", "dtype", "setting")] + job.get("size", [])[-1:]

    alike = (result for result in results if kind(result["job"]) == kind(job))
    lost = collections.Counter(name for result in alike for name in result["lost"])
    return [name for name, times in lost.items() if times >= STRIKES]


def marks(stages: list[str], begin: float, end: float) -> list[tuple[str, float]]:
    """When each stage is to end, in order, and then once more for what is left of any."""
    shares = itertools.accumulate(SHARES[stage] for stage in stages)
    whole = sum(SHARES[stage] for stage in stages)
    made = [(s, begin + (end - begin) * n / whole) for s, n in zip(stages, shares, strict=True)]
    return made + [(stage, end) for stage in AGAIN if stage in stages]


def run(flags: Any, console: Console, begin: float) -> dict[str, Any]:
    """Measures until the time is up. The file, if there is to be one, is written after every job."""
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
            lines = [f"error: this needs a GPU, not a {where}; try --quick", *children.tail()[-3:]]
            sys.exit("\n".join(lines))
        if flags.after and any(before.get(k) != record[k] for k in ("device", "commit")):
            sys.exit(f"error: {flags.after} is of another device or commit")
        if not record["commit"]:
            console.print("no commit is known: set JAXRNN_COMMIT", markup=False)
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
                _tell(console, result)
                if output:
                    measure.write(record, output)
    finally:
        children.stop()
    if output:
        measure.write(record, output)
        console.print(f"written to {output}", markup=False, soft_wrap=True)
    return record


def read(path: Path) -> dict[str, Any]:
    """A file that `run` wrote. Ends the program with one line where it is not one."""
    record = measure.read(path)
    if record.get("benchmark") != "hopper":
        sys.exit(f"error: {path} is not a file of this benchmark")
    return record


def _tell(console: Console, result: dict[str, Any]) -> None:
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
    begin = time.monotonic()
    flags = _flags()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = measure.screen()
    record = read(flags.source) if flags.source else run(flags, console, begin)
    report.show(record, console)


def _flags() -> Any:
    parser = measure.Parser(description="everything that is measured on one H100 or H200")
    say = parser.add_argument
    stages = ", ".join(SHARES)
    say(
        "--stages",
        nargs="+",
        choices=SHARES,
        metavar="STAGE",
        help=f"of {stages} (all but the last)",
    )
    say("--cells", nargs="+", choices=CELLS, metavar="CELL", help=f"of {', '.join(CELLS)}")
    say("--seconds", type=measure.positive, help=f"in all ({SECONDS}; quick {QUICK_SECONDS})")
    say("--repeats", type=measure.positive, help=f"turns of each ({REPEATS}; quick {QUICK_REPEATS})")
    say("--quick", action="store_true", help="the first of every stage, tiny, on any device")
    say("--folder", type=Path, help="where hopper-DEVICE.json goes (results; quick: nowhere)")
    say("--after", type=Path, metavar="FILE", help="go on from this file of the same device")
    say("--from", dest="source", type=Path, metavar="FILE", help="show this, measure nothing")
    flags = parser.parse_args()
    flags.stages = [stage for stage in SHARES if stage in (flags.stages or USUAL)]
    flags.seconds = flags.seconds or (QUICK_SECONDS if flags.quick else SECONDS)
    flags.repeats = flags.repeats or (QUICK_REPEATS if flags.quick else REPEATS)
    flags.folder = flags.folder or (None if flags.quick else measure.RESULTS)
    return flags


if __name__ == "__main__":
    main()
