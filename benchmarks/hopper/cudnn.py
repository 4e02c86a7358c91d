"""cuDNN's recurrences on an NVIDIA GPU: whether they are right, and their time beside "xla" and PyTorch.

    python -m benchmarks.hopper.cudnn                     # at most 60 s; any NVIDIA GPU
    python -m benchmarks.hopper.cudnn --folder build      # cudnn.json goes there

Six problems in float32 and float16. The results and all gradients of a few steps are compared with those
of "xla", float32 without TF32, in units of each array's largest entry, and the offsets of the weights
with those that cuDNN gives. Times are of whole calls, in turns, with the defaults of JAX and PyTorch:
float32 products in TF32, and the algorithm that each library chooses.

What does not fit into the time is left out, the last problems first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import measure, peers
from benchmarks.contenders import OURS, PLAIN, Mode, Run, calls, draw, placed, queue, ready
from benchmarks.hopper.contenders import absent, difference, peer
from benchmarks.problems import CELLS, PASSES
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels.cudnn import algorithm, layer, library, weights
from jaxrnn.recurrence.kernels.cudnn.algorithm import Size
from jaxrnn.recurrence.kernels.cudnn.library import Numbers
from jaxrnn.recurrence.kernels.cudnn.setup import Setup, allows_tf32

SECONDS, REPEATS, STEPS, FEW = 60, 5, 256, 32
# Cell, batch B, inputs and width H, the most important first.
PROBLEMS = [
    ("lstm", 64, 512),
    ("gru-after", 64, 512),
    ("lstm", 16, 128),
    ("rnn", 64, 512),
    ("lstm", 128, 1024),
    ("gru-after", 16, 1024),
]
DTYPES = ("float32", "float16")
NAMES = ("cudnn", "xla")
# The largest error of any array, in units of its largest entry.
TOLERANCES = {"float32": 2e-5, "float16": 2e-2}
# Seconds that are left for the turns of a problem.
TURNS = 4.0


class Job(NamedTuple):
    """A problem in a dtype."""

    cell: str
    batch: int
    hidden: int
    dtype: str


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=measure.positive, default=SECONDS, help="most seconds")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="folder of cudnn.json")
    flags = parser.parse_args()
    if accelerator.device().platform != "gpu":
        parser.error(f"cuDNN needs an NVIDIA GPU, and this is a {accelerator.describe()}")
    if reason := layer.lacks_gpu():
        parser.error(reason)
    begin, console = time.monotonic(), measure.screen()
    record: dict[str, Any] = {"benchmark": "cudnn", "cudnn": library.version(), "results": []}
    record |= measure.surroundings(("torch", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"))
    console.print(f"cuDNN {record['cudnn']} on {accelerator.describe()}")
    jobs = [Job(*job, dtype) for job, dtype in itertools.product(PROBLEMS, DTYPES)]
    output = flags.folder / "cudnn.json"
    for result in measured(jobs, begin + flags.seconds):
        record["results"].append(result)
        measure.write(record, output)
        console.print(line(result), markup=False)
    show(record, console)
    console.print(f"{time.monotonic() - begin:.0f} s; results in {output}")
    if wrong := [line(result) for result in record["results"] if not result["right"]]:
        raise SystemExit("error: wrong results: " + "; ".join(wrong))


def measured(jobs: list[Job], end: float) -> Any:
    """Yield the results of the jobs that fit into the time, of which compiling gets half at most."""
    with ThreadPoolExecutor(12) as pool:
        compiling = [compiled(job, pool) for job in jobs]
        programs = [
            list(itertools.chain(checks.values(), *timed.values())) for checks, timed in compiling
        ]
        # Nothing is timed beside the compiler.
        wait(itertools.chain(*programs), timeout=max(0, end - time.monotonic()) / 2)
        for program in itertools.chain(*programs):
            program.cancel()
    for job, (checks, timed), needed in zip(jobs, compiling, programs, strict=True):
        if time.monotonic() > end - TURNS or any(program.cancelled() for program in needed):
            continue
        result = job._asdict() | {"steps": STEPS}
        try:
            result |= compared(checks)
            result |= {"algorithm": algorithm_of(job), "offsets": offsets_agree(job)}
            result["right"] = result["offsets"] and result["error"] <= TOLERANCES[job.dtype]
            result["passes"] = times(job, timed)
        except Exception as failure:
            result |= {"right": False, "failed": measure.one_line(failure)}
        yield result


def compiled(
    job: Job, pool: ThreadPoolExecutor
) -> tuple[dict[str, Future[Run]], dict[str, list[Future[Run]]]]:
    """Begin to compile a few exact steps, and both passes as users run them, by each implementation."""
    cell = CELLS[job.cell](job.hidden)

    def program(name: str, steps: int, which: int, mode: Mode, precision: str | None) -> Run:
        size = job.batch, steps, job.hidden, job.hidden
        with jax.default_matmul_precision(precision):
            arguments, cotangents = placed(cell, draw(cell, size, job.dtype), mode)
            return ready(*calls(cell, name, mode, arguments, cotangents)[which])

    whole = Mode(whole=True)
    checks = {name: pool.submit(program, name, FEW, 1, whole, "highest") for name in NAMES}
    timed = {
        name: [pool.submit(program, name, STEPS, which, PLAIN, None) for which in range(2)]
        for name in NAMES
    }
    return checks, timed


def compared(checks: dict[str, Future[Run]]) -> dict[str, Any]:
    """Return the largest difference from "xla", and between two calls."""
    (_, values), gradients = checks["xla"].result()()
    run = checks["cudnn"].result()
    found, again = ([*reversed(run())] for _ in range(2))
    got = found[1][1], found[0]
    return {
        "error": float(difference(got, (values, gradients))),
        "moved": float(difference((again[1][1], again[0]), got)),
    }


def offsets_agree(job: Job) -> bool:
    """Return whether cuDNN finds every matrix and bias where `weights` puts it."""
    setup, numbers = described(job)
    products, matrix = 2 * len(setup.cell.GATES), job.hidden**2
    width = jnp.dtype(job.dtype).itemsize
    for product in range(products):
        # All matrices are square here, and the biases come after them.
        wanted = product * matrix, products * matrix + product * job.hidden
        if library.offsets(numbers, 0, product) != tuple(width * n for n in wanted):
            return False
    return library.sizes(numbers).weights == width * weights.count(setup, job.hidden)


def algorithm_of(job: Job) -> str:
    """Return the algorithm of a training step."""
    _, numbers = described(job)
    return next(name for name, n in algorithm.NUMBERS.items() if n == numbers.algorithm)


def described(job: Job) -> tuple[Setup, Numbers]:
    """Return the static part of a training step, and its numbers."""
    setup = Setup(CELLS[job.cell](job.hidden), 1, False, job.dtype, allows_tf32(), "cuda")
    return setup, algorithm.numbers_of(setup, Size(STEPS, job.batch, job.hidden), training=True)


def times(job: Job, timed: dict[str, list[Future[Run]]]) -> dict[str, Any]:
    """Return the seconds of every call of both passes, in turns with PyTorch."""
    contenders: dict[str, list[Callable[[], Any]]] = {
        OURS + name: [partial(queue, program.result(), 1) for program in both]
        for name, both in timed.items()
    }
    if not absent("torch"):
        cell, size = CELLS[job.cell](job.hidden), (job.batch, STEPS, job.hidden, job.hidden)
        rival: peers.Contender = peer("torch").contender(cell, draw(cell, size, job.dtype))
        contenders["torch"] = [rival.forward, rival.backward]
    found = {}
    for which, what in enumerate(PASSES):
        runs = {name: both[which] for name, both in contenders.items()}
        for run in runs.values():
            run()
        found[what] = measure.in_turns(runs, REPEATS)
    return found


def line(result: dict[str, Any]) -> str:
    """Return a result in a line."""
    name = f"{result['cell']}, {result['dtype']}, B = {result['batch']}, H = {result['hidden']}"
    if "failed" in result:
        return f"{name}: {result['failed']}"
    verdict = "right" if result["right"] else "WRONG"
    return (
        f"{name}, {result['algorithm']}: {verdict}, error {result['error']:.1e}, "
        f"moved {result['moved']:.1e}, weights {'agree' if result['offsets'] else 'DISAGREE'}"
    )


def show(record: dict[str, Any], console: Console) -> None:
    """Print the medians in microseconds per step of time."""
    table = Table("cell", "dtype", "B", "H", "pass", *NAMES, "torch", "cudnn / torch")
    for result in record["results"]:
        for what, contenders in result.get("passes", {}).items():
            medians = {
                name: sorted(entry["seconds"])[len(entry["seconds"]) // 2] / STEPS * 1e6
                for name, entry in contenders.items()
            }
            mine, rival = medians[f"{OURS}cudnn"], medians.get("torch")
            ours = [f"{medians[OURS + name]:.2f}" for name in NAMES]
            theirs = [f"{rival:.2f}", f"{mine / rival:.2f}"] if rival else ["", ""]
            size = str(result["batch"]), str(result["hidden"])
            table.add_row(result["cell"], result["dtype"], *size, what, *ours, *theirs)
    console.print(table)


if __name__ == "__main__":
    main()
