"""The stage of the first run on a GPU that checks and times cuDNN: with no GPU, and with a stand-in."""

import io
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import pytest
from rich.console import Console

from benchmarks.hopper import cudnn as stage
from jaxrnn.recurrence import kernels
from jaxrnn.recurrence.kernels import cudnn
from jaxrnn.recurrence.kernels.cudnn import layer as cudnn_layer
from tests.support import cudnn as host

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_the_stage_of_cudnn_stops_in_one_line_without_a_gpu(tmp_path: Path) -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("waits for a machine without a GPU")
    command = [sys.executable, "-m", "benchmarks.hopper.cudnn", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert re.fullmatch(r"error: cuDNN needs an NVIDIA GPU, and this is a .*\n", done.stderr)


@pytest.mark.slow
def test_the_stage_of_cudnn_with_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems, on the host: all are right, and the table has a row for each pass."""
    monkeypatch.setitem(kernels.PLATFORMS, "cudnn", ("cpu",))
    monkeypatch.setattr(cudnn_layer, "lacks_gpu", lambda: None)
    monkeypatch.setattr(cudnn, "run", partial(cudnn_layer.run, platform="cpu"))
    monkeypatch.setattr(stage, "STEPS", 8)
    monkeypatch.setattr(stage, "FEW", 4)
    jobs = [stage.Job(cell, 4, 16, "float16") for cell in ("lstm", "gru-after")]
    with host.in_place_of_cudnn():
        results = list(stage.measured(jobs, time.monotonic() + 100))
    lines = [stage.line(result) for result in results]
    assert all(": right, error " in line and line.endswith("weights agree") for line in lines)
    said = io.StringIO()
    stage.show({"results": results}, Console(file=said, width=160))
    assert said.getvalue().count("forward") == 4
    # Without time nothing runs.
    with host.in_place_of_cudnn():
        assert not list(stage.measured(jobs, time.monotonic()))


def test_what_is_wrong_is_said() -> None:
    result = stage.Job("lstm", 4, 16, "float16")._asdict() | {"algorithm": "standard"}
    wrong = result | {"right": False, "error": 1.0, "moved": 0.0, "offsets": False}
    assert stage.line(wrong) == (
        "lstm, float16, B = 4, H = 16, standard: WRONG, error 1.0e+00, moved 0.0e+00, "
        "weights DISAGREE"
    )
    failed = result | {"right": False, "failed": "ValueError: no"}
    assert stage.line(failed) == "lstm, float16, B = 4, H = 16: ValueError: no"
