"""A run that was killed, stopped or finished and resumed is bit-identical to an uninterrupted one."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxrnn.training import loop, optimizers, stepping
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import Report
from jaxrnn.training.run_description import load
from jaxrnn.training.saved_states import rest_of
from tests.support.runs import (
    CONFIG,
    CORPUS,
    TEXT,
    assert_same_bits,
    change,
    command,
    metrics_of,
    quicken,
)

pytestmark = [pytest.mark.once, pytest.mark.uncached]

PATIENCE = 200  # seconds until a process counts as stuck
KILLS = 5


def contents(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


# --- in one process: stopped after every possible call of the device ---


RUNS = {
    "streams": change(CONFIG, cell="lstm", dropout=0.3, steps=11, sample_every=4),
    "shuffled": change(CONFIG, cell="gru", shuffle=True, steps=11, epochs=1.0, log_every=4),
    "mapped": change(
        CONFIG, accumulate=2, memory_map="always", seq_len=60, steps=26, log_every=6, eval_every=12
    ),
    "muon": change(CONFIG, cell="lstm", optimizer="muon", average="ema", steps=11),
    "tail": change(CONFIG, average="tail", average_tail=0.5, output_bias="frequencies", steps=11),
}  # of which mapped goes through the text more than twice


def fit(config: TrainingConfig, run: Path, stop_at: int | None = None) -> tuple[Any, int]:
    """Train until asked for the stop_at-th time. Returns the newest checkpoint and the steps."""
    run.mkdir(exist_ok=True)
    asked = iter(range(1, 1000))
    _, step, _ = loop.fit(
        config, CORPUS, run, Report(run, 1, quiet=True), lambda: next(asked) == stop_at
    )
    return newest(config, run, step), step


def newest(config: TrainingConfig, run: Path, step: int) -> Any:
    """The whole training state, as it was saved."""
    shapes = jax.eval_shape(
        lambda: stepping.create(config, optimizers.make_optimizer(config, 1), CORPUS.vocabulary)
    )
    checkpoints = Checkpoints(run)
    found = checkpoints.restore(shapes.model, rest_of(shapes))
    checkpoints.close()
    assert found is not None and found.step == step, "what fit returns is what it saved"
    return found.tree


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_stopped_after_every_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    config = RUNS[name]
    assert config.steps is not None
    whole, last = fit(config, tmp_path / "whole")
    assert last == config.steps
    calls = -(-config.steps // config.log_every)
    if name == "mapped":
        assert config.steps > 2 * config.batches(CORPUS).per_epoch
    for call in range(1, calls):
        run = tmp_path / str(call)
        _, step = fit(config, run, stop_at=call)
        assert step == call * config.log_every
        again, last = fit(config, run)
        assert last == config.steps
        assert_same_bits(whole, again)
        assert metrics_of(run) == metrics_of(tmp_path / "whole")
        if config.sample_every:
            samples = (run / "samples.txt").read_bytes()
            assert samples == (tmp_path / "whole" / "samples.txt").read_bytes()


@pytest.mark.slow
def test_stopped_after_each_call_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    config = RUNS["streams"]
    whole, _ = fit(config, tmp_path / "whole")
    steps = []
    while steps[-1:] != [config.steps]:
        again, step = fit(config, tmp_path / "often", stop_at=1)
        steps.append(step)
    assert steps == [2, 4, 6, 8, 10, 11]
    assert_same_bits(whole, again)
    assert metrics_of(tmp_path / "often") == metrics_of(tmp_path / "whole")


# --- the command, killed ---


class Training:
    """The command, running in a process of its own."""

    def __init__(self, text: Path, run: Path, cache: Path) -> None:
        self.metrics = run / "metrics.jsonl"
        self.before = self.size()
        self.process = subprocess.Popen(
            command(text, run),
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def size(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def until_it_trains(self) -> None:
        """Wait for a line of metrics.jsonl that this process wrote."""
        end = time.monotonic() + PATIENCE
        while self.size() == self.before and self.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
            self.before = min(self.before, self.size())  # cut back when it resumes

    def send(self, number: int) -> bool:
        """Send a signal; whether it met a running process."""
        running = self.process.poll() is None
        if running:
            self.process.send_signal(number)
        return running

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and next to it the folder `whole` of an uninterrupted run."""
    place = tmp_path_factory.mktemp("resume")
    (place / "text.txt").write_text(TEXT)
    status, out, err = Training(place / "text.txt", place / "whole", place / "cache").end()
    assert status == 0, err
    assert out.splitlines()[-1].startswith("done. ")
    return place


def start(workplace: Path, run: Path) -> Training:
    return Training(workplace / "text.txt", run, workplace / "cache")


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics_of(one) == metrics_of(other)
    assert len(metrics_of(one)) == 30
    assert (one / "samples.txt").read_bytes() == (other / "samples.txt").read_bytes()
    for which in ("best", "latest"):
        assert_same_bits(load(one, which), load(other, which))  # type: ignore[arg-type]
    digests = [
        json.loads((run / "checkpoints" / "60" / "notes" / "metadata").read_text())["digest"]
        for run in (one, other)
    ]
    assert digests[0] == digests[1], "the whole state, arrays of the optimizer too"


@pytest.mark.process
def test_killed_at_random_moments(workplace: Path, tmp_path: Path) -> None:
    """SIGKILL, while starting and while training, again and again."""
    chance = random.Random(1)
    run = tmp_path / "run"
    hits, trained = 0, 0
    for kill in range(KILLS):
        process = start(workplace, run)
        if kill:
            process.until_it_trains()
            trained += process.process.poll() is None
        time.sleep(chance.uniform(0, 0.25 if kill else 1.5))
        hits += process.send(signal.SIGKILL)
        process.end()
    print(f"{hits} of {KILLS} kills met a running process, {trained} in training")
    status, out, err = start(workplace, run).end()
    assert status == 0 and err == "", err
    assert out.splitlines()[-1].startswith("done. ")
    assert hits >= KILLS - 1, "the kills came too late to test anything"
    assert_same_run(run, workplace / "whole")


@pytest.mark.process
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(
    number: signal.Signals, status: int, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(workplace, run)
    first.until_it_trains()
    assert first.send(number)
    returned, out, err = first.end()
    assert returned == status and err == ""
    assert "\nstopping after this device call" in out
    last = out.splitlines()[-1]
    step = metrics_of(run)[-1]["step"]
    assert last == f"stopped and saved at step {step}; the same command resumes from there"
    assert (run / "checkpoints" / str(step)).is_dir() and step < 60

    returned, out, err = start(workplace, run).end()
    assert returned == 0 and err == ""
    assert_same_run(run, workplace / "whole")


@pytest.mark.process
def test_a_finished_run_stays_as_it_is(workplace: Path, tmp_path: Path) -> None:
    run = shutil.copytree(workplace / "whole", tmp_path / "run")
    before = contents(run)
    status, out, err = start(workplace, run).end()
    assert status == 0 and err == ""
    assert out.splitlines()[-1].startswith("done. ")
    assert contents(run) == before
