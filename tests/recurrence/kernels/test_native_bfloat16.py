"""The recurrence in C++ with products of bfloat16 numbers, by each kind of instruction: values against
numpy and gradients against the plain scan, in float64 on the same rounded numbers.

A processor that has fewer instructions is simulated by options of the compiler, in CXX. The tiles of
AMX are emulated where there are none, which checks everything but the instructions themselves."""

import dataclasses
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import explain, gru, lstm
from jaxrnn.recurrence.kernels import cplusplus
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from tests.recurrence.kernels.test_native import masks_for, run_native, scaled
from tests.support.oracle import assert_close, reference
from tests.support.problems import CELLS, library, problem

ROOT = Path(__file__).parents[3]
# The largest relative error of a number that is rounded to bfloat16, which has 8 bits.
ROUNDING = 2**-9
# The rounding errors of a product's operands are independent, so those of sums are a few times as large.
VALUES = 4 * ROUNDING  # in units of the largest entry
GRADIENTS = 6 * ROUNDING  # of the whole array, by the norm
SIZES = {
    # One row, of one unit more than a vector; rows for more than two tiles; K beyond a part and a tile.
    "one row": (6, 1, 5, 17),
    "rows": (5, 37, 3, 9),
    "long": (3, 9, 70, 66),
}
pytestmark = pytest.mark.skipif(
    LIBRARY.unavailable_reason is not None,
    reason=f"waits for a C++ compiler: {LIBRARY.unavailable_reason}",
)


def check(cell: Any, steps: int, batch: int, features: int, reverse: bool, masks: Any) -> None:
    """Values, and gradients by their direction and length."""
    given = scaled(problem(cell, steps, batch, features)).cast("bfloat16")
    results, gradients = run_native(cell, given, reverse, **masks)
    exact = given.exact()
    assert_close(results, reference(cell, *exact.inputs, reverse=reverse, **masks), VALUES)
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(mask) for name, mask in masks.items()}
        wide = exact.cast("float64")
        _, want = library(cell, wide, **arrays, reverse=reverse, implementation="scan")
    if getattr(cell, "activation", None) == "relu":
        # Its derivative jumps where a rounding error changes the sign.
        return
    for got, right in zip(*map(jax.tree.leaves, (gradients, want)), strict=True):
        g, w = (np.asarray(a).astype(np.float64).ravel() for a in (got, right))
        lengths = np.linalg.norm(g), np.linalg.norm(w)
        if not lengths[1]:
            assert not lengths[0]
            continue
        assert g @ w / lengths[0] / lengths[1] > 1 - GRADIENTS**2 / 2
        assert abs(lengths[0] / lengths[1] - 1) < GRADIENTS


@pytest.mark.first_case
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients(name: str, size: str, masked: bool, reverse: bool) -> None:
    steps, batch, features, hidden = SIZES[size]
    cell = dataclasses.replace(CELLS[name], hidden_size=hidden)
    check(cell, steps, batch, features, reverse, masks_for(steps, batch) if masked else {})


@pytest.mark.slow
@pytest.mark.parametrize("cell", [lstm(200), gru(220, reset="after")], ids=["lstm", "gru-after"])
def test_few_rows_that_cores_share(cell: Any) -> None:
    check(cell, 40, 3, 5, False, masks_for(40, 3))


VARIANTS = {
    "pairs widened to float32": "-mno-avx512bf16",
    "shorter vectors": "-mno-avx512f",
    "tiles": "-DJAXRNN_EMULATE_TILES",
    "tiles without bfloat16 vectors": "-DJAXRNN_EMULATE_TILES -mno-avx512bf16",
}


@pytest.mark.rare
@pytest.mark.process
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_instructions(variant: str, tmp_path: Path) -> None:
    """The tests above, and those in float32, with what another processor has."""
    if platform.machine() != "x86_64":
        pytest.skip("waits for a processor whose compiler has these options")
    compiler = " ".join([*COMPILER, VARIANTS[variant]])
    wanted = "values_and_gradients or cores_share or cores_of_their_own or divided"
    files = [
        str(Path(__file__).with_name(name)) for name in ("test_native.py", Path(__file__).name)
    ]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", "--share", "0/6", "-k", wanted]
    result = subprocess.run(
        [*command, *files],
        env=os.environ | {"CXX": compiler, "JAXRNN_CACHE": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]


COMPILER = cplusplus.find_compiler() or ["c++"]

RESULTS = """
import sys, numpy, jax
from tests.recurrence.kernels.test_native import masks_for, run_native, scaled
from tests.support.problems import problem
from jaxrnn import gru, lstm
found = []
for cell, steps, batch in ((lstm(40), 9, 50), (gru(220, reset="after"), 30, 3)):
    given = scaled(problem(cell, steps, batch, 33)).cast("bfloat16")
    found += jax.tree.leaves(run_native(cell, given, **masks_for(steps, batch)))
numpy.savez(sys.argv[1], *(numpy.asarray(a, "float32") for a in found))
"""


@pytest.mark.rare
@pytest.mark.process
@pytest.mark.parametrize("option", ["", "-DJAXRNN_EMULATE_TILES"], ids=["vectors", "tiles"])
def test_any_number_of_threads_gives_the_same_bits(option: str, tmp_path: Path) -> None:
    found = []
    for threads in ("1", "2", "5"):
        file = tmp_path / f"{threads}.npz"
        own = {"NPROC": threads, "JAXRNN_CACHE": str(tmp_path)}
        own |= {"CXX": " ".join([*COMPILER, option])}
        command = [sys.executable, "-c", RESULTS, str(file)]
        subprocess.run(command, env=os.environ | own, cwd=ROOT, check=True)
        found.append(list(np.load(file).values()))
    for others in found[1:]:
        assert_close(others, found[0], 0)


def test_float16_is_computed_in_float32() -> None:
    """The parameters are rounded, and nothing else."""
    cell = CELLS["gru-before"]
    given = problem(cell, 5, 4).cast("float16")
    results, gradients = run_native(cell, given)
    (want, want_gradients) = run_native(cell, given.exact().cast("float32"))
    assert_close(results, want, 2**-11)
    assert_close(gradients, want_gradients, 2**-10)


def test_float64_is_refused() -> None:
    with jax.enable_x64(True), pytest.raises(ValueError, match="no sums wider than float32"):
        explain(lstm(300), (10, 7, 5), "float64", "native")


# --- the instructions ---------------------------------------------------------------------------


def instructions(library: Path) -> str:
    """The machine code of a library in words."""
    if not shutil.which("objdump"):
        pytest.skip("waits for objdump")
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_processors_instructions_are_used() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx512_bf16" not in flags.read_text(encoding="utf-8"):
        pytest.skip("waits for a processor with AVX512-BF16")
    assert instructions(LIBRARY.path()).count("vdpbf16ps") > 100


@pytest.mark.rare
@pytest.mark.process
def test_tiles_are_compiled_with_their_instructions(tmp_path: Path) -> None:
    """Compiled for a processor with AMX, on any."""
    options = ["-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
    try:
        library = LIBRARY.compile([*COMPILER, *options], tmp_path)
    except cplusplus.NotBuilt as reason:
        pytest.skip(f"waits for a compiler that knows AMX: {reason}")
    code = instructions(library)
    assert code.count("tdpbf16ps") > 10 and "ldtilecfg" in code and "tilerelease" in code
