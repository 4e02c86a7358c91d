"""Checkpoints of a training: pytrees of arrays on disk, each with a digest, written by orbax.

Reading a checkpoint never runs code: it holds JSON, and arrays by name. A checkpoint is damaged if its
content differs from its digest or is incomplete; the newest good one is then read instead. A checkpoint
that cannot be read for another reason (permissions, a failing disk, too little memory, parameters of
another model) raises an error with that reason.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrnn.devices import accelerator, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.literals import Which
from jaxrnn.training.orbax_errors import Damaged, reading, writing

# Arrays, or descriptions of arrays, in any nest of containers.
PyTree = Any
# JSON that is saved beside the arrays.
Notes = dict[str, Any]
Arrays = dict[str, jax.Array | np.ndarray]


class Restored(NamedTuple):
    """A checkpoint that was read.

    tree: (params, rest), where rest is None if it was not asked for.
    step: the number of steps taken when it was saved.
    notes: the JSON that was saved beside the arrays.
    """

    tree: PyTree
    step: int
    notes: Notes


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous; the best and the two latest are kept.

    Args:
      run: the run directory.
      warn: called with one line for every damaged checkpoint that is skipped.
      read_only: change nothing in the folder; a training may be running there.

    Raises:
      InputError: if the folder or the notes of a checkpoint cannot be read.
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
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        else:
            options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
            with writing(self.directory):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        steps = self._manager.all_steps()
        # The validation losses of the checkpoints that are kept, by step; infinite if there is none.
        self._losses = processes.run_on_all(lambda: {step: self._loss(step) for step in steps})

    def save(self, step: int, params: PyTree, rest: PyTree, notes: Notes) -> None:
        """Begin to save; return once the arrays are copied and may be overwritten.

        Args:
          step: the number of steps taken.
          params: a pytree of all arrays that sampling needs.
          rest: a pytree of the other arrays of the training state.
          notes: JSON, with the loss under "validation" if there is one.

        Raises:
          OSError: if the disk is full or the folder cannot be written, now or in the save before.
        """
        items = {"params": _named(params), "rest": _named(rest)}
        digest = {name: _digest(arrays) for name, arrays in items.items()}
        with writing(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    notes=ocp.args.JsonSave(notes | {"digest": digest}),
                    # These are copies, because the originals are donated to the next step while
                    # orbax writes in the background.
                    **{
                        name: ocp.args.StandardSave(jax.tree.map(jnp.copy, arrays))
                        for name, arrays in items.items()
                    },
                ),
            )
            # A preservation policy of orbax would keep the same checkpoints, but orbax ranks them by
            # metrics files of its own, which the checkpoints of existing runs do not have, and damaged
            # files must not decide what is deleted. The losses are needed here for `restore` anyway.
            self._losses[step] = _loss(notes)
            kept = {*self.steps("latest")[:2], self.steps("best")[0]}
            for old in set(self._losses) - kept:
                self._manager.delete(old)
                del self._losses[old]

    def preempted(self, steps: range) -> bool:
        """Return whether a process was asked to stop, so that all are to save after these steps.

        JAX informs all processes and chooses one step for all of them.

        Args:
          steps: the steps of the last device call; JAX must be asked about each of them, in order.
        """
        return any([self._manager.reached_preemption(step) for step in steps])

    def wait(self) -> None:
        """Wait until everything is on the disk. Raises OSError as `save` does."""
        with writing(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on the disk and close. Raises OSError as `save` does."""
        with writing(self.directory):
            self._manager.close()

    def steps(self, which: Which = "latest") -> list[int]:
        """Return the steps of the checkpoints, newest first or best first."""
        steps = sorted(self._losses, reverse=True)
        return sorted(steps, key=self._losses.__getitem__) if which == "best" else steps

    def restore(
        self,
        params: PyTree,
        rest: PyTree | None = None,
        which: Which = "latest",
        accept: Callable[[Notes], bool] = lambda notes: True,
        ignore: Collection[str] = (),
    ) -> Restored | None:
        """Read the newest (or best) good checkpoint.

        Damaged checkpoints are skipped, and `warn` is called for each of them.

        Args:
          params: pytree of arrays or ShapeDtypeStructs with the shapes of the saved ones.
          rest: the same for the rest of the training state; None does not read it.
          which: "latest" or "best".
          accept: called with the notes of a checkpoint; on False the checkpoint is skipped.
          ignore: names of saved arrays that `params` and `rest` need not have.

        Returns:
          The checkpoint, or None if there is none at all. Each array has the dtype and the sharding of
          the given one, whatever dtype it was saved in; without a sharding, it is on the default device.

        Raises:
          InputError: if a checkpoint that is not damaged cannot be read or is of another model, and if
            all checkpoints that would be accepted are damaged.
        """
        trees = {"params": params} if rest is None else {"params": params, "rest": rest}
        damaged: list[str] = []

        def read(step: int) -> tuple[tuple[dict[str, Arrays], Notes] | None, str | None]:
            try:
                return self._read_good(step, trees, accept, ignore), None
            except Damaged as why:
                if not (self.directory / str(step)).exists():
                    # A running training has deleted it meanwhile.
                    return None, None
                return None, f"checkpoint {step} in {self.directory} is damaged ({why})"

        for step in self.steps(which):
            found, line = processes.run_on_all(functools.partial(read, step))
            lines = [line for line in processes.allgather_json(line) if line]
            if lines:
                damaged.append(lines[0])
            elif found is not None:
                for why in damaged:
                    self._warn(f"{why}; checkpoint {step} is read instead")
                arrays, notes = found
                built = {name: _rebuilt(tree, arrays[name]) for name, tree in trees.items()}
                return Restored((built["params"], built.get("rest")), step, notes)
        if damaged:
            raise InputError(f"no checkpoint is good: {'; '.join(damaged)}")
        return None

    def _read_good(
        self,
        step: int,
        trees: dict[str, PyTree],
        accept: Callable[[Notes], bool],
        ignore: Collection[str],
    ) -> tuple[dict[str, Arrays], Notes] | None:
        """Return the arrays and notes of a checkpoint; None if it is not accepted.

        Raises:
          Damaged: if its content is not what was written.
          InputError: if it cannot be read or is of another model.
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
        return fitted, notes

    def _arrays(self, step: int, item: str, tree: PyTree) -> Arrays:
        """Return an item's arrays by name, as they were saved.

        An array that has the shape and dtype of the tree's array is placed where that array is. The
        others are numpy arrays, whose dtypes do not depend on JAX's modes.
        """
        wanted = _abstract(tree)
        saved = ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / item).tree

        def template(name: str) -> np.ndarray | jax.ShapeDtypeStruct:
            shape, dtype = tuple(saved[name].shape), np.dtype(saved[name].dtype)
            here = wanted.get(name)
            if here is not None and (here.shape, here.dtype) == (shape, dtype):
                return here
            # This takes no memory.
            return np.broadcast_to(np.empty((), dtype), shape)

        templates = {name: template(name) for name in saved}
        return self._read(step, **{item: ocp.args.StandardRestore(templates)})[item]

    def set_aside(self, step: int) -> None:
        """Move every checkpoint later than `step` to the run's folder `set-aside`, deleting nothing.

        They are damaged, or later than a state that the run returned to, and their steps will be saved
        again. Raises OSError as `save` does.
        """
        with writing(self.directory):
            self._manager.wait_until_finished()
            for later in [later for later in self.steps() if later > step]:
                if processes.is_primary():
                    target = self.directory.parent / "set-aside" / str(later)
                    shutil.rmtree(target, ignore_errors=True)
                    target.parent.mkdir(exist_ok=True)
                    # The folder of the checkpoints may be a link to another disk.
                    shutil.move(self.directory / str(later), target)
                del self._losses[later]
            # No process looks at the folder before the checkpoints are gone.
            processes.allgather_json(None)
            self._manager.reload()

    def _loss(self, step: int) -> float:
        try:
            with reading(self.directory / str(step)):
                return _loss(self._read(step, notes=ocp.args.JsonRestore())["notes"])
        except Damaged:
            # `restore` will report it.
            return math.inf

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))


def _loss(notes: Notes) -> float:
    """Return the validation loss in the notes of a checkpoint; infinite if there is none."""
    value = notes.get("validation")
    return math.inf if value is None else float(value)


def _named(tree: PyTree) -> dict[str, Any]:
    """Return the arrays of a pytree, named by their paths, so that reading imports no classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _abstract(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    here = jax.sharding.SingleDeviceSharding(accelerator.device())
    return {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
        )
        for name, leaf in _named(tree).items()
    }


