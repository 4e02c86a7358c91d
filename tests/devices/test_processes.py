"""Tests of several processes that train one model on one machine, and of their failures.

The processes are real and use the collectives of the CPU, as hosts would over a network.
"""

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrnn import load
from jaxrnn.devices import processes
from jaxrnn.devices.processes import Processes
from jaxrnn.errors import InputError
from tests.support.runs import TEXT, command, metrics_of

pytestmark = [pytest.mark.once, pytest.mark.uncached]

# Processes that train side by side want a machine to themselves: CI runs these after the others.
several = pytest.mark.skipif(
    "JAXRNN_PROCESSES" not in os.environ, reason="several processes at once: set JAXRNN_PROCESSES=1"
)
PATIENCE = 240  # seconds for one training, on a busy machine
SUMS = 1e-4  # of weights, after 60 steps in which gradients were summed in another order
END = 60  # seconds in which the others must notice that one is gone


def slurm(number: int, count: int) -> dict[str, str]:
    """Return the environment of a task that srun starts on one node."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def open_mpi(number: int, count: int) -> dict[str, str]:
    """Return the environment of a process that mpirun starts on one host."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }


class Job:
    """The training command in `count` processes.

    changes: adds flags to some, by their number. start: only these. program: in the command's place.
    cluster: says in the environment what else flags say; the port is a free one for it too.
    """

    def __init__(
        self,
        text: Path,
        run: Path,
        count: int,
        *more: str,
        changes: dict[int, list[str]] | None = None,
        start: list[int] | None = None,
        patience: float = 60,
        program: Path | None = None,
        cluster: Callable[[int, int], dict[str, str]] | None = None,
    ) -> None:
        self.metrics = run / "metrics.jsonl"
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        words = command(text, run)
        if program is not None:
            words[1 : words.index("jaxrnn.train") + 1] = [str(program)]
        numbers = range(count) if start is None else start
        self.processes = []
        for number in numbers:
            flags = f"--coordinator=localhost:{port} --process-id={number} --num-processes={count}"
            environment = {}
            if cluster is not None:
                flags = "--distributed"
                environment = cluster(number, count)
                environment["JAX_COORDINATOR_PORT"] = str(port)
            flags += f" --connect-timeout={patience}"
            own = (changes or {}).get(number, [])
            self.processes.append(
                subprocess.Popen(
                    [*words, "--batch=8", "--eval-every=10", *flags.split(), *more, *own],
                    env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "4"} | environment
                    | {"JAX_COMPILATION_CACHE_DIR": str(text.parent / "cache")}
                    | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )  # fmt: skip

    def until(self, lines: int) -> None:
        """Wait until metrics.jsonl has `lines` lines."""
        end = time.monotonic() + PATIENCE
        while not (self.metrics.exists() and self.metrics.read_bytes().count(b"\n") >= lines):
            assert time.monotonic() < end and self.processes[0].poll() is None
            time.sleep(0.01)

    def end(self, patience: float = PATIENCE) -> tuple[list[int], list[str], list[str]]:
        """Return the exit status, output and errors of each process."""
        pairs = [process.communicate(timeout=patience) for process in self.processes]
        outs = [out for out, _ in pairs]
        errors = [error for _, error in pairs]
        return [process.returncode for process in self.processes], outs, errors


