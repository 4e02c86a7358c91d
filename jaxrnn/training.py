"""Training as a function of the step number: TrainState, train_step, fit.

The state of a run is (params, optimizer state, recurrent carry, PRNG key, step, rate); batch n of the
text and the dropout of step n follow from n. So a run that was stopped and resumed is the same run,
to the bit, on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tyro.conf import Fixed, Suppress

from jaxrnn import (
    accelerator,
    charlm,
    checkpoint,
    distributed,
    evaluation,
    feed,
    memory,
    mesh,
    modes,
)
from jaxrnn.dispatch import Implementation
from jaxrnn.errors import InputError
from jaxrnn.report import METRICS, NotWritten, Report, read_metrics
from jaxrnn.shapes import Array, Bool, Int, Scalar
from jaxrnn.text import Batches, Corpus, Vocabulary


@dataclasses.dataclass(frozen=True)
class Config:
    """How the model is trained."""

    model: charlm.Config = dataclasses.field(default_factory=charlm.Config)
    batch: int = 64
    """Rows per batch."""
    seq_len: int = 100
    """Characters per row that gradients flow through."""
    steps: int | None = None
    """Length of the run in steps; None leaves it to epochs."""
    epochs: float = 10.0
    """Length of the run in passes over the training text; a pass ends with its last full batch."""
    learning_rate: float = 2e-3
    """Adam's, at its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate after the warm-up: down to 0 by a cosine, or constant."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    beta2: float = 0.99
    """Adam's decay of the squared gradients."""
    clip_norm: float = 1.0
    """Longest gradient, as the global norm over all parameters; 0 does not clip."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    shuffle: bool = False
    """Windows in random order from the zero state, not streams with the state carried over."""
    overlap: Suppress[Fixed[bool | None]] = True
    """Whether shuffled windows share a character with the next and are shifted each pass; None in runs
    that were begun before they did, which keep the order that they had. No flag."""
    seed: int = 0
    """Of the first weights, the dropout and the order of the text."""
    log_every: int = 10
    """Steps per line of metrics.jsonl, at most 1000; evaluations and samples end a line too."""
    eval_every: int = 250
    """Steps between evaluations on the whole validation text, each with a checkpoint."""
    sample_every: int = 500
    """Steps between samples; 0 for none."""
    memory_map: feed.MemoryMap = "auto"
    """Keep the text in a file of the run directory; auto does where the device has no room for it."""
    implementation: Implementation | None = None
    """What runs the recurrence; None takes the fastest that is known here."""

    def __post_init__(self) -> None:
        least = {"batch": 1, "seq_len": 1, "accumulate": 1, "log_every": 1, "eval_every": 1}
        least |= {"steps": 1, "warmup": 0, "clip_norm": 0, "sample_every": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"{_flag(name)} must be at least {low}, not {value}")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{_flag(name)} must be a number above 0, not {value}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be at least 0 and below 1, not {self.beta2}")
        if self.seed >= 2**32:
            raise InputError(f"--seed must be below 2^32, not {self.seed}")
        if self.batch % self.accumulate:
            raise InputError(
                f"--batch {self.batch} cannot be computed in --accumulate {self.accumulate} equal parts"
            )

    @property
    def intervals(self) -> list[int]:
        """Steps after which a call of the device ends, each counted from step 0."""
        samples = [self.sample_every] if self.sample_every else []
        return [self.log_every, self.eval_every, *samples, MOST_STEPS]

    def batches(self, corpus: Corpus) -> Batches:
        """The batches of a text. Raises InputError for a text too short for one."""
        return Batches(
            corpus.train_size, self.batch, self.seq_len, self.shuffle, self.seed, bool(self.overlap)
        )

    def characters_per_epoch(self, corpus: Corpus) -> int:
        """Return how many characters one pass predicts. An incomplete last batch is left out."""
        return self.batches(corpus).per_epoch * self.batch * self.seq_len

    def total_steps(self, batches: Batches) -> int:
        """Length of the run in steps. Raises InputError for more than an int32 counts."""
        steps = self.steps or max(1, round(self.epochs * batches.per_epoch))
        if steps >= 2**31:
            raise InputError(
                f"the run would take {steps} steps, more than an int32 counts (2^31 - 1)"
            )
        return steps


MOST_STEPS = 1000  # per call of the device, which a signal to stop waits for


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@flax.struct.dataclass
class TrainState:
    """All that a run remembers.

    params: the model, float32.
    opt_state: optax's.
    carry: the recurrent state at the end of each row's last characters, one per layer.
    key: of the dropout, folded with the step; raw, as uint32.
    step: steps taken, int32.
    rate: factor on the learning rate, halved by each recovery from a loss that was not finite.
    """

    params: charlm.Params
    opt_state: Any
    carry: charlm.Carry
    key: Any
    step: Any
    rate: Any


class Metrics(NamedTuple):
    """Of one step: mean loss in nats per character, global norm of the gradient before clipping."""

    loss: Scalar
    grad_norm: Scalar


@functools.cache  # equal settings are one optimizer, and so one compiled step
def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Adam behind global-norm clipping (lecture row 14), warm-up and cosine or constant rate."""
    peak, warmup = config.learning_rate, min(config.warmup, steps - 1)
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps)
    else:
        rate = optax.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(rate, b2=config.beta2))


