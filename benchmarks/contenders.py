"""jaxrnn's implementations as calls to time, their problem, its float64 reference, the measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks import measure, peers
from benchmarks.peers import Contender, Given
from benchmarks.problems import Size
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch

# The names of jaxrnn's own implementations begin with this.
OURS = "jaxrnn "
Run = Callable[[], Any]


class Mode(NamedTuple):
    """The way in which a cell runs over time.

    resets [T, B], lengths [B], reverse: as `jaxrnn.unroll` takes them.
    projected: whether the inputs are projected beforehand, so that only the recurrence is timed.
    whole: whether the loss includes the final state, and the backward pass also returns the final state
      and the outputs.
    """

    resets: Any = None
    lengths: Any = None
    reverse: bool = False
    projected: bool = False
    whole: bool = False


PLAIN = Mode()


@functools.cache
def _initial(cell: Any, inputs: int) -> Any:
    # Cached because orthogonal weights take seconds at large hidden sizes.
    return jax.device_get(cell.init(jax.random.key(0), inputs))


def draw(cell: Any, size: Size, dtype: str) -> Given:
    """Return a random problem of this size. A GRU's b_h is zero, since flax nnx has none."""
    batch, steps, inputs, hidden = size
    rng = np.random.default_rng(0)
    rounded = jnp.dtype(dtype)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(rounded).astype(np.float32)

    params = _initial(cell, inputs)
    params = params._replace(b=params.b + normal(*params.b.shape, scale=0.1))
    if getattr(params, "w_c", None) is not None:
        params = params._replace(w_c=normal(3, hidden, scale=0.1))
    params = jax.tree.map(lambda w: np.asarray(w).astype(rounded).astype(np.float32), params)
    state = jax.tree.map(lambda s: normal(*s.shape, scale=0.5), cell.initial_state(batch))
    return Given(params, normal(steps, batch, inputs), state, normal(steps, batch, hidden), dtype)


def placed(cell: Any, given: Given, mode: Mode = PLAIN) -> tuple[tuple[Any, Any, Any], Any]:
    """Place a problem on the device.

    Returns:
      (params, inputs, state) as `unroll` takes them, and the cotangents.
    """
    wide = "float64" if given.dtype == "float64" else "float32"
    params, xs, ys = (
        peers.cast(part, given.dtype) for part in (given.params, given.xs, given.cotangent)
    )
    state = peers.cast(given.state, wide)
    if mode.projected:
        xs = jax.jit(cell.project)(params, xs)
    cotangents = (state, ys) if mode.whole else ys
    return jax.device_put(((params, xs, state), cotangents), accelerator.device())


def calls(
    cell: Any, implementation: Any, mode: Mode, arguments: Any, cotangents: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return `jaxrnn.unroll` and its value and gradients, each as (function, arguments).

    Raises:
      ValueError: if the implementation does not support the problem.
    """
    params, inputs, _ = arguments
    masks = {"resets": mode.resets is not None, "reverse": mode.reverse}
    dispatch.explain(cell, inputs.shape, params.w_h.dtype, implementation, **masks)
    how = {"resets": mode.resets, "lengths": mode.lengths, "reverse": mode.reverse}

    def apply(params: Any, inputs: Any, state: Any) -> Any:
        unroll = jaxrnn.unroll_projected if mode.projected else jaxrnn.unroll
        after, ys = unroll(cell, params, inputs, state, **how, implementation=implementation)
        return (after, ys) if mode.whole else ys

    def loss(params: Any, inputs: Any, state: Any, cotangents: Any) -> Any:
        results = apply(params, inputs, state)
        pairs = zip(*map(jax.tree.leaves, (results, cotangents)), strict=True)
        wide = state.hidden.dtype
        total = sum(jnp.sum(r * c.astype(r.dtype), dtype=wide) for r, c in pairs)
        return (total, results) if mode.whole else total

    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=mode.whole)
    return (apply, arguments), (both, (*arguments, cotangents))


def ready(function: Any, arguments: Any) -> Run:
    """Compile a function for its arguments, and return the call of the compiled program."""
    return partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def queue(run: Run, calls: int) -> Any:
    """Make several calls, which wait for each other only on the device; return the last result."""
    for _ in range(calls):
        result = run()
    return jax.block_until_ready(result)


def ours(cell: Any, given: Given, implementation: Any) -> Contender:
    """Return `jaxrnn.unroll` by one implementation as a contender. It is compiled at the first call.

    Raises:
      ValueError: if the implementation does not support the problem.
    """
    forward, (both, arguments) = calls(cell, implementation, PLAIN, *placed(cell, given))
    runs = [
        partial(queue, partial(jax.jit(function), *arguments), 1)
        for function, arguments in (forward, (peers.gradients_alone(both), arguments))
    ]
    return Contender(*runs, peers.numpy, lambda result: peers.numpy(result[1]))


def reference(
    cell: Any, given: Given, mode: Mode = PLAIN, device: jax.Device | None = None
) -> tuple[Any, Any]:
    """Return results and gradients of the plain scan in float64.

    Args:
      cell: the cell.
      given: the problem.
      mode: how it runs; with `mode.whole` the results are (final state, ys), otherwise ys.
      device: the device that computes them; None for the CPU.
    """
    with jax.enable_x64(True), jax.default_device(device or jax.devices("cpu")[0]):
        exact = placed(cell, given._replace(dtype="float64"), mode)
        forward, backward = calls(cell, "scan", mode, *exact)
        value, gradients = peers.numpy(ready(*backward)())
        return value[1] if mode.whole else peers.numpy(ready(*forward)()), gradients


def measured(
    entered: dict[str, Contender], truth: tuple[Any, Any], tolerance: float, repeats: int, what: str
) -> dict[str, dict[str, Any]]:
    """Check the contenders in one pass and time those that are right.

    Returns:
      for each contender its error, the seconds of its first call (which compiles) and its raw seconds
      per call; or under "left_out" the reason why it was not timed.
    """
    runs: dict[str, Callable[[], Any]] = {}
    record: dict[str, dict[str, Any]] = {}
    for name, contender in entered.items():
        ys, slopes = contender.truth or truth
        run = contender.forward if what == "forward" else contender.backward
        try:
            first, result = measure.timed(run)
            if what == "forward":
                error = measure.error(contender.outputs(result), ys)
            else:
                error = measure.error(contender.gradients(result), slopes)
        except Exception as failure:
            # For example out of memory, or a kernel that does not compile.
            record[name] = {"left_out": measure.one_line(failure)}
            continue
        record[name] = {"error": error, "first_call": first}
        if error <= tolerance:
            runs[name] = run
        else:
            reason = f"off by {error:.1e} of the largest entry, above {tolerance:g}"
            record[name]["left_out"] = reason
    for name, times in measure.in_turns(runs, repeats).items():
        record[name] |= times
    return record
