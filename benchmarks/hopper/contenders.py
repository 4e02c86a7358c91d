"""Who takes part in `hopper.py`, and the problem that they are all given.

Names are those of `cell_throughput.py`, and after a name, where it is not the job's, the dtype:
"jaxrnn pallas", "torch float16".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

from benchmarks import cell_throughput
import jax
import jax.numpy as jnp
from benchmarks import measure
import numpy as np
from benchmarks import peers
from benchmarks.hopper.child import Say
from benchmarks.peers import Given

import jaxrnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch

OURS = "jaxrnn "
PEERS = {"torch": "pytorch", "flax nnx": "flax_nnx", "flax linen": "flax_linen"}
PEERS |= {"flashrnn": "flash_rnn"}  # names and modules
DRAWN = 32  # steps of time that are drawn; longer inputs repeat them
COMPILE, BUILD = 120, 480  # seconds that it may take; BUILD is nvcc's, for flashrnn
RUN, TURNS = 15, 90  # seconds that one call, and all turns of several contenders, may take
Job = dict[str, Any]
Run = Callable[[], Any]


class How(NamedTuple):
    """A way to run a cell over time.

    resets [T, B], lengths [B], reverse: as `jaxrnn.unroll` takes them.
    projected: give it the projected inputs, so that the recurrence runs alone.
    whole: the loss is of the final state too, and the backward pass gives state and outputs back.
    """

    resets: Any = None
    lengths: Any = None
    reverse: bool = False
    projected: bool = False
    whole: bool = False


def compiled(
    job: Job, cell: Any, given: Given, how: How, say: Say, wait: bool = True
) -> tuple[dict[str, tuple[Run, Run]], dict[str, str]]:
    """Both passes of jaxrnn's own among the job's contenders, compiled side by side but not yet run,
    and why the others have none. With `wait` a call returns when its results are there."""
    names = [name for name in _wanted(job) if name.startswith(OURS)]
    runs: dict[str, tuple[Run, Run]] = {}
    out: dict[str, str] = {}
    say.now(suspect(names), "compiling", COMPILE)
    arguments = cache(lambda dtype: placed(cell, given._replace(dtype=dtype), how))
    with ThreadPoolExecutor() as pool:
        making = {}
        for name in names:
            who, dtype = _split(name)
            try:
                both = calls(cell, who.removeprefix(OURS), how, *arguments(dtype or given.dtype))
            except ValueError as why:
                out[name] = str(why)
                continue
            making[name] = [pool.submit(ready, *call) for call in both]
        for name, both in making.items():
            try:
                runs[name] = tuple(made.result() for made in both)
            except Exception as failure:
                out[name] = measure.one_line(failure)
    if wait:
        runs = {name: tuple(partial(queue, run, 1) for run in both) for name, both in runs.items()}
    return runs, out


def placed(cell: Any, given: Given, how: How) -> tuple[tuple[Any, Any, Any], Any]:
    """On the device: (params, inputs, state) as `unroll` takes them, and the cotangents."""
    wide = "float64" if given.dtype == "float64" else "float32"
    params, xs, ys = (
        peers.cast(part, given.dtype) for part in (given.params, given.xs, given.cotangent)
    )
    state = peers.cast(given.state, wide)
    if how.projected:
        xs = jax.jit(cell.project)(params, xs)
    cotangents = (state, ys) if how.whole else ys
    return jax.device_put(((params, xs, state), cotangents), accelerator.device())


def calls(
    cell: Any, implementation: Any, how: How, arguments: Any, cotangents: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """`jaxrnn.unroll` and its value and gradients, each as a function and its arguments.

    Raises:
      ValueError: where the implementation cannot run this.
    """
    params, inputs, _ = arguments
    masks = {"resets": how.resets is not None, "reverse": how.reverse}
    dispatch.explain(cell, inputs.shape, params.w_h.dtype, implementation, **masks)

    def apply(params: Any, inputs: Any, state: Any) -> Any:
        unroll = jaxrnn.unroll_projected if how.projected else jaxrnn.unroll
        last = how.resets, how.lengths, how.reverse, implementation
        after, ys = unroll(cell, params, inputs, state, *last)
        return (after, ys) if how.whole else ys

    def loss(params: Any, inputs: Any, state: Any, cotangents: Any) -> Any:
        results = apply(params, inputs, state)
        pairs = zip(*map(jax.tree.leaves, (results, cotangents)), strict=True)
        wide = state.hidden.dtype
        total = sum(jnp.sum(r * c.astype(r.dtype), dtype=wide) for r, c in pairs)
        return (total, results) if how.whole else total

    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=how.whole)
    return (apply, arguments), (both, (*arguments, cotangents))


def ready(function: Any, arguments: Any) -> Run:
    """A compiled program on its arguments."""
    return partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def reference(cell: Any, given: Given, how: How) -> tuple[Any, Any]:
    """(final state, ys) and the gradients by the plain scan in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = placed(cell, given._replace(dtype="float64"), how)
        _, backward = calls(cell, "scan", how, *exact)
        (_, values), gradients = peers.numpy(ready(*backward)())
        return values, gradients


