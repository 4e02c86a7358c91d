"""The benchmark for Hopper GPUs, without one: tiny sizes on the CPU, children that hang or crash.

No test depends on a time.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import measure
from benchmarks.hopper import __main__ as hopper
from benchmarks.hopper import child as hopper_child
from benchmarks.hopper import jobs
from benchmarks.hopper import report as hopper_report
from benchmarks.hopper import tiles as hopper_tiles
from benchmarks.problems import PASSES
from jaxrnn.recurrence.kernels.hopper import cost_model

pytestmark = pytest.mark.once


ROOT = Path(__file__).parents[2]

TORCH = importlib.util.find_spec("torch") is not None


# --- all of it, tiny ----------------------------------------------------------------------------


@pytest.mark.process
def test_every_stage_runs_and_says_what_is_not_there(tmp_path: Path) -> None:
    """Run the command as users do, with the output folder from the environment."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = [str(ROOT / "benchmarks" / "hopper" / "run.sh"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("hopper-cpu-")
    record = json.loads(file.read_text())
    results = {result["job"]["stage"]: result for result in record["results"]}
    assert list(results) == jobs.USUAL == list(record["stages"])
    assert all("failed" not in result and not result["lost"] for result in results.values())
    assert all(not stage["left"] for stage in record["stages"].values())
    assert "flashrnn" in record["missing"] and "without flashrnn" in done.stdout

    plain = results["right"]["contenders"]["jaxrnn xla"]
    assert plain["values"] < 1e-2 and plain["gradients"] < 3e-2 and plain["moved"] == 0
    for stage in ("right", "table", "latency"):
        assert "jaxrnn hopper" in results[stage]["unserved"] and f"{stage} without" in done.stdout
    for passes in (results["table"]["passes"], results["latency"]["passes"]):
        for contenders in passes.values():
            assert all(len(c["seconds"]) == 1 for c in contenders.values())
    contenders = results["table"]["passes"]["forward+backward"]
    assert set(contenders) == {"jaxrnn xla", "flax nnx"} | ({"torch"} if TORCH else set())
    losses = [contender["loss"] for contender in contenders.values() if "loss" in contender]
    assert max(losses) - min(losses) < 0.02 * max(map(abs, losses)) + 0.1
    assert results["training"]["contenders"]["jaxrnn"]["seconds"]


STAND_IN = """
import os, sys
sys.path[:0] = {paths!r}
from benchmarks.hopper import worker
from jaxrnn.recurrence import kernels
from jaxrnn.recurrence.kernels import xla

class Kernels:
    unsupported_reason, deadly = staticmethod(xla.unsupported_reason), False
    def run(*arguments):
        if Kernels.deadly:
            print("the last words", file=sys.stderr, flush=True)
            os.abort()
        return xla.run(*arguments)

load, table = kernels.load, worker.STAGES["table"]
kernels.load = lambda name: Kernels if name == "hopper" else load(name)
del kernels.PLATFORMS["hopper"]

def deadly(job, say):
    Kernels.deadly = True
    return table(job, say)

worker.STAGES["table"] = deadly
worker.main()
"""


@pytest.mark.slow
def test_kernels_are_checked_and_their_death_costs_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA's loop stands in for the kernels: its first results are right, then its process aborts."""
    script = tmp_path / "child.py"
    script.write_text(STAND_IN.format(paths=[str(ROOT)]))
    monkeypatch.setattr(hopper, "CHILD", [sys.executable, str(script)])
    monkeypatch.setitem(jobs._TINY, "table", {"contenders": jobs.KERNELS})
    record = run_here(tmp_path, stages=["right", "table"], quick=True)
    right, table = record["results"]
    kernels, plain = (right["contenders"][name] for name in jobs.KERNELS)
    assert hopper_report.is_right(right) and kernels == plain
    loss = table["lost"]["jaxrnn hopper"]
    assert loss["why"] == "crashed: compiling (SIGABRT)"
    assert any("the last words" in line for line in loss["tail"])  # twice in one, of two threads
    assert "seconds" in table["passes"]["forward"]["jaxrnn xla"]
    assert "jaxrnn hopper" not in table["passes"]["forward"]


