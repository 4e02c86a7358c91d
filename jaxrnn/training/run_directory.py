"""The run directory around a training: what may be in it, its lock, and whether it is the same run."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrnn import settings
from jaxrnn.data import sources
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import locks, processes
from jaxrnn.errors import InputError
from jaxrnn.training import checkpoint, feed, metrics, report, run_description
from jaxrnn.training.run_description import Description

CHECKPOINTS, ASIDE = "checkpoints", "set-aside"
FOLDERS = (CHECKPOINTS, ASIDE, report.BOARD)
FILES = (
    run_description.VOCABULARY,
    metrics.METRICS,
    report.SAMPLES,
    metrics.PICTURE,
    feed.FILE,
)
# Everything that a training writes into its folder, except for the lock.
OWNED = (run_description.DESCRIPTION, *FILES, *FOLDERS)


def require_equal_settings(new: Description) -> None:
    """Raise InputError if the processes of one training have different settings or texts."""
    common = {
        name: value
        for name, value in flatten(new.values).items()
        if not new.rules.get(name, settings.DEFAULTS).per_process
    }
    common["jax"] = jax.__version__
    processes.require_equal(common, "start all with the same command and text")


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Make the run directory if need be, and keep every other training out of it.

    Raises:
      InputError: if it cannot be written, another training is running there, or the processes of one
        training do not see the same folder.
    """
    busy = f"another training is running in {workdir}; wait for it or choose another `workdir`"

    def take(stack: contextlib.ExitStack) -> str:
        if not processes.is_primary():
            return ""
        locks.make_folder(workdir, "workdir")
        stack.enter_context(locks.lock_folder(workdir, "workdir", busy))
        _check_writable(workdir)
        if jax.process_count() == 1:
            return ""
        mark = locks.random_mark()
        (workdir / locks.LOCK).write_text(mark)
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
                    "the earlier checkpoints are intact"
                ) from error
            raise


