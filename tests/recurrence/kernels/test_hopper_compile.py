"""NVIDIA's own assembler compiles the Hopper kernels for an H100 that is not there.

The registers and spills that it reports are read from its output, and instructions are counted in the
machine code (`benchmarks/ahead_of_time/hopper.py`). No test here runs on a GPU.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.ahead_of_time import hopper as hopper_static
from benchmarks.ahead_of_time import programs as hopper_programs
from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels.hopper import one_cta, search
from jaxrnn.recurrence.kernels.hopper.tiles import DIRECTIONS, MULTIPROCESSORS, alone_shared_bytes
from tests.support.hopper import SHARED, gpu_aot

SERVED = [(name, "bfloat16") for name in hopper_programs.CELL_NAMES] + [
    ("lstm", "float16"),
    ("lstm", "float32"),
]


needs_one_cta = pytest.mark.skipif(
    not one_cta.AVAILABLE, reason="kernels of one CTA wait for JAX 0.11.2"
)
WIDEST = [
    (name, dtype, hidden)
    for dtype, sizes in (
        (
            "bfloat16",
            (("rnn", 256), ("lstm-peephole", 128), ("gru-before", 128), ("gru-after", 128)),
        ),
        ("float16", (("lstm-peephole", 64), ("gru-after", 64))),
        ("float32", (("rnn", 192), ("lstm-peephole", 64), ("gru-before", 64), ("gru-after", 64))),
    )
    for name, hidden in sizes
]


class TestCompiled:
    pytestmark = gpu_aot

    @pytest.mark.parametrize(("name", "dtype"), SERVED)
    def test_kernels_fit(self, name: str, dtype: str) -> None:
        """With masks, all blocks are on the GPU at once and no register is spilled."""
        program = hopper_programs.layer(hopper_programs.Size(name, dtype, 16, 256), masked=True)
        reports = hopper_static.reports(program.function, *program.args)
        assert [r.kernel.split("_")[1] for r in reports] == ["forward", "backward"]
        for report in reports:
            assert report.blocks <= MULTIPROCESSORS
            assert report.static_shared + report.shared <= SHARED
            assert report.spill_stores == report.spill_loads == 0 and not report.losses

    def test_a_size_that_does_not_fit_fails_in_one_line(self) -> None:
        row = hopper_static.compiled(hopper_programs.Size("lstm", "bfloat16", 16, 4096))
        assert "w_h of H = 4096 in bfloat16 does not fit" in row["failed"]
        assert "\n" not in row["failed"] and "kernels" not in row

    @needs_one_cta
    @pytest.mark.parametrize(
        ("name", "batch", "masked", "gates"),
        [("gru-after", 1024, False, 3), ("lstm", 256, True, 4)],
    )
    def test_kernels_of_one_cta(self, name: str, batch: int, masked: bool, gates: int) -> None:
        """A warpgroup of 64 units multiplies by 16 at a time, once for each gate."""
        hidden = 128
        size = hopper_programs.Size(name, "bfloat16", batch, hidden)
        program = hopper_programs.layer(size, masked)
        reports = hopper_static.reports(program.function, *program.args)
        assert [r.kernel.partition("_")[2] for r in reports] == ["forward_alone", "backward_alone"]
        for report in reports:
            assert report.spill_stores == report.spill_loads == 0 and not report.losses
            if report.counts is None:
                pytest.skip("waits for nvdisasm: pip install nvidia-cuda-nvdisasm")
            assert report.counts.hgmma == gates * hidden // 16 and not report.counts.inner_hgmma
            # One before the results are written to shared memory, and one after.
            assert report.counts.bar_sync == 2

    @needs_one_cta
    @pytest.mark.parametrize(("name", "dtype", "hidden"), WIDEST)
    def test_the_most_rows_of_one_cta_fit(
        self, name: str, dtype: str, hidden: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With masks, no register is spilled with as many rows as the library takes."""
        alone = list(search.alones(CELLS[name](hidden), 1000, dtype))[-1]
        monkeypatch.setenv("JAXRNN_HOPPER_TILES", json.dumps(alone._asdict()))
        size = hopper_programs.Size(name, dtype, 1000, hidden)
        program = hopper_programs.layer(size, masked=True)
        reports = hopper_static.reports(program.function, *program.args)
        for report, direction in zip(reports, DIRECTIONS, strict=True):
            assert report.kernel.endswith("_alone")
            depth = getattr(alone, direction)
            counted = alone_shared_bytes(CELLS[name](hidden), direction, alone.rows, depth, dtype)
            # Barriers, and room to align what follows them.
            assert counted <= report.shared <= counted + 2048
            assert report.spill_stores == report.spill_loads == 0 and not report.losses