def run_here(folder: Path, **flags: Any) -> dict[str, Any]:
    usual = {"stages": jobs.USUAL, "cells": None, "seconds": 300, "repeats": 1}
    usual |= {"quick": False, "folder": folder, "after": None}
    return hopper.run(Namespace(**usual | flags), Console(quiet=True), time.monotonic())


# --- children -----------------------------------------------------------------------------------

CHILD = """
import json, os, sys, time
def say(**words):
    print(json.dumps(words), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    {prologue}
    for name in job.get("contenders", []):
        if name not in job["without"]:
            say(at=name, doing="a call", seconds=job.get("patience", 60))
            {{"dies": os.abort, "ends": lambda: sys.exit(3), "hangs": lambda: time.sleep(60),
              "breaks": lambda: (say(lost="no device"), os._exit(1))}}.get(name, int)()
    say(done={{"pid": os.getpid()}})
"""


@pytest.fixture
def children() -> Any:
    made = hopper_child.Children([sys.executable, "-c", CHILD.format(prologue="")])
    yield made
    made.stop()


def later(seconds: float = 60) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dies", "crashed: a call (SIGABRT)"),
        ("ends", "crashed: a call (exit status 3)"),
        ("hangs", "hung: a call, for 0.5 s"),
        ("breaks", "failed: a call (no device)"),
    ],
)
def test_who_hangs_or_dies_is_left_out_and_the_job_done_without(
    children: Any, name: str, why: str
) -> None:
    job = {"contenders": ["good", name, "other"], "patience": 0.5}
    result = children.result(job, [], later())
    assert {n: loss["why"] for n, loss in result["lost"].items()} == {name: why}
    assert "failed" not in result
    again = children.result(job, [name], later())
    assert again == {"pid": result["pid"], "lost": {}}  # by the same child


def test_a_job_without_anybody_to_blame_fails_and_the_next_is_done() -> None:
    prologue = "if job.get('broken'): print('why', file=sys.stderr); sys.exit(3)"
    children = hopper_child.Children([sys.executable, "-c", CHILD.format(prologue=prologue)])
    try:
        result = children.result({"broken": True}, [], later())
        assert result["failed"] == "crashed: starting (exit status 3)" and result["tail"] == ["why"]
        assert "pid" in children.result({}, [], later())
    finally:
        children.stop()


def test_a_job_ends_with_the_time(children: Any) -> None:
    result = children.result({"contenders": ["hangs"]}, [], later(0.5))
    assert result == {"failed": "the time ran out", "lost": {}}
    assert "pid" in children.result({}, [], later())


# --- jobs and their turns -----------------------------------------------------------------------

THERE: dict[str, Any] = {
    "surroundings": {"platform": "gpu", "device": "a card", "commit": "abc"},
    "place": "card",
    "dtypes": ["float32", "bfloat16", "float64"],
    "missing": {"flashrnn": "not installed"},
}


def fake(monkeypatch: pytest.MonkeyPatch, there: dict[str, Any]) -> None:
    """Children that do nothing, on a machine like this."""
    prologue = f"if job['stage'] == 'where': say(done={there!r}); continue"
    child = CHILD.format(prologue=prologue)
    monkeypatch.setattr(hopper, "CHILD", [sys.executable, "-c", child])


