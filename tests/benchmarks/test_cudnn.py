"""The benchmark of cuDNN: its error without a GPU, and its results with a stand-in for cuDNN."""

import io
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.hopper import cudnn as benchmark
from jaxrnn.recurrence import kernels
from jaxrnn.recurrence.kernels import cudnn
from jaxrnn.recurrence.kernels.cudnn import layer as cudnn_layer
from tests.support import cudnn as host

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_one_line_of_error_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.hopper.cudnn", "--folder", str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    # JAX's CUDA plugin, if it is installed, logs that it finds no driver.
    message = done.stderr.splitlines()[-1]
    assert re.fullmatch("error: cuDNN needs an NVIDIA GPU, and this is a .*", message)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_results_with_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """All results of small problems are right, and the table has a row for each pass."""
    monkeypatch.setitem(kernels.PLATFORMS, "cudnn", ("cpu",))
    monkeypatch.setattr(cudnn_layer, "unavailable_reason", lambda: None)
    monkeypatch.setattr(cudnn, "run", partial(cudnn_layer.run, platform="cpu"))
    monkeypatch.setattr(benchmark, "STEPS", 8)
    monkeypatch.setattr(benchmark, "FEW", 4)
    jobs = [benchmark.Job(cell, 4, 16, "float16") for cell in ("lstm", "gru-after")]
    with host.use_stand_in():
        results = list(benchmark.measured(jobs, time.monotonic() + 100))
    lines = [benchmark.line(result) for result in results]
    assert all(": right, error " in line and line.endswith("weights agree") for line in lines)
    said = io.StringIO()
    benchmark.show({"results": results}, Console(file=said, width=160))
    assert said.getvalue().count("forward") == 4
    # If there is no time, nothing runs.
    with host.use_stand_in():
        assert not list(benchmark.measured(jobs, time.monotonic()))


def test_lines_of_wrong_and_failed_results() -> None:
    result = benchmark.Job("lstm", 4, 16, "float16")._asdict() | {"algorithm": "standard"}
    wrong = result | {"right": False, "error": 1.0, "moved": 0.0, "offsets": False}
    assert benchmark.line(wrong) == (
        "lstm, float16, B = 4, H = 16, standard: WRONG, error 1.0e+00, moved 0.0e+00, "
        "weights DISAGREE"
    )
    failed = result | {"right": False, "failed": "ValueError: no"}
    assert benchmark.line(failed) == "lstm, float16, B = 4, H = 16: ValueError: no"
