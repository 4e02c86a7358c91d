"""The C++ of this folder: in the wheel for some levels of processor, otherwise compiled at first use."""

from pathlib import Path

from jaxrnn.recurrence.kernels.cplusplus import Library

LIBRARY = Library(
    name="recurrence",
    source=Path(__file__).with_name("recurrence.cc"),
    handlers=tuple(
        f"jaxrnn_{name}" for name in ("pack", "forward", "backward", "outer", "back", "sum_equal")
    ),
    platform="cpu",
    systems=("Linux", "Darwin"),
    flags=("-march=native",),
)
