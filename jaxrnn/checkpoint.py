"""The run directory: what is written there, and how it is read back.

    config.json     everything needed to build the run again
    vocab.json      what the tokens mean
    checkpoints/    orbax: parameters, and beside them the rest of the training state
    metrics.jsonl, samples.txt, loss.png      written by `jaxrnn.report`

Nothing that is loaded can run code: JSON, and arrays by name. Every checkpoint carries a digest of its
arrays; one that is damaged or half-written is passed over for the newest good one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrnn import accelerator, charlm, distributed, mesh
from jaxrnn.errors import InputError
from jaxrnn.text import Vocabulary

Which = Literal["best", "latest"]

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells every step of its own there


class Restored(NamedTuple):
    """A checkpoint read back: the tree, the step it was saved at, and what was noted beside it."""

    tree: Any
    step: int
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous; the best and the two latest are kept.

    Args:
      run: the run directory.
      warn: told of every damaged checkpoint, in one line.
      read_only: leave the folder as it is; a training may be at work there.
    """

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None] = lambda line: None,
        read_only: bool = False,
    ) -> None:
        self.directory = run.absolute() / "checkpoints"
        self._warn = warn
        _quieten_orbax()
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._losses = {step: self._loss(step) for step in self._manager.all_steps()}

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
        """The newest (or best) good checkpoint, or None if there is none.

        A damaged one is told through `warn` and passed over.

        Args:
          params, rest: pytrees of arrays or ShapeDtypeStructs of the shapes saved; `rest=None` leaves
            it on the disk.
          which: "latest" or "best".
          accept: passes over checkpoints by their notes.

        Returns:
          tree = (params, rest), each array where the one given lies, or on the default device.
        """
        for step in self.steps(which):
            trees = {"params": params} if rest is None else {"params": params, "rest": rest}
            found, error = None, None
            try:
                found = self._read_good(step, trees, accept)
            except Exception as met:  # whatever orbax meets in a damaged file
                error = _first_line(met)
            errors = [line for line in distributed.gather(error) if line]
            if errors:
                self._warn(
                    f"checkpoint {step} in {self.directory} is damaged and passed over "
                    f"({errors[0]})"
                )
            elif found is not None:
                built = {name: _rebuilt(tree, found[name]) for name, tree in trees.items()}
                return Restored((built["params"], built.get("rest")), step, found["notes"])
        return None

    def _read_good(
        self, step: int, trees: dict[str, Any], accept: Callable[[dict[str, Any]], bool]
    ) -> Any:
        """A checkpoint's items, None where it is not accepted. Raises for one that is damaged."""
        notes = self._read(step, notes=ocp.args.JsonRestore())["notes"]
        if not accept(notes):
            return None
        found = self._read(
            step, **{n: ocp.args.StandardRestore(_abstract(t)) for n, t in trees.items()}
        )
        for name in trees:
            if _digest(found[name]) != notes["digest"][name]:
                raise ValueError(f"the {name} differ from their digest")
        return {"notes": notes, **{name: found[name] for name in trees}}

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
                    (self.directory / str(later)).rename(target)
                del self._losses[later]
            distributed.gather(None)  # nobody looks before they are gone
            self._manager.reload()

    def _loss(self, step: int) -> float:
        try:
            return _loss(self._read(step, notes=ocp.args.JsonRestore())["notes"])
        except Exception:  # a damaged one; `restore` tells of it
            return math.inf

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))


def load(run: str | os.PathLike[str], which: Which = "best") -> charlm.Params:
    """The model of a run directory, on whatever device there is here.

    Args:
      run: the folder that `python -m jaxrnn.train` wrote.
      which: "best" (lowest validation loss) or "latest".

    Raises:
      InputError: for a folder that is none, is no run, or holds no good checkpoint.
    """
    config, vocabulary = read_description(Path(run))
    try:
        model = charlm.Config(**config["training"]["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run} has a damaged description: {error!r} in config.json") from None
    shapes = jax.eval_shape(lambda: charlm.init(model, vocabulary))
    lines: list[str] = []
    checkpoints = Checkpoints(Path(run), lines.append, read_only=True)
    restored = checkpoints.restore(shapes, which=which)
    checkpoints.close()
    if restored is None:
        raise InputError("; ".join([f"{run} holds no good checkpoint yet", *lines]))
    return restored.tree[0]


def write_description(run: Path, config: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write config.json and vocab.json, each whole or not at all."""
    _write(run / "vocab.json", json.dumps(dataclasses.asdict(vocabulary)))
    _write(run / "config.json", json.dumps(config, indent=2))


def read_description(run: Path) -> tuple[dict[str, Any], Vocabulary]:
    """config.json and vocab.json of a run. Raises InputError for a folder that is no run."""
    if not run.is_dir():
        raise InputError(f"{run} is no folder; train first, or name the folder of a run")
    try:
        config = json.loads((run / "config.json").read_text())
        vocabulary = Vocabulary(**json.loads((run / "vocab.json").read_text()))
        if not isinstance(config, dict) or not len(vocabulary):
            raise ValueError("it is empty")
    except FileNotFoundError as error:
        raise InputError(
            f"{run} is no run of jaxrnn: it has no {Path(error.filename).name}"
        ) from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{run} has a damaged description: {error}") from None
    return config, vocabulary


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


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


def _rebuilt(tree: Any, named: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in _named(tree)])


def _digest(named: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.asarray(mesh.whole(named[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
