"""Training from Python, and access to a run: its model, its curves, its settings.

    run = jaxrnn.fit("the text, or the path of a file", hidden=256, steps=1000)
    run.plot()
    print(run.sample("ROMEO:"))
    run.save("model.safetensors")

    jaxrnn.Run("runs/play-small")     # a run of python -m jaxrnn.train, or an earlier one of `fit`

This is the trainer of the command: the same presets, run directory and resuming.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack

import numpy as np

from jaxrnn import charlm, stopping
from jaxrnn.charlm import sampling
from jaxrnn.charlm.options import SamplingKeywords
from jaxrnn.data import sources, token_files
from jaxrnn.errors import InputError, warn
from jaxrnn.formats import safetensors_file
from jaxrnn.formats.card import Card
from jaxrnn.training import metrics, run_description

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxrnn.training.config import TrainingConfig

# Settings with a short name.
SHORT = {"hidden": "hidden_size"}
# Most characters of a line that is taken for a mistyped path, and fewest of a text (`corpus`).
LONGEST_PATH, SHORTEST_TEXT = 255, 20

TextOrPath = str | bytes | os.PathLike[str]


class Run:
    """A training run in its directory, which `jaxrnn.fit` and `python -m jaxrnn.train` write.

    Args:
      path: the run directory.

    Attributes:
      path: the run directory.
      complete: whether the training has come to its end; False if it was interrupted, None for a run
        that was opened from its directory.

    Raises:
      InputError: if the folder is not a run, or its description is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.complete: bool | None = None
        self._described, self._vocabulary = run_description.read(self.path)

    @property
    def params(self) -> charlm.Params:
        """The model of the checkpoint with the lowest validation loss. Errors are those of `load`."""
        return self._best[0]

    @functools.cached_property
    def latest(self) -> charlm.Params:
        """The model of the latest checkpoint. Errors are those of `load`."""
        return run_description.load(self.path, "latest")

    @functools.cached_property
    def config(self) -> TrainingConfig:
        """The settings; `config.model` is the architecture."""
        from jaxrnn.training.config import TrainingConfig

        try:
            return TrainingConfig.of(self._described["training"])
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} has a damaged description: {error}") from None

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of metrics.jsonl by name, arrays [N] of one value per device call.

        `step` is int64. The others are float64 and NaN where there is no value: `loss`, `val_loss` (nats
        per character), `grad_norm`, `chars_per_second`, `seconds` and `training_seconds`.
        """
        return metrics.as_arrays(metrics.read_metrics(self.path / metrics.METRICS))

    @property
    def val_loss(self) -> float:
        """The lowest validation loss, in nats per character; NaN before the first evaluation."""
        losses = self.metrics["val_loss"]
        losses = losses[~np.isnan(losses)]
        return float(losses.min()) if len(losses) else float("nan")

    def plot(self) -> Figure:
        """Return a figure of the training and validation loss against the step.

        Notebooks show it; `figure.savefig(path)` saves it.

        Raises:
          InputError: before the first step, and without matplotlib.
        """
        try:
            from jaxrnn.training import pictures
        except ImportError:
            raise InputError('a plot needs matplotlib: pip install "jaxrnn[plot]"') from None
        columns = self.metrics
        if not len(columns["step"]):
            raise InputError(f"{self.path} has no losses yet")
        losses, val_losses = (_points(columns, name) for name in ("loss", "val_loss"))
        return pictures.draw_losses(losses, val_losses, self._floor, self._vocabulary.unit)

    def sample(
        self,
        prime: str | bytes | None = None,
        length: SupportsIndex = 500,
        **options: Unpack[SamplingKeywords],
    ) -> str:
        """Continue `prime` with the best model and return the text, as `jaxrnn.sample` does.

        Args:
          prime: as for `jaxrnn.sample`; None for a line break, or the first character of a vocabulary
            without one.
          length: as for `jaxrnn.sample`.
          **options: as for `jaxrnn.sample`.
        """
        prime = sampling.default_prime(self._vocabulary) if prime is None else prime
        return sampling.sample(self.params, prime, length, **options)

    def save(self, path: str | os.PathLike[str], *, licence: str | None = None) -> None:
        """Write the best model to a safetensors file, with its loss and the name of its text.

        Args:
          path: as for `jaxrnn.save`.
          licence: as for `jaxrnn.save`.

        Raises:
          InputError: as `jaxrnn.save` does.
          OSError: if the file cannot be written.
        """
        params, card = self._best
        safetensors_file.save(
            params, path, loss=card.loss, licence=licence, text=card.text, sha256=card.sha256
        )

    def __fspath__(self) -> str:
        """Return the run directory, so that a run can be given where a path can."""
        return str(self.path)

    def __repr__(self) -> str:
        """Return the run directory, the model, the steps taken and the lowest validation loss."""
        model = run_description.model_of(self.path, self._described)
        steps = self.metrics["step"]
        done = int(steps[-1]) if len(steps) else 0
        return (
            f"Run({str(self.path)!r}): {model.layers} x {model.cell} of {model.hidden_size}, "
            f"{done} steps, validation loss {self.val_loss:.4f}"
        )

    @functools.cached_property
    def _best(self) -> tuple[charlm.Params, Card]:
        return run_description.load_with_card(self.path, "best", warn)

    @functools.cached_property
    def _floor(self) -> float | None:
        """The validation loss that no model can beat, if it is known and the text can be read again."""
        from jaxrnn.runs import run_text

        # It is known for the play only, prepared or not. Other texts may take long to read.
        data = self._described.get("data")
        if not data or not (data == ["play"] or token_files.is_prepared(data[0])):
            return None
        try:
            return run_text.read(self.path)[2].floor
        except InputError:
            return None


def fit(
    data: TextOrPath | Sequence[str | os.PathLike[str]],
    preset: str = "small",
    workdir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a char-RNN on a text, as `python -m jaxrnn.train` does, and return the run.

        run = jaxrnn.fit(pathlib.Path("notes.txt"), hidden=256, steps=1000)
        run = jaxrnn.fit("HELLO" * 100, preset="small", cell="gru", learning_rate=5e-3)

    Ctrl-C, or interrupting the kernel of a notebook, stops the training after the device call that is
    running: the state is saved and the run is returned with `complete` False. Interrupting again raises
    KeyboardInterrupt at once. In other threads than the main one, signals are left alone.

    Args:
      data: the text. A path is read: a `pathlib.Path`, or a str that names an existing file or folder;
        "play" and "shakespeare" are texts as in `--data`; a list of these is read as one text. Any other
        str is the text itself, and bytes are a text of bytes.
      preset: the preset, which the settings override: "small", "shakespeare", "sprint" or "lecture".
      workdir: the run directory. A run in there is resumed, by the same settings and text. None for a
        temporary folder, which is removed with the last reference to the run that is returned.
      progress: show what is trained, a progress bar and samples.
      **settings: the fields of `TrainOptions`, `TrainingConfig` and `ModelConfig`, which are the flags
        of the command with underscores, such as `steps`, `epochs`, `hidden_size`, `layers`, `cell`,
        `learning_rate`, `batch`, `seq_len`, `seed`; `hidden` is short for `hidden_size`.

    Raises:
      InputError: for everything that cannot be trained, before anything is written.
      Diverged: if the loss stays non-finite.
      OSError: if the run cannot be saved.
    """
    # Imported here because the library does not depend on tyro and rich, only training does.
    from jaxrnn.runs import train_options, trainer
    from jaxrnn.training import signals

    words, text = _words_or_text(data)
    given = _with_long_names(settings) | {"data": words, "preset": preset}
    if isinstance(text, bytes):
        given["bytes"] = True
    stop = functools.partial(
        signals.Stop, ("SIGTERM", "SIGHUP"), again=stopping.interrupt, quiet=not progress
    )
    with contextlib.ExitStack() as stack:
        if workdir is None:
            given["workdir"] = tempfile.mkdtemp(prefix="jaxrnn-")
            stack.callback(shutil.rmtree, given["workdir"], ignore_errors=True)
        else:
            given["workdir"] = workdir
        outcome = trainer.run(
            train_options.from_settings(given),
            functools.partial(train_options.from_settings, given),
            text=text,
            say=print if progress else None,
            stop=stop,
            temporary=workdir is None,
        )
        run = Run(given["workdir"])
        # The folder is removed with the run, no longer at the end of this block.
        weakref.finalize(run, stack.pop_all().close)
    run.complete = outcome.result.complete
    if progress and not run.complete:
        print(f"stopped at step {outcome.result.step}")
    return run


