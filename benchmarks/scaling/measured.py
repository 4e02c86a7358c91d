"""Measured times of the training step on 1, 2, 4 ... devices of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import measure
from benchmarks.scaling.training import ROWS
from benchmarks.scaling.worker import Worker


def measured(hidden: int, repeats: int, say: Any) -> list[dict[str, Any]]:
    """Time a step on 1, 2, 4 ... devices of this machine, with ROWS rows on each, in turns."""
    done = [on_cores(hidden, repeats, say)] if hasattr(os, "sched_setaffinity") else []
    code = "import jax, json; print(json.dumps([jax.default_backend(), jax.device_count()]))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    backend, count = json.loads(there.stdout or '["cpu", 1]')
    if backend != "cpu" and count > 1:
        counts = [n for n in (1, 2, 4, 8, 16) if n <= count]
        say(f"measuring on {counts} devices ...")
        worker = Worker(counts, hidden, ROWS)
        runs = {f"{n} devices": [(worker, n)] for n in counts}
        done.append({"device": worker.kinds[0]} | in_turns(runs, hidden, repeats))
    return done


def on_cores(hidden: int, repeats: int, say: Any) -> dict[str, Any]:
    """Time one device on one CPU core, two on two cores, and two processes of one device each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    say(f"measuring on cores {cores} ...")
    one = Worker([1], hidden, ROWS, cores[:1])
    runs = {"1 device": [(one, 1)]}
    if len(cores) > 1:
        other, both = Worker([1], hidden, ROWS, cores[1:]), Worker([2], hidden, ROWS, cores)
        runs |= {"2 processes": [(one, 1), (other, 1)], "2 devices": [(both, 2)]}
    return {"device": "cpu", "load": os.getloadavg()[0]} | in_turns(runs, hidden, repeats)


def in_turns(
    runs: dict[str, list[tuple[Worker, int]]], hidden: int, repeats: int
) -> dict[str, Any]:
    """Time every contender once in each round, beginning with another one each time; end the workers.

    A contender that has several workers is as slow as the slowest of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            time.sleep(measure.PAUSE)
            for worker, count in runs[name]:
                worker.begin(count)
            seconds[name].append(max(worker.end() for worker, _ in runs[name]))
    for worker in {id(w): w for pairs in runs.values() for w, _ in pairs}.values():
        worker.stop()
    return {"hidden": hidden, "rows": ROWS, "seconds": seconds}
