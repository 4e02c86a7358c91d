"""Which implementation runs a recurrence, and why.

    scan      jax.lax.scan over `cell.step`, any cell, any derivative      everywhere
    xla       plain XLA with a backward pass by hand                       everywhere
    columns   the same, a feature after another in memory                  CPU
    native    C++, each core with rows of its own                          CPU
    pallas    kernels with the recurrent weights on the chip, or streamed  TPU, Hopper GPU
    cudnn     NVIDIA's own LSTM                                            GPU

`choose` takes the one asked for by name, or the one that was fastest when it was measured at the nearest
size (`kernels/choices.json`, which `benchmarks/cell_throughput.py --write-choices` writes), or where
nothing near was measured the platform's usual one: the first of these that can serve the call. The table
is of long sequences; calls of one step, and on a CPU those of a few, run by what costs least to begin.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import warnings
from importlib import resources
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from jaxrnn.devices import accelerator
from jaxrnn.errors import whole_number
from jaxrnn.recurrence.cells import Cell, cell_name
from jaxrnn.recurrence.kernels import Missing

Implementation = Literal["scan", "xla", "columns", "native", "pallas", "cudnn"]

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of parameters and inputs


class Call(NamedTuple):
    """What is asked of an implementation, as far as one may be unable to do it."""

    cell: Cell
    steps: int  # T, those that are run at once
    batch: int  # rows B
    dtype: Any  # of the parameters
    projected: bool = False  # the inputs are projected already
    resets: bool = False
    reverse: bool = False


class Choice(NamedTuple):
    """What runs a call, and the reason in words."""

    implementation: Implementation
    why: str

    def __str__(self) -> str:
        return f"{self.implementation}: {self.why}"


def explain(
    cell: Cell,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    implementation: Implementation | None = None,
    *,
    resets: bool = False,
    reverse: bool = False,
) -> Choice:
    """What `unroll` would pick for inputs of this shape, and why; printed, it is one line.

    Args:
      cell: as for `unroll`.
      shape: of xs, [T, B, D].
      dtype: of xs and the parameters.
      implementation: as for `unroll`: None, or one asked for by name.
      resets: whether `unroll` would be given resets.
      reverse: as for `unroll`.

    Returns:
      (implementation, why).

    Raises:
      ValueError: as `unroll` would, for a dtype that is not supported and an implementation that is
        unknown or cannot run this.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be that of xs, [T, B, D], not {tuple(shape)}")
    steps, batch, _ = (
        whole_number(f"{axis} of shape", n, 0) for axis, n in zip("TBD", shape, strict=True)
    )
    call = Call(cell, steps, batch, jnp.dtype(dtype), resets=resets, reverse=reverse)
    return choose(call, implementation)


def choose(
    call: Call,
    implementation: Implementation | None = None,
    table: list[dict[str, Any]] | None = None,
) -> Choice:
    """What runs a call: the one asked for by name or a ValueError, or for None the fastest known.

    table: what was measured, rows as in `kernels/choices.json`; None for that file.
    """
    check_dtype(call.dtype)
    if implementation not in (None, *get_args(Implementation)):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {names} or None, not {implementation!r}")
    if not call.batch:
        return Choice("scan", "the batch has no rows")
    if implementation is None:
        if not isinstance(call.steps, int) or not isinstance(call.batch, int):
            return Choice("scan", "the sizes are symbols, as jax.export has them")
        return _fastest(call, measured() if table is None else table)
    reason = _obstacle(implementation, call)
    if reason:
        raise ValueError(f"implementation {implementation!r} cannot run this: {reason}")
    return Choice(implementation, "asked for by name")


def check_dtype(dtype: Any) -> None:
    """Raise ValueError for a dtype that no implementation runs with."""
    if jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(f"parameters and inputs must be {', '.join(DTYPES)}, not {dtype}")


@functools.cache
def measured() -> list[dict[str, Any]]:
    """The rows of `kernels/choices.json`: platform, cell, dtype, batch, hidden, implementation."""
    table = resources.files("jaxrnn.recurrence").joinpath("choices.json")
    return json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []


def platform() -> str:
    """The platform that the implementation is chosen for: that of the device that new arrays go to."""
    return accelerator.device().platform


