"""The run directory: what is written there, and how it is read back.

    config.json     everything needed to build the run again
    vocab.json      what the tokens mean
    checkpoints/    orbax: parameters, and beside them the rest of the training state
    metrics.jsonl, samples.txt, loss.png      written by `jaxrnn.report`

Nothing that is loaded can run code: JSON, and arrays by name. Every checkpoint carries a digest of its
arrays; one that is damaged or half-written is passed over for the newest good one. Damaged is one whose
content is not what was written. One that cannot be read for another reason (permissions, a disk that
fails, too little memory, parameters of another model) stops what wanted to read it, with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrnn import accelerator, charlm, distributed, memory, mesh, modes
from jaxrnn.errors import InputError
from jaxrnn.storage import atomic_write
from jaxrnn.text import Vocabulary

Which = Literal["best", "latest"]

DESCRIPTION, VOCABULARY = "config.json", "vocab.json"
# Of a training state, what follows from the seed: its shape depends on the generator of random numbers.
FOLLOWS = {"key"}

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells every step of its own there


class Restored(NamedTuple):
    """A checkpoint read back: the tree, the step it was saved at, and what was noted beside it."""

    tree: Any
    step: int
    notes: dict[str, Any]


class Damaged(Exception):
    """The content of a checkpoint differs from what was written; the message says how, in one line."""


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous; the best and the two latest are kept.

    Args:
      run: the run directory.
      warn: called with one line for every damaged checkpoint that is passed over.
      read_only: leave the folder as it is; a training may be running there.

    Raises:
      InputError: where the folder or the notes of a checkpoint cannot be read.
    """

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None] = lambda line: None,
        read_only: bool = False,
    ) -> None:
        check_name(run)
        self.directory = run.absolute() / "checkpoints"
        self._warn = warn
        _check_readable(self.directory)
        _quieten_orbax()
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        else:
            options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
            with _disk(self.directory):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        steps = self._manager.all_steps()
        self._losses = distributed.together(lambda: {step: self._loss(step) for step in steps})

    def save(self, step: int, params: Any, rest: Any, notes: dict[str, Any]) -> None:
        """Start to save; returns once the arrays are copied and may be overwritten.

        Args:
          step: the number of steps taken.
          params: all that sampling needs; any pytree of arrays.
          rest: the rest of the training state; any pytree of arrays.
          notes: JSON, with the "validation" loss if there is one.

        Raises:
          OSError: where the disk is full or the folder cannot be written (also for the save before).
        """
        items = {"params": _named(params), "rest": _named(rest)}
        digest = {name: _digest(arrays) for name, arrays in items.items()}
        with _disk(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    notes=ocp.args.JsonSave(notes | {"digest": digest}),
                    # copies: the originals are donated to the next step while these are written
                    **{
                        n: ocp.args.StandardSave(jax.tree.map(jnp.copy, a))
                        for n, a in items.items()
                    },
                ),
            )
            self._losses[step] = _loss(notes)
            kept = {*self.steps("latest")[:2], self.steps("best")[0]}
            for old in set(self._losses) - kept:
                self._manager.delete(old)
                del self._losses[old]

    def preempted(self, steps: range) -> bool:
        """Whether a process was told to end, and all are to save after these steps, the last taken.

        JAX spreads the news and chooses one step for all. It must be asked about each, in order.
        """
        return any([self._manager.reached_preemption(step) for step in steps])

    def wait(self) -> None:
        """Until everything is on the disk. Raises OSError as `save` does."""
        with _disk(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """As `wait`, and no more after it."""
        with _disk(self.directory):
            self._manager.close()

    def steps(self, which: Which = "latest") -> list[int]:
        """The steps saved, from the one asked for down: newest first, or best first."""
        steps = sorted(self._losses, reverse=True)
        return sorted(steps, key=self._losses.__getitem__) if which == "best" else steps

    def restore(
        self,
        params: Any,
        rest: Any = None,
        which: Which = "latest",
        accept: Callable[[dict[str, Any]], bool] = lambda notes: True,
    ) -> Restored | None:
        """Read the newest (or best) good checkpoint; None if there is none at all.

        Damaged ones are passed over, and `warn` is called for each of them.

        Args:
          params, rest: pytrees of arrays or ShapeDtypeStructs of the shapes saved; `rest=None` leaves
            it on the disk.
          which: "latest" or "best".
          accept: passes over checkpoints by their notes.

        Returns:
          tree = (params, rest), each array where the one given lies, or on the default device, in the
          dtype given, whatever dtype it was saved in.

        Raises:
          InputError: where one that is not damaged cannot be read or is of another model, and where
            there are checkpoints and all that would be accepted are damaged.
        """
        trees = {"params": params} if rest is None else {"params": params, "rest": rest}
        damaged: list[str] = []

        def read(step: int) -> tuple[Any, str | None]:
            try:
                return self._read_good(step, trees, accept), None
            except Damaged as why:
                if not (self.directory / str(step)).exists():  # a training has deleted it meanwhile
                    return None, None
                return None, f"checkpoint {step} in {self.directory} is damaged ({why})"

        for step in self.steps(which):
            found, line = distributed.together(functools.partial(read, step))
            lines = [line for line in distributed.gather(line) if line]
            if lines:
                damaged.append(lines[0])
            elif found is not None:
                for why in damaged:
                    self._warn(f"{why}; it is passed over for checkpoint {step}")
                built = {name: _rebuilt(tree, found[name]) for name, tree in trees.items()}
                return Restored((built["params"], built.get("rest")), step, found["notes"])
        if damaged:
            raise InputError(f"no checkpoint is good: {'; '.join(damaged)}")
        return None

    def _read_good(
        self, step: int, trees: dict[str, Any], accept: Callable[[dict[str, Any]], bool]
    ) -> Any:
        """Read a checkpoint's items; None where it is not accepted.

        Raises:
          Damaged: where its content is not what was written.
          InputError: where it cannot be read or is of another model.
        """
        folder = self.directory / str(step)
        with _reading(folder):
            notes = self._read(step, notes=ocp.args.JsonRestore())["notes"]
            if not accept(notes):
                return None
            digest = {name: notes["digest"][name] for name in trees}
            found = {name: self._arrays(step, name, tree) for name, tree in trees.items()}
        for name in trees:
            if _digest(found[name]) != digest[name]:
                raise Damaged(f"the {name} differ from their digest")
        fitted = {name: _fitted(folder, found[name], tree) for name, tree in trees.items()}
        return {"notes": notes, **fitted}

    def _arrays(self, step: int, item: str, tree: Any) -> dict[str, Any]:
        """Return an item's arrays by name, as they were saved.

        An array that has the shape and dtype of the tree's array is placed where that array is. The
        others are numpy arrays, whose dtypes do not depend on JAX's modes.
        """
        wanted = _abstract(tree)
        saved = ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / item).tree

        def template(name: str) -> Any:
            shape, dtype = tuple(saved[name].shape), np.dtype(saved[name].dtype)
            here = wanted.get(name)
            if here is not None and (here.shape, here.dtype) == (shape, dtype):
                return here
            return np.broadcast_to(np.empty((), dtype), shape)  # takes no memory

        templates = {name: template(name) for name in saved}
        return self._read(step, **{item: ocp.args.StandardRestore(templates)})[item]

    def set_aside(self, step: int) -> None:
        """Move every checkpoint later than `step` to the run's folder `set-aside`, deleting nothing.

        They are damaged, or ahead of a state that the run went back to; their steps come again.
        Raises OSError as `save` does.
        """
        with _disk(self.directory):
            self._manager.wait_until_finished()
            for later in [later for later in self.steps() if later > step]:
                if distributed.first():
                    target = self.directory.parent / "set-aside" / str(later)
                    shutil.rmtree(target, ignore_errors=True)
                    target.parent.mkdir(exist_ok=True)
                    # the checkpoints may be a link to another disk
                    shutil.move(self.directory / str(later), target)
                del self._losses[later]
            distributed.gather(None)  # no process looks before they are gone
            self._manager.reload()

    def _loss(self, step: int) -> float:
        try:
            with _reading(self.directory / str(step)):
                return _loss(self._read(step, notes=ocp.args.JsonRestore())["notes"])
        except Damaged:  # which `restore` reports
            return math.inf

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))