def _with_long_names(settings: dict[str, Any]) -> dict[str, Any]:
    for short, name in SHORT.items():
        if short in settings and name in settings:
            raise InputError(f"`{short}` and `{name}` are the same setting; give one of them")
    return {SHORT.get(name, name): value for name, value in settings.items()}


def _words_or_text(data: Any) -> tuple[tuple[str, ...], str | bytes | None]:
    """Return the words of `--data` and None, or no words and the text itself."""
    if isinstance(data, bytes):
        return (), data
    if isinstance(data, os.PathLike):
        return (_word(data),), None
    if isinstance(data, str):
        if data in ("play", "shakespeare") or os.path.exists(data):
            return (data,), None
        if _looks_like_a_path(data):
            raise InputError(
                f"there is no file or folder {data!r}: if `data` is a path, correct it; if it is the "
                "text itself, end it with a line break"
            )
        return (), data
    if not isinstance(data, list | tuple):
        kind = type(data).__name__
        raise InputError(f"`data` must be a text, a path or a list of paths, not {kind}")
    if not data:
        raise InputError("`data` names nothing to read; give at least one path")
    return tuple(map(_word, data)), None


def _word(path: Any) -> str:
    """Return a path as a word of `--data`. A `Path` is never the name of a text, such as "play"."""
    try:
        word = os.fspath(path)
    except TypeError:
        raise InputError(f"`data` must be a list of paths, not of {type(path).__name__}") from None
    named = word in sources.NAMED and not isinstance(path, str)
    return os.path.join(os.curdir, word) if named else word


def _looks_like_a_path(text: str) -> bool:
    """Return whether a str that names no file is more likely a mistyped path than a text."""
    if len(text) > LONGEST_PATH or "\n" in text:
        return False
    has_suffix = re.search(r"\.\w{1,5}$", text) is not None
    has_folder = " " not in text and ("/" in text or os.sep in text)
    return len(text) < SHORTEST_TEXT or has_suffix or has_folder


def _points(columns: dict[str, np.ndarray], name: str) -> metrics.Points:
    """Return the points (step, value) of a column, without those that are not known."""
    pairs = zip(columns["step"].tolist(), columns[name].tolist(), strict=True)
    return [(float(step), value) for step, value in pairs if not np.isnan(value)]