def kernel(name: Implementation) -> Any:
    """The module of an implementation other than scan; imported late, since Pallas takes a second."""
    module = _MODULES.get((name, platform()), name)
    return importlib.import_module(f"jaxrnn.recurrence.kernels.{module}")


def layers_at_once(
    cell: Cell, layers: int, shape: tuple[int, ...], dtype: Any, implementation: Any
) -> Any:
    """The module that runs all layers in one kernel, where one does and takes less time; else None.

    Only where "pallas" is asked for by name: it was measured on no card, and its time is a model's.

    shape: [T, B] of the inputs.
    """
    if layers < 2 or implementation != "pallas" or accelerator.device().platform != "gpu":
        return None
    module = importlib.import_module("jaxrnn.recurrence.kernels.hopper.stack")
    return module if module.pays(cell, layers, *shape, dtype) else None


_MODULES = {  # where the names differ
    ("pallas", "tpu"): "tpu",
    ("pallas", "gpu"): "hopper",
}
_PLATFORMS = {  # of those that do not run everywhere
    "columns": ("cpu",),
    "native": ("cpu",),
    "pallas": ("tpu", "gpu"),
    "cudnn": ("gpu",),
}
_USUAL: dict[str, tuple[Implementation, ...]] = {
    "cpu": ("native", "xla", "scan"),
    "tpu": ("pallas", "xla", "scan"),
}
_ONE_STEP: tuple[Implementation, ...] = ("scan",)
_FEW_STEPS: tuple[Implementation, ...] = ("xla", "scan")
_FEW = 8  # native packs the weights at each call, which fewer steps do not make up for
_NEAR = 2.0  # octaves of B and H together


def _fastest(call: Call, table: list[dict[str, Any]]) -> Choice:
    platform = accelerator.device().platform
    order, row = _USUAL.get(platform, ("xla", "scan")), None
    if call.steps <= 1:
        order, why = _ONE_STEP, "the usual choice for a single step"
    elif call.steps < _FEW and platform == "cpu":
        order, why = _FEW_STEPS, f"the usual choice on {platform} for fewer than {_FEW} steps"
    elif row := _nearest(call, platform, table):
        order, why = (row["implementation"], *order), f"the usual choice on {platform}"
    else:
        why = f"the usual choice on {platform}, nothing near was measured"
    obstacles: list[str] = []
    lacking: tuple[str, str] | None = None
    for name in order:
        reason = _obstacle(name, call)
        if reason is None:
            break
        if isinstance(reason, Missing):
            lacking = name, reason
        obstacles.append(f"{name} cannot run this: {reason}")
    if lacking:
        _warn_of_slower(name, *lacking)
    if row and name == row["implementation"]:
        why = f"the fastest measured on {platform}, at B = {row['batch']}, H = {row['hidden']}"
    return Choice(name, "; ".join([*obstacles, why]))


@functools.cache  # once in a process
def _warn_of_slower(name: str, faster: str, reason: str) -> None:
    warnings.warn(
        f'the recurrence runs by "{name}", which is slower than "{faster}": {reason}',
        RuntimeWarning,
        stacklevel=2,
    )


def _obstacle(name: Implementation, call: Call) -> str | None:
    """Why an implementation cannot serve; None where it can."""
    here = accelerator.device().platform
    wanted = _PLATFORMS.get(name, (here,))
    if here not in wanted:
        return (
            f"it runs on a {' or a '.join(p.upper() for p in wanted)} and this is a {here.upper()}"
        )
    if name == "scan":
        return None
    if name == "cudnn":
        limits = {"projected": call.projected, "resets": call.resets, "reverse": call.reverse}
        return kernel(name).unsupported_reason(call.cell, call.batch, call.dtype, **limits)
    return kernel(name).unsupported_reason(call.cell, call.batch, call.dtype)


def _nearest(call: Call, platform: str, table: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The measured size nearest to this one, as the ratios of B and H go; None where none is near."""
    wanted = (platform, cell_name(call.cell), str(call.dtype))
    rows = [
        (_octaves(row["batch"], call.batch) + _octaves(row["hidden"], call.cell.hidden_size), row)
        for row in table
        if (row["platform"], row["cell"], row["dtype"]) == wanted
    ]
    distance, row = min(rows, key=lambda pair: pair[0], default=(math.inf, {}))
    return row if distance <= _NEAR else None


def _octaves(a: int, b: int) -> float:
    return abs(math.log2(a / b))
