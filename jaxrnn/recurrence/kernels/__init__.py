"""The implementations of a recurrence.

Each is a module here with

    unsupported_reason(problem: Problem) -> str | None          why it cannot run a problem, or None
    run(problem: Problem) -> (final state, outputs [T, B, H])   the outputs in the inputs' dtype

and is found by its name, as users give it to `jaxrnn.unroll`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal

Implementation = Literal[
    "scan", "xla", "associative", "columns", "native", "tpu", "hopper", "cudnn"
]

# The platforms of the implementations that do not run on all.
PLATFORMS = {
    "columns": ("cpu",),
    "native": ("cpu",),
    "tpu": ("tpu",),
    "hopper": ("gpu",),
    "cudnn": ("gpu",),
}

# The module of an implementation that runs several layers in one kernel.
_LAYERS_AT_ONCE = {"cudnn": "cudnn.stack"}

# Implementations in C++, which the wheel carries or the user's machine compiles. Each has a module
# `build` with its `LIBRARY`.
_COMPILED = ("native", "cudnn")


class Missing(str):
    """A reason of `unsupported_reason`: something is missing on this machine, for any problem."""


def load(implementation: Implementation) -> ModuleType:
    """Return the module of an implementation. Imported late, because Pallas takes a second."""
    return importlib.import_module(f"{__name__}.{implementation}")


def load_layers_at_once(implementation: Any) -> ModuleType | None:
    """Return the module of an implementation that runs several layers in one kernel, or None."""
    module = _LAYERS_AT_ONCE.get(implementation)
    return importlib.import_module(f"{__name__}.{module}") if module else None


def register_built() -> None:
    """Register with XLA the handlers in C++ that are in the wheel or were compiled here before."""
    for implementation in _COMPILED:
        importlib.import_module(f"{__name__}.{implementation}.build").LIBRARY.register_built()
