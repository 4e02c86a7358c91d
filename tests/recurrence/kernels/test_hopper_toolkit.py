"""Where the CUDA toolkit is looked for, in folders made for the test."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn.recurrence.kernels.hopper import toolkit as hopper_toolkit

pytestmark = pytest.mark.once


def toolkit(folder: Path, names: tuple[str, ...] = hopper_toolkit.NEEDED) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the places of this machine; CUDA_ROOT is not set."""
    monkeypatch.delenv("CUDA_ROOT", raising=False)
    monkeypatch.setattr(hopper_toolkit, "_default_places", lambda: iter(()))
    monkeypatch.setattr(hopper_toolkit, "_elsewhere", lambda: iter(()))


@pytest.mark.parametrize("there", [(), *((name,) for name in hopper_toolkit.NEEDED)])
def test_without_a_whole_toolkit_it_says_what_to_do(
    there: tuple[str, ...], nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_ROOT", str(toolkit(tmp_path, there)))
    reason = hopper_toolkit.missing()
    assert reason is not None and "\n" not in reason
    assert "bin/ptxas" in reason and "pip install nvidia-cuda-nvcc" in reason
    assert hopper_toolkit.found() is None


def test_cuda_root_is_taken(nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_ROOT", str(toolkit(tmp_path)))
    assert hopper_toolkit.missing() is None and hopper_toolkit.found() == tmp_path


def test_a_toolkit_where_jax_does_not_look_is_named(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopper_toolkit, "_elsewhere", lambda: iter([toolkit(tmp_path)]))
    assert f"set CUDA_ROOT={tmp_path} before Python" in str(hopper_toolkit.missing())
    assert hopper_toolkit.found() == tmp_path


def test_the_command_prints_a_folder_or_one_line() -> None:
    command = [sys.executable, "-m", "jaxrnn.recurrence.kernels.hopper.toolkit"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1)
    said = done.stderr if done.returncode else done.stdout
    assert said.count("\n") == 1 and said.startswith("error: ") == bool(done.returncode)
