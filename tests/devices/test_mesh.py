"""Tests of meshes: the same seed gives the same curve on 1, 2, 4 and 8 devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn import load, train
from jaxrnn.devices import mesh
from jaxrnn.errors import InputError
from tests.support.children.mesh import BOTH, DATA, MODELS, RUNS
from tests.support.runs import command, metrics_of

PROGRAM = Path(__file__).parents[1] / "support/children/mesh.py"
# The same float32 sums in another order, through 6 steps of Adam: losses, and weights of about 1
CURVE = dict(rtol=2e-5)
WEIGHTS = dict(rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the program `children/mesh.py` found."""
    output = tmp_path_factory.mktemp("mesh") / "found.json"
    subprocess.run([sys.executable, PROGRAM, str(output)], check=True)
    return json.loads(output.read_text())


CASES = [
    (name, implementation, sizes)
    for (name, implementation), meshes in RUNS.items()
    for sizes in meshes[1:]
]


@pytest.mark.process
@pytest.mark.timeout(1500)  # the first waits for all
@pytest.mark.parametrize(
    "name, implementation, sizes", CASES, ids=lambda value: str(value).replace(" ", "")
)
def test_the_curve_does_not_depend_on_the_devices(
    name: str, implementation: str, sizes: dict[str, int], on_meshes: dict[str, Any]
) -> None:
    alone = on_meshes[f"{name} {implementation} {json.dumps(DATA[0])}"]
    found = on_meshes[f"{name} {implementation} {json.dumps(sizes)}"]
    np.testing.assert_allclose(found["curves"], alone["curves"], **CURVE)
    np.testing.assert_allclose(found["weights"], alone["weights"], **WEIGHTS)
    np.testing.assert_allclose(found["validation"], alone["validation"], **CURVE)
    part, whole = found["part"]
    assert part * sizes.get("model", 1) == whole, "each device holds its units' weights and no more"
    assert found["programs"] == 1, "the state comes out as it went in"


@pytest.mark.process
def test_rows_read_from_a_file_are_the_same(on_meshes: dict[str, Any]) -> None:
    for part in ("curves", "weights", "validation"):
        assert on_meshes["from a file"][part] == on_meshes["from the device"][part]


@pytest.mark.process
def test_a_state_made_on_a_mesh_is_the_same(on_meshes: dict[str, Any]) -> None:
    assert on_meshes["begins alike"]


@pytest.mark.process
def test_samples_are_drawn_on_the_devices_of_the_model(on_meshes: dict[str, Any]) -> None:
    """One device draws if each holds the whole model; all draw together if units are divided."""
    assert [found["devices"] for found in on_meshes["samples"]] == [1, 8] * len(MODELS)
    for found in on_meshes["samples"]:
        assert found["divided"] == found["alone"]


@pytest.mark.process
def test_units_on_several_devices_need_scan_or_xla(on_meshes: dict[str, Any]) -> None:
    assert "implementation 'native' keeps all units on one device" in on_meshes["refused"]


def test_both_axes_are_covered() -> None:
    assert all(sizes in RUNS["rnn", "xla"] for sizes in [*DATA, *BOTH])


# --- the command on 8 devices ---


def run_command(
    text: Path, run: Path, devices: int, *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(text, run), "--batch=8", *more],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )


@pytest.mark.process
def test_a_run_resumes_with_other_devices(tmp_path: Path) -> None:
    """It starts on 8 devices, resumes on 4, two of them along units, and ends on one."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("".join(f"{n} green bottles, {n * n}\n" for n in range(80)))
    alone = run_command(text, tmp_path / "alone", 1, "--steps=24", "--schedule=constant")
    assert alone.returncode == 0, alone.stderr
    for steps, devices, more in [(8, 8, []), (16, 4, ["--mesh=data=2,model=2"]), (24, 1, [])]:
        done = run_command(text, run, devices, f"--steps={steps}", "--schedule=constant", *more)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        size = f"{devices} x cpu" if devices > 1 else "on cpu"
        assert size in done.stdout
    ours, theirs = metrics_of(run), metrics_of(tmp_path / "alone")
    assert [m["step"] for m in ours] == [m["step"] for m in theirs]
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in theirs], **CURVE)
    assert np.isfinite(np.asarray(load(run).w_out)).all()


@pytest.mark.process
@pytest.mark.parametrize(
    "more, expected",
    [
        (["--mesh=data=3"], "3 x 1 = 3 devices, and there are 4; choose sizes whose product is 4"),
        (["--batch=6"], "--batch 6 cannot be divided over 4 devices"),
        (["--mesh=data=1,model=4"], "--hidden-size 6 cannot be divided over 4 devices"),
        (
            ["--accumulate=4"],
            "--batch 8 cannot be divided into --accumulate 4 parts over 4 devices",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(
    more: list[str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("green bottles " * 40)
    done = run_command(tmp_path / "text.txt", tmp_path / "run", 4, *more)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists(), "nothing was written"


# --- on one device ---


@pytest.mark.parametrize(
    "words", ["", "data", "data=0", "data=2,data=2", "rows=2", "data=2;model=1"]
)
def test_invalid_meshes_are_refused(words: str) -> None:
    with pytest.raises(InputError, match="`mesh` must be of the form data=8,model=2"):
        mesh.parse(words)


def test_meshes_are_parsed() -> None:
    assert mesh.parse("data=8,model=2") == {"data": 8, "model": 2}
    assert mesh.parse("model=4") == {"model": 4}


def test_a_mesh_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--workdir", str(tmp_path), "--mesh", "data=2"]) == 2
    assert "2 x 1 = 2 devices, and there is 1" in capsys.readouterr().err