def _fitted(folder: Path, found: Arrays, tree: PyTree, ignore: Collection[str]) -> Arrays:
    """Return the arrays of a checkpoint with the dtypes and devices of the tree's arrays.

    Raises InputError if names or shapes differ, since the checkpoint is then of another model.
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

    def fitted(array: jax.Array | np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        if isinstance(array, jax.Array):
            return array
        return jax.device_put(array.astype(like.dtype), like.sharding)

    return {name: fitted(found[name], like) for name, like in wanted.items()}


def _rebuilt(tree: PyTree, named: Arrays) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in _named(tree)])


def digest(tree: PyTree) -> str:
    """Return a SHA-256 of the names, dtypes, shapes and numbers of a pytree of arrays."""
    return _digest(_named(tree))


def _digest(named: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.asarray(mesh.gather_full(named[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def exists(run: Path) -> bool:
    """Return whether a run directory holds a checkpoint, which may be damaged."""
    folder = run / "checkpoints"
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def check_name(run: Path) -> None:
    """Raise InputError for a path that is not UTF-8, because orbax would use another folder."""
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
    """Raise InputError if the checkpoints of a run cannot be listed."""
    try:
        os.listdir(directory)
    except FileNotFoundError:
        if directory.is_symlink():
            raise InputError(f"{directory} is a link to a folder that does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read {directory}: {error.strerror}") from None