def rivals(
    job: Job, cell: Any, given: Given, out: dict[str, str], say: Say
) -> Iterator[tuple[str, peers.Contender]]:
    """The peers among the job's contenders; into `out` goes why the others cannot run this."""
    for name in _wanted(job):
        who, dtype = _split(name)
        if name.startswith(OURS):
            continue
        say.now(name, "being made", patience(name))
        if why := absent(who):
            out[name] = why
            continue
        try:
            made = peer(who).contender(cell, given._replace(dtype=dtype or given.dtype))
        except peers.Unserved as why:
            out[name] = str(why)
        except Exception as failure:
            out[name] = reason(failure, say)
        else:
            yield name, made


@jax.jit
def apart(got: Any, want: Any) -> Any:
    """The largest error of any array, in units of its array's largest entry, found on the device."""

    def error(g: Any, w: Any) -> Any:
        g, w = g.astype(jnp.float32), w.astype(jnp.float32)
        return jnp.max(jnp.abs(g - w)) / jnp.maximum(jnp.max(jnp.abs(w)), 1e-30)

    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(error, got, want))))


def problem(job: Job) -> tuple[Any, Given]:
    """The cell, and its arguments as `cell_throughput.draw` draws them."""
    batch, steps, inputs, hidden = job["size"]
    cell = cell_throughput.CELLS[job["cell"]](hidden)
    given = cell_throughput.draw(cell, (batch, min(steps, DRAWN), inputs, hidden), job["dtype"])
    xs, cotangent = (np.resize(a, (steps, *a.shape[1:])) for a in (given.xs, given.cotangent))
    return cell, given._replace(xs=xs, cotangent=cotangent)


def way(job: Job) -> How:
    """Of a job of `right`: resets at a tenth of the steps and lengths from 0 to T, or neither."""
    batch, steps = job["size"][:2]
    if job["mode"] != "masked":
        return How(whole=True, reverse=job["mode"] == "reverse")
    rng = np.random.default_rng(1)
    lengths = rng.permutation(np.linspace(0 if batch > 1 else steps // 2, steps, batch, dtype=int))
    return How(rng.random((steps, batch)) < 0.1, lengths.astype(np.int32), whole=True)


def queue(run: Run, calls: int) -> Any:
    """The result of the last of some calls, which wait for one another on the device alone."""
    for _ in range(calls):
        result = run()
    return jax.block_until_ready(result)


def suspect(names: Iterable[str]) -> str:
    """Who is to blame where several were at work: the kernels that nobody has run before."""
    return next((name for name in names if name == OURS + "pallas"), "")


def patience(name: str) -> float:
    """Seconds that a peer's first call may take."""
    return BUILD if name == "flashrnn" else COMPILE


def peer(name: str) -> Any:
    """Its module."""
    return importlib.import_module(f"peers.{PEERS[name]}")


def absent(name: str) -> str | None:
    """Why a peer cannot run here; None where it can."""
    try:
        return peer(name).check()
    except Exception as why:  # a broken installation is its own reason
        return str(why) if isinstance(why, peers.Missing) else measure.one_line(why)


def reason(failure: BaseException, say: Say) -> str:
    """A failure in a line. Where it was the device's the process ends: nothing will run there again."""
    if isinstance(failure, jax.errors.JaxRuntimeError) or "CUDA error" in str(failure):
        say.lost(measure.one_line(failure))
    return measure.one_line(failure)


def _wanted(job: Job) -> list[str]:
    return [name for name in job["contenders"] if name not in job["without"]]


def _split(name: str) -> tuple[str, str | None]:
    who, _, dtype = name.rpartition(" ")
    return (who, dtype) if dtype in ("float16", "bfloat16", "float32") else (name, None)