def errors_of(texts: list[str]) -> list[str]:
    """Return the error lines for users, without the logs of JAX."""
    return [line for text in texts for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("distributed") / "text.txt"
    text.write_text(TEXT)
    return text


@pytest.fixture(scope="module")
def whole(text: Path) -> dict[int, Path]:
    """Uninterrupted runs of 2 and of 4 processes."""
    runs = {count: text.parent / f"whole{count}" for count in (2, 4)}
    for count, run in runs.items():
        statuses, outs, errors = Job(text, run, count).end()
        assert statuses == [0] * count, errors
        assert outs[0].splitlines()[-1].startswith("done. ")
        assert f"60 steps on {count} x cpu" in outs[0]
        assert all("step" not in out for out in outs[1:]), "only the first process speaks"
    return runs


def digests(run: Path) -> Any:
    path = run / "checkpoints" / "60" / "notes" / "metadata"
    return json.loads(path.read_text())["digest"]


@several
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count, victim", [(2, 0), (4, 2)])
def test_all_resume_after_one_process_is_killed(
    count: int, victim: int, whole: dict[int, Path], text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(text, run, count)
    job.until(lines=9)
    job.processes[victim].kill()
    statuses, _, errors = job.end(END)
    assert statuses.pop(victim) == -signal.SIGKILL
    assert all(status != 0 for status in statuses), "no process continues alone"
    # If JAX notices it first, it ends the processes with SIGABRT and its own message.
    reported = all("restart all processes" in line for line in errors_of(errors))
    assert reported and all(status in (1, -signal.SIGABRT) for status in statuses)
    statuses, _, errors = Job(text, run, count).end()
    assert statuses == [0] * count, errors
    assert metrics_of(run) == metrics_of(whole[count]), "the curve is bit-identical"
    assert digests(run) == digests(whole[count]), "and so does the whole state"


@several
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cluster", [slurm, open_mpi])
def test_a_cluster_numbers_the_processes(
    cluster: Any, whole: dict[int, Path], text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    statuses, _, errors = Job(text, run, 2, cluster=cluster).end()
    assert statuses == [0, 0], errors
    assert metrics_of(run) == metrics_of(whole[2])


@several
@pytest.mark.timeout(900)
def test_checkpoints_move_between_4_processes_and_1(text: Path, tmp_path: Path) -> None:
    """Half of the run with each number of processes, in either order, gives the same model."""
    models = []
    for first, second in [(4, 1), (1, 4)]:
        run = tmp_path / f"{first}"
        for count, steps in [(first, 30), (second, 60)]:
            statuses, _, errors = Job(text, run, count, f"--steps={steps}").end()
            assert statuses == [0] * count, errors
        assert len(metrics_of(run)) == 30
        models.append(jax.tree.leaves(load(run, "latest")))
    for one, other in zip(*models, strict=True):
        np.testing.assert_allclose(one, other, atol=SUMS)


@several
@pytest.mark.timeout(600)
def test_units_are_divided_over_two_processes(
    text: Path, whole: dict[int, Path], tmp_path: Path
) -> None:
    """Neither process has the whole model: they train, sample and save together."""
    run = tmp_path / "run"
    more = ["--mesh=model=2", "--sample-every=20"]
    statuses, outs, errors = Job(text, run, 2, *more).end()
    assert statuses == [0, 0], errors
    losses, rows = ([line["loss"] for line in metrics_of(r)] for r in (run, whole[2]))
    np.testing.assert_allclose(losses, rows, rtol=SUMS)
    written = (run / "samples.txt").read_text()
    assert all(f"--- step {step} ---" in written for step in (20, 40, 60))
    assert "--- a sample at step 20 ---" in outs[0] and "step" not in outs[1]
    trees = (jax.tree.leaves(load(r, "latest")) for r in (run, whole[2]))
    for one, other in zip(*trees, strict=True):
        np.testing.assert_allclose(one, other, atol=SUMS)


@several
@pytest.mark.timeout(900)
def test_sigterm_to_one_process_makes_all_save(
    text: Path, whole: dict[int, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(text, run, 2)
    job.until(lines=5)
    begin = time.monotonic()
    job.processes[1].send_signal(signal.SIGTERM)
    statuses, outs, errors = job.end(END)
    assert statuses == [128 + signal.SIGTERM] * 2, errors
    assert time.monotonic() - begin < 30
    assert "stopped and saved at step" in outs[0]
    statuses, _, errors = Job(text, run, 2).end()
    assert statuses == [0, 0], errors
    assert metrics_of(run) == metrics_of(whole[2])


@several
@pytest.mark.timeout(600)
def test_nan_in_one_process_rolls_all_back(text: Path, tmp_path: Path) -> None:
    run, program = tmp_path / "run", Path(__file__).parents[1] / "support/children/nan.py"
    statuses, outs, errors = Job(text, run, 2, program=program).end()
    assert statuses == [0, 0], errors
    assert "the loss is not finite near step 22: back to step 20 with 0.5 of" in outs[0]
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == list(range(2, 61, 2))
    assert all(math.isfinite(line["loss"]) for line in lines)


# --- what does not fit ---


@several
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes, expected",
    [
        ({1: ["--batch=16"]}, "batch is 8 in process 0 and 16 in process 1"),
        ({1: ["--data={other}"]}, "sha256 is "),
        ({1: ["--workdir={elsewhere}"]}, "is not the folder that process 0 sees"),
        ({1: ["--data={missing}"]}, 'no file or folder "'),
        ({n: ["--batch=7"] for n in (0, 1)}, "--batch 7 cannot be divided over 2 devices"),
    ],
    ids=["settings", "text", "folder", "missing", "rows"],
)
def test_processes_with_different_settings_are_refused(
    changes: dict[int, list[str]], expected: str, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text(TEXT.replace("wall", "roof"))
    places = {"other": "other.txt", "elsewhere": "elsewhere", "missing": "missing.txt"}
    paths = {name: tmp_path / place for name, place in places.items()}
    filled = {n: [flag.format(**paths) for flag in flags] for n, flags in changes.items()}
    statuses, _, errors = Job(text, tmp_path / "run", 2, changes=filled).end()
    assert statuses == [2, 2]
    lines = errors_of(errors)
    assert len(lines) == 1 and expected in lines[0]
    assert not (tmp_path / "run" / "config.json").exists()


@several
@pytest.mark.parametrize(
    "start, expected",
    [
        ([1], "did not answer within 4 s"),
        ([0], "process 1, 2 of 3 did not connect within 4 s"),
        ([0, 1, 1], "two processes have --process-id 1"),
    ],
    ids=["no coordinator", "no other process", "one number twice"],
)
def test_missing_and_duplicate_processes_are_reported(
    start: list[int], expected: str, text: Path, tmp_path: Path
) -> None:
    patience = 4 if len(start) < 3 else 60
    job = Job(text, tmp_path / "run", 3, start=start, patience=patience)
    statuses, _, errors = job.end()
    assert statuses == [2] * len(start)
    lines = errors_of(errors)
    assert len(lines) == len(start) and all(expected in line for line in lines)
    assert all(len(error.splitlines()) == 1 for error in errors)


@several
@pytest.mark.parametrize(
    "here, expected",
    [(1, "did not answer within 4 s"), (0, "process 1 of 2 did not connect within 4 s")],
)
def test_missing_processes_of_a_cluster_are_reported(
    here: int, expected: str, text: Path, tmp_path: Path
) -> None:
    job = Job(text, tmp_path / "run", 2, start=[here], patience=4, cluster=slurm)
    statuses, _, errors = job.end()
    assert statuses == [2]
    assert expected in errors[0] and len(errors[0].splitlines()) == 1


@several
def test_different_num_processes_are_refused(text: Path, tmp_path: Path) -> None:
    changes = {1: ["--num-processes=3"]}
    statuses, _, errors = Job(text, tmp_path / "run", 2, changes=changes).end()
    assert statuses == [2, 2]
    assert all(
        "--num-processes is 3 in process 1 and 2 in process 0" in line for line in errors_of(errors)
    )


@pytest.mark.parametrize(
    "given, expected",
    [
        (dict(process_id=1), "go together"),
        (dict(coordinator="host:1", process_id=0), "go together"),
        (dict(coordinator="host:1", process_id=2, num_processes=2), "from 0 to 1"),
        (dict(coordinator="host", process_id=0, num_processes=2), "must be HOST:PORT"),
        (dict(coordinator="host:99999", process_id=0, num_processes=2), "must be HOST:PORT"),
    ],
)
def test_inconsistent_process_settings_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Processes(**given)


def test_distributed_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORDINATOR_")):
            monkeypatch.delenv(name)
    with pytest.raises(
        InputError, match="no cluster provides the number of this process; outside of"
    ):
        processes.start(Processes(distributed=True, connect_timeout=2.0))


def test_an_unknown_host_is_reported() -> None:
    with pytest.raises(
        InputError, match=r"the host of the coordinator no\.such\.host\.invalid:1 is"
    ):
        processes.start(Processes(False, "no.such.host.invalid:1", 1, 2, connect_timeout=2.0))


def test_a_single_process_needs_no_communication() -> None:
    assert processes.is_primary()
    assert processes.allgather_json({"a": [1, None]}) == [{"a": [1, None]}]
    action: Callable[[], int] = lambda: 3  # noqa: E731
    assert processes.run_on_all(action) == 3
    processes.require_equal({"batch": 8}, "")
