"""Tests that a run is trained, resumed, loaded and sampled alike in every mode of JAX."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import activations, charlm, generate, load, sample, train
from jaxrnn.training import loop, optimizers, run_description, saved_states, stepping
from jaxrnn.training.checkpoint import Checkpoints
from jaxrnn.training.report import Report
from tests.support.runs import CONFIG, CORPUS, TEXT, assert_same_bits, change, metrics_of, quicken

Modes = Callable[[], AbstractContextManager[Any]]
X64: Modes = partial(jax.enable_x64, True)
OTHER_THREEFRY: Modes = partial(jax.threefry_partitionable, False)
NO_TRANSFERS: Modes = partial(jax.transfer_guard, "disallow")
MODES: dict[str, list[Modes]] = {
    "x64": [X64],
    "another generator": [partial(jax.default_prng_impl, "rbg")],
    "another threefry": [OTHER_THREEFRY],
    "no transfers": [NO_TRANSFERS],
    "all": [X64, partial(jax.default_prng_impl, "unsafe_rbg"), OTHER_THREEFRY, NO_TRANSFERS],
}
DROPPING = change(CONFIG, cell="lstm", hidden_size=6, layers=2, dropout=0.3, steps=8)
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@contextlib.contextmanager
def entered(mode: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in MODES[mode]:
            stack.enter_context(each())
        yield


def fit(run: Path, steps: int) -> None:
    run.mkdir(exist_ok=True)
    description = {"training": {"model": vars(DROPPING.model)}}
    run_description.write(run, description, CORPUS.vocabulary)
    # the schedule is that of the whole run, whichever part of it is trained
    stop = iter(range(1, 100))
    loop.fit(DROPPING, CORPUS, run, Report(run, 1, quiet=True), lambda: next(stop) * 2 == steps)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps in the default modes; tests must not change it."""
    run = tmp_path_factory.mktemp("modes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        fit(run, 8)
    return run


@pytest.mark.slow
@modes
def test_initial_parameters_are_the_same_in_every_mode(mode: str) -> None:
    config = charlm.ModelConfig(hidden_size=5, embedding_size=3, peephole=True)
    usual = charlm.init(config, CORPUS.vocabulary, seed=3)
    with entered(mode):
        found = charlm.init(config, CORPUS.vocabulary, seed=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_same_bits(found, usual)


@pytest.mark.slow
@modes
def test_a_run_resumes_in_another_mode(mode: str, plain: Path, tmp_path: Path) -> None:
    """Resumed in another mode, either way, it is bit-identical to the run of one mode."""
    here, there = tmp_path / "here", tmp_path / "there"
    fit(here, 4)
    with entered(mode):
        fit(there, 4)
        fit(here, 8)
    fit(there, 8)
    for run in (here, there):
        assert_same_bits(load(run, "latest"), load(plain, "latest"))
        assert metrics_of(run) == metrics_of(plain)


@pytest.mark.slow
@modes
def test_a_run_is_loaded_and_sampled_in_every_mode(mode: str, plain: Path) -> None:
    params = load(plain)
    text = sample(params, "1 green", 40)
    [_, inside] = activations(params, "green")
    with entered(mode):
        again = load(plain)
        assert_same_bits(again, params)
        assert sample(again, "1 green", 40) == text
        [_, inside_too] = activations(again, "green")
    np.testing.assert_array_equal(inside_too["hidden"], inside["hidden"])


@pytest.mark.slow
def test_a_run_trained_by_an_older_version_in_other_modes(plain: Path, tmp_path: Path) -> None:
    """Its embedding was float64 under x64, and its key had the length of the other generator's."""
    shapes = jax.eval_shape(lambda: stepping.create(DROPPING, _optimizer(), CORPUS.vocabulary))
    usual = Checkpoints(plain, read_only=True)
    found = usual.restore(shapes.params, saved_states.rest_of(shapes))
    usual.close()
    assert found is not None
    params, rest = found.tree
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "vocab.json"):
        (run / name).write_bytes((plain / name).read_bytes())
    wide = params.replace(embedding=np.asarray(params.embedding, np.float64))
    rest["key"] = np.arange(4, dtype=np.uint32)
    older = Checkpoints(run)
    with jax.enable_x64(True):  # orbax takes jax.Arrays
        older.save(found.step, jax.tree.map(jnp.asarray, wide), rest, found.notes)
        older.close()
    assert_same_bits(load(run), params)
    with jax.enable_x64(True):
        assert_same_bits(load(run), params)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    _, step, _ = loop.fit(change(DROPPING, steps=10), CORPUS, run, Report(run, 1, quiet=True))
    assert step == 10 and (run / "checkpoints" / "10").is_dir()
    assert before.keys() <= {path for path in run.rglob("*") if path.is_file()}


def _optimizer() -> Any:
    return optimizers.make_optimizer(DROPPING, 8)


# --- the commands, in processes whose environment sets the modes for good ---

ENVIRONMENT = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
}
PROGRAM = """
import json, sys
from jaxrnn import generate, train
for name, arguments in json.loads(sys.argv[1]):
    assert {"train": train.main, "generate": generate.main}[name](arguments) == 0
"""


def commands(text: Path, run: Path) -> list[tuple[str, list[str]]]:
    """Train a model and generate text with it."""
    settings = f"--data {text} --workdir {run} --cell gru --hidden-size 6 --embedding-size 4 --dropout 0.2 "  # noqa: E501
    settings += "--dtype float32 --batch 4 --seq-len 8 --steps 8 --warmup 5 --log-every 2 "
    settings += "--eval-every 4 --sample-every 4"
    writing = [str(run), "--length", "20", "--output", f"{run}.txt"]
    return [("train", settings.split()), ("generate", writing)]


@pytest.mark.process
def test_the_commands_in_other_modes(tmp_path: Path) -> None:
    """A run is resumed and sampled in other modes, and equals a run trained in them."""
    text, old, new = (tmp_path / name for name in ("text", "old", "new"))
    text.write_text(TEXT)
    mains = {"train": train.main, "generate": generate.main}
    for name, arguments in commands(text, old):
        assert mains[name](arguments) == 0
    written = Path(f"{old}.txt").read_text()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands(text, old) + commands(text, new))],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert metrics_of(old) == metrics_of(new)
    assert (old / "samples.txt").read_text() == (new / "samples.txt").read_text()
    assert Path(f"{old}.txt").read_text() == Path(f"{new}.txt").read_text() == written