@modes.fixed()
def load(
    run: str | os.PathLike[str],
    which: Which = "best",
    warn: Callable[[str], None] | None = None,
) -> charlm.Params:
    """Read the model of a run directory, onto whatever device there is here.

    Args:
      run: the folder that `python -m jaxrnn.train` wrote.
      which: "best" (lowest validation loss) or "latest".
      warn: called with one line for every damaged checkpoint that is passed over for the next best
        (or latest) one; None issues a RuntimeWarning.

    Returns:
      The model, its parameters float32, whatever JAX' modes are here or were when it was trained.

    Raises:
      InputError: for a folder that is none, is no run, holds no good checkpoint or cannot be read,
        and for a model that is larger than the memory here.
    """
    path = Path(run)
    config, vocabulary = read_description(path)
    model = model_of(path, config)
    shapes = jax.eval_shape(lambda: charlm.init(model, vocabulary))
    memory.check(memory.size(shapes), f"the model of {run}", "use a machine with more")
    checkpoints = Checkpoints(path, _issue if warn is None else warn, read_only=True)
    restored = checkpoints.restore(shapes, which=which)
    checkpoints.close()
    if restored is None:
        raise InputError(f"{run} holds no good checkpoint yet")
    return restored.tree[0]


def _issue(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=5)  # that many calls below the caller of `load`


