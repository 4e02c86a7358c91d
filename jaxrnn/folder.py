"""The run's folder before and around a training: made, held by one training, and of one run."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxrnn import checkpoint, distributed
from jaxrnn.errors import InputError
from jaxrnn.text import Vocabulary

# What may differ when a run is continued: how long, how and where it goes on, not what it is.
FREE = {
    "name", "data", "glob", "preset", "workdir", "overwrite", "accelerator", "sample_prime",
    "tensorboard", "mesh", "distributed", "coordinator", "process_id", "num_processes",
    "connect_timeout",
    "steps", "epochs", "learning_rate", "schedule", "warmup", "beta2", "clip_norm", "accumulate",
    "log_every", "eval_every", "sample_every", "memory_map", "implementation",
    "dropout", "weight_dropout",
}  # fmt: skip
# What differs from process to process of one training.
OWN = {"process_id", "workdir", "data", "name"}


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Make the folder if need be and keep every other training out of it.

    Raises:
      InputError: where it cannot be written, another training is at work there, or the processes of
        one training do not see the same folder.
    """
    lock = filelock.FileLock(workdir / "lock", timeout=0)

    def take() -> str:
        if not distributed.first():
            return ""
        make(workdir, "--workdir")
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another training is at work in {workdir}; wait for it or choose another --workdir"
            ) from None
        if jax.process_count() == 1:
            return ""
        mark = secrets.token_hex(8)
        (workdir / "lock").write_text(mark)
        return mark

    try:
        mark = distributed.gather(distributed.together(take))[0]
        distributed.together(lambda: _check_shared(workdir, mark))
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"could not save to {workdir}: {error.strerror}; the checkpoints before it are intact"
            ) from error
        raise
    finally:
        lock.release()


def clear(workdir: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in ("checkpoints", "set-aside", "tensorboard"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in (
        "config.json",
        "vocab.json",
        "metrics.jsonl",
        "samples.txt",
        "loss.png",
        "tokens.npy",
    ):
        (workdir / name).unlink(missing_ok=True)


def check_same_run(workdir: Path, new: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Raises InputError where the folder holds a run of another model or another text."""
    if not (workdir / "config.json").exists():
        return
    old, _ = checkpoint.read_description(workdir)
    before, after = flat(old), flat(new)
    names = sorted((before.keys() | after.keys()) - FREE)
    differing = [n for n in names if before.get(n) != after.get(n)]
    if differing:
        told = "; ".join(f"{n} is {before.get(n)} there and {after.get(n)} here" for n in differing)
        raise InputError(
            f"{workdir} holds a different run: {told}; choose another --workdir, or --overwrite it"
        )


def flat(description: dict[str, Any]) -> dict[str, Any]:
    """The settings by their own names, whatever they are grouped in."""
    found = {}
    for name, value in description.items():
        found.update(flat(value) if isinstance(value, dict) else {name: value})
    return found


def make(folder: Path, flag: str) -> None:
    """Make a folder that a flag names. Raises InputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another {flag}"
        ) from None


def _check_shared(workdir: Path, mark: str) -> None:
    lock = workdir / "lock"
    if mark and (not lock.exists() or lock.read_text() != mark):
        raise InputError(
            f"{workdir.absolute()} is not the folder that process 0 sees; give a --workdir on a file "
            "system that all hosts share"
        )