@modes.fixed()
def create(config: Config, optimizer: Any, vocabulary: Vocabulary) -> TrainState:
    """The state before the first step."""
    params = charlm.init(config.model, vocabulary, config.seed)
    return TrainState(
        params,
        optimizer.init(params),
        charlm.initial_carry(config.model, config.batch),
        _dropout_key(config),
        jnp.int32(0),
        jnp.float32(1),
    )


def _dropout_key(config: Config) -> Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.key(config.seed), 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def begin(config: Config, optimizer: Any, vocabulary: Vocabulary, devices: mesh.Mesh) -> TrainState:
    """`create`, made on the mesh: no device holds what is another's."""
    return mesh.keep(devices, create(config, optimizer, vocabulary))


def train_step(
    optimizer: Any,
    state: TrainState,
    tokens: Int[Array, "T1 B"],
    fresh: Bool[Array, ""],
    accumulate: int = 1,
    **how: Any,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      optimizer: from `make_optimizer`.
      state: before the step.
      tokens: [T + 1, B], characters and their successors.
      fresh: start from the zero state instead of the carry.
      accumulate: parts of the batch, computed one after the other.
      how: as for `charlm.forward`: implementation, devices.
    """
    params = state.params
    carry = jax.tree.map(lambda s: jnp.where(fresh, 0, s), state.carry)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=modes.KEYS), state.step)
    value_and_grad = jax.value_and_grad(functools.partial(charlm.loss, **how), has_aux=True)

    def part(total: Any, slices: Any) -> tuple[Any, charlm.Carry]:
        index, tokens, carry = slices
        dropout_key = jax.random.fold_in(key, index)
        (loss, carry), gradient = value_and_grad(params, tokens, carry, dropout_key=dropout_key)
        return jax.tree.map(lambda t, p: t + p / accumulate, total, (loss, gradient)), carry

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    if accumulate == 1:
        (loss, gradient), carry = part(zero, (jnp.int32(0), tokens, carry))
    else:
        split = functools.partial(_split_rows, parts=accumulate)
        index = jnp.arange(accumulate, dtype=jnp.int32)
        slices = (
            index,
            split(tokens, axis=1),
            jax.tree.map(functools.partial(split, axis=0), carry),
        )
        (loss, gradient), carries = lax.scan(part, zero, slices)
        carry = jax.tree.map(lambda c: c.swapaxes(0, 1).reshape(-1, *c.shape[2:]), carries)

    # optax adds integers to floats, which a program may forbid
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    updates = jax.tree.map(lambda u: u * state.rate, updates)
    after = state.replace(  # type: ignore[attr-defined]
        params=optax.apply_updates(params, updates),
        opt_state=opt_state,
        carry=carry,
        step=state.step + 1,
    )
    return after, Metrics(loss, optax.tree.norm(gradient))


def _split_rows(x: Array, axis: int, parts: int) -> Array:
    """[..., B, ...] → [parts, ..., B / parts, ...]; rows side by side go to different parts, so that
    each of several devices has some of every part."""
    x = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def run_steps(
    config: Config,
    optimizer: Any,
    devices: mesh.Mesh,
    state: TrainState,
    tokens: Array | None,
    windows: Array,
    fresh: Bool[Array, "K"],
    count: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """The first `count` of K steps in one call of the device.

    The loop's trip count is an argument: a run cut off in the middle and resumed there goes through
    the same program, whatever the number of steps to the next line of the log. The state lies on the
    mesh `devices` as `mesh.shardings` says, and stays there.
    """
    how = {"implementation": config.implementation, "devices": devices}
    nothing = jnp.zeros(fresh.shape[0], jnp.float32)

    def body(i: Array, loop: Any) -> Any:
        state, metrics = loop
        batch = feed.gather(tokens, windows[i], config.seq_len)
        state, now = train_step(optimizer, state, batch, fresh[i], config.accumulate, **how)
        metrics = jax.tree.map(lambda all, one: all.at[i].set(one), metrics, now)
        return mesh.keep(devices, (state, metrics))

    begun = state, Metrics(nothing, nothing)
    return mesh.keep(devices, lax.fori_loop(0, count, body, begun))


@modes.fixed()
def fit(
    config: Config,
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
    shapes = mesh.described(devices, lambda: create(config, optimizer, corpus.vocabulary))
    checkpoints = checkpoint.Checkpoints(run, report.note, read_only=True)

    def newest(scheduled: bool = False) -> checkpoint.Restored | None:
        """Read the newest good checkpoint (of those saved by the plan alone)."""
        # The key follows from the seed; that of a run under another generator has another shape.
        rest = {name: value for name, value in _rest(shapes).items() if name != "key"}
        return checkpoints.restore(
            shapes.params, rest, accept=lambda notes: notes["scheduled"] >= scheduled
        )

    def resume(found: checkpoint.Restored | None) -> tuple[TrainState, float]:
        """Return a checkpoint's state and the best loss until then, or the state before the first
        step, and take the run directory back to there."""
        checkpoints.set_aside(found.step if found else -1)
        report.rewind(found.notes["report"] if found else {})
        if found is None:
            return begin(config, optimizer, corpus.vocabulary, devices), math.inf
        params, rest = found.tree
        key = jax.device_put(np.asarray(_dropout_key(config)), mesh.everywhere(devices))
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
        slower = jax.device_put(np.float32(rate / 2), mesh.everywhere(devices))
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
        distributed.together(lambda: _check_nothing_is_lost(run))
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
                    sample = report.sample(ahead, mesh.nearest(state.params))
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
def check(config: Config, corpus: Corpus, devices: mesh.Mesh, resumed: bool = False) -> None:
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
    shapes = mesh.described(devices, lambda: create(config, optimizer, corpus.vocabulary))
    plan = _plan(config, batches, source, 0)
    try:
        steps = run_steps.lower(
            config, optimizer, devices, shapes, source.tokens, *plan, np.int32(1)
        ).compile()
    except ValueError as error:  # an implementation that was asked for by name
        raise InputError(f"this model cannot be trained here: {error}") from None
    except jax.errors.JaxRuntimeError as error:  # a compiler that knows the device's memory
        if not memory.ran_out(error):
            raise
        line = str(error).splitlines()[0]
        raise InputError(f"this model cannot be trained here: {line}; {SMALLER}") from None
    judge = evaluation.compile_ahead(shapes.params, source, corpus, config.batch, config.seq_len)
    state = memory.size(shapes)
    needs = [
        memory.of_program(steps) + state,  # and the copy that is being saved meanwhile
        memory.of_program(judge) + state - memory.size(shapes.params),
    ]
    if not resumed:
        first = begin.lower(config, optimizer, corpus.vocabulary, devices).compile()
        needs.append(memory.of_program(first))
    here = len(devices.local_devices) if accelerator.device().platform == "cpu" else 1
    memory.check(here * max(needs), "training this model", SMALLER)


SMALLER = "make --hidden, --layers, --batch or --seq-len smaller, or raise --accumulate"


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
    config: Config, batches: Batches, source: feed.Feed, step: int
) -> tuple[Array, np.ndarray]:
    """Return the windows and fresh starts of the steps of the next device call."""
    ahead = range(step, step + min(config.intervals))
    starts = np.stack([batches.starts(n) for n in ahead])
    return source.windows(starts, config.seq_len), np.array([batches.fresh(n) for n in ahead])


def _rest(state: TrainState) -> dict[str, Any]:
    """The training state without the model, which a checkpoint holds apart."""
    fields = dataclasses.fields(state)  # type: ignore[arg-type]
    return {f.name: getattr(state, f.name) for f in fields if f.name != "params"}
