"""A training, from the options of the command to the arguments of `loop.fit`.

work = read(options, workdir, for_length)   # reads the text and checks all settings; changes nothing
introduce(work)
check_machine(work)                         # refuses what this machine cannot run
report = take_over(work)                    # in the locked run directory
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.presets import PRESETS
from jaxrnn.train_options import TrainOptions
from jaxrnn.training import loop, run_description, run_directory, starting_model
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import NullReport, Report, Reporter, require_tensorboard


class Work(NamedTuple):
    """A training that has been read and checked.

    options: the options; `bytes` as it is in the text.
    training: the settings, with those that a resumed run keeps.
    workdir: the run directory.
    devices: the mesh.
    name: short name of the text.
    corpus: the text.
    prime: the beginning of the samples.
    steps: length of the run in steps.
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
    description: run_description.Description
    sized: bool
    dtype_chosen: bool
    start: starting_model.Start | None


def read(
    options: TrainOptions, workdir: Path, for_length: Callable[[int], TrainOptions] | None
) -> Work:
    """Read the text and check all settings. Changes nothing."""
    devices = mesh.make(mesh.parse(options.mesh) if options.mesh else None)
    start = starting_model.find(options.init_from, workdir, options.overwrite, console.note)
    name, corpus = corpus_of(options, None if start is None else start.vocabulary)
    if for_length is not None:
        options = for_length(corpus.train_size)
    kept = not options.overwrite and run_description.is_run(workdir)
    if start is not None:
        start.check(options.training)
    dtype_chosen = options.training.model.dtype == "auto" and not kept
    training = _kept_settings(options, workdir)
    mesh.check(devices, training.batch, training.accumulate, training.model.hidden_size)
    options = dataclasses.replace(options, training=training, bytes=corpus.vocabulary.by_bytes)
    steps = training.total_steps(training.batches(corpus))
    prime = _sample_prime(options, corpus)
    text = run_description.Text(name, corpus.sha256)
    origin = run_description.Origin("" if start is None else start.sha256)
    description = run_description.describe(options, text, origin)
    run_directory.check_data(workdir, options.data, options.glob, bool(training.sample_every))
    run_directory.check(workdir, description, corpus.vocabulary, options.overwrite)
    sized = for_length is not None and PRESETS[options.preset].size is not None
    return Work(
        options,
        training,
        workdir,
        devices,
        name,
        corpus,
        prime,
        steps,
        description,
        sized,
        dtype_chosen,
        start,
    )


def _kept_settings(options: TrainOptions, workdir: Path) -> TrainingConfig:
    """Return the training settings, some of them from the run in the run directory, if there is one.

    With dtype "auto" a run is resumed in its own dtype, whatever is fast on this machine, and its
    shuffled windows stay where they were.
    """
    training = options.training
    if not options.overwrite and run_description.is_run(workdir):
        described, _ = run_description.read(workdir)
        training = dataclasses.replace(training, overlap=described["training"].get("overlap"))
        if training.model.dtype == "auto":
            dtype = run_description.model_of(workdir, described).dtype
            model = dataclasses.replace(training.model, dtype=dtype)
            training = dataclasses.replace(training, model=model)
    return dataclasses.replace(training, model=training.model.resolved())


def corpus_of(options: TrainOptions, vocabulary: Vocabulary | None) -> tuple[str, Corpus]:
    """Return the short name of the text and the text: a prepared folder, or a text that is read.

    Args:
      options: the options of the training.
      vocabulary: that of the model to start from; None for that of the text.
    """
    words = [word for word in options.data if word not in sources.NAMED]
    prepared = [word for word in words if token_files.is_prepared(word)]
    if not prepared:
        by_bytes = options.bytes or (vocabulary is not None and vocabulary.by_bytes)
        if vocabulary is not None and by_bytes != vocabulary.by_bytes:
            raise InputError("--bytes: the tokens of the model to start from are characters")
        source = sources.read(options.data, options.glob, by_bytes)
        return source.name, make_corpus(source.content, source.nats, vocabulary)
    if len(options.data) > 1:
        raise InputError(
            f"{prepared[0]} is a prepared text and cannot be combined with others; prepare all texts "
            "together"
        )
    if options.glob is not None or options.bytes:
        flag = "--bytes" if options.glob is None else "--glob"
        raise InputError(f"{flag} was decided when {prepared[0]} was prepared; leave it out")
    corpus = token_files.load_corpus(prepared[0])
    if vocabulary is not None and corpus.vocabulary != vocabulary:
        _refuse_vocabulary(prepared[0], corpus.vocabulary, vocabulary)
    return token_files.read_meta(prepared[0]).name, corpus


