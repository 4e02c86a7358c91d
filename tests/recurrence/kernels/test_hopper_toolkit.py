"""The search for the CUDA toolkit, in folders made for the test."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn.recurrence.kernels.hopper import toolkit

pytestmark = pytest.mark.once


def make_toolkit(folder: Path, names: tuple[str, ...] = toolkit.NEEDED) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the toolkits of this machine, and unset CUDA_ROOT."""
    monkeypatch.delenv("CUDA_ROOT", raising=False)
    monkeypatch.setattr(toolkit, "_default_places", lambda: iter(()))
    monkeypatch.setattr(toolkit, "_elsewhere", lambda: iter(()))


@pytest.mark.parametrize("there", [(), *((name,) for name in toolkit.NEEDED)])
def test_without_a_whole_toolkit_it_says_what_to_do(
    there: tuple[str, ...], nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_ROOT", str(make_toolkit(tmp_path, there)))
    reason = toolkit.missing()
    assert reason is not None and "\n" not in reason
    assert "bin/ptxas" in reason and "pip install nvidia-cuda-nvcc" in reason
    assert toolkit.found() is None


def test_cuda_root_is_taken(nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_ROOT", str(make_toolkit(tmp_path)))
    assert toolkit.missing() is None and toolkit.found() == tmp_path


def test_a_toolkit_where_jax_does_not_look_is_named(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit, "_elsewhere", lambda: iter([make_toolkit(tmp_path)]))
    assert f"set CUDA_ROOT={tmp_path} before Python" in str(toolkit.missing())
    assert toolkit.found() == tmp_path


@pytest.mark.process
def test_the_command_prints_a_folder_or_one_line() -> None:
    command = [sys.executable, "-m", "jaxrnn.recurrence.kernels.hopper.toolkit"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1)
    said = done.stderr if done.returncode else done.stdout
    assert said.count("\n") == 1 and said.startswith("error: ") == bool(done.returncode)
