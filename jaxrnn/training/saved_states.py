"""The training states of a run on the disk: found, resumed, returned to, and saved.

`training.checkpoint` stores any arrays; this module knows what a training state is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxrnn import charlm
from jaxrnn.charlm import extension
from jaxrnn.data.corpus import Corpus
from jaxrnn.devices import mesh
from jaxrnn.errors import Failure, InputError
from jaxrnn.shapes import Array
from jaxrnn.training import checkpoint
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.metrics import METRICS, read_metrics
from jaxrnn.training.report import NotWritten, Reporter
from jaxrnn.training.stepping import TrainState, begin, create, dropout_key_of

# Returns to a good state, each at half the learning rate, before a run is given up.
RECOVERIES = 3


class Diverged(Failure):
    """The loss stayed non-finite; the message says what was tried and what is left."""


class SavedStates:
    """The training states of a run on the disk: found, resumed, returned to, and saved.

    The checkpoints are read-only until `open_for_writing`.

    Args:
      config: the settings.
      optimizer: the optimizer from `make_optimizer`.
      corpus: the text.
      devices: the mesh that the states are placed on.
      run: the run directory.
      report: the report of the run. It is truncated to the state that is resumed, and gets notes.
      start: returns the model that the run starts from; None for initial weights.
    """

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: optax.GradientTransformation,
        corpus: Corpus,
        devices: mesh.Mesh,
        run: Path,
        report: Reporter,
        start: Callable[[], charlm.Params] | None = None,
    ) -> None:
        self._config = config
        self._optimizer = optimizer
        self._corpus = corpus
        self._devices = devices
        self._run = run
        self._report = report
        self._start = start
        self._shapes = mesh.abstract(devices, lambda: create(config, optimizer, corpus.vocabulary))
        self._checkpoints = checkpoint.Checkpoints(run, report.note, read_only=True)

    def open_for_writing(self) -> None:
        """Open the checkpoints again, after `close`, so that `resume` and `save` may change them."""
        self._checkpoints = checkpoint.Checkpoints(self._run, self._report.note)

    def close(self) -> None:
        """Wait until all states are on the disk, and close the checkpoints."""
        self._checkpoints.close()

    def wait(self) -> None:
        """Wait until all states are on the disk."""
        self._checkpoints.wait()

    def preempted(self, steps: range) -> bool:
        """Return whether a process was asked to stop; see `Checkpoints.preempted`."""
        return self._checkpoints.preempted(steps)

    def newest(self, scheduled: bool = False) -> checkpoint.Restored | None:
        """Read the newest good checkpoint, or only of those that were saved with an evaluation."""
        # The key follows from the seed, and older runs may hold one of another shape.
        rest = {name: value for name, value in rest_of(self._shapes).items() if name != "key"}
        return self._checkpoints.restore(
            self._shapes.model,
            rest,
            accept=lambda notes: notes["scheduled"] >= scheduled,
            ignore={"key"},
        )

    def resume(self, found: checkpoint.Restored | None) -> tuple[TrainState, float]:
        """Take the run directory back to a checkpoint, or to the beginning.

        Returns:
          The state of the checkpoint and the best validation loss until then, or the state before the
          first step and infinity.
        """
        self._checkpoints.set_aside(found.step if found else -1)
        self._report.rewind(found.notes["report"] if found else {})
        if found is None:
            return self._first(), math.inf
        model, rest = found.tree
        key = self._replicated(dropout_key_of(self._config))
        # `rest_of` has the parameters themselves only where the model is their average.
        name = "average" if "params" in rest else "params"
        state = TrainState(**{name: model, "key": key, **rest})
        return state, float(found.notes["best"] or math.inf)

    def recover(self, step: int, rate: float) -> tuple[TrainState, float]:
        """Return to the last state that was saved with an evaluation, at half the learning rate.

        Args:
          step: the step near which the loss was not finite.
          rate: the factor on the learning rate until now.

        Returns:
          The state and the best validation loss until then.

        Raises:
          Diverged: if there were RECOVERIES returns already.
        """
        if rate <= 0.5**RECOVERIES:
            raise Diverged(
                f"the loss is not finite near step {step}, even after {RECOVERIES} returns to a good "
                "state, each at half the learning rate; the last good checkpoint is intact; "
                "lower `learning_rate` or `clip_norm`"
            )
        state, best = self.resume(self.newest(scheduled=True))
        self._report.note(
            f"the loss is not finite near step {step}: back to step {state.step} "
            f"with {rate / 2:g} of the learning rate"
        )
        halved = self._replicated(np.float32(rate / 2))
        return state.replace(rate=halved), best  # type: ignore[attr-defined]

    def save(self, step: int, state: TrainState, validation: float | None, best: float) -> None:
        """Begin to save a state; return once its memory may be reused.

        Args:
          step: the number of steps taken.
          state: the state.
          validation: its validation loss, if there was an evaluation.
          best: the best validation loss until now; infinite if there was none.
        """
        notes = {
            "validation": validation,
            "best": best if math.isfinite(best) else None,
            "scheduled": validation is not None,
            "report": self._report.position(),
        }
        self._checkpoints.save(step, state.model, rest_of(state), notes)

    @contextlib.contextmanager
    def rescuing(
        self, step: int, state: TrainState, validation: float | None, best: float
    ) -> Iterator[Callable[[], None]]:
        """Save a state if the block fails, so that it is not lost because of a report.

        Arguments are those of `save`. The block gets a function that saves the state; it may call it.
        """
        saved = False

        def save() -> None:
            nonlocal saved
            self.save(step, state, validation, best)
            saved = True

        try:
            yield save
        except NotWritten:
            raise
        except Exception:
            # Several processes save together or not at all, and only one of them may be here.
            if not saved and jax.process_count() == 1:
                with contextlib.suppress(Exception):
                    save()
            raise

    def _first(self) -> TrainState:
        """Return the state before the first step."""
        if self._start is not None:
            vocabulary = self._corpus.vocabulary
            params = self._start()
            if params.vocabulary != vocabulary:
                occurring = self._corpus.token_counts()
                params = extension.extended(params, vocabulary, occurring, self._config.seed)
            params = params.replace(config=self._config.model)  # type: ignore[attr-defined]
            placed = jax.device_put(params, mesh.shardings(self._devices, params))
            return begin(self._config, self._optimizer, vocabulary, self._devices, None, placed)
        counts = None
        if self._config.output_bias == "frequencies":
            counts = self._corpus.token_counts()
        return begin(self._config, self._optimizer, self._corpus.vocabulary, self._devices, counts)

    def _replicated(self, array: Array | np.generic) -> Array:
        return jax.device_put(np.asarray(array), mesh.replicated(self._devices))


def rest_of(state: TrainState) -> dict[str, Any]:
    """Return the training state without the model, which is an item of its own in a checkpoint."""
    model = "params" if state.average is None else "average"
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if name not in (model, "average")}


def check_nothing_is_lost(run: Path) -> None:
    """Raise InputError if a run has no checkpoint although its metrics show that it had some.

    The second evaluation may be reported before the checkpoint of the first is on the disk, the third
    may not.
    """
    judged = [line for line in read_metrics(run / METRICS) if line.get("val_loss") is not None]
    if len(judged) > 2:
        raise InputError(
            f"{run / METRICS} records {judged[-1]['step']} steps, but {run / 'checkpoints'} holds no "
            "checkpoint: bring the checkpoints back, choose another `workdir`, or `overwrite` the run"
        )
