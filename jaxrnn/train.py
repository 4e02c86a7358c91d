"""Train a char-RNN: `python -m jaxrnn.train --data my.txt`.

Running the same command again resumes the run. `--help` lists every setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.presets import PRESETS
from jaxrnn.train_options import TrainOptions, default_workdir, parse
from jaxrnn.training import loop, orbax_errors, run_description, run_directory, starting_model
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import NullReport, Report, Reporter, require_tensorboard
from jaxrnn.training.saved_states import Diverged
from jaxrnn.training.signals import Stop

# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 after success, 1 after a failure, 2 after bad input, 128 + n after signal n, and 141
    if standard output was a pipe that lost its reader.
    """
    console.open_streams()
    try:
        argv = sys.argv[1:] if argv is None else argv
        options = parse(argv)
        with console.lasting_output():
            status = run(options, functools.partial(parse, argv))
            return console.PIPE_CLOSED if status == 0 and console.pipe_closed() else status
    except processes.RemoteError:
        # The process that met the error reports it.
        return 2
    except InputError as error:
        _print_error(error)
        return 2
    except (OSError, Diverged) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        # There is no state to save yet.
        return 128 + signal.SIGINT
    except Exception as error:
        line = orbax_errors.first_line(error)
        if processes.is_peer_failure(error):
            _print_error(
                f"process {jax.process_index()} of {jax.process_count()} lost the others ({line}); the "
                "checkpoints are intact: restart all processes, and they resume from the newest one"
            )
        elif memory.is_out_of_memory(error):
            _print_error(
                f"out of memory ({line}); the checkpoints are intact: {loop.SMALLER}, or prepare a "
                "large text with python -m jaxrnn.prepare"
            )
        else:
            raise
        return 1


def _print_error(error: object) -> None:
    console.error(arguments.in_flags(error, TrainOptions))


def run(options: TrainOptions, for_length: Callable[[int], TrainOptions] | None = None) -> int:
    """Train as the options say, on the screen and in the run directory. Return the exit status.

    Args:
      options: the options.
      for_length: returns the options for a training part of so many characters; None takes `options` for
        any length.
    """
    memory.limit_heap_growth()
    processes.start(options.processes)
    accelerator.use(options.accelerator)
    workdir = options.workdir or default_workdir(options)
    work = processes.run_on_all(lambda: _read(options, workdir, for_length))
    run_directory.require_equal_settings(work.description)
    if processes.is_primary():
        _introduce(work)
    # Everything that can be refused is refused before anything is made, changed or deleted.
    processes.run_on_all(lambda: _check_machine(work))
    with run_directory.lock(workdir):
        report = processes.run_on_all(lambda: _take_over(work))
        with Stop() as stop:
            result = loop.fit(
                work.training,
                work.corpus,
                workdir,
                report,
                stop.asked,
                work.devices,
                lambda: _write_description(work),
                None if work.start is None else work.start.parameters,
            )
    if not result.complete:
        without = " without --overwrite" if options.overwrite else ""
        _say(
            f"stopped and saved at step {result.step}; the same command{without} resumes from there"
        )
        return stop.status
    _say(f"done. Now: {_example(workdir, work.corpus)}")
    return 0


# --- corpus and devices ---


class _Work(NamedTuple):
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


def _read(
    options: TrainOptions, workdir: Path, for_length: Callable[[int], TrainOptions] | None
) -> _Work:
    """Read the text and check all settings. Changes nothing."""
    devices = mesh.make(mesh.parse(options.mesh) if options.mesh else None)
    start = starting_model.find(options.init_from, workdir, options.overwrite, console.note)
    name, corpus = _corpus(options, None if start is None else start.vocabulary)
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
    return _Work(
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


def _corpus(options: TrainOptions, vocabulary: Vocabulary | None) -> tuple[str, Corpus]:
    """Return the short name of the text and the text: a prepared folder, or a text that is read.

    Args:
      options: the options.
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


def _introduce(work: _Work) -> None:
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


def _check_machine(work: _Work) -> None:
    """Raise InputError for what this machine cannot run. It compiles, so it is the last check."""
    if work.options.tensorboard:
        require_tensorboard()
    resumed = not work.options.overwrite and run_description.is_run(work.workdir)
    loop.check(work.training, work.corpus, work.devices, resumed, work.start is not None)


def _take_over(work: _Work) -> Reporter:
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


def _write_description(work: _Work) -> None:
    """Write config.json and vocab.json. All processes wait until they are written."""
    if processes.is_primary():
        run_description.write(work.workdir, work.description.values, work.corpus.vocabulary)
    processes.allgather_json(None)


# --- the last line ---


def _say(line: str) -> None:
    if processes.is_primary():
        print(line)


def _example(workdir: Path, corpus: Corpus) -> str:
    """Return a shell command that generates text with the run."""
    command = f"python -m jaxrnn.generate {console.quoted_path(workdir)}"
    prime = _example_prime(corpus)
    if prime is None:
        return command
    return f"{command} --prime{'=' if prime.startswith('-') else ' '}{console.quoted(prime)}"


def _example_prime(corpus: Corpus) -> str | None:
    """Return an example prime: "ROMEO:" if the text has it, else its first printable word, or None."""
    begin = corpus.vocabulary.decode(corpus.tokens[:1_000_000])
    if "ROMEO:" in begin:
        return "ROMEO:"
    words = (found[0][:20] for found in re.finditer(r"\S+", begin))
    return next((word for word in words if word.isprintable() and "\ufffd" not in word), None)


def leave(status: int) -> NoReturn:
    """End the process, at once if the status is 1.

    After a failed write, threads of orbax may never end, and after the loss of a process, JAX would wait
    for it.
    """
    if status == 1:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    orbax_errors.quieten()
    leave(main())
