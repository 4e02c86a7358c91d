"""Checkpoints of a training: pytrees of arrays on disk, each with a digest, written by orbax.

Nothing that is loaded can run code: JSON, and arrays by name. A checkpoint is damaged where its content
differs from its digest or is half-written; the newest good one is read in its place. A checkpoint that
cannot be read for another reason (permissions, a failing disk, too little memory, parameters of another
model) raises an error with that reason.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrnn.devices import accelerator, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.training.orbax_errors import Damaged, quieten_orbax, reading, writing

Which = Literal["best", "latest"]


class Restored(NamedTuple):
    """A checkpoint read back: the tree, the step it was saved at, and what was noted beside it."""

    tree: Any
    step: int
    notes: dict[str, Any]


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
        quieten_orbax()
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        else:
            options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
            with writing(self.directory):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        steps = self._manager.all_steps()
        self._losses = processes.run_on_all(lambda: {step: self._loss(step) for step in steps})

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
        with writing(self.directory):
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
        with writing(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """As `wait`, and no more after it."""
        with writing(self.directory):
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
        ignore: Collection[str] = (),
    ) -> Restored | None:
        """Read the newest (or best) good checkpoint; None if there is none at all.

        Damaged ones are passed over, and `warn` is called for each of them.

        Args:
          params, rest: pytrees of arrays or ShapeDtypeStructs of the shapes saved; `rest=None` leaves
            it on the disk.
          which: "latest" or "best".
          accept: passes over checkpoints by their notes.
          ignore: names of saved arrays that `params` and `rest` need not have.

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
                return self._read_good(step, trees, accept, ignore), None
            except Damaged as why:
                if not (self.directory / str(step)).exists():  # a training has deleted it meanwhile
                    return None, None
                return None, f"checkpoint {step} in {self.directory} is damaged ({why})"

        for step in self.steps(which):
            found, line = processes.run_on_all(functools.partial(read, step))
            lines = [line for line in processes.allgather_json(line) if line]
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
        self,
        step: int,
        trees: dict[str, Any],
        accept: Callable[[dict[str, Any]], bool],
        ignore: Collection[str],
    ) -> Any:
        """Read a checkpoint's items; None where it is not accepted.

        Raises:
          Damaged: where its content is not what was written.
          InputError: where it cannot be read or is of another model.
        """
        folder = self.directory / str(step)
        with reading(folder):
            notes = self._read(step, notes=ocp.args.JsonRestore())["notes"]
            if not accept(notes):
                return None
            digest = {name: notes["digest"][name] for name in trees}
            found = {name: self._arrays(step, name, tree) for name, tree in trees.items()}
        for name in trees:
            if _digest(found[name]) != digest[name]:
                raise Damaged(f"the {name} differ from their digest")
        fitted = {name: _fitted(folder, found[name], tree, ignore) for name, tree in trees.items()}
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
        with writing(self.directory):
            self._manager.wait_until_finished()
            for later in [later for later in self.steps() if later > step]:
                if processes.is_primary():
                    target = self.directory.parent / "set-aside" / str(later)
                    shutil.rmtree(target, ignore_errors=True)
                    target.parent.mkdir(exist_ok=True)
                    # the checkpoints may be a link to another disk
                    shutil.move(self.directory / str(later), target)
                del self._losses[later]
            processes.allgather_json(None)  # no process looks before they are gone
            self._manager.reload()

    def _loss(self, step: int) -> float:
        try:
            with reading(self.directory / str(step)):
                return _loss(self._read(step, notes=ocp.args.JsonRestore())["notes"])
        except Damaged:  # which `restore` reports
            return math.inf

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))


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


def _fitted(
    folder: Path, found: dict[str, Any], tree: Any, ignore: Collection[str]
) -> dict[str, Any]:
    """Return the arrays of a checkpoint with the dtypes and devices of the tree's arrays.

    Raises InputError where they are not the tree's arrays: the checkpoint is of another model.
    """
    wanted = _abstract(tree)
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    for name in sorted(wanted.keys() | found.keys() - set(ignore)):
        expected = wanted[name].shape if name in wanted else None
        if shapes.get(name) != expected:
            raise InputError(
                f"the checkpoint {folder} is of another model: {name} is {shapes.get(name)} there "
                f"and {expected} by config.json and vocab.json, which belong to another run"
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
        array = np.asarray(mesh.gather_full(named[name]))
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
