"""The child process of `python -m benchmarks.hopper`: runs jobs and reports its progress.

A job is a dict with a stage and a problem: a cell, a size (B, T, I, H), a dtype and the contenders
(`contenders.py`). Contenders named under "without" are left out.

Everything that may hang is announced first (`child.py`), so that only the named contender is lost. After
an error of the device nothing can run in the process any more, and it ends.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import sys
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import measure, peers, training_throughput
from benchmarks.contenders import OURS, PLAIN, Mode, Run, queue, reference
from benchmarks.hopper.child import Reporter
from benchmarks.hopper.contenders import (
    COMPILE,
    PEERS,
    RUN,
    TURNS,
    Job,
    absent,
    compiled,
    difference,
    mode,
    patience,
    peer,
    problem,
    reason,
    rivals,
    suspect,
)
from benchmarks.problems import PASSES, TOLERANCES
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch

# Seconds of queued calls, where only the device is timed.
QUEUE = 0.05


def main() -> None:
    """Run jobs from standard input until it ends."""
    say = Reporter()
    for line in sys.stdin:
        job = json.loads(line)
        say.done(STAGES[job["stage"]](job, say))
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


# --- the stages ---------------------------------------------------------------------------------


def where(job: Job, say: Reporter) -> dict[str, Any]:
    """Return machine and versions, the device as part of a file name, dtypes, and missing peers."""
    packages = "torch", "flax", "optax", "flashrnn", "nvidia-cudnn-cu13", "nvidia-cublas"
    missing = {name: why for name in PEERS if (why := absent(name))}
    found = {"surroundings": measure.surroundings(packages), "place": measure.place()}
    return found | {"dtypes": list(dispatch.DTYPES), "missing": missing}


def right(job: Job, say: Reporter) -> dict[str, Any]:
    """Measure errors relative to float64 on the CPU, in units of each array's largest entry.

    values: errors of final state and outputs, without and with a backward pass.
    gradients: errors of the gradients of all weights, inputs and the initial state.
    moved: difference between repeated calls.
    """
    cell, given = problem(job)
    how = mode(job)
    if getattr(given.params, "b_h", None) is not None:
        # It was drawn as zero, since flax has none.
        b_h = np.resize(given.params.b[::-1], cell.hidden_size)
        given = given._replace(params=given.params._replace(b_h=b_h))
    truth = reference(cell, given, how)
    found: dict[str, Any] = {}
    runs, out = compiled(job, cell, given, how, say)
    for name, (forward, backward) in runs.items():
        try:
            say.now(name, "first forward", RUN)
            values = [peers.numpy(forward())]
            say.now(name, "first forward+backward", RUN)
            (_, kept), gradients = peers.numpy(backward())
            say.now(name, "the same again", 3 * RUN)
            again = [(peers.numpy(forward()), peers.numpy(backward())[1]) for _ in range(2)]
        except Exception as failure:
            found[name] = {"left_out": reason(failure, say)}
            continue
        found[name] = {
            "values": max(measure.error(v, truth[0]) for v in (*values, kept)),
            "gradients": measure.error(gradients, truth[1]),
            "moved": max(measure.error(a, (values[0], gradients)) for a in again),
        }
    return {"contenders": found, "unserved": out}


def others(job: Job, say: Reporter) -> dict[str, Any]:
    """Measure the same errors of the peers, whose loss includes only the outputs."""
    cell, given = problem(job)
    truth = reference(cell, given)
    found: dict[str, Any] = {}
    out: dict[str, str] = {}
    for name, contender in rivals(job, cell, given, out, say):
        try:
            values = contender.outputs(contender.forward())
            gradients = contender.gradients(contender.backward())
        except Exception as failure:
            found[name] = {"left_out": reason(failure, say)}
            continue
        found[name] = {"values": measure.error(values, truth[0])}
        found[name] |= {"gradients": measure.error(gradients, truth[1])}
    return {"contenders": found, "unserved": out}


def table(job: Job, say: Reporter) -> dict[str, Any]:
    """Time all contenders in both passes, in turns; compare jaxrnn's implementations with "xla" first.

    error: difference from "xla" in the same dtype, in units of each array's largest entry.
    loss: the loss of each contender that returns it, which shows whether the peers run the same problem.
    """
    cell, given = problem(job)
    entered: dict[str, dict[str, Run]] = {}
    found: dict[str, dict[str, Any]] = {what: {} for what in PASSES}
    results: dict[tuple[str, str], Any] = {}
    runs, out = compiled(job, cell, given, PLAIN, say)
    for name, both in runs.items():
        entered[name] = dict(zip(PASSES, both, strict=True))
    entered |= {
        name: {PASSES[0]: contender.forward, PASSES[1]: contender.backward}
        for name, contender in rivals(job, cell, given, out, say)
    }
    for name, passes in entered.items():
        for what, run in passes.items():
            say.now(name, f"first {what}", RUN if name in runs else patience(name))
            try:
                first, result = measure.timed(run)
            except Exception as failure:
                found[what][name] = {"left_out": reason(failure, say)}
                continue
            found[what][name] = {"first_call": first}
            if what == PASSES[1]:
                loss, result = result
                if loss is not None:
                    found[what][name]["loss"] = loss.item()
            if name in runs:
                results[what, name] = result
    for (what, name), result in results.items():
        truth = results.get((what, OURS + "xla"))
        if truth is not None:
            error = float(difference(result, truth))
            found[what][name]["error"] = error
            tolerance = TOLERANCES[jax.default_backend(), given.dtype]
            # The plain scan sums in the narrow dtype.
            if not error <= tolerance and name != OURS + "scan":
                found[what][name]["left_out"] = (
                    f"differs from xla by {error:.1e}, above {tolerance:g}"
                )
    results.clear()
    for what in PASSES:
        timed = {n: entered[n][what] for n, c in found[what].items() if "left_out" not in c}
        say.now(suspect(timed), f"{what} in turns", TURNS)
        for name, times in measure.in_turns(timed, job["repeats"]).items():
            found[what][name] |= times
    return {"passes": found, "unserved": out}


def latency(job: Job, say: Reporter) -> dict[str, Any]:
    """Time the recurrence alone, with inputs projected beforehand and calls queued on the device."""
    cell, given = problem(job)
    found: dict[str, dict[str, Any]] = {what: {} for what in PASSES}
    runs, out = compiled(job, cell, given, Mode(projected=True), say, wait=False)
    for n, what in enumerate(PASSES):
        queued: dict[str, Run] = {}
        counts: dict[str, int] = {}
        for name, both in runs.items():
            say.now(name, f"first {what}", RUN)
            try:
                jax.block_until_ready(both[n]())
                once = min(measure.timed(partial(queue, both[n], 1))[0] for _ in range(2))
            except Exception as failure:
                found[what][name] = {"left_out": reason(failure, say)}
                continue
            counts[name] = math.ceil(QUEUE / once)
            queued[name] = partial(queue, both[n], counts[name])
        say.now(suspect(queued), f"{what} in turns", TURNS)
        for name, times in measure.in_turns(queued, job["repeats"]).items():
            seconds = [each / counts[name] for each in times["seconds"]]
            found[what][name] = {"calls": times["calls"] * counts[name], "seconds": seconds}
    return {"passes": found, "unserved": out}


def training(job: Job, say: Reporter) -> dict[str, Any]:
    """Time whole training steps, as `training_throughput.py` does, by one implementation."""

    config = training_throughput.SETTINGS[job["setting"]]
    asked = "xla" if OURS + "hopper" in job["without"] else job["implementation"]
    if job["quick"]:
        model = dataclasses.replace(config.model, hidden_size=16, embedding_size=16)
        config = dataclasses.replace(config, model=model, batch=2, seq_len=5)
    shape, cell = (
        (config.seq_len, config.batch, config.model.embedding_size),
        config.model.make_cell(),
    )
    dtypes = list(dict.fromkeys(("float32", accelerator.fast_dtype())))
    available = {name: peer(name) for name in job["peers"] if not absent(name)}
    backend, usual = jax.default_backend(), dispatch.measured
    try:
        if asked:
            place = {"platform": backend, "cell": dispatch.cell_name(cell), "implementation": asked}
            place |= {"batch": config.batch, "hidden": cell.hidden_size}
            rows = [place | {"dtype": dtype} for dtype in dtypes]
            dispatch.measured = lambda: rows
            # Forget steps that were traced with another implementation.
            jax.clear_caches()
        picked = {dtype: str(dispatch.explain(cell, shape, dtype)) for dtype in dtypes}
        if asked and not any(why.startswith(asked) for why in picked.values()):
            why = "; ".join(dict.fromkeys(picked.values()))
            return {"contenders": {}, "picked": picked, "unserved": {OURS + asked: why}}
        tolerances = {dtype: TOLERANCES[backend, dtype] for dtype in dtypes}
        say.now(OURS + (asked or "hopper"), "training steps", COMPILE)
        contenders = training_throughput.measured(
            config, job["steps"], job["repeats"], available, tolerances
        )
    finally:
        dispatch.measured = usual
        jax.clear_caches()
    characters = job["steps"] * config.batch * config.seq_len
    return {"contenders": contenders, "characters": characters, "picked": picked}


STAGES = {"where": where, "right": right, "others": others, "table": table, "flashrnn": table}
STAGES |= {"latency": latency, "training": training}


if __name__ == "__main__":
    main()
