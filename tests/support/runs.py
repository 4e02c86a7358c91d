"""Small texts, small models and small trainings of them, and what a run left on the disk."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import charlm, train
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.training import checkpoint, loop, optimizers, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.metrics import read_metrics
from jaxrnn.training.report import Report

TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n}\n" for n in range(80))
CORPUS = make_corpus(TEXT)
TINY = charlm.ModelConfig(cell="rnn", hidden_size=4, embedding_size=3)
CONFIG = TrainingConfig(
    model=TINY, batch=4, seq_len=8, steps=12, warmup=3, log_every=2, eval_every=4, sample_every=0
)
TIMES = ("chars_per_second", "seconds", "training_seconds")


def relaxed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for use outside of a step of training: optax adds integers to floats."""

    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


def rate_by_hand(config: TrainingConfig, total: int, n: int) -> float:
    """The learning rate of step n of `total`."""
    warmup = min(config.warmup, total - 1)
    if n < warmup:
        return config.learning_rate * n / warmup
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "linear":
        return config.learning_rate * (total - n) / (total - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * (n - warmup) / (total - warmup))) / 2


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Train without pictures."""
    patch.setattr(Report, "draw", lambda self: None)


def change(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    """The settings with some changed, the model's too."""
    names = {field.name for field in dataclasses.fields(charlm.ModelConfig)}
    model = {n: changes.pop(n) for n in list(changes) if n in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model), **changes)


def start(config: TrainingConfig, corpus: Corpus = CORPUS) -> tuple[Any, stepping.TrainState]:
    optimizer = optimizers.make_optimizer(config, config.total_steps(config.batches(corpus)))
    return optimizer, stepping.create(config, optimizer, corpus.vocabulary)


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def tokens_of(config: TrainingConfig, n: int, corpus: Corpus = CORPUS) -> jax.Array:
    """Batch n, [T + 1, B]."""
    places = config.batches(corpus).starts(n) + np.arange(config.seq_len + 1)[:, None]
    return jnp.asarray(corpus.tokens[places], jnp.int32)


def run_of(tmp_path: Path, name: str = "run") -> Path:
    run = tmp_path / name
    run.mkdir()
    return run


def fit(config: TrainingConfig, run: Path, corpus: Corpus = CORPUS, **more: Any) -> Any:
    """Train in silence. Returns (params, step, lines of metrics.jsonl without the times)."""
    params, step, _ = loop.fit(config, corpus, run, Report(run, 1, quiet=True), **more)
    metrics = read_metrics(run / "metrics.jsonl")
    timeless = [{k: v for k, v in m.items() if k not in TIMES} for m in metrics]
    return params, step, timeless


def latest(run: Path, like: charlm.Params) -> charlm.Params:
    """The model of the newest checkpoint."""
    checkpoints = checkpoint.Checkpoints(run)
    found = checkpoints.restore(like)
    checkpoints.close()
    assert found is not None
    return found.tree[0]


class Notes(Report):
    """A silent report that keeps the lines it gets."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, 1, quiet=True)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def command(text: Path, run: Path) -> list[str]:
    flags = (
        "--cell gru --hidden-size 6 --embedding-size 4 --dropout 0.2 --dtype float32 --batch 4 --seq-len 8 "  # noqa: E501
        "--steps 60 --warmup 5 --log-every 2 --eval-every 4 --sample-every 20"
    )
    data = ["--data", str(text), "--workdir", str(run)]
    return [sys.executable, "-m", "jaxrnn.train", *data, *flags.split()]


# A model and a run so small that a training takes a second
SMALL = {
    "cell": "rnn",
    "hidden_size": 6,
    "embedding_size": 3,
    "dtype": "float32",
    "dropout": 0.0,
    "weight-dropout": 0.0,
    "learning-rate": 5e-3,
    "batch": 4,
    "seq-len": 8,
    "steps": 8,
    "warmup": 2,
    "log-every": 2,
    "eval-every": 4,
    "sample-every": 0,
}


def flags(data: Any, workdir: Any, *more: str, **changes: Any) -> list[str]:
    """The arguments of a small training."""
    settings = SMALL | {name.replace("_", "-"): value for name, value in changes.items()}
    named = [part for n, v in settings.items() for part in (f"--{n}", str(v))]
    return ["--data", str(data), "--workdir", str(workdir), *named, *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock that a command leaves behind."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def everything(folder: Path) -> dict[str, Any]:
    """Every path below a folder: what it holds, where it leads, and when it was changed."""
    return {
        str(path.relative_to(folder)): (
            path.is_symlink() and os.readlink(path),
            path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns if not path.is_dir() else None,
        )
        for path in folder.rglob("*")
    }


def replace_output(
    file: TextIO, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    """Let standard output be a file that may refuse what is written to it."""

    def close() -> None:
        with contextlib.suppress(OSError):
            file.close()

    ends(close)
    monkeypatch.setattr(sys, "stdout", file)


def lose_the_reader(monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]) -> None:
    """Let standard output be a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    replace_output(os.fdopen(writer, "w"), monkeypatch, ends)


KNOWN = "6 green bottles"
LATIN = TEXT.replace("green", "caf\xe9").encode("latin-1")  # which is not UTF-8


# --- as processes of their own ---


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}


def kill_before_the_first_step(argv: list[str]) -> None:
    """Begin the training run of `argv` and end it where its first step would begin."""

    class Killed(BaseException):
        pass

    def kill(*arguments: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_train", kill)
        with pytest.raises(Killed):
            train.main(argv)
