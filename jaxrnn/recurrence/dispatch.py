"""Which implementation runs a recurrence, and why.

    scan         jax.lax.scan over `cell.step`, any cell                        everywhere
    xla          XLA's loops with a backward pass of their own, any cell        everywhere
    associative  all steps at once, cells that are linear in their state        everywhere
    columns      the loops of xla, transposed in memory                         CPU
    native       C++, each core with rows of its own                            CPU
    tpu          Pallas kernels, the recurrent weights on the chip or streamed  TPU
    hopper       Pallas kernels, the recurrent weights on the chip              Hopper GPU
    cudnn        NVIDIA's own LSTM, GRU and plain RNN                           NVIDIA GPU

`choose` takes the one asked for by name, or the one that was fastest when it was measured at the nearest
size (`choices.json`, which `benchmarks/cell_throughput.py --write-choices` writes), or where nothing
near was measured, the first of the platform's implementations in `_USUAL` that supports the problem. A
measurement of a GPU applies only to GPUs with the same name. The table was measured with long sequences.
For calls of one step, and on a CPU of a few steps, the implementation with the least overhead is used.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxrnn.devices import accelerator
from jaxrnn.errors import whole_number
from jaxrnn.recurrence import kernels
from jaxrnn.recurrence.cells import Cell, RNNParams, cell_name, is_builtin
from jaxrnn.recurrence.kernels import Implementation, Missing
from jaxrnn.recurrence.problem import Dense, Lookup, Masks, Problem

# Dtypes of parameters and inputs.
DTYPES = ("float32", "bfloat16", "float16", "float64")

# A row of `choices.json`: platform, cell, dtype, batch, hidden, implementation, and the device name
# for GPUs.
Row = dict[str, Any]


class Choice(NamedTuple):
    """The implementation that runs a call, and the reason in words."""

    implementation: Implementation
    why: str

    def __str__(self) -> str:
        return f"{self.implementation}: {self.why}"


def explain(
    cell: Any,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    implementation: Implementation | None = None,
    *,
    resets: bool = False,
    reverse: bool = False,
) -> Any:
    """Return which implementation `unroll` picks for inputs of this shape, and why.

    Args:
      cell: as for `unroll`; or an object with its own `explain`, such as `jaxrnn.layers.stacked` makes,
        which answers in its own way.
      shape: the shape [T, B, D] of xs.
      dtype: the dtype of xs and the parameters.
      implementation: as for `unroll`: None, or one asked for by name.
      resets: whether `unroll` would be given resets.
      reverse: as for `unroll`.

    Returns:
      (implementation, why), which prints as one line.

    Raises:
      ValueError: as `unroll` would, for a dtype that is not supported and an implementation that is
        unknown or cannot run this.
    """
    if hasattr(cell, "explain"):
        if reverse:
            raise ValueError(
                f"reverse is for a cell, and {type(cell).__name__} has its own directions"
            )
        return cell.explain(shape, dtype, implementation, resets=resets)
    shape = check_shape(shape, "TBD")
    check_dtype(dtype)
    problem = abstract_problem(cell, shape, dtype, resets=resets, reverse=reverse)
    return choose(problem, implementation)


def check_shape(shape: Any, axes: str) -> tuple[int, int, int]:
    """Return a shape of xs as whole numbers.

    Args:
      shape: the shape.
      axes: the name of each axis, "TBD" or "BTD".

    Raises:
      ValueError: for another number of axes, and for a length that is no whole number from 0.
    """
    if not isinstance(shape, list | tuple) or len(shape) != len(axes):
        raise ValueError(f"shape must be that of xs, [{', '.join(axes)}], not {shape}")
    first, second, width = (
        whole_number(f"{axis} of shape", n, 0) for axis, n in zip(axes, shape, strict=True)
    )
    return first, second, width


def abstract_problem(
    cell: Cell,
    shape: tuple[int, int, int],
    dtype: Any,
    *,
    resets: bool = False,
    reverse: bool = False,
) -> Problem:
    """Return the problem of `unroll` for inputs of shape [T, B, D], with abstract arrays."""
    steps, batch, width = shape
    size = cell.hidden_size
    if is_builtin(cell):
        # No cell draws weights for D = 0, and w_h does not depend on D.
        shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), max(width, 1)))
        # JAX would make float32 of float64 here where x64 is not enabled.
        params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), shapes)
    else:
        # The init of a user's own cell may need numbers, and only the dtype counts here.
        params = RNNParams(None, jax.ShapeDtypeStruct((size, size), dtype), None)  # type: ignore[arg-type]
    gates = params.w_h.shape[1]
    array = partial(jax.ShapeDtypeStruct, dtype=dtype)
    inputs: Any = Dense(array(shape), array((width, gates)), array((gates,)))  # type: ignore[arg-type]
    mask: Any = jax.ShapeDtypeStruct((steps, batch), jnp.bool_) if resets else None
    return Problem(cell, params, inputs, None, Masks(mask), reverse)


def choose(
    problem: Problem,
    implementation: Implementation | None = None,
    *,
    steps: int | None = None,
    table: list[Row] | None = None,
) -> Choice:
    """Return the implementation asked for by name, or for None the fastest that is known.

    Args:
      problem: what is to be run; its arrays may be abstract.
      implementation: a name, or None.
      steps: the number of steps that are run at once, where it is not that of the problem.
      table: the measured rows; None for those of `choices.json`.

    Raises:
      ValueError: for a dtype that is not supported, and for a name that is unknown or of an
        implementation that cannot run the problem; it says why.
    """
    check_dtype(problem.dtype)
    if implementation not in (None, *get_args(Implementation)):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {names} or None, not {implementation!r}")
    if not problem.batch:
        return Choice("scan", "the batch has no rows")
    if implementation is None:
        steps = problem.steps if steps is None else steps
        if not isinstance(steps, int) or not isinstance(problem.batch, int):
            return Choice("scan", "the sizes are symbols, as jax.export has them")
        return _fastest(problem, steps, measured() if table is None else table)
    reason = unsupported_reason(implementation, problem)
    if reason:
        raise ValueError(f"implementation {implementation!r} cannot run this: {reason}")
    return Choice(implementation, "asked for by name")


def check_dtype(dtype: Any) -> None:
    """Raise ValueError for a dtype that no implementation runs with."""
    try:
        known = jnp.dtype(dtype).name in DTYPES
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"parameters and inputs must be {', '.join(DTYPES)}, not {dtype}")


@functools.cache
def measured() -> list[Row]:
    """Return the rows of `choices.json`."""
    table = resources.files("jaxrnn.recurrence").joinpath("choices.json")
    return json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []


def platform() -> str:
    """Return the platform of the device that new arrays go to, for which implementations are chosen."""
    return accelerator.device().platform


def unsupported_reason(implementation: Implementation, problem: Problem) -> str | None:
    """Return why an implementation cannot run a problem on the device at hand, or None where it can."""
    here = platform()
    wanted = kernels.PLATFORMS.get(implementation, (here,))
    if here not in wanted:
        names = " or a ".join(name.upper() for name in wanted)
        return f"it runs on a {names} and this is a {here.upper()}"
    return kernels.load(implementation).unsupported_reason(problem)


def layers_at_once(
    cell: Cell,
    layers: Sequence[Any],
    inputs: Lookup | Dense,
    implementation: Implementation | None,
) -> Any:
    """Return the module that runs all layers in one call, or None if that is impossible or slower.

    Args:
      cell: the cell of every layer.
      layers: the parameters of each layer.
      inputs: the inputs of the first layer.
      implementation: the requested implementation, or None for the default.
    """
    if len(layers) < 2:
        return None
    first = Problem(cell, layers[0], inputs, None)
    chosen = implementation or choose(first).implementation
    if platform() not in kernels.PLATFORMS.get(chosen, ()):
        return None
    module = kernels.load_layers_at_once(chosen)
    return module if module and module.pays(first, len(layers)) else None


def of_repeated_steps(cell: Cell, params: Any, batch: int) -> Implementation | None:
    """Return the implementation for single steps in a loop with the same weights, or None.

    None stands for `cell.step`.
    """
    if platform() != "cpu" or not is_builtin(cell):
        return None
    shape = (1, batch, 4 * cell.hidden_size)
    gx: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    problem = Problem(cell, params, gx, None, Masks(), False)
    return None if unsupported_reason("native", problem) else "native"


# Where nothing near was measured, the implementations to try, best first.
_USUAL: dict[str, tuple[Implementation, ...]] = {
    "cpu": ("native", "xla", "scan"),
    "gpu": ("cudnn", "xla", "scan"),
    "tpu": ("tpu", "xla", "scan"),
}
# Those for cells without equations of their own in the kernels. On a CPU, JAX's derivative of a scan
# takes about the time of the generic backward pass of "xla" (benchmarks/derivatives.py).
_USUAL_OF_OTHERS: dict[str, tuple[Implementation, ...]] = {
    "cpu": ("scan",),
    "gpu": ("xla", "scan"),
    "tpu": ("xla", "scan"),
}
_ONE_STEP: tuple[Implementation, ...] = ("scan",)
_FEW_STEPS: tuple[Implementation, ...] = ("xla", "scan")

# On a CPU "native" packs the weights at each call, which fewer steps do not make up for.
_FEW = 8

# The largest distance of a measured size, in octaves of B and H together.
_NEAR = 2.0


def _fastest(problem: Problem, steps: int, table: list[Row]) -> Choice:
    here = platform()
    builtin = is_builtin(problem.cell)
    usual = _USUAL if builtin else _USUAL_OF_OTHERS
    order = usual.get(here, ("xla", "scan"))
    row: Row | None = None
    if steps <= 1:
        order, why = _ONE_STEP, "the usual choice for a single step"
    elif not builtin:
        if hasattr(problem.cell, "coefficients"):
            order = ("associative", *order)
        why = f"the usual choice on {here} for a {type(problem.cell).__name__}"
    elif steps < _FEW and here == "cpu":
        order, why = _FEW_STEPS, f"the usual choice on {here} for fewer than {_FEW} steps"
    elif row := _nearest(problem, here, table):
        order, why = (row["implementation"], *order), f"the usual choice on {here}"
    else:
        why = f"the usual choice on {here}, nothing near was measured"
    reasons: list[str] = []
    missing: tuple[str, str] | None = None
    for name in order:
        reason = unsupported_reason(name, problem)
        if reason is None:
            break
        if isinstance(reason, Missing):
            missing = name, reason
        reasons.append(f"{name} cannot run this: {reason}")
    if missing:
        _warn_of_another(name, *missing)
    if row and name == row["implementation"]:
        why = f"the fastest measured on {here}, at B = {row['batch']}, H = {row['hidden']}"
    return Choice(name, "; ".join([*reasons, why]))


# The cache lets it warn once in a process.
@functools.cache
def _warn_of_another(name: str, usual: str, reason: str) -> None:
    warnings.warn(
        f'the recurrence runs by "{name}" in place of "{usual}": {reason}',
        RuntimeWarning,
        stacklevel=2,
    )


def _nearest(problem: Problem, here: str, table: list[Row]) -> Row | None:
    """Return the measured size nearest to the problem's by the ratios of B and H, or None."""
    wanted = here, cell_name(problem.cell), str(problem.dtype)
    size = problem.cell.hidden_size
    name = accelerator.device().device_kind
    rows = [
        (_octaves(row["batch"], problem.batch) + _octaves(row["hidden"], size), row)
        for row in table
        if (row["platform"], row["cell"], row["dtype"]) == wanted
        and row.get("device", name) == name
    ]
    distance, row = min(rows, key=lambda pair: pair[0], default=(math.inf, {}))
    return row if distance <= _NEAR else None


def _octaves(a: int, b: int) -> float:
    return abs(math.log2(a / b))
