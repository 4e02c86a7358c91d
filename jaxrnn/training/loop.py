"""The training loop: train, evaluate, save, and resume from what was saved.

Batch n of the text and the dropout of step n follow from n. So a run that was stopped and resumed is
bit-identical to an uninterrupted one on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxrnn import charlm
from jaxrnn.data.corpus import Batches, Corpus
from jaxrnn.data.lines import LineBatches
from jaxrnn.devices import accelerator, memory, mesh, modes, processes
from jaxrnn.errors import InputError, is_out_of_memory
from jaxrnn.shapes import Array
from jaxrnn.training import checkpoint, evaluation, feed, orbax_messages
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.optimizers import make_optimizer
from jaxrnn.training.report import Reporter
from jaxrnn.training.saved_states import SavedStates, check_nothing_is_lost
from jaxrnn.training.stepping import (
    TrainState,
    begin,
    create,
    run_steps,
)

# What to do about too little memory.
SMALLER = "make `hidden_size`, `layers`, `batch` or `seq_len` smaller, or raise `accumulate`"


class Result(NamedTuple):
    """The result of `fit`.

    params: the model as it is then.
    step: the number of steps taken.
    complete: whether the run has come to its end, by its number of steps or by its validation loss.
    """

    params: charlm.Params
    step: int
    complete: bool


@modes.fixed()
def fit(
    config: TrainingConfig,
    corpus: Corpus,
    run: Path,
    report: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    devices: mesh.Mesh | None = None,
    accepted: Callable[[], None] = lambda: None,
    start: Callable[[], charlm.Params] | None = None,
) -> Result:
    """Train to the end of the run or until asked to stop; a run in the directory is resumed.

    Args:
      config: the settings.
      corpus: the text.
      run: the run directory; it exists.
      report: called with everything as it happens.
      should_stop: called after every device call; on True the state is saved and `fit` returns.
      devices: the mesh to train on, the same in all processes; None for one device.
      accepted: called once the state to start from has been read, before the directory is changed.
      start: returns the model that a new run starts from; None for initial weights. Its vocabulary is
        that of the text or the beginning of it: the model is then extended (`extension.extended`).

    Raises:
      Diverged: if the loss stays non-finite after RECOVERIES returns to a good state.
      InputError: if there are checkpoints and none can be read; the directory is unchanged.
      OSError: if a checkpoint cannot be written; the earlier ones are intact.
    """
    devices = mesh.single() if devices is None else devices
    batches = config.batches(corpus)
    config = config.with_steps(batches)
    total = config.total_steps(batches)
    optimizer = make_optimizer(config, total)
    with orbax_messages.quiet():
        saved = SavedStates(config, optimizer, corpus, devices, run, report, start)
        found = saved.newest()
        saved.close()
        if found is None:
            processes.run_on_all(lambda: check_nothing_is_lost(run))
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
    saved: SavedStates,
    found: checkpoint.Restored | None,
    report: Reporter,
    should_stop: Callable[[], bool],
) -> Result:
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
    target = -math.inf if config.stop_at is None else config.stop_at
    if best <= target:
        report.note(f"the run has reached a validation loss of {best:.4f} already; it has ended")
    while (step := int(state.step)) < total and best > target and not stopping:
        began = time.perf_counter()
        state, end, losses, norms = calls.run(state, step)
        seconds = time.perf_counter() - began
        validation = None
        finite = bool(np.isfinite([losses, norms]).all())
        if finite and (end % config.eval_every == 0 or end == total):
            validation = evaluation.evaluate(
                state.model, calls.source, corpus, config.batch, config.seq_len
            )
            finite = math.isfinite(validation)
        if not finite:
            state, best = saved.recover(end, float(state.rate))
            continue
        if validation is not None:
            best = min(best, validation)
        ended = end == total or best <= target
        with saved.rescuing(end, state, validation, best) as save:
            report.steps(end, float(losses.mean()), float(norms.mean()), validation, seconds)
            sample = None
            if config.sample_every and (end % config.sample_every == 0 or ended):
                sample = report.sample(end, mesh.local_copy(state.model))
            # Both are asked in every case, because all processes must ask together.
            preempted = saved.preempted(range(step + 1, end + 1))
            stopping = should_stop() or preempted
            if validation is not None or stopping:
                save()
            if sample is not None:
                report.show(end, sample)
    saved.wait()
    step = int(state.step)
    return Result(state.model, step, step >= total or best <= target)


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
        batches: Batches | LineBatches,
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

    windows: [K, ...], `DeviceCorpus.windows` or `lookup`.
    resets: [K], whether a step starts from the zero state.
    """

    windows: Array
    resets: np.ndarray


def _inputs(
    config: TrainingConfig, batches: Batches | LineBatches, source: feed.DeviceCorpus, step: int
) -> _Inputs:
    """Return the inputs of the device call that begins after `step` steps."""
    steps = range(step, step + min(config.intervals))
    resets = np.array([batches.resets_state(n) for n in steps])
    if isinstance(batches, LineBatches):
        return _Inputs(source.lookup(np.stack([batches.places(n) for n in steps])), resets)
    starts = np.stack([batches.starts(n) for n in steps])
    return _Inputs(source.windows(starts, config.seq_len), resets)


@modes.fixed()
def check(
    config: TrainingConfig,
    corpus: Corpus,
    devices: mesh.Mesh,
    resumed: bool = False,
    started: bool = False,
) -> None:
    """Compile the programs of a run, and refuse a run that this machine cannot execute.

    Nothing is written, and no memory of the device is taken. The programs are kept, so `fit` does not
    compile them again.

    Args:
      config: as for `fit`.
      corpus: as for `fit`.
      devices: as for `fit`.
      resumed: the run has a state already and does not need the program that makes the first one.
      started: the run starts from a model, not from initial weights.

    Raises:
      InputError: if the implementation does not support the model, or the memory is too small.
    """
    batches = config.batches(corpus)
    config = config.with_steps(batches)
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
        if not is_out_of_memory(error):
            raise
        line = str(error).splitlines()[0]
        raise InputError(f"this model cannot be trained here: {line}; {SMALLER}") from None
    judge = evaluation.compile_ahead(shapes.model, source, corpus, config.batch, config.seq_len)
    state = memory.bytes_per_device(shapes)
    needs = [
        # While the steps run, the copy of a state may still be being saved.
        memory.program_bytes(steps) + state,
        memory.program_bytes(judge) + state - memory.bytes_per_device(shapes.model),
    ]
    if not resumed:
        from_counts = config.output_bias == "frequencies" and not started
        counts = corpus.token_counts() if from_counts else None
        params = shapes.params if started else None
        first = begin.lower(config, optimizer, corpus.vocabulary, devices, counts, params).compile()
        needs.append(memory.program_bytes(first))
    # CPU devices share the memory of their host.
    here = len(devices.local_devices) if accelerator.device().platform == "cpu" else 1
    memory.check(here * max(needs), "training this model", SMALLER)