def _refuse_vocabulary(folder: str, found: Vocabulary, vocabulary: Vocabulary) -> NoReturn:
    """Raise InputError for a prepared text whose tokens are not those of the model to start from."""
    if not found.by_bytes and not vocabulary.by_bytes:
        # This names the characters that the model does not have, if there are any.
        vocabulary.encode(found.characters)
    of = ["bytes" if v.by_bytes else f"{len(v)} characters" for v in (found, vocabulary)]
    raise InputError(
        f"{folder} was prepared with tokens for {of[0]}, and the model to start from has tokens for "
        f"{of[1]}: give the text itself as `data`, not prepared"
    )


def _sample_prime(options: TrainOptions, corpus: Corpus) -> str | bytes:
    """Return the prime of the samples, checked against the vocabulary."""
    if options.sample_prime is None:
        return sampling.default_prime(corpus.vocabulary)
    if not options.sample_prime:
        raise InputError("--sample-prime is empty; give at least one character")
    by_bytes = corpus.vocabulary.by_bytes
    prime = arguments.prime("--sample-prime", options.sample_prime, by_bytes)
    corpus.vocabulary.encode(prime)
    return prime


def introduce(work: Work) -> None:
    """Print what is about to be trained."""
    model, corpus = work.training.model, work.corpus
    params = charlm.count(jax.eval_shape(lambda: charlm.init(model, corpus.vocabulary)))
    kind = "bytes" if corpus.vocabulary.by_bytes else "characters"
    different = "" if corpus.different is None else f", {corpus.different} different"
    print(
        f"{console.shown(work.name)}: {len(corpus.tokens):,} {kind}{different}; "
        f"the last {corpus.validation_size:,} are for validation"
    )
    if corpus.floor is not None:
        print(f"no model can do better on them than {corpus.floor:.4f} nats per character")
    if work.sized:
        characters = work.steps * work.training.batch * work.training.seq_len
        why = "(the more often a text is read, the more is dropped)"
        if work.start is not None:
            why = "(as in the model to start from, unless flags change them)"
        print(
            f"preset {work.options.preset} for {corpus.train_size:,} characters: "
            f"{characters / corpus.train_size:.2g} passes, dropout {model.dropout:g}, weight dropout "
            f"{model.weight_dropout:g} {why}"
        )
    if work.start is not None and work.start.read is not None:
        print(f"the initial parameters are those of {console.quoted(work.start.path)}")
    read = work.training.characters_per_epoch(corpus) / corpus.train_size
    if read < 0.9:
        print(
            f"each epoch reads {read:.0%} of the training text, because an incomplete batch is left "
            "out; other epochs read other parts. Lower --batch or --seq-len to read more"
        )
    dtype: str = model.dtype
    if work.dtype_chosen:
        dtype += ", the fastest here"
    print(
        f"{model.layers} x {model.cell} of {model.hidden_size}, {params:,} parameters, {dtype}; "
        f"{work.steps:,} steps on {accelerator.describe(work.devices.size)}; "
        f"run directory {console.quoted(work.workdir)}",
        flush=True,
    )


# --- run directory ---


def check_machine(work: Work) -> None:
    """Raise InputError for what this machine cannot run. It compiles, so it is the last check."""
    if work.options.tensorboard:
        require_tensorboard()
    resumed = not work.options.overwrite and run_description.is_run(work.workdir)
    loop.check(work.training, work.corpus, work.devices, resumed, work.start is not None)


def take_over(work: Work) -> Reporter:
    """Clear the locked run directory if asked to, and return the report of this process."""
    if not processes.is_primary():
        return NullReport(work.prime)
    # Another training may have begun there since the first check.
    vocabulary, overwrite = work.corpus.vocabulary, work.options.overwrite
    run_directory.check(work.workdir, work.description, vocabulary, overwrite)
    if overwrite:
        run_directory.clear(work.workdir)
    characters = work.training.batch * work.training.seq_len
    tensorboard = work.options.tensorboard
    return Report(work.workdir, characters, work.corpus.floor, work.prime, tensorboard)


def write_description(work: Work) -> None:
    """Write config.json and vocab.json. All processes wait until they are written."""
    if processes.is_primary():
        run_description.write(work.workdir, work.description.values, work.corpus.vocabulary)
    processes.allgather_json(None)