def test_everything_is_asked_once_and_what_matters_first() -> None:
    planned = jobs.plan(THERE, 5)
    assert list(planned) == list(jobs.SHARES) and not planned["flashrnn"]
    assert jobs.plan(THERE | {"missing": {}}, 5)["flashrnn"][0]["size"] == [16, 1024, 768, 768]
    for each in planned.values():
        assert all(job not in each[:n] for n, job in enumerate(each))
    sizes = [(job["cell"], *job["size"]) for job in planned["table"]]
    assert set(sizes) >= {
        (cell, b, 1024, h, h)
        for cell in ("lstm", "gru-after")
        for b in (1, 16, 64, 128, 256)
        for h in (128, 256, 512, 768, 1024)
    }
    actors = {("gru-after", b, 128, 128, 128) for b in (4, 64, 256, 1024)}
    assert set(sizes[:4]) == actors
    assert all(h == 128 or (16 <= b <= 128 and 512 <= h <= 1024) for _, b, _, _, h in sizes[:26])
    checked = planned["right"]
    assert {job["cell"] for job in checked[:6]} == set(jobs.CELLS)
    assert {job["dtype"] for job in checked} == {"bfloat16", "float32"}  # float16 is not there
    assert {job["mode"] for job in checked} == {"plain", "masked", "reverse"}
    assert {1, 16, 64, 1024} == {job["size"][0] for job in checked[:20]}
    narrow = jobs.plan(THERE | {"dtypes": ["float16", "bfloat16"]}, 5)["right"]
    assert {job["dtype"] for job in narrow} == {"bfloat16", "float16"}


def test_time_is_shared_and_what_is_left_goes_to_the_rest() -> None:
    assert sum(jobs.SHARES[stage] for stage in jobs.USUAL) == pytest.approx(1)
    marks = jobs.marks(["right", "table"], 100.0, 177.0)
    assert marks[:2] == [("right", pytest.approx(124.0)), ("table", pytest.approx(177.0))]
    assert set(marks[2:]) == {("right", 177.0), ("table", 177.0)}


def test_a_run_goes_on_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, THERE)
    record = run_here(tmp_path / "one", stages=["others", "training"])
    path = tmp_path / "one" / "hopper-card.json"
    assert json.loads(path.read_text()) == record and len(record["results"]) == 10
    record["results"][0]["failed"] = "the time ran out"
    path.write_text(json.dumps(record))
    record = run_here(tmp_path / "two", stages=["others", "training"], after=path)
    assert [result["job"]["stage"] for result in record["results"][-2:]] == ["training", "others"]
    assert record["stages"]["others"]["done"] == 1 and not record["stages"]["training"]["done"]
    fake(monkeypatch, THERE | {"surroundings": THERE["surroundings"] | {"commit": "abd"}})
    with pytest.raises(SystemExit, match="was measured on another device or commit"):
        run_here(tmp_path, after=path)


def test_without_a_gpu_it_stops_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, THERE | {"surroundings": THERE["surroundings"] | {"platform": "cpu"}})
    with pytest.raises(SystemExit, match="this needs a GPU and not a CPU; try --quick"):
        run_here(tmp_path)


def test_a_result_is_shown_as_it_comes() -> None:
    """So that a run that is cut off has said what it found."""
    times = {
        "jaxrnn hopper": {"seconds": [1e-3, 2e-3, 3e-3]},
        "torch": {"left_out": "it is not here"},
    }
    job = {"stage": "table", "size": [64, 1000, 512, 512]}
    assert hopper_report.summary({"job": job, "passes": {"forward": times}}) == [
        "forward, us a step: jaxrnn hopper 2.00"
    ]
    errors = {"jaxrnn hopper": {"values": 1e-3, "gradients": 2e-3, "moved": 0.0}}
    assert hopper_report.summary({"job": job, "contenders": errors}) == [
        "jaxrnn hopper values 1.0e-03 gradients 2.0e-03 moved 0.0e+00"
    ]
    rates = {"jaxrnn": {"seconds": [2.0]}}
    drawn = {"job": job, "contenders": rates, "characters": 1000}
    assert hopper_report.summary(drawn) == ["characters/s: jaxrnn 500"]


# --- the first look at a card -------------------------------------------------------------------


