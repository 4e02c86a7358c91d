"""A training from its options to its result, for the command and for `jaxrnn.fit`.

    outcome = run(options, for_length)

Its steps, in this order:

    work = read(options, workdir, for_length)   # reads the text and checks all settings; changes nothing
    introduce(work, say)
    check_machine(work)                         # refuses what this machine cannot run
    report = take_over(work)                    # in the locked run directory
    loop.fit(...)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.data.corpus import Corpus
from jaxrnn.devices import accelerator, memory, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.presets import PRESETS
from jaxrnn.runs import train_text
from jaxrnn.runs.train_options import TrainOptions, default_workdir
from jaxrnn.training import freezing, loop, run_description, run_directory, starting_model
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import NullReport, Report, Reporter, require_tensorboard
from jaxrnn.training.signals import Stop


class Work(NamedTuple):
    """A training that has been read and checked.

    options: the options; `bytes` and `tokens` as they are in the text.
    training: the settings, with those that a resumed run keeps.
    workdir: the run directory.
    devices: the mesh.
    name: short name of the text.
    corpus: the text.
    prime: the beginning of the samples.
    steps: length of the run in steps.
    trained: number of parameters that are trained.
    description: the content of config.json.
    sized: whether the preset depends on the length of the text.
    dtype_chosen: whether the dtype is the one that "auto" chose here.
    start: the model that the run starts from, if it does not start from initial weights.
    """

    options: TrainOptions
    training: TrainingConfig
    workdir: Path
    devices: mesh.Mesh
    name: str
    corpus: Corpus
    prime: str | bytes
    steps: int
    trained: int
    description: run_description.Description
    sized: bool
    dtype_chosen: bool
    start: starting_model.Start | None


class Outcome(NamedTuple):
    """The outcome of a training.

    work: the training.
    result: what `loop.fit` returned.
    stop: the requests to stop that were noticed while it ran.
    """

    work: Work
    result: loop.Result
    stop: Stop


def run(
    options: TrainOptions,
    for_length: Callable[[int], TrainOptions] | None = None,
    *,
    text: str | bytes | None = None,
    say: Callable[[str], None] | None = print,
    stop: Callable[[], Stop] = Stop,
    temporary: bool = False,
) -> Outcome:
    """Train as the options say, on the screen and in the run directory.

    Args:
      options: the options.
      for_length: returns the options for a training part of so many characters; None takes `options` for
        any length.
      text: the text itself, instead of the one that `options.data` names.
      say: prints the lines before the training; None shows nothing at all on the screen.
      stop: makes the object that notices requests to stop while the training runs.
      temporary: whether the run directory is temporary, and not worth mentioning.
    """
    memory.limit_heap_growth()
    processes.start(options.processes)
    accelerator.use(options.accelerator)
    workdir = options.workdir or default_workdir(options)
    work = processes.run_on_all(lambda: read(options, workdir, for_length, text))
    run_directory.require_equal_settings(work.description)
    if say is not None and processes.is_primary():
        introduce(work, say, temporary)
    # Everything that can be refused is refused before anything is made, changed or deleted.
    processes.run_on_all(lambda: check_machine(work))
    with run_directory.lock(workdir):
        report = processes.run_on_all(lambda: take_over(work, quiet=say is None))
        with stop() as asked_to_stop:
            result = loop.fit(
                work.training,
                work.corpus,
                workdir,
                report,
                asked_to_stop.asked,
                work.devices,
                lambda: write_description(work),
                None if work.start is None else work.start.parameters,
            )
    return Outcome(work, result, asked_to_stop)


# --- settings and text ---


def read(
    options: TrainOptions,
    workdir: Path,
    for_length: Callable[[int], TrainOptions] | None,
    text: str | bytes | None = None,
) -> Work:
    """Read the text and check all settings. Changes nothing. Arguments are those of `run`."""
    devices = mesh.make(mesh.parse(options.mesh) if options.mesh else None)
    start = _find_start(options, workdir)
    name, corpus = train_text.read_corpus(
        options, None if start is None else start.vocabulary, text
    )
    if for_length is not None:
        options = for_length(corpus.train_size)
    if start is not None:
        start.check(options.training)
    dtype_chosen = options.training.model.dtype == "auto" and not _resumes(options, workdir)
    options = _settled(options, workdir, corpus)
    training = options.training
    mesh.check(devices, training.batch, training.accumulate, training.model.hidden_size)
    trained = freezing.count_trained(_shapes(training, corpus), training.freeze)
    steps = training.total_steps(training.batches(corpus))
    prime = _sample_prime(options, corpus)
    description = run_description.describe(
        options,
        run_description.Text(name, corpus.sha256),
        run_description.Origin("" if start is None else start.sha256),
    )
    if text is None:
        run_directory.check_data(workdir, options.data, options.glob, bool(training.sample_every))
    run_directory.check(workdir, description, corpus.vocabulary, options.overwrite)
    return Work(
        options=options,
        training=training,
        workdir=workdir,
        devices=devices,
        name=name,
        corpus=corpus,
        prime=prime,
        steps=steps,
        trained=trained,
        description=description,
        sized=for_length is not None and PRESETS[options.preset].size is not None,
        dtype_chosen=dtype_chosen,
        start=start,
    )


def _find_start(options: TrainOptions, workdir: Path) -> starting_model.Start | None:
    """Return the model to start from, if there is one."""
    start = starting_model.find(
        options.init_from, options.init_which, workdir, options.overwrite, console.note
    )
    if start is None:
        for name in ("init_which", "extend_vocabulary"):
            if getattr(options, name) != getattr(TrainOptions, name):
                raise InputError(f"`{name}` needs a model to start from: give `init_from`")
    elif options.extend_vocabulary and start.vocabulary.by_bytes:
        raise InputError(
            "leave `extend_vocabulary` out: the tokens of the model to start from are bytes, which can "
            "encode any text"
        )
    return start


def _resumes(options: TrainOptions, workdir: Path) -> bool:
    """Return whether the training resumes the run in the run directory."""
    return not options.overwrite and run_description.is_run(workdir)


def _settled(options: TrainOptions, workdir: Path, corpus: Corpus) -> TrainOptions:
    """Return the options with those that the text and the run in the run directory decide."""
    return dataclasses.replace(
        options,
        training=_kept_settings(options, workdir),
        bytes=corpus.vocabulary.by_bytes,
        tokens=corpus.vocabulary.pattern or None,
    )


def _kept_settings(options: TrainOptions, workdir: Path) -> TrainingConfig:
    """Return the training settings, some of them from the run in the run directory, if there is one.

    With dtype "auto" a run is resumed in its own dtype, whatever is fast on this machine, and its
    shuffled windows stay where they were.
    """
    training = options.training
    if _resumes(options, workdir):
        described, _ = run_description.read(workdir)
        training = dataclasses.replace(training, overlap=described["training"].get("overlap"))
        if training.model.dtype == "auto":
            dtype = run_description.model_of(workdir, described).dtype
            model = dataclasses.replace(training.model, dtype=dtype)
            training = dataclasses.replace(training, model=model)
    return dataclasses.replace(training, model=training.model.resolved())


def _sample_prime(options: TrainOptions, corpus: Corpus) -> str | bytes:
    """Return the prime of the samples, checked against the vocabulary."""
    if options.sample_prime is None:
        return sampling.default_prime(corpus.vocabulary)
    if not options.sample_prime:
        raise InputError("`sample_prime` is empty; give at least one character")
    by_bytes = corpus.vocabulary.by_bytes
    prime = arguments.prime("`sample_prime`", options.sample_prime, by_bytes)
    corpus.vocabulary.encode(prime)
    return prime


def _shapes(training: TrainingConfig, corpus: Corpus) -> charlm.Params:
    """Return the model of a training with abstract arrays."""
    return jax.eval_shape(lambda: charlm.init(training.model, corpus.vocabulary))


# --- what is printed ---


def introduce(work: Work, say: Callable[[str], None], temporary: bool = False) -> None:
    """Say in a few lines what is about to be trained. Arguments are those of `run`."""
    model, corpus = work.training.model, work.corpus
    params = charlm.count(_shapes(work.training, corpus))
    unit = corpus.vocabulary.unit
    say(f"{console.shown(work.name)}: {_described(corpus)}")
    if corpus.floor is not None:
        say(f"no model can do better on them than {corpus.floor:.4f} nats per {unit}")
    if work.sized:
        passes = work.steps * work.training.batch * work.training.seq_len / corpus.train_size
        why = "(the more often a text is read, the more is dropped)"
        if work.start is not None:
            why = "(as in the model to start from, unless other settings change them)"
        say(
            f"preset {work.options.preset} for {corpus.train_size:,} {unit}s: "
            f"{passes:.3g} passes, dropout {model.dropout:g}, weight dropout "
            f"{model.weight_dropout:g} {why}"
        )
    if work.start is not None and work.start.read is not None:
        say(f"the initial parameters are those of {console.quoted(work.start.path)}")
        if not corpus.vocabulary.by_bytes:
            _introduce_symbols(corpus.vocabulary.symbols[len(work.start.read.vocabulary) :], say)
    read = work.training.characters_per_epoch(corpus) / corpus.train_size
    if read < 0.9:
        say(
            f"each epoch reads {read:.0%} of the training text, because an incomplete batch is left "
            "out; other epochs read other parts. A smaller batch or a shorter BPTT length reads more"
        )
    trained = "" if work.trained == params else f" ({work.trained:,} of them trained)"
    dtype: str = model.dtype
    if work.dtype_chosen:
        dtype += ", the fastest here"
    where = "" if temporary else f"; run directory {console.quoted(work.workdir)}"
    say(
        f"{model.layers} x {model.cell} of {model.hidden_size}, {params:,} parameters{trained}, "
        f"{dtype}; {work.steps:,} steps on {accelerator.describe(work.devices.size)}{where}"
    )


def _described(corpus: Corpus) -> str:
    """Return the size of a text and of its validation part in words."""
    different = "" if corpus.different is None else f", {corpus.different} different"
    size = f"{len(corpus.tokens):,} {corpus.vocabulary.unit}s{different}"
    if corpus.lines is None:
        return f"{size}; the last {corpus.validation_size:,} are for validation"
    lines, training, empty = len(corpus.lines.ends), corpus.lines.training, corpus.lines.empty
    left_out = f"; empty lines left out: {empty:,}" if empty else ""
    return (
        f"{lines:,} lines of {size}; {lines - training:,} lines, chosen at random, are for validation"
        f"{left_out}"
    )


def _introduce_symbols(added: Sequence[str], say: Callable[[str], None]) -> None:
    """Say which symbols are new to the model that the training starts from."""
    if added:
        shown = " ".join(map(repr, added[:10]))
        more = ", ..." if len(added) > 10 else ""
        say(f"new tokens in its vocabulary: {len(added)}, for {shown}{more}")


# --- run directory ---


def check_machine(work: Work) -> None:
    """Raise InputError for what this machine cannot run. It compiles, so it is the last check."""
    if work.options.tensorboard:
        require_tensorboard()
    resumed = _resumes(work.options, work.workdir)
    loop.check(work.training, work.corpus, work.devices, resumed, work.start is not None)


def take_over(work: Work, quiet: bool = False) -> Reporter:
    """Clear the locked run directory if asked to, and return the report of this process.

    Args:
      work: the training.
      quiet: show nothing on the screen.
    """
    if not processes.is_primary():
        return NullReport(work.prime)
    # Another training may have begun there since the first check.
    vocabulary, overwrite = work.corpus.vocabulary, work.options.overwrite
    run_directory.check(work.workdir, work.description, vocabulary, overwrite)
    if overwrite:
        run_directory.clear(work.workdir)
    return Report(
        work.workdir,
        work.training.batch * work.training.seq_len,
        work.corpus.floor,
        work.prime,
        work.options.tensorboard,
        quiet,
        vocabulary.unit,
    )


def write_description(work: Work) -> None:
    """Write config.json and vocab.json. All processes wait until they are written."""
    if processes.is_primary():
        run_description.write(work.workdir, work.description.values, work.corpus.vocabulary)
    processes.allgather_json(None)
