"""The training loop: train, evaluate, save, and resume from what was saved.

Batch n of the text and the dropout of step n follow from n. So a run that was stopped and resumed is
bit-identical to one that was not, on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.corpus import Batches, Corpus
from jaxrnn.devices import accelerator, memory, mesh, modes, processes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array
from jaxrnn.training import checkpoint, evaluation, feed
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import METRICS, NotWritten, Report, read_metrics
from jaxrnn.training.stepping import (
    TrainState,
    begin,
    create,
    dropout_key_of,
    make_optimizer,
    run_steps,
)


@modes.fixed()
def fit(
    config: TrainingConfig,
    corpus: Corpus,
    run: Path,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
    devices: mesh.Mesh | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> tuple[charlm.Params, int]:
    """Train, or resume what is in the run directory, to the last step or until asked to stop.

    Args:
      config: how.
      corpus: on what.
      run: the run directory; it exists.
      report: called with everything as it happens.
      should_stop: asked after every call of the device; on True the state is saved and fit returns.
      devices: the mesh to train on, as all processes know it; None for one device.
      accepted: called once the state to start from is read, before the directory is changed.

    Returns:
      (params, step): the model as it is then, and the steps taken.

    Raises:
      Diverged: when the loss stays non-finite after RECOVERIES returns to a good state.
      InputError: when there are checkpoints and none can be read; the directory is as it was.
      OSError: when a checkpoint cannot be written; the ones before it are intact.
    """
    batches = config.batches(corpus)
    total = config.total_steps(batches)
    optimizer = make_optimizer(config, total)
    devices = mesh.single() if devices is None else devices
    shapes = mesh.abstract(devices, lambda: create(config, optimizer, corpus.vocabulary))
    checkpoints = checkpoint.Checkpoints(run, report.note, read_only=True)

    def newest(scheduled: bool = False) -> checkpoint.Restored | None:
        """Read the newest good checkpoint (of those saved by the plan alone)."""
        # The key follows from the seed, and older runs may hold one of another shape.
        rest = {name: value for name, value in _rest(shapes).items() if name != "key"}
        return checkpoints.restore(
            shapes.params,
            rest,
            accept=lambda notes: notes["scheduled"] >= scheduled,
            ignore={"key"},
        )

    def resume(found: checkpoint.Restored | None) -> tuple[TrainState, float]:
        """Return a checkpoint's state and the best loss until then, or the state before the first
        step, and take the run directory back to there."""
        checkpoints.set_aside(found.step if found else -1)
        report.rewind(found.notes["report"] if found else {})
        if found is None:
            return begin(config, optimizer, corpus.vocabulary, devices), math.inf
        params, rest = found.tree
        key = jax.device_put(np.asarray(dropout_key_of(config)), mesh.replicated(devices))
        state = TrainState(params=params, key=key, **rest)
        return state, float(found.notes["best"] or math.inf)

    def recover(step: int, rate: float) -> tuple[TrainState, float]:
        """Back to the last planned checkpoint, at half the learning rate."""
        if rate <= 0.5**RECOVERIES:
            raise Diverged(
                f"the loss is not finite near step {step}, even after {RECOVERIES} returns to a good "
                "state, each at half the learning rate; the last good checkpoint is intact; "
                "lower --learning-rate or --clip-norm"
            )
        state, best = resume(newest(scheduled=True))
        report.note(
            f"the loss is not finite near step {step}: back to step {state.step} "
            f"with {rate / 2:g} of the learning rate"
        )
        slower = jax.device_put(np.float32(rate / 2), mesh.replicated(devices))
        return state.replace(rate=slower), best  # type: ignore[attr-defined]

    def save(step: int, state: TrainState, validation: float | None, best: float) -> None:
        notes = {
            "validation": validation,
            "best": best if math.isfinite(best) else None,
            "scheduled": validation is not None,
            "report": report.position(),
        }
        checkpoints.save(step, state.params, _rest(state), notes)

    found = newest()
    checkpoints.close()
    if found is None:
        processes.run_on_all(lambda: _check_nothing_is_lost(run))
    accepted()
    source = feed.place(corpus.tokens, config.memory_map, run, devices)
    checkpoints = checkpoint.Checkpoints(run, report.note)
    stopping = False
    plans: dict[int, Any] = {}
    try:
        state, best = resume(found)
        report.begin(int(state.step), total)
        if int(state.step) > total:
            report.note(
                f"the run has {int(state.step)} steps already, more than the {total} asked for: "
                "raise --steps or --epochs to train it on"
            )
        while (step := int(state.step)) < total and not stopping:
            ahead = min(total, *(step - step % every + every for every in config.intervals))
            plan = plans.pop(step, None) or _plan(config, batches, source, step)
            count = np.int32(ahead - step)
            state, metrics = run_steps(
                config, optimizer, devices, state, source.tokens, *plan, count
            )
            if ahead < total:  # while the device computes
                plans = {ahead: _plan(config, batches, source, ahead)}
            losses, norms = (np.asarray(m)[: ahead - step] for m in metrics)
            finite, validation = bool(np.isfinite([losses, norms]).all()), None
            if finite and (ahead % config.eval_every == 0 or ahead == total):
                validation = evaluation.evaluate(
                    state.params, source, corpus, config.batch, config.seq_len
                )
                finite, best = math.isfinite(validation), min(best, validation)
            if not finite:
                state, best = recover(ahead, float(state.rate))
                continue
            saved = False
            try:
                report.steps(ahead, float(losses.mean()), float(norms.mean()), validation)
                sample = None
                if config.sample_every and (ahead % config.sample_every == 0 or ahead == total):
                    sample = report.sample(ahead, mesh.local_copy(state.params))
                stopping = checkpoints.preempted(range(step + 1, ahead + 1))
                stopping = should_stop() or stopping
                if validation is not None or stopping:
                    save(ahead, state, validation, best)
                    saved = True
                if sample is not None:
                    report.show(ahead, sample)
            except NotWritten:
                raise
            except Exception:
                # Whatever could not be drawn or shown, the state is not lost with it. Several
                # processes save together or not at all, and only one of them may be here.
                if not saved and jax.process_count() == 1:
                    with contextlib.suppress(Exception):
                        save(ahead, state, validation, best)
                raise
        checkpoints.wait()
        return state.params, int(state.step)
    finally:
        report.end()
        checkpoints.close()


@modes.fixed()
def check(
    config: TrainingConfig, corpus: Corpus, devices: mesh.Mesh, resumed: bool = False
) -> None:
    """Compile the programs of a run, and refuse one that cannot run here.

    Nothing is written, and of the device's memory nothing is taken. The programs are kept, so `fit`
    does not compile them again.

    Args:
      config, corpus, devices: as for `fit`.
      resumed: the run has a state already and does not draw its first one.

    Raises:
      InputError: where the implementation cannot run this, or the memory is too small for it.
    """
    batches = config.batches(corpus)
    optimizer = make_optimizer(config, config.total_steps(batches))
    source = feed.plan(corpus.tokens, config.memory_map, devices)
    shapes = mesh.abstract(devices, lambda: create(config, optimizer, corpus.vocabulary))
    plan = _plan(config, batches, source, 0)
    try:
        steps = run_steps.lower(
            config, optimizer, devices, shapes, source.tokens, *plan, np.int32(1)
        ).compile()
    except ValueError as error:  # an implementation that was asked for by name
        raise InputError(f"this model cannot be trained here: {error}") from None
    except jax.errors.JaxRuntimeError as error:  # a compiler that knows the device's memory
        if not memory.is_out_of_memory(error):
            raise
        line = str(error).splitlines()[0]
        raise InputError(f"this model cannot be trained here: {line}; {SMALLER}") from None
    judge = evaluation.compile_ahead(shapes.params, source, corpus, config.batch, config.seq_len)
    state = memory.bytes_per_device(shapes)
    needs = [
        memory.program_bytes(steps) + state,  # and the copy that is being saved meanwhile
        memory.program_bytes(judge) + state - memory.bytes_per_device(shapes.params),
    ]
    if not resumed:
        first = begin.lower(config, optimizer, corpus.vocabulary, devices).compile()
        needs.append(memory.program_bytes(first))
    here = len(devices.local_devices) if accelerator.device().platform == "cpu" else 1
    memory.check(here * max(needs), "training this model", SMALLER)


SMALLER = "make --hidden-size, --layers, --batch or --seq-len smaller, or raise --accumulate"


def _check_nothing_is_lost(run: Path) -> None:
    """Refuse a run that has no checkpoint although its metrics show that it had some.

    The second evaluation may be reported before the checkpoint of the first is on the disk, the third
    may not.
    """
    judged = [line for line in read_metrics(run / METRICS) if line.get("val_loss") is not None]
    if len(judged) > 2:
        raise InputError(
            f"{run / METRICS} records {judged[-1]['step']} steps and {run / 'checkpoints'} holds "
            "none: bring the checkpoints back, choose another --workdir, or --overwrite the run"
        )


RECOVERIES = 3  # returns to a good state, each at half the learning rate, before giving up


class Diverged(RuntimeError):
    """The loss stayed non-finite; the message says what was tried and what is left."""


def _plan(
    config: TrainingConfig, batches: Batches, source: feed.Feed, step: int
) -> tuple[Array, np.ndarray]:
    """Return the windows and fresh starts of the steps of the next device call."""
    ahead = range(step, step + min(config.intervals))
    starts = np.stack([batches.starts(n) for n in ahead])
    return source.windows(starts, config.seq_len), np.array(
        [batches.resets_state(n) for n in ahead]
    )


def _rest(state: TrainState) -> dict[str, Any]:
    """The training state without the model, which a checkpoint holds apart."""
    fields = dataclasses.fields(state)  # type: ignore[arg-type]
    return {f.name: getattr(state, f.name) for f in fields if f.name != "params"}
