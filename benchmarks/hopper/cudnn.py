"""Check cuDNN's recurrences on an NVIDIA GPU, and time them together with "xla" and PyTorch.

    python -m benchmarks.hopper.cudnn                     # at most 60 s; any NVIDIA GPU
    python -m benchmarks.hopper.cudnn --folder build      # cudnn.json goes there

There are six problems, each in float32 and float16. The outputs and all gradients over 32 steps are
compared with those of "xla", in float32 without TF32. Errors are relative to the largest entry of each
array. The offsets of the weights are compared with those that cuDNN reports. Times are those of whole
calls over 256 steps, which take turns. They use the defaults of JAX and PyTorch: float32 products in
TF32, and the algorithm that each library chooses.

If the time is too short for all problems, the last ones are left out.
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
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig, allows_tf32
from jaxrnn.recurrence.kernels.cudnn.library import DescriptorArguments

SECONDS, REPEATS, STEPS, FEW = 60, 5, 256, 32
# (cell, batch B, hidden size H), the most important first. The inputs have H features.
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
# Errors up to these are accepted, relative to the largest entry of an array.
TOLERANCES = {"float32": 2e-5, "float16": 2e-2}
# The checks and times of a problem take up to this many seconds.
PROBLEM_SECONDS = 4.0


class Job(NamedTuple):
    """A problem and its dtype."""

    cell: str
    batch: int
    hidden: int
    dtype: str


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=measure.positive, default=SECONDS, help="time limit in seconds"
    )
    parser.add_argument("--folder", type=Path, default=Path("build"), help="folder for cudnn.json")
    flags = parser.parse_args()
    if accelerator.device().platform != "gpu":
        parser.error(f"cuDNN needs an NVIDIA GPU, and this is a {accelerator.describe()}")
    if reason := layer.unavailable_reason():
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
    """Yield the results of the jobs until the time `end`.

    At most half of the time is used to compile. A job whose programs are not ready by then is left out.
    """
    with ThreadPoolExecutor(12) as pool:
        compiling = [compiled(job, pool) for job in jobs]
        programs = [
            list(itertools.chain(checks.values(), *timed.values())) for checks, timed in compiling
        ]
        # Nothing is timed while the compiler runs.
        wait(itertools.chain(*programs), timeout=max(0, end - time.monotonic()) / 2)
        for program in itertools.chain(*programs):
            program.cancel()
    for job, (checks, timed), needed in zip(jobs, compiling, programs, strict=True):
        if time.monotonic() > end - PROBLEM_SECONDS or any(
            program.cancelled() for program in needed
        ):
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
    """Start to compile the programs of a job.

    Returns:
      (checks, timed): for each implementation, the program of the check, and those of the two passes
      that are timed.
    """
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
    """Return the largest difference of cuDNN from "xla", and that between two calls of cuDNN."""
    (_, values), gradients = checks["xla"].result()()
    run = checks["cudnn"].result()
    found, again = ([*reversed(run())] for _ in range(2))
    got = found[1][1], found[0]
    return {
        "error": float(difference(got, (values, gradients))),
        "moved": float(difference((again[1][1], again[0]), got)),
    }


def offsets_agree(job: Job) -> bool:
    """Return whether cuDNN and `weights` agree on the offset of every matrix and bias."""
    config, descriptor = training_step(job)
    itemsize = jnp.dtype(job.dtype).itemsize
    expected = weights.offsets(config, job.hidden)
    found = [library.offsets(descriptor, 0, product) for product in range(len(expected))]
    return found == [(itemsize * matrix, itemsize * bias) for matrix, bias in expected]


def algorithm_of(job: Job) -> str:
    """Return the name of the algorithm of a training step."""
    _, descriptor = training_step(job)
    return next(name for name, n in algorithm.ALGORITHMS.items() if n == descriptor.algorithm)


def training_step(job: Job) -> tuple[CallConfig, DescriptorArguments]:
    """Return the configuration and the descriptor arguments of a training step."""
    config = CallConfig(CELLS[job.cell](job.hidden), 1, False, job.dtype, allows_tf32(), "cuda")
    return config, algorithm.descriptor_for(
        config, Size(STEPS, job.batch, job.hidden), training=True
    )


def times(job: Job, timed: dict[str, list[Future[Run]]]) -> dict[str, Any]:
    """Return the seconds of every call of each pass, for all implementations and PyTorch in turns."""
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
    """Return a result as one line of text."""
    name = f"{result['cell']}, {result['dtype']}, B = {result['batch']}, H = {result['hidden']}"
    if "failed" in result:
        return f"{name}: {result['failed']}"
    verdict = "right" if result["right"] else "WRONG"
    return (
        f"{name}, {result['algorithm']}: {verdict}, error {result['error']:.1e}, "
        f"moved {result['moved']:.1e}, weights {'agree' if result['offsets'] else 'DISAGREE'}"
    )


def show(record: dict[str, Any], console: Console) -> None:
    """Print the median times in microseconds per step."""
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
