"""The training loop: train, evaluate, save, and resume from what was saved.

Batch n of the text and the dropout of step n follow from n. So a run that was stopped and resumed is
bit-identical to an uninterrupted one on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxrnn import charlm
from jaxrnn.data.corpus import Batches, Corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory, mesh, modes, processes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array
from jaxrnn.training import checkpoint, evaluation, feed, orbax_errors
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.metrics import METRICS, read_metrics
from jaxrnn.training.report import NotWritten, Reporter
from jaxrnn.training.stepping import (
    TrainState,
    begin,
    create,
    dropout_key_of,
    make_optimizer,
    run_steps,
)

# Returns to a good state, each at half the learning rate, before a run is given up.
RECOVERIES = 3

# What to do about too little memory.
SMALLER = "make `hidden_size`, `layers`, `batch` or `seq_len` smaller, or raise `accumulate`"


class Diverged(RuntimeError):
    """The loss stayed non-finite; the message says what was tried and what is left."""


@modes.fixed()
def fit(
    config: TrainingConfig,
    corpus: Corpus,
    run: Path,
    report: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    devices: mesh.Mesh | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> tuple[charlm.Params, int]:
    """Train to the last step or until asked to stop; a run in the directory is resumed.

    Args:
      config: the settings.
      corpus: the text.
      run: the run directory; it exists.
      report: called with everything as it happens.
      should_stop: called after every device call; on True the state is saved and `fit` returns.
      devices: the mesh to train on, the same in all processes; None for one device.
      accepted: called once the state to start from has been read, before the directory is changed.

    Returns:
      (params, step): the model as it is then, and the number of steps taken.

    Raises:
      Diverged: if the loss stays non-finite after RECOVERIES returns to a good state.
      InputError: if there are checkpoints and none can be read; the directory is unchanged.
      OSError: if a checkpoint cannot be written; the earlier ones are intact.
    """
    devices = mesh.single() if devices is None else devices
    batches = config.batches(corpus)
    total = config.total_steps(batches)
    optimizer = make_optimizer(config, total)
    with orbax_errors.quiet():
        saved = _SavedStates(config, optimizer, corpus.vocabulary, devices, run, report)
        found = saved.newest()
        saved.close()
        if found is None:
            processes.run_on_all(lambda: _check_nothing_is_lost(run))
        accepted()
        source = feed.device_corpus(corpus.tokens, config.memory_map, run, devices)
        saved.open_for_writing()
        calls = _DeviceCalls(config, optimizer, batches, source, total)
        try:
            return _train(config, corpus, calls, saved, found, report, should_stop)
        finally:
            report.end()
            saved.close()


def _train(
    config: TrainingConfig,
    corpus: Corpus,
    calls: _DeviceCalls,
    saved: _SavedStates,
    found: checkpoint.Restored | None,
    report: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[charlm.Params, int]:
    """Run the loop of `fit` from a checkpoint, or from the beginning if it is None."""
    total = calls.total
    state, best = saved.resume(found)
    stopping = False
    report.begin(int(state.step), total)
    if int(state.step) > total:
        report.note(
            f"the run has {int(state.step)} steps already, more than the {total} asked for; "
            "ask for more steps or epochs to continue it"
        )
    while (step := int(state.step)) < total and not stopping:
        state, end, losses, norms = calls.run(state, step)
        validation = None
        finite = bool(np.isfinite([losses, norms]).all())
        if finite and (end % config.eval_every == 0 or end == total):
            validation = evaluation.evaluate(
                state.params, calls.source, corpus, config.batch, config.seq_len
            )
            finite = math.isfinite(validation)
        if not finite:
            state, best = saved.recover(end, float(state.rate))
            continue
        if validation is not None:
            best = min(best, validation)
        with saved.rescuing(end, state, validation, best) as save:
            report.steps(end, float(losses.mean()), float(norms.mean()), validation)
            sample = None
            if config.sample_every and (end % config.sample_every == 0 or end == total):
                sample = report.sample(end, mesh.local_copy(state.params))
            # Both are asked in every case, because all processes must ask together.
            preempted = saved.preempted(range(step + 1, end + 1))
            stopping = should_stop() or preempted
            if validation is not None or stopping:
                save()
            if sample is not None:
                report.show(end, sample)
    saved.wait()
    return state.params, int(state.step)


class _DeviceCalls:
    """The device calls of a run, each of several training steps.

    Args:
      config: the settings.
      optimizer: the optimizer from `make_optimizer`.
      batches: the batches of the text.
      source: the text on the devices.
      total: length of the run in steps.
    """

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        source: feed.DeviceCorpus,
        total: int,
    ) -> None:
        self._config = config
        self._optimizer = optimizer
        self._batches = batches
        self.source = source
        self.total = total
        # The inputs of the call that begins at a step, prepared while the device computes.
        self._prepared: dict[int, _Inputs] = {}

    def run(self, state: TrainState, step: int) -> tuple[TrainState, int, np.ndarray, np.ndarray]:
        """Run the steps until something is to be logged, evaluated or sampled.

        Args:
          state: the state after `step` steps; its memory is reused.
          step: the number of steps taken.

        Returns:
          (state, end, losses, norms): the state after `end` steps, and for each of the steps the mean
          loss and the gradient norm, [end - step].
        """
        end = min(self.total, *(step - step % every + every for every in self._config.intervals))
        inputs = self._prepared.pop(step, None) or self._inputs(step)
        state, metrics = run_steps(
            self._config,
            self._optimizer,
            self.source.devices,
            state,
            self.source.tokens,
            *inputs,
            np.int32(end - step),
        )
        if end < self.total:
            self._prepared = {end: self._inputs(end)}
        losses, norms = (np.asarray(values)[: end - step] for values in metrics)
        return state, end, losses, norms

    def _inputs(self, step: int) -> _Inputs:
        return _inputs(self._config, self._batches, self.source, step)


class _Inputs(NamedTuple):
    """The inputs of K training steps, as `run_steps` takes them.

    windows: [K, ...], `DeviceCorpus.windows`.
    resets: [K], whether a step starts from the zero state.
    """

    windows: Array
    resets: np.ndarray


def _inputs(
    config: TrainingConfig, batches: Batches, source: feed.DeviceCorpus, step: int
) -> _Inputs:
    """Return the inputs of the device call that begins after `step` steps."""
    steps = range(step, step + min(config.intervals))
    starts = np.stack([batches.starts(n) for n in steps])
    resets = np.array([batches.resets_state(n) for n in steps])
    return _Inputs(source.windows(starts, config.seq_len), resets)


class _SavedStates:
    """The training states of a run on the disk: found, resumed, returned to, and saved.

    The checkpoints are read-only until `open_for_writing`.

    Args:
      config: the settings.
      optimizer: the optimizer from `make_optimizer`.
      vocabulary: the vocabulary of the text.
      devices: the mesh that the states are placed on.
      run: the run directory.
      report: the report of the run. It is truncated to the state that is resumed, and gets notes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: optax.GradientTransformation,
        vocabulary: Vocabulary,
        devices: mesh.Mesh,
        run: Path,
        report: Reporter,
    ) -> None:
        self._config = config
        self._optimizer = optimizer
        self._vocabulary = vocabulary
        self._devices = devices
        self._run = run
        self._report = report
        self._shapes = mesh.abstract(devices, lambda: create(config, optimizer, vocabulary))
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
        rest = {name: value for name, value in _rest(self._shapes).items() if name != "key"}
        return self._checkpoints.restore(
            self._shapes.params,
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
            first = begin(self._config, self._optimizer, self._vocabulary, self._devices)
            return first, math.inf
        params, rest = found.tree
        key = self._replicated(dropout_key_of(self._config))
        state = TrainState(params=params, key=key, **rest)
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
        self._checkpoints.save(step, state.params, _rest(state), notes)

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

    def _replicated(self, array: Array | np.generic) -> Array:
        return jax.device_put(np.asarray(array), mesh.replicated(self._devices))


def _rest(state: TrainState) -> dict[str, Any]:
    """Return the training state without the model, which is an item of its own in a checkpoint."""
    fields = dataclasses.fields(state)  # type: ignore[arg-type]
    return {f.name: getattr(state, f.name) for f in fields if f.name != "params"}


def _check_nothing_is_lost(run: Path) -> None:
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


@modes.fixed()
def check(
    config: TrainingConfig, corpus: Corpus, devices: mesh.Mesh, resumed: bool = False
) -> None:
    """Compile the programs of a run, and refuse a run that this machine cannot execute.

    Nothing is written, and no memory of the device is taken. The programs are kept, so `fit` does not
    compile them again.

    Args:
      config: as for `fit`.
      corpus: as for `fit`.
      devices: as for `fit`.
      resumed: the run has a state already and does not need the program that makes the first one.

    Raises:
      InputError: if the implementation does not support the model, or the memory is too small.
    """
    batches = config.batches(corpus)
    optimizer = make_optimizer(config, config.total_steps(batches))
    source = feed.abstract_corpus(corpus.tokens, config.memory_map, devices)
    shapes = mesh.abstract(devices, lambda: create(config, optimizer, corpus.vocabulary))
    inputs = _inputs(config, batches, source, 0)
    try:
        steps = run_steps.lower(
            config, optimizer, devices, shapes, source.tokens, *inputs, np.int32(1)
        ).compile()
    except ValueError as error:
        # The implementation was asked for by name and does not support the model.
        raise InputError(f"this model cannot be trained here: {error}") from None
    except jax.errors.JaxRuntimeError as error:
        # Some compilers know the device's memory.
        if not memory.is_out_of_memory(error):
            raise
        line = str(error).splitlines()[0]
        raise InputError(f"this model cannot be trained here: {line}; {SMALLER}") from None
    judge = evaluation.compile_ahead(shapes.params, source, corpus, config.batch, config.seq_len)
    state = memory.bytes_per_device(shapes)
    needs = [
        # While the steps run, the copy of a state may still be being saved.
        memory.program_bytes(steps) + state,
        memory.program_bytes(judge) + state - memory.bytes_per_device(shapes.params),
    ]
    if not resumed:
        first = begin.lower(config, optimizer, corpus.vocabulary, devices).compile()
        needs.append(memory.program_bytes(first))
    # CPU devices share the memory of their host.
    here = len(devices.local_devices) if accelerator.device().platform == "cpu" else 1
    memory.check(here * max(needs), "training this model", SMALLER)
