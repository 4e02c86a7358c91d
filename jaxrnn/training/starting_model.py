"""The trained model that another training starts from: `python -m jaxrnn.train --init-from`.

The training keeps the vocabulary of the model and its architecture; the optimizer is new. The run
directory records a digest of the parameters, so that a run is resumed with the model that it began from.
Once a checkpoint is there, the model itself is not needed any more: what cannot be read at the recorded
path is then ignored, but another model is refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.formats import safetensors_file
from jaxrnn.settings import rules_of
from jaxrnn.training import checkpoint, run_description
from jaxrnn.training.config import TrainingConfig

# Settings of the model that a training may choose although a resumed run keeps them.
FREE = ("dtype", "lines")


class Start(NamedTuple):
    """The model that a training starts from.

    path: its run directory or safetensors file.
    config: its architecture.
    vocabulary: the meaning of its tokens.
    sha256: digest of its parameters.
    read: the model with numpy arrays, or None in a run with a checkpoint, which may not need it.
    """

    path: Path
    config: charlm.ModelConfig
    vocabulary: Vocabulary
    sha256: str
    read: charlm.Params | None

    def parameters(self) -> charlm.Params:
        """Return the model with numpy arrays.

        Raises:
          InputError: if it cannot be read, or is not the model that the run began from.
        """
        if self.read is not None:
            return self.read
        params, sha256 = _read(self.path)
        if sha256 != self.sha256:
            raise InputError(
                f"the model in {self.path} is not the one that the run began from; bring that one back, "
                "choose another `workdir`, or `overwrite` the run"
            )
        return params

    def check(self, training: TrainingConfig) -> None:
        """Raise InputError for settings that the model contradicts, or that have no effect with it."""
        config = training.model
        rules = rules_of(config)
        differing = [
            f"`{name}` is {own} in the model of {self.path} and {getattr(config, name)} here"
            for name, own in dataclasses.asdict(self.config).items()
            if not rules[name].may_change and name not in FREE and own != getattr(config, name)
        ]
        if differing:
            raise InputError(f"{'; '.join(differing)}; leave it out to keep what the model has")
        if training.output_bias != "zero":
            raise InputError(
                f"`output_bias={training.output_bias}` is for initial weights, and this training starts "
                f"from the model in {self.path}; leave it out"
            )


def config_of(init_from: str, workdir: Path, overwrite: bool) -> charlm.ModelConfig:
    """Return the configuration that a training starts with, without touching a device.

    It is that of the run in the run directory, if there is one, and otherwise that of the model.
    """
    kept = not overwrite and run_description.is_run(workdir)
    path = workdir if kept else Path(init_from)
    if kept or os.path.isdir(path):
        return run_description.model_of(path, run_description.read(path)[0])
    return safetensors_file.read_config(path)


def find(
    init_from: str | None, workdir: Path, overwrite: bool, warn: Callable[[str], None]
) -> Start | None:
    """Return the model that a training starts from; None for one with initial weights of its own.

    Args:
      init_from: the run directory or safetensors file, as `init_from` gives it.
      workdir: the run directory of the training. A run in there is resumed, unless `overwrite`.
      overwrite: whether a run in the run directory is to be replaced.
      warn: called with one line for every damaged checkpoint that is skipped.

    Raises:
      InputError: if the model cannot be read, and if the run in the run directory began otherwise.
    """
    if init_from is not None:
        _check_path(Path(init_from), workdir)
    if not overwrite and run_description.is_run(workdir):
        return _kept(init_from, workdir)
    if init_from is None:
        return None
    path = Path(init_from)
    params, sha256 = _read(path, warn)
    return Start(path, params.config, params.vocabulary, sha256, params)


def _kept(init_from: str | None, workdir: Path) -> Start | None:
    """Return the model that the run in the run directory began from."""
    described, vocabulary = run_description.read(workdir)
    sha256 = run_description.origin_of(described)
    choose = "choose another `workdir`, or `overwrite` it"
    if init_from is None:
        if sha256:
            raise InputError(
                f"the run in {workdir} began from the model in {described.get('init_from')}: give "
                f"`init_from` again to resume it, {choose}"
            )
        return None
    if not sha256:
        raise InputError(
            f"the run in {workdir} was not started from another model: leave `init_from` out to "
            f"resume it, {choose}"
        )
    config = run_description.model_of(workdir, described)
    start = Start(Path(init_from), config, vocabulary, sha256, None)
    if not checkpoint.exists(workdir):
        return start._replace(read=start.parameters())
    recorded = described.get("init_from")
    if start.path == Path(str(recorded)):
        _check_recorded(start, workdir)
        return start
    resume = f"the run in {workdir} began from the model in {recorded}: give that as `init_from`"
    if not os.path.exists(start.path):
        raise InputError(f"there is no model in {start.path}; {resume} to resume it, {choose}")
    if _read(start.path)[1] != sha256:
        raise InputError(
            f"the model in {start.path} is a different one; {resume} to resume it, {choose}"
        )
    return start


def _check_recorded(start: Start, workdir: Path) -> None:
    """Raise InputError if another model is now at the path that a run with a checkpoint recorded.

    The run can be resumed without its model, so a missing, damaged or unreadable one is ignored.
    """
    damaged: list[str] = []
    try:
        _, sha256 = _read(start.path, damaged.append)
    except InputError:
        return
    # If checkpoints of the model's run are damaged, this is perhaps the digest of its second best.
    if sha256 != start.sha256 and not damaged:
        raise InputError(
            f"the model in {start.path} is not the one that the run in {workdir} began from: bring that "
            "one back or move this one away to resume the run, choose another `workdir`, or `overwrite` "
            "it"
        )


def _check_path(path: Path, workdir: Path) -> None:
    """Raise InputError for a place from which this training cannot read a model."""
    if os.path.isdir(path) and os.path.isdir(workdir) and path.samefile(workdir):
        raise InputError(
            f"`init_from` {path} is the run directory itself; choose another `workdir`"
        )
    if os.path.isdir(path) and jax.process_count() > 1:
        raise InputError(
            f"`init_from` {path} is a run directory, and several processes need a safetensors file: "
            f"python -m jaxrnn.export {path} --safetensors PATH writes one"
        )


def _read(path: Path, warn: Callable[[str], None] = lambda line: None) -> tuple[charlm.Params, str]:
    """Return a model with numpy arrays, and the digest of its parameters."""
    params, _ = run_description.load_with_card(path, "best", warn)
    params = jax.tree.map(np.asarray, params)
    return params, checkpoint.digest(params)
