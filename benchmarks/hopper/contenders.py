"""The contenders of `python -m benchmarks.hopper`, and the problem that they all get.

Names are those of `cell_throughput.py`, followed by the dtype if it is not that of the job: "jaxrnn
hopper", "torch float16".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, peers
from benchmarks.contenders import OURS, Mode, Run, calls, draw, placed, queue, ready
from benchmarks.hopper.child import Reporter
from benchmarks.peers import Given
from benchmarks.problems import CELLS

# The modules of peers by name.
PEERS = {"torch": "pytorch", "flax nnx": "flax_nnx", "flax linen": "flax_linen"}
PEERS |= {"flashrnn": "flash_rnn"}
# Steps of time that are drawn; longer inputs repeat them.
DRAWN = 32
# The most seconds of a compilation, and of nvcc's for flashrnn.
COMPILE, BUILD = 120, 480
# The most seconds of one call, and of all turns of several contenders.
RUN, TURNS = 15, 90
Job = dict[str, Any]


def compiled(
    job: Job, cell: Any, given: Given, mode: Mode, say: Reporter, wait: bool = True
) -> tuple[dict[str, tuple[Run, Run]], dict[str, str]]:
    """Compile both passes of jaxrnn's implementations among the job's contenders, in parallel.

    Returns:
      both passes by name, not yet run, and the reasons why other implementations have none. With `wait`
      a call returns when its results are computed.
    """
    names = [name for name in _wanted(job) if name.startswith(OURS)]
    runs: dict[str, tuple[Run, Run]] = {}
    out: dict[str, str] = {}
    say.now(suspect(names), "compiling", COMPILE)
    arguments = cache(lambda dtype: placed(cell, given._replace(dtype=dtype), mode))
    with ThreadPoolExecutor() as pool:
        making = {}
        for name in names:
            who, dtype = _split(name)
            try:
                both = calls(cell, who.removeprefix(OURS), mode, *arguments(dtype or given.dtype))
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


def rivals(
    job: Job, cell: Any, given: Given, out: dict[str, str], say: Reporter
) -> Iterator[tuple[str, peers.Contender]]:
    """Yield the peers among the job's contenders; put into `out` why the others cannot run this."""
    for name in _wanted(job):
        who, dtype = _split(name)
        if name.startswith(OURS):
            continue
        say.now(name, "setting up", patience(name))
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
def difference(got: Any, want: Any) -> Any:
    """Compute on the device the largest error of any array, in units of its array's largest entry."""

    def error(g: Any, w: Any) -> Any:
        g, w = g.astype(jnp.float32), w.astype(jnp.float32)
        return jnp.max(jnp.abs(g - w)) / jnp.maximum(jnp.max(jnp.abs(w)), 1e-30)

    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(error, got, want))))


def problem(job: Job) -> tuple[Any, Given]:
    """Return the job's cell and its arguments, as `contenders.draw` draws them."""
    batch, steps, inputs, hidden = job["size"]
    cell = CELLS[job["cell"]](hidden)
    given = draw(cell, (batch, min(steps, DRAWN), inputs, hidden), job["dtype"])
    xs, cotangent = (np.resize(a, (steps, *a.shape[1:])) for a in (given.xs, given.cotangent))
    return cell, given._replace(xs=xs, cotangent=cotangent)


def mode(job: Job) -> Mode:
    """Return the mode of a job of `right`: plain, reversed, or with resets and lengths."""
    batch, steps = job["size"][:2]
    if job["mode"] != "masked":
        return Mode(whole=True, reverse=job["mode"] == "reverse")
    # Resets at a tenth of the steps, and lengths from 0 to T.
    rng = np.random.default_rng(1)
    lengths = rng.permutation(np.linspace(0 if batch > 1 else steps // 2, steps, batch, dtype=int))
    return Mode(rng.random((steps, batch)) < 0.1, lengths.astype(np.int32), whole=True)


def suspect(names: Iterable[str]) -> str:
    """Return the contender to blame if several run: the Hopper kernels, if they are among them."""
    return next((name for name in names if name == OURS + "hopper"), "")


def patience(name: str) -> float:
    """Return the most seconds of a peer's first call."""
    return BUILD if name == "flashrnn" else COMPILE


def peer(name: str) -> Any:
    """Return the module of a peer."""
    return importlib.import_module(f"benchmarks.peers.{PEERS[name]}")


def absent(name: str) -> str | None:
    """Return why a peer cannot run here; None if it can."""
    try:
        return peer(name).check()
    except Exception as why:
        # A broken installation may fail in any way.
        return str(why) if isinstance(why, peers.Missing) else measure.one_line(why)


def reason(failure: BaseException, say: Reporter) -> str:
    """Return a failure in one line, or end the process if the device failed."""
    if isinstance(failure, jax.errors.JaxRuntimeError) or "CUDA error" in str(failure):
        say.lost(measure.one_line(failure))
    return measure.one_line(failure)


def _wanted(job: Job) -> list[str]:
    return [name for name in job["contenders"] if name not in job["without"]]


def _split(name: str) -> tuple[str, str | None]:
    who, _, dtype = name.rpartition(" ")
    return (who, dtype) if dtype in ("float16", "bfloat16", "float32") else (name, None)
