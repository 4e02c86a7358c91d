"""Compile the recurrence for a TPU or GPU that is not present, and read the result. See README.md.

    python -m benchmarks.ahead_of_time --target tpu       # instruction words and estimated cycles
    python -m benchmarks.ahead_of_time --target gpu       # kernel launches per step of time
    python -m benchmarks.ahead_of_time --target hopper    # registers and spills of the Hopper kernels

Each target takes some minutes and writes a JSON file. With --quick it compiles one program, takes under
a minute, and writes no file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from benchmarks import measure
from benchmarks.ahead_of_time import compiler, gpu, hopper, tpu
from benchmarks.ahead_of_time.programs import CELL_NAMES

TARGETS: dict[str, ModuleType] = {"tpu": tpu, "gpu": gpu, "hopper": hopper}
# The targets that each flag is for, except for the flags of all targets.
FLAGS = {
    "chips": ("tpu",),
    "hidden_size": ("tpu",),
    "batch": ("tpu",),
    "cells": ("gpu", "hopper"),
    "dtypes": ("gpu", "hopper"),
    "size": ("gpu", "hopper"),
    "masked": ("hopper",),
}


def main() -> None:
    """Run the command."""
    flags = _flags()
    target = TARGETS[flags.target]
    console = measure.screen()
    # The devices of this machine take no part.
    jax.config.update("jax_platforms", "cpu")
    record = target.run(flags, console)
    output = flags.output or (None if flags.quick else target.OUTPUT)
    if output:
        measure.write(measure.surroundings(target.PACKAGES) | record, output)
        console.print(f"written to {output}")


def _flags() -> Any:
    parser = measure.Parser(
        description="Compile the recurrence for a TPU or GPU that is not present."
    )
    add = parser.add_argument
    add("--target", choices=TARGETS, required=True, help="kind of device")
    add("--quick", action="store_true", help="compile one program; writes no file")
    add("--output", type=Path, metavar="FILE", help="JSON file to write (in benchmarks/results/)")
    add = parser.add_argument_group("--target tpu").add_argument
    add("--chips", type=_chip, nargs="+", help=f"chips: {', '.join(compiler.CHIPS)}")
    add("--hidden-size", type=measure.positive, nargs="+", metavar="H", help="hidden sizes")
    add("--batch", type=measure.positive, metavar="B", help=f"rows of the batch ({tpu.BATCH})")
    add = parser.add_argument_group("--target gpu and --target hopper").add_argument
    add("--cells", choices=CELL_NAMES, nargs="+", metavar="CELL", help=", ".join(CELL_NAMES))
    add(
        "--dtypes", choices=hopper.DTYPES, nargs="+", metavar="DTYPE", help=", ".join(hopper.DTYPES)
    )
    add("--size", type=measure.sizes("B,H"), nargs="+", metavar="B,H", help="sizes")
    add = parser.add_argument_group("--target hopper").add_argument
    add("--masked", action="store_true", default=None, help="compile with resets and lengths")
    flags = parser.parse_args()
    for name, targets in FLAGS.items():
        if getattr(flags, name) is not None and flags.target not in targets:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} is for --target {' or '.join(targets)}")
    flags.masked = bool(flags.masked)
    if reason := (compiler if flags.target == "tpu" else gpu).missing():
        parser.error(reason)
    return flags


def _chip(text: str) -> str:
    if text not in compiler.CHIPS:
        names = ", ".join(compiler.CHIPS)
        raise argparse.ArgumentTypeError(f"must be one of {names}, not {text!r}")
    return text


if __name__ == "__main__":
    main()