# --- the report itself --------------------------------------------------------------------------

NUMBERS = jax.ShapeDtypeStruct((256,), jnp.float32)


def adding(name: str, **options: Any) -> Callable[[Any], Any]:
    """Return a kernel with this name and 1 KiB of shared memory."""

    def body(x: Any, out: Any, scratch: Any) -> None:
        scratch[...] = x[...] + 1
        plgpu.commit_smem()
        out[...] = scratch[...]

    body.__name__ = name
    scratch = [plgpu.SMEM(NUMBERS.shape, NUMBERS.dtype)]
    return plgpu.kernel(body, out_type=NUMBERS, scratch_types=scratch, **options)


class TestReports:
    pytestmark = gpu_aot

    def test_launch(self) -> None:
        launch = {"grid": (3,), "grid_names": ("x",), "cluster": (2,), "cluster_names": ("peer",)}
        (report,) = hopper_static.reports(
            adding("kernel", **launch, num_threads=2, thread_name="warpgroup"), NUMBERS
        )
        assert report.kernel == "kernel" and 0 < report.registers < 64
        assert (report.blocks, report.cluster, report.threads) == (6, 2, 256)
        assert 1024 <= report.shared < 2048

    def test_a_kernel_that_was_compiled_before_is_reported_again(self) -> None:
        """A kernel that occurs twice in a program, with another between, is reported twice."""
        once, other = adding("once"), adding("other", num_threads=2, thread_name="warpgroup")
        reports = hopper_static.reports(lambda x: once(other(once(x))), NUMBERS)
        assert [report.kernel for report in reports] == ["once", "other", "once"]
        assert [report.threads for report in reports] == [128, 256, 128]
        assert hopper_static.reports(once, NUMBERS) == reports[:1] == reports[2:]

    def test_kernels_with_one_name_are_told_apart(self) -> None:
        """Two different kernels that have the same name each get their own report."""
        two = {"num_threads": 2, "thread_name": "warpgroup"}
        small, large = adding("kernel"), adding("kernel", **two)
        alone = [hopper_static.reports(kernel, NUMBERS)[0] for kernel in (large, small)]
        assert alone[0].barriers != alone[1].barriers
        assert hopper_static.reports(lambda x: small(large(x)), NUMBERS) == alone


SPILLED = """\
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
insufficient register resources for the wgmma pipeline in the function 'one_mosaic_gpu_kernel' in line 7
ptxas info    : (C7519) warpgroup.arrive is injected in around line 685 by compiler to allow use of \
registers in GMMA in function 'one_mosaic_gpu_kernel'
ptxas warning : Registers are spilled to local memory in function 'one_mosaic_gpu_kernel', \
8728 bytes spill stores, 9424 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for one_mosaic_gpu_kernel
    5272 bytes stack frame, 8728 bytes spill stores, 9424 bytes spill loads
ptxas info    : Used 255 registers, used 3 barriers, 5272 bytes cumulative stack size, 1 bytes smem
ptxas info    : Compile time = 247.085 ms
"""
FITTED = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'two_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for two_mosaic_gpu_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers
ptxas info    : Compile time = 2.690 ms
"""


def test_what_ptxas_says_is_read() -> None:
    """Warnings come first, and numbers that are not mentioned are 0."""
    loss = (
        "wgmma.mma_async instructions are serialized due to insufficient register resources for the "
        "wgmma pipeline"
    )
    spills = {"spill_stores": 8728, "spill_loads": 9424, "stack": 5272}
    one = {"losses": [loss], "registers": 255, "barriers": 3, "static_shared": 1}
    none = dict.fromkeys((*spills, "barriers", "static_shared"), 0)
    assert hopper_static.parse(SPILLED) == one | spills
    assert hopper_static.parse(FITTED) == {"losses": [], "registers": 10} | none
