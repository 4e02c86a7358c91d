"""The stage "layers": several layers of a cell in one launch, beside one layer after the other.

All contenders get the same layers, as wide as their inputs. Errors are relative to float64 on the CPU,
for a few steps. Times are of values and gradients, including the products of the inputs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks import measure, peers
from benchmarks.contenders import OURS, queue, ready
from benchmarks.hopper.child import Reporter
from benchmarks.hopper.contenders import COMPILE, DRAWN, RUN, TURNS, Job, problem, reason
from benchmarks.hopper.report import AT_ONCE
from benchmarks.peers import Given
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.kernels.hopper import stack as hopper_stack
from jaxrnn.recurrence.problem import Masks


def layers(job: Job, say: Reporter) -> dict[str, Any]:
    """Measure errors as in the stage "right", then the seconds per call of the contenders, in turns."""
    batch, steps, inputs, hidden = job["size"]
    cell, few = problem(job | {"size": [batch, min(steps, DRAWN), inputs, hidden]})
    say.now("", "float64", COMPILE)
    truth = reference(cell, few, job["layers"])
    found: dict[str, Any] = {}
    out: dict[str, str] = {}
    for name in job["contenders"]:
        if name in job["without"]:
            continue
        if why := refused(cell, job, name):
            out[name] = why
            continue
        say.now(name, "few steps", COMPILE + RUN)
        try:
            run = backward(cell, name, few, job["layers"])
            first, again = peers.numpy(run()), peers.numpy(run())
        except Exception as failure:
            found[name] = {"left_out": reason(failure, say)}
            continue
        found[name] = {
            "values": measure.error(first[0][1], truth[0][1]),
            "gradients": measure.error(first[1], truth[1]),
            "moved": measure.error(again, first),
        }
    _, given = problem(job)
    timed: dict[str, Any] = {}
    for name in (name for name in found if "left_out" not in found[name]):
        say.now(name, "all steps", COMPILE + RUN)
        try:
            timed[name] = partial(queue, backward(cell, name, given, job["layers"]), 1)
            timed[name]()
        except Exception as failure:
            found[name]["left_out"] = reason(failure, say)
            timed.pop(name, None)
    say.now(AT_ONCE if AT_ONCE in timed else "", "in turns", TURNS)
    times = measure.in_turns(timed, job["repeats"])
    return {"contenders": found, "passes": {"forward+backward": times}, "unserved": out}


def refused(cell: Any, job: Job, name: str) -> str | None:
    """Return why a contender cannot run this here; None if it can."""
    batch, steps, inputs, _ = job["size"]
    if name != AT_ONCE:
        try:
            dispatch.explain(cell, (steps, batch, inputs), job["dtype"], name.removeprefix(OURS))
        except ValueError as why:
            return str(why)
        return None
    here = accelerator.device().platform
    if here != "gpu":
        return f"it runs on a Hopper GPU and this is a {here.upper()}"
    return hopper_stack.unsupported_reason(cell, job["layers"], batch, jnp.dtype(job["dtype"]))


def reference(cell: Any, given: Given, count: int) -> Any:
    """Return values and gradients of the plain scan in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return peers.numpy(backward(cell, OURS + "scan", given._replace(dtype="float64"), count)())


def backward(cell: Any, name: str, given: Given, count: int) -> Any:
    """Compile ((loss, (final states, outputs)), gradients of all layers, inputs and states)."""
    return ready(*call(cell, name, given, count))


def call(cell: Any, name: str, given: Given, count: int) -> tuple[Any, Any]:
    """Return the same as a function and its arguments."""
    wide = "float64" if given.dtype == "float64" else "float32"
    each = tuple(jax.tree.map(lambda a, n=n: np.roll(a, n, -1), given.params) for n in range(count))
    given_layers, xs, d_ys = (
        peers.cast(part, given.dtype) for part in (each, given.xs, given.cotangent)
    )
    states = peers.cast((given.state,) * count, wide)
    run = at_once if name == AT_ONCE else partial(one_by_one, name.removeprefix(OURS))

    def loss(layers: Any, xs: Any, states: Any, cotangents: Any) -> Any:
        results = run(cell, layers, xs, states)
        pairs = zip(*map(jax.tree.leaves, (results, cotangents)), strict=True)
        return sum(jnp.sum(r * c.astype(r.dtype), dtype=wide) for r, c in pairs), results

    arguments = given_layers, xs, states, (states, d_ys)
    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    return both, jax.device_put(arguments, accelerator.device())


def at_once(cell: Any, layers: Any, xs: Any, states: Any) -> tuple[Any, Any]:
    """Run all layers in one launch."""
    gx = cell.project(layers[0], xs)
    final, ys = hopper_stack.run(cell, layers, gx, states, Masks(), False)
    return final, ys.astype(xs.dtype)


def one_by_one(
    implementation: Any, cell: Any, layers: Any, xs: Any, states: Any
) -> tuple[Any, Any]:
    """Run one layer after the other."""
    final = []
    for params, state in zip(layers, states, strict=True):
        state, ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)
        final.append(state)
        xs = ys.astype(xs.dtype)
    return tuple(final), xs