def write_description(run: Path, config: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write config.json and vocab.json, each whole or not at all; config.json makes it a run."""
    atomic_write(run / VOCABULARY, vocabulary_text(vocabulary))
    atomic_write(run / DESCRIPTION, json.dumps(config, indent=2) + "\n")


def vocabulary_text(vocabulary: Vocabulary) -> str:
    """Return the content of vocab.json."""
    return json.dumps(dataclasses.asdict(vocabulary)) + "\n"


def read_description(run: Path) -> tuple[dict[str, Any], Vocabulary]:
    """Read config.json and vocab.json of a run.

    Raises:
      InputError: for a folder that is no run, and for a file that is damaged or cannot be read.
    """
    if not os.path.isdir(run):
        raise InputError(f"{run} is no folder; train first, or name the folder of a run")
    config = _read_json(run, DESCRIPTION)
    if not describes_run(config):
        raise InputError(f"{run} is no run of jaxrnn: its {DESCRIPTION} describes something else")
    try:
        vocabulary = Vocabulary(**_read_json(run, VOCABULARY))
        if not len(vocabulary):
            raise ValueError("it is empty")
    except (ValueError, TypeError) as error:
        raise InputError(f"{run} has a damaged description: {VOCABULARY}: {error}") from None
    return config, vocabulary


def describes_run(config: Any) -> bool:
    """Return whether `write_description` wrote this content of a config.json."""
    try:
        return isinstance(config["training"]["model"], dict)
    except (KeyError, TypeError):
        return False


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run, which its config.json shows.

    Raises:
      InputError: where config.json is damaged or cannot be read, so that it does not say.
    """
    try:
        (folder / DESCRIPTION).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot read {folder / DESCRIPTION}: {error.strerror}") from None
    return describes_run(_read_json(folder, DESCRIPTION))


def model_of(run: Path, config: dict[str, Any]) -> charlm.Config:
    """Return the model configuration in a run's config.json. Raises InputError where it is invalid."""
    try:
        model = charlm.Config(**config["training"]["model"])
        model.make_cell()
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{run} has a damaged description: {DESCRIPTION}: {error}") from None
    return model


def _read_json(run: Path, name: str) -> Any:
    try:
        return json.loads((run / name).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{run} is no run of jaxrnn: it has no {name}") from None
    except OSError as error:
        raise InputError(f"cannot read {run / name}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(
            f"{run} has a damaged description: {name}: {error}; bring it back, or use another folder"
        ) from None


def _loss(notes: dict[str, Any]) -> float:
    """The validation loss beside a checkpoint; infinite where none was made."""
    value = notes.get("validation")
    return math.inf if value is None else float(value)


def _named(tree: Any) -> dict[str, Any]:
    """A pytree as a flat dict of arrays, named by their paths: nothing to import when it is read."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _abstract(tree: Any) -> dict[str, Any]:
    here = jax.sharding.SingleDeviceSharding(accelerator.device())
    return {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
        )
        for name, leaf in _named(tree).items()
    }


def _fitted(folder: Path, found: dict[str, Any], tree: Any) -> dict[str, Any]:
    """Return the arrays of a checkpoint with the dtypes and devices of the tree's arrays.

    Raises InputError where they are not the tree's arrays: the checkpoint is of another model.
    """
    wanted = _abstract(tree)
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    for name in sorted(wanted.keys() | found.keys() - FOLLOWS):
        expected = wanted[name].shape if name in wanted else None
        if shapes.get(name) != expected:
            raise InputError(
                f"the checkpoint {folder} is of another model: {name} is {shapes.get(name)} there "
                f"and {expected} by {DESCRIPTION} and {VOCABULARY}, which belong to another run"
            )

    def fitted(array: Any, like: jax.ShapeDtypeStruct) -> Any:
        if isinstance(array, jax.Array):
            return array
        return jax.device_put(array.astype(like.dtype), like.sharding)

    return {name: fitted(found[name], like) for name, like in wanted.items()}


def _rebuilt(tree: Any, named: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in _named(tree)])


def _digest(named: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.asarray(mesh.whole(named[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_name(run: Path) -> None:
    """Raise InputError for a folder whose path is not UTF-8, because orbax would use another folder."""
    path = str(run.absolute())
    try:
        same = path.encode() == os.fsencode(path)
    except UnicodeEncodeError:
        same = False
    if not same:
        raise InputError(
            f"the path of the folder {path} is not UTF-8, which checkpoints need; "
            "choose another folder, or rename it"
        )


def _check_readable(directory: Path) -> None:
    """Raise InputError where the checkpoints of a run cannot be listed."""
    try:
        os.listdir(directory)
    except FileNotFoundError:
        if directory.is_symlink():
            raise InputError(f"{directory} is a link to a folder that is not there") from None
    except OSError as error:
        raise InputError(f"cannot read {directory}: {error.strerror}") from None


# What tensorstore's errors begin with where the content of a file is not to blame.
_CIRCUMSTANCES = (
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED",
    "CANCELLED", "UNIMPLEMENTED",
)  # fmt: skip


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn errors that orbax raises while it reads a checkpoint into Damaged or InputError.

    Raises:
      Damaged: where the content is to blame: it is missing, too short or not what it should be.
      InputError: where something else is: the system does not let us read it, or memory is short.
    """
    try:
        yield
    except Exception as error:
        if distributed.lost(error):
            raise
        reason = _unreadable(folder)
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
        failed = isinstance(error, OSError) and error.errno is not None and not missing
        if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)) or failed:
            reason = reason or _first_line(error)
        if str(error).startswith(_CIRCUMSTANCES):
            reason = reason or _first_line(error)
        if reason:
            raise InputError(f"cannot read the checkpoint {folder}: {reason}") from error
        raise Damaged(_first_line(error)) from error


def _unreadable(folder: Path) -> str | None:
    """Return why the system does not let us read a file in a folder; None where all can be read.

    orbax reports many such files as missing, and those that are missing really are damage.
    """

    def stop(error: OSError) -> None:
        raise error

    try:
        for place, _, names in os.walk(folder, onerror=stop):
            for name in names:
                with open(os.path.join(place, name), "rb") as file:
                    while file.read(1 << 24):
                        pass
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


class _disk:
    """Turns what orbax and tensorstore raise for a failed write into one OSError with one line."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not distributed.lost(error):
            raise OSError(
                f"could not save to {self._directory}: {_first_line(error)}; "
                "the checkpoints before it are intact"
            ) from error


def _quieten_orbax() -> None:
    """Keep off the screen what becomes of orbax's other tasks after one of them met a bad file.

    They end in threads of their own, some after their event loop was closed; the error that matters
    was raised in `save`, `wait` or `restore` already.
    """
    logging.getLogger("asyncio").addFilter(_told_already)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "drop_abandoned_tasks":
        return

    def drop_abandoned_tasks(unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        if not any("asyncio" in frame.filename or "orbax" in frame.filename for frame in frames):
            before(unraisable)

    sys.unraisablehook = drop_abandoned_tasks


def _told_already(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
