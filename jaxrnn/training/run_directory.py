"""The run's folder before and around a training: made, held by one training, and of one run."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxrnn.data import sources
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import processes
from jaxrnn.errors import InputError
from jaxrnn.training import checkpoint, feed, report, run_description

CHECKPOINTS, ASIDE, LOCK = "checkpoints", "set-aside", "lock"
FOLDERS = (CHECKPOINTS, ASIDE, report.BOARD)
FILES = (run_description.VOCABULARY, report.METRICS, report.SAMPLES, report.PICTURE, feed.FILE)
# All that a training writes into its folder.
OWNED = (run_description.DESCRIPTION, *FILES, *FOLDERS)

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
      InputError: where it cannot be written, another training is running there, or the processes of
        one training do not see the same folder.
    """
    busy = f"another training is running in {workdir}; wait for it or choose another --workdir"

    def take(stack: contextlib.ExitStack) -> str:
        if not processes.is_primary():
            return ""
        make(workdir, "--workdir")
        stack.enter_context(locked(workdir, "--workdir", busy))
        _check_writable(workdir)
        if jax.process_count() == 1:
            return ""
        mark = _mark()
        (workdir / LOCK).write_text(mark)
        return mark

    with contextlib.ExitStack() as stack:
        try:
            mark = processes.allgather_json(processes.run_on_all(lambda: take(stack)))[0]
            processes.run_on_all(lambda: _check_shared(workdir, mark))
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(
                    f"could not save to {workdir}: {error.strerror}; "
                    "the checkpoints before it are intact"
                ) from error
            raise