def test_the_first_run_stops_in_one_line_without_a_driver(tmp_path: Path) -> None:
    """And leaves no result behind."""
    script = ROOT / "benchmarks" / "hopper" / "first_run.sh"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "realpath", "mkdir", "mktemp", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    env = {"PATH": str(programs), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "error: there is no NVIDIA driver on this machine (nvidia-smi)\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--problems", "lstm,64"], "must be CELL,B,H"),
        (["--problems", "cnn,64,64"], "with a cell of lstm"),
        (["--count", "0"], "whole number of at least 1"),
    ],
)
def test_the_ladder_refuses_bad_input_in_one_line(flags: list[str], message: str) -> None:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.hopper.ladder", *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "tabel"], "argument --stages: invalid choice: 'tabel'"),
        (["--seconds", "0"], "argument --seconds: must be a whole number of at least 1, not '0'"),
        (["--from", "nowhere.json"], "cannot read nowhere.json"),
        (
            ["--from", str(measure.RESULTS / "gpu_static.json")],
            f"{measure.RESULTS}/gpu_static.json is",
        ),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["hopper", *flags])
    monkeypatch.setattr(hopper.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit:
        hopper.main()
    said = capsys.readouterr().err or f"{exit.value.code}\n"
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


# --- the cost model ---------------------------------------------------------------------------


def test_the_model_is_what_was_fitted_to_the_committed_measurements() -> None:
    files = [
        measure.RESULTS / "h100" / name / "ladder.jsonl" for name in ("2-tilings", "3-repaired")
    ]
    measured = [row for file in files for row in hopper_tiles.right(file)]
    assert len(measured) == 39
    found = hopper_tiles.fitted(measured)
    assert {direction: fit.numbers for direction, fit in found.items()} == cost_model.MICROSECONDS
    assert found["forward"].error < 0.04 and found["backward"].error < 0.08


# --- goals --------------------------------------------------------------------------------------


def result_of(stage: str, cell: str, batch: int, hidden: int, **micro: float) -> dict[str, Any]:
    """Return a turn: µs per step of each contender, the backward pass taking twice the forward pass."""

    def contenders(times: float) -> dict[str, Any]:
        return {
            n.replace("_", " "): {"seconds": [times * m * 1e-6 * 1024]} for n, m in micro.items()
        }

    passes = {"forward": contenders(1), "forward+backward": contenders(3)}
    job = {"stage": stage, "cell": cell, "dtype": "bfloat16", "size": [batch, 1024, hidden, hidden]}
    return {"job": job, "passes": passes, "lost": {}, "without": [], "took": 1.0}


def test_goals_are_ratios_to_the_best_of_others() -> None:
    times = {"torch": 9.0, "torch_float16": 3.0, "flashrnn": 4.0, "flax_nnx": 24.0}
    result = result_of("table", "lstm", 64, 512, jaxrnn_hopper=2.0, jaxrnn_xla=8.0, **times)
    found = {(g["pass"], g["goal"]): g for g in hopper_report.goals(result)}
    for what, wanted, met in ("forward", None, None), ("forward+backward", 1.2, True):
        rival, flax = found[what, "rival"], found[what, "flax"]
        assert rival["ratio"] == pytest.approx(1.5) and flax["ratio"] == pytest.approx(12.0)
        assert (rival["wanted"], rival["met"]) == (wanted, met)
        assert (flax["wanted"], flax["met"]) == (10.0, True)
    result["job"]["cell"] = "gru-after"
    rival = next(g for g in hopper_report.goals(result)[2:] if g["goal"] == "rival")
    assert (rival["wanted"], rival["met"]) == (2.5, False)
    result["job"]["size"] = [256, 1024, 512, 512]
    assert all(g["met"] is None for g in hopper_report.goals(result))
    result["job"]["size"] = [1024, 1024, 128, 128]
    rival = next(g for g in hopper_report.goals(result)[2:] if g["goal"] == "rival")
    assert (rival["wanted"], rival["met"]) == (1.5, True)
    assert not hopper_report.goals(result_of("table", "lstm", 64, 512, jaxrnn_hopper=1.0))
    assert not hopper_report.goals(result_of("table", "lstm", 64, 512, **times))


def test_a_floor_is_of_the_next_batch_and_of_lstms_alone() -> None:
    def floors(*job: Any) -> list[float | None]:
        given = result_of("latency", *job)["job"]
        return [hopper_report.floor(given, what) for what in PASSES]

    assert floors("lstm", 17, 1024) == pytest.approx([2.0e-6, 2.0e-6 * 2.7])
    assert floors("lstm", 256, 512)[0] == pytest.approx(1.3e-6)
    for job in ("lstm", 512, 512), ("lstm", 16, 768), ("gru-after", 16, 512):
        assert floors(*job) == [None, None]
    result = result_of("latency", "lstm", 64, 512, jaxrnn_hopper=2.75)
    forward, both = hopper_report.goals(result)
    assert forward["ratio"] == pytest.approx(2.5) and (forward["wanted"], forward["met"]) == (
        2,
        False,
    )
    assert both["ratio"] == pytest.approx(3 * 2.75 / (1.1 * 2.7)) and both["met"] is None


def test_kernels_are_right_when_near_xla_and_always_the_same() -> None:
    plain = {"values": 1e-3, "gradients": 2e-3, "moved": 0.0}

    def verdict(lost: Any = (), **changed: float) -> bool | None:
        kernels = {"values": 2e-3, "gradients": 3e-3, "moved": 0.0} | changed
        contenders = {"jaxrnn hopper": kernels, "jaxrnn xla": plain}
        return hopper_report.is_right({"contenders": contenders, "lost": lost, "without": []})

    assert verdict()
    for wrong in {"values": 4e-3}, {"gradients": float("inf")}, {"moved": 1e-9}:
        assert verdict(**wrong) is False
    assert verdict(lost=["jaxrnn hopper"]) is False
    unserved = {"contenders": {"jaxrnn xla": plain}, "lost": {}, "without": []}
    assert hopper_report.is_right(unserved) is None


def test_who_dies_at_a_width_twice_is_not_asked_a_third_time() -> None:
    lost = {"jaxrnn hopper": {"why": "died"}}
    results = [result_of("table", "lstm", b, 512) | {"lost": lost} for b in (16, 64)]
    again, wider, other = (
        result_of("latency", cell, 1, hidden)["job"]
        for cell, hidden in (("lstm", 512), ("lstm", 1024), ("gru-after", 512))
    )
    assert jobs.out(again, results) == ["jaxrnn hopper"] and not jobs.out(again, results[:1])
    assert not jobs.out(wider, results) and not jobs.out(other, results)


def test_the_tables_say_ratios_goals_and_reasons() -> None:
    times = {"jaxrnn_hopper": 2.0, "torch_float16": 3.0, "flax_nnx": 10.0}
    row = result_of("table", "lstm", 64, 512, **times)
    row["lost"] = {"flashrnn": {"why": "hung: a call, for 480 s"}}
    latency = result_of("latency", "lstm", 64, 512, jaxrnn_hopper=2.0)
    record = {"missing": {"flax linen": "why not"}, "stages": {}, "results": [row, latency]}
    console = Console(width=160, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    hopper_report.show(record, console)
    console.file.close()
    said = console.export_text()
    for part in ("2.00", "1.50 +", "5.00 !", "1.82 +", "without flax linen: why not"):
        assert part in said
    assert "table without flashrnn at lstm [64, 1024, 512, 512] bfloat16: hung: a call" in said
    assert "goals met: 2 of 4" in said


# --- the stamp ----------------------------------------------------------------------------------


def test_the_stamp_names_driver_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither git nor nvidia-smi
    monkeypatch.setenv("JAXRNN_COMMIT", "abc")
    found = measure.surroundings(())
    assert found["driver"] is None and found["commit"] == "abc" and found["runtime"]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 143771 MiB, 1980 MHz, 700.00 W'\n")
    program.chmod(0o755)
    driver = measure.surroundings(())["driver"]
    assert driver["name"] == "NVIDIA H200" and driver["driver_version"] == "580.1"