def clear(workdir: Path) -> None:
    """Remove the files that a run wrote. Other files beside them and the targets of links are kept.

    The file that shows that the folder holds a run is removed last, so that it is there after a crash.
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


def check(workdir: Path, new: Description, vocabulary: Vocabulary, overwrite: bool) -> None:
    """Refuse a folder in which a training would overwrite something. Changes nothing.

    Args:
      workdir: the folder; it need not exist.
      new: the description of the training.
      vocabulary: the vocabulary of its text.
      overwrite: whether a run in the folder is to be replaced.

    Raises:
      InputError: if the name of the folder is not UTF-8; if it holds no run of jaxrnn, but files with
        names that a training writes; and, unless `overwrite`, if its run has another model or text.
    """
    checkpoint.check_name(workdir)
    if not os.path.isdir(workdir):
        return
    if not run_description.is_run(workdir):
        _check_free(workdir, vocabulary)
    elif not overwrite:
        _check_same(workdir, new)


def _check_free(workdir: Path, vocabulary: Vocabulary) -> None:
    """Raise InputError if a training would overwrite files that it did not write."""
    others = [name for name in OWNED if _is_occupied(workdir / name)]
    if locks.is_foreign_lock(workdir):
        others.append(locks.LOCK)
    if others == [run_description.VOCABULARY]:
        # Perhaps a training was killed between its first two files.
        ours = run_description.vocabulary_text(vocabulary).encode()
        with contextlib.suppress(OSError):
            if (workdir / others[0]).read_bytes() == ours:
                return
    if others:
        raise InputError(
            f"{workdir} holds no run of jaxrnn, and a training would overwrite its "
            f"{', '.join(others)}; choose another `workdir`"
        )


def _is_occupied(path: Path) -> bool:
    """Return whether a training would overwrite what is at this path."""
    if path.name in FOLDERS and path.is_dir():
        # It may be a link to a larger disk, made before the training.
        return any(_written(path.name, inside) for inside in path.iterdir())
    return path.exists() or path.is_symlink()


def _check_same(workdir: Path, new: Description) -> None:
    """Raise InputError if the folder holds a run of another model or another text."""
    absent = flatten({name: rules.absent for name, rules in new.rules.items()})
    before = absent | flatten(run_description.read(workdir)[0])
    after = flatten(new.values)
    fixed = (
        name
        for name in before.keys() | after.keys()
        if not new.rules.get(name, settings.DEFAULTS).may_change
    )
    differing = sorted(name for name in fixed if before.get(name) != after.get(name))
    if differing == ["sha256"]:
        then, now = (str(side.get("sha256"))[:12] for side in (before, after))
        raise InputError(
            f"the text has changed since the run in {workdir} began (sha256 {then}... then and "
            f"{now}... now), and a run can only be resumed with the same text: give that text, choose "
            "another `workdir`, or `overwrite` the run"
        )
    if differing:
        differences = [
            f"`{name}` is {before.get(name)} there and {after.get(name)} here"
            for name in differing
            if name != "sha256"
        ]
        if "sha256" in differing:
            differences.append("its text is another")
        raise InputError(
            f"{workdir} holds a different run: {'; '.join(differences)}; give the settings of that run "
            "to resume it, choose another `workdir`, or `overwrite` it"
        )


def check_data(workdir: Path, data: Sequence[str], glob: str | None, samples: bool) -> None:
    """Refuse training data that includes files which the training itself writes.

    Args:
      workdir: the run directory.
      data: as for `sources.read`.
      glob: as for `sources.read`.
      samples: whether the training writes samples.

    Raises:
      InputError: if `data` names a file that a training writes into `workdir`, or a folder from which
        such a file would be read, now or when the same command is given again.
    """
    for name in (run_description.DESCRIPTION, *FILES, locks.LOCK):
        if name == report.SAMPLES and not samples and not os.path.exists(workdir / name):
            continue
        word = sources.word_including(data, glob, workdir / name)
        if word is not None:
            raise InputError(
                f"`data` {word} includes {workdir / name}, which the training itself writes: choose "
                "another `workdir`, or other files"
            )


def check_output(output: Path, run: Path, setting: str = "output") -> None:
    """Raise InputError if an output is one of the files of a run.

    Args:
      output: the path of the output.
      run: the run directory, or the file of a model, which the output must not be.
      setting: name of the setting that chose the output, for the message.
    """
    if output.exists() and run.is_file() and output.samefile(run):
        raise InputError(f"`{setting}` {output} is the file of the model; choose another")
    try:
        # `Path.resolve` raises RuntimeError for links in a circle, before Python 3.13.
        inside = Path(os.path.realpath(output)).relative_to(os.path.realpath(run))
    except ValueError:
        return
    if inside.parts and inside.parts[0] in (*OWNED, locks.LOCK):
        raise InputError(f"`{setting}` {output} is a file of the run in {run}; choose another")


def check_output_file(output: Path, run: Path, setting: str) -> None:
    """Raise InputError if an output file cannot be written, or belongs to a run; see `check_output`.

    Raises:
      OSError: if the disk is full.
    """
    try:
        # A loop of symbolic links raises an error here; `exists` below would report it as missing.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            output.stat()
        if output.is_dir():
            raise InputError(f"`{setting}` {output} is a folder; give the name of a file")
        if output.exists() and not output.is_file():
            raise InputError(f"`{setting}` {output} is not a regular file; choose another")
        check_output(output, run, setting)
        if not output.parent.is_dir():
            raise InputError(
                f"the folder of `{setting}` {output} does not exist; make it, or choose another"
            )
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"could not write to {output}: {error.strerror}") from error
        raise locks.not_writable(output, setting, error) from None


def flatten(description: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a description by name, without the groups that they are in.

    A tuple becomes a list, as in JSON.
    """
    found: dict[str, Any] = {}
    for name, value in description.items():
        value = list(value) if isinstance(value, tuple) else value
        found.update(flatten(value) if isinstance(value, dict) else {name: value})
    return found


def _check_writable(workdir: Path) -> None:
    """Raise InputError if a training could not write all of its files in the run directory."""
    for folder in (workdir / name for name in FOLDERS if (workdir / name).is_dir()):
        locks.make_folder(folder, "workdir")
        for path in folder.iterdir():
            if path.is_dir() and _written(folder.name, path):
                locks.make_folder(path, "workdir")
    for path in (workdir / metrics.METRICS, workdir / report.SAMPLES):
        try:
            if path.exists():
                path.open("r+b").close()
        except OSError as error:
            raise locks.not_writable(path, "workdir", error) from None


def _check_shared(workdir: Path, mark: str) -> None:
    """Raise InputError if the lock file here does not hold the mark that the primary process wrote."""
    file = workdir / locks.LOCK
    if mark and (not file.exists() or file.read_text() != mark):
        raise InputError(
            f"{workdir.absolute()} is not the folder that process 0 sees; choose a `workdir` on a "
            "file system that all hosts share"
        )