@contextlib.contextmanager
def locked(folder: Path, flag: str, busy: str) -> Iterator[None]:
    """Hold the lock file of a folder.

    Args:
      folder: it exists.
      flag: that names it.
      busy: what to say where another process holds it.

    Raises:
      InputError: where another process holds it, or it cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0, mode=0o666)  # less the user's umask
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise _not_writable(folder / LOCK, flag, error) from None
    try:
        yield
    finally:
        lock.release()


def is_foreign_lock(folder: Path) -> bool:
    """Return whether the file named like our lock is not a lock, so the folder holds something else."""
    lock = folder / LOCK
    return lock.exists() and (not lock.is_file() or lock.stat().st_size > len(_mark()))


def clear(workdir: Path) -> None:
    """Remove the files that a run wrote. Other files beside them and the targets of links are kept.

    What says that the folder holds a run is removed last, so that after a crash it still says so.
    """
    if not run_description.is_run(workdir):
        return
    for name in FOLDERS:
        folder = workdir / name
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if _written(name, path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    for name in (*FILES, run_description.DESCRIPTION):
        (workdir / name).unlink(missing_ok=True)


def _written(folder: str, path: Path) -> bool:
    """Return whether a training wrote this path, which is inside one of FOLDERS."""
    if folder == report.BOARD:
        return path.name.startswith("events.out.tfevents.")
    return path.is_dir() and (path.name.isdecimal() or ".orbax-checkpoint-tmp" in path.name)


def check(workdir: Path, new: dict[str, Any], vocabulary: Vocabulary, overwrite: bool) -> None:
    """Refuse a folder in which a training would overwrite something. Changes nothing.

    Args:
      workdir: the folder; it need not exist.
      new: the description of the training.
      vocabulary: of its text.
      overwrite: a run that is there is to be thrown away.

    Raises:
      InputError: where the folder's name is not UTF-8; where it holds no run of jaxrnn but files of
        the names that a training writes; and, unless `overwrite`, where its run is of another model
        or another text.
    """
    checkpoint.check_name(workdir)
    if not os.path.isdir(workdir):
        return
    if not run_description.is_run(workdir):
        _check_free(workdir, vocabulary)
    elif not overwrite:
        _check_same(workdir, new)


def _check_free(workdir: Path, vocabulary: Vocabulary) -> None:
    """Raise InputError where a training would overwrite files that it did not write."""
    others = [name for name in OWNED if _occupied(workdir / name)]
    if is_foreign_lock(workdir):
        others.append(LOCK)
    if others == [
        run_description.VOCABULARY
    ]:  # a training that was killed between its first two files
        with contextlib.suppress(OSError):
            if (workdir / others[0]).read_bytes() == run_description.vocabulary_text(
                vocabulary
            ).encode():
                return
    if others:
        raise InputError(
            f"{workdir} holds no run of jaxrnn, and a training would write over its "
            f"{', '.join(others)}; choose another --workdir"
        )


def _occupied(path: Path) -> bool:
    """Return whether a training would overwrite what is at this path."""
    if path.name in FOLDERS and path.is_dir():  # perhaps a link to a larger disk, made before
        return any(_written(path.name, inside) for inside in path.iterdir())
    return path.exists() or path.is_symlink()


def _check_same(workdir: Path, new: dict[str, Any]) -> None:
    """Raise InputError where the folder holds a run of another model or another text."""
    old, _ = run_description.read(workdir)
    before, after = flat(old), flat(new)
    names = sorted((before.keys() | after.keys()) - FREE)
    differing = [n for n in names if before.get(n) != after.get(n)]
    if differing == ["sha256"]:
        then, now = (str(side.get("sha256"))[:12] for side in (before, after))
        raise InputError(
            f"the text has changed since the run in {workdir} began (sha256 {then}... then and "
            f"{now}... now), and a run resumes with its own text alone: give that one, choose "
            "another --workdir, or --overwrite the run"
        )
    if differing:
        settings = [
            f"--{n.replace('_', '-')} is {before.get(n)} there and {after.get(n)} here"
            for n in differing
            if n != "sha256"
        ]
        if "sha256" in differing:
            settings.append("its text is another")
        differences = "; ".join(settings)
        raise InputError(
            f"{workdir} holds a different run: {differences}; give its settings to resume it, "
            "another --workdir, or --overwrite it"
        )


def check_data(workdir: Path, data: Sequence[str], glob: str | None, samples: bool) -> None:
    """Refuse training data that includes files which the training itself writes.

    Args:
      workdir: the run's folder.
      data, glob: as for `sources.read`.
      samples: the training writes samples.

    Raises:
      InputError: where `data` names a file that a training writes into `workdir`, or a folder from
        which it would take one in, now or when the same command is given again.
    """
    for name in (run_description.DESCRIPTION, *FILES, LOCK):
        if name == report.SAMPLES and not samples and not os.path.exists(workdir / name):
            continue
        word = sources.word_including(data, glob, workdir / name)
        if word is not None:
            raise InputError(
                f"--data {word} takes in {workdir / name}, which the training itself writes: choose "
                "another --workdir, or other files"
            )


def check_output(output: Path, run: Path) -> None:
    """Raise InputError where `output` is one of the files of a run."""
    try:
        inside = output.resolve().relative_to(run.resolve())
    except ValueError:
        return
    if inside.parts and inside.parts[0] in (*OWNED, LOCK):
        raise InputError(f"--output {output} is a file of the run in {run}; choose another")


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
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, flag, error) from None


def _check_writable(workdir: Path) -> None:
    """Raise InputError where a training could not write all of its files in the run directory."""
    for folder in (workdir / name for name in FOLDERS if (workdir / name).is_dir()):
        make(folder, "--workdir")
        for path in folder.iterdir():
            if path.is_dir() and _written(folder.name, path):
                make(path, "--workdir")
    for path in (workdir / report.METRICS, workdir / report.SAMPLES):
        try:
            if path.exists():
                path.open("r+b").close()
        except OSError as error:
            raise _not_writable(path, "--workdir", error) from None


def _not_writable(path: Path, flag: str, error: OSError) -> InputError:
    """Return the error for a path that cannot be written; it names the owner where access is denied."""
    owner = ""
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        if error.errno in (errno.EACCES, errno.EPERM):
            owner = f" (it belongs to {path.owner()})"
    return InputError(
        f"cannot write to {path}: {error.strerror}{owner}; choose another {flag}, or make it writable"
    )


def _mark() -> str:
    return secrets.token_hex(8)


def _check_shared(workdir: Path, mark: str) -> None:
    lock = workdir / LOCK
    if mark and (not lock.exists() or lock.read_text() != mark):
        raise InputError(
            f"{workdir.absolute()} is not the folder that process 0 sees; give a --workdir on a file "
            "system that all hosts share"
        )
