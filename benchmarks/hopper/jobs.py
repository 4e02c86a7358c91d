"""The jobs of every stage, in order of importance, and the time that each stage gets."""

from __future__ import annotations

import collections
import itertools
from typing import Any

from benchmarks.hopper import report

Job = dict[str, Any]

# Share of the time of each stage.
SHARES = {
    "right": 0.24,
    "others": 0.03,
    "table": 0.53,
    "latency": 0.10,
    "training": 0.10,
    "flashrnn": 0.50,
}
USUAL = [stage for stage in SHARES if stage != "flashrnn"]
# The order in which stages get the time that is left at the end.
AGAIN = ("table", "latency", "right", "training", "others", "flashrnn")
# Hangs and crashes at one cell, dtype and hidden size until a contender is not run again.
STRIKES = 2
# Names in `problems.CELLS`, hidden sizes and batches, the most important first.
CELLS = ("lstm", "gru-after", "gru-before", "lstm-peephole", "rnn")
HIDDEN, BATCH = (512, 1024, 768, 256, 128), (64, 16, 128, 256, 1)
STEPS = 1024
# Batches of reinforcement learning, the most important first; hidden size and steps of them.
ACTORS, ACTOR_HIDDEN, ACTOR_STEPS = (1024, 64, 4, 256), 128, 128
KERNELS = ["jaxrnn hopper", "jaxrnn xla"]
PEERS = ["jaxrnn cudnn float16", "jaxrnn cudnn", "torch float16", "torch", "flax nnx"]
# These run only at the first size.
SLOW = ["jaxrnn scan", "flax linen"]


def plan(there: dict[str, Any], repeats: int) -> dict[str, list[Job]]:
    """Return the jobs of every stage, the most important first.

    there: the result of `worker.where`.
    """

    def rows(
        stage: str, cells: tuple[str, ...], sizes: list[Any], contenders: Any, steps: int = STEPS
    ) -> list[Job]:
        return [
            {"stage": stage, "cell": cell, "dtype": "bfloat16", "size": [b, steps, h, h]}
            | {"contenders": contenders, "repeats": repeats}
            for b, h in sizes
            for cell in cells
        ]

    sizes = [(b, h) for b in BATCH for h in HIDDEN]
    first = [(b, h) for b, h in sizes if b in report.BATCHES and h in report.WIDTHS]
    rest = [size for size in sizes if size not in first]
    actors = [(batch, ACTOR_HIDDEN) for batch in ACTORS]
    table = rows("table", CELLS[1:2], actors, KERNELS + PEERS, ACTOR_STEPS)
    table += rows("table", CELLS[:2], first[:1], KERNELS + PEERS + SLOW)
    table += rows("table", CELLS[:1], actors, KERNELS + PEERS, ACTOR_STEPS)
    table += rows("table", CELLS[:2], first[1:] + rest, KERNELS + PEERS)
    table += rows("table", CELLS[2:3], first, KERNELS + PEERS)
    # The first size is the one that FlashRNN's authors published.
    flash = [(16, 768), *(size for size in first if size != (16, 768))]
    contenders = ["jaxrnn hopper", "torch float16", "torch", "flashrnn"]
    here = "flashrnn" not in there["missing"]
    settings = itertools.product(("lecture", "lecture, older"), (None, "xla", "hopper"))
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
        "training": [
            {"stage": "training", "setting": setting, "implementation": implementation}
            | {"steps": 20, "peers": [] if implementation else ["torch", "flax nnx"]}
            | {"repeats": repeats, "quick": False}
            for setting, implementation in settings
        ],
        "flashrnn": rows("flashrnn", CELLS[:2], flash, contenders) if here else [],
    }


def _right(dtypes: list[str]) -> list[Job]:
    """Return masks and dtypes of all cells first, then every hidden size and batch, then the rest."""

    def jobs(cells: Any, sizes: Any, dtype: str = "bfloat16", mode: str = "plain") -> list[Job]:
        return [
            {"stage": "right", "cell": cell, "dtype": dtype, "size": [b, 32, 64, h]}
            | {"mode": mode, "contenders": KERNELS}
            for b, h in sizes
            for cell in cells
        ]

    usual, two = [(64, 512)], CELLS[:2]
    narrow = [dtype for dtype in ("float16", "float32") if dtype in dtypes]
    small = [(1024, ACTOR_HIDDEN)]
    made = jobs(CELLS[1:2], small, mode="masked") + jobs(CELLS, usual, mode="masked")
    made += jobs(CELLS, small, mode="masked")
    for dtype in narrow:
        made += jobs(two[:1], usual, dtype)
    made += jobs(two, [(16, 1024), (1, 256)]) + jobs(two[:1], [(16, 1024)], mode="reverse")
    made += jobs(CELLS, usual)
    for dtype in narrow:
        made += jobs(two[1:], usual, dtype)
    made += jobs(two[1:], [(16, 1024), *small], mode="reverse")
    for dtype in narrow:
        made += jobs(CELLS[2:], usual, dtype) + jobs(CELLS, [(16, 1024)], dtype, "masked")
    every = list(itertools.product((1, 16, 64, 200), (64, 128, 256, 512, 1024)))
    made += jobs(CELLS, every) + jobs(CELLS, every, mode="masked")
    return [job for n, job in enumerate(made) if job not in made[:n]]


def quick_plan(jobs: dict[str, list[Job]]) -> dict[str, list[Job]]:
    """Return the first job of every stage, at a tiny size."""
    usual = {"size": [3, 8, 16, 16]}
    return {
        stage: [job | _TINY.get(stage, {}) | (usual if "cell" in job else {}) for job in jobs[:1]]
        for stage, jobs in jobs.items()
    }


_TINY = {
    "others": {"contenders": ["torch"]},
    "table": {"contenders": [*KERNELS, "torch", "flax nnx"]},
    "training": {"steps": 2, "quick": True, "peers": []},
}


def out(job: Job, results: list[dict[str, Any]]) -> list[str]:
    """Return the contenders that hung or crashed too often at this cell, dtype and hidden size."""

    def kind(job: Job) -> Any:
        return [job.get(k) for k in ("cell", "dtype", "setting")] + job.get("size", [])[-1:]

    alike = (result for result in results if kind(result["job"]) == kind(job))
    lost = collections.Counter(name for result in alike for name in result["lost"])
    return [name for name, times in lost.items() if times >= STRIKES]


def marks(stages: list[str], begin: float, end: float) -> list[tuple[str, float]]:
    """Return the time at which each stage has to end, then the final time once more for each stage."""
    shares = itertools.accumulate(SHARES[stage] for stage in stages)
    whole = sum(SHARES[stage] for stage in stages)
    made = [(s, begin + (end - begin) * n / whole) for s, n in zip(stages, shares, strict=True)]
    return made + [(stage, end) for stage in AGAIN if stage in stages]
