"""Train a char-RNN: `python -m jaxrnn.train --data my.txt`.

Running the same command again resumes the run. `--help` lists every setting.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import tyro

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.devices import accelerator, memory, mesh, processes
from jaxrnn.errors import InputError
from jaxrnn.training import loop, run_description, run_directory
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import Report, Unheard, require_tensorboard
from jaxrnn.training.signals import Stop

Preset = Literal["small", "lecture", "shakespeare"]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a character-level RNN, LSTM or GRU on a text."""

    preset: Preset = "small"
    """Ready settings, which the other flags change: small (two minutes on two CPU cores), lecture (the
    settings of the lecture's code), shakespeare (the best that 15 CPU minutes buy)."""
    data: tuple[str, ...] = ("play",)
    """What to learn from: files, folders, "-" (standard input), "shakespeare" (Tiny Shakespeare,
    downloaded once), "play" (an original play, written on the spot by a grammar whose entropy is
    known exactly), or one folder that python -m jaxrnn.prepare made."""
    glob: str | None = None
    """Which files of a folder, as in "*.c"; without it "*.txt"."""
    bytes: bool = False
    """Read the text as bytes instead of UTF-8 characters."""
    workdir: Path | None = None
    """The run's folder; without it runs/ and the names of data and preset."""
    overwrite: bool = False
    """Throw away the run that is in the folder."""
    accelerator: accelerator.Accelerator = "auto"
    """Where to compute; auto takes the fastest that JAX finds."""
    mesh: str | None = None
    """How the devices share the work, as in data=8,model=2: rows of the batch over data, units of the
    layers over model; without it all devices on data."""
    processes: processes.Processes = dataclasses.field(default_factory=processes.Processes)
    sample_prime: str | None = None
    """How the samples begin that are written while training; without it a new line."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run's folder."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


PRESETS: dict[str, TrainOptions] = {
    "small": TrainOptions(
        training=TrainingConfig(
            model=charlm.ModelConfig(dtype="auto"), batch=32, epochs=6.0, learning_rate=5e-3
        )
    ),
    "lecture": TrainOptions(
        preset="lecture",
        data=("shakespeare",),
        training=TrainingConfig(
            model=charlm.ModelConfig(
                hidden_size=1024, embedding_size=256, recurrent_init="glorot", dtype="auto"
            ),
            batch=64,
            seq_len=100,
            shuffle=True,
            epochs=10.0,
            learning_rate=1e-3,
            schedule="constant",
            warmup=0,
            beta2=0.999,
            clip_norm=0.0,
        ),
    ),
    "shakespeare": TrainOptions(
        preset="shakespeare",
        data=("shakespeare",),
        training=TrainingConfig(
            model=charlm.ModelConfig(
                hidden_size=512, embedding_size=64, dropout=0.4, weight_dropout=0.3, dtype="auto"
            ),
            learning_rate=3e-3,
            steps=3500,
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 done, 1 failed, 2 bad input, 128 + n for signal n, 141 for a pipe that lost its reader.
    """
    console.open_streams()
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        with console.lasting_output():
            status = run(config)
            return console.PIPE_CLOSED if status == 0 and console.pipe_closed() else status
    except processes.RemoteError:
        return 2
    except InputError as error:
        console.error(error)
        return 2
    except (OSError, loop.Diverged) as error:
        console.error(error)
        return 1
    except KeyboardInterrupt:  # before there is a state to save
        return 128 + signal.SIGINT
    except Exception as error:
        if processes.is_peer_failure(error):
            console.error(_lost(error))
        elif memory.is_out_of_memory(error):
            console.error(_ran_out(error))
        else:
            raise
        return 1


def _lost(error: Exception) -> str:
    """Return the error message for a process that lost contact with the others."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost the others ({why}); the "
        "checkpoints are intact: start all processes again, and they resume from the newest"
    )


def _ran_out(error: Exception) -> str:
    """Return the error message for a run that ran out of memory despite the estimate."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"the memory ran out ({why}); the checkpoints are intact: {loop.SMALLER}, or prepare a "
        "large text with python -m jaxrnn.prepare"
    )


def parse(argv: Sequence[str]) -> TrainOptions:
    """The settings of a command line: the preset's, changed by the other flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="small")
    preset = first.parse_known_args(argv)[0].preset
    return arguments.parse(
        TrainOptions,
        "python -m jaxrnn.train",
        argv,
        PRESETS.get(preset, TrainOptions()),
        (tyro.conf.OmitArgPrefixes,),
    )


def run(config: TrainOptions) -> int:
    """Train as configured, on the screen and in the run's folder. Returns the exit status."""
    memory.limit_heap_growth()
    processes.start(config.processes)
    accelerator.use(config.accelerator)
    workdir = config.workdir or default_workdir(config)
    work = processes.run_on_all(lambda: _work(config, workdir))
    same = {
        n: v for n, v in run_directory.flat(work.description).items() if n not in run_directory.OWN
    }
    processes.require_equal(
        same | {"jax": jax.__version__}, "start all with the same command and text"
    )
    if processes.is_primary():
        _introduce(workdir, work)
    # All that can be refused is refused before anything is made, changed or deleted.
    processes.run_on_all(lambda: _check_here(config, workdir, work))
    with run_directory.held(workdir):
        return _run(config, workdir, work)


def default_workdir(config: TrainOptions) -> Path:
    """Return runs/DATA-PRESET, or runs/DATA where both names are equal. The path is valid UTF-8."""
    names = "-".join(dict.fromkeys([sources.name(config.data), config.preset]))
    return Path("runs", re.sub("[\udc80-\udcff]", "_", names))


class _Work(NamedTuple):
    """All that a training needs, checked."""

    config: TrainingConfig
    devices: mesh.Mesh
    name: str  # of the text
    corpus: Corpus
    prime: str | bytes  # of the samples
    steps: int
    description: dict[str, Any]


def _work(config: TrainOptions, workdir: Path) -> _Work:
    config = dataclasses.replace(config, training=_as_begun(config, workdir))
    model = config.training.model
    devices = mesh.make(mesh.parse(config.mesh) if config.mesh else None)
    how = config.training
    mesh.check(devices, how.batch, how.accumulate, model.hidden_size)
    name, corpus = _corpus(config)
    config = dataclasses.replace(config, bytes=corpus.vocabulary.by_bytes)
    steps = how.total_steps(how.batches(corpus))
    prime = _sample_prime(config, corpus)
    description = {**_plain(config), "text": {"name": name, "sha256": corpus.sha256}}
    run_directory.check_data(workdir, config.data, config.glob, bool(how.sample_every))
    run_directory.check(workdir, description, corpus.vocabulary, config.overwrite)
    return _Work(how, devices, name, corpus, prime, steps, description)


def _check_here(config: TrainOptions, workdir: Path, work: _Work) -> None:
    """Raise InputError for what this machine cannot run. It compiles, so it is the last check."""
    if config.tensorboard:
        require_tensorboard()
    resumed = not config.overwrite and run_description.is_run(workdir)
    loop.check(work.config, work.corpus, work.devices, resumed)


def _run(config: TrainOptions, workdir: Path, work: _Work) -> int:
    vocabulary = work.corpus.vocabulary

    def take_over() -> Report:
        if not processes.is_primary():
            return Unheard(work.prime)
        # again, because another training may have begun there meanwhile
        run_directory.check(workdir, work.description, vocabulary, config.overwrite)
        if config.overwrite:
            run_directory.clear(workdir)
        characters = work.config.batch * work.config.seq_len
        return Report(workdir, characters, work.corpus.floor, work.prime, config.tensorboard)

    report = processes.run_on_all(take_over)

    def accepted() -> None:
        if processes.is_primary():
            run_description.write(workdir, work.description, vocabulary)
        processes.allgather_json(None)

    with Stop() as stop:
        _, step = loop.fit(
            work.config, work.corpus, workdir, report, stop.asked, work.devices, accepted
        )
    if step < work.steps:
        without = " without --overwrite" if config.overwrite else ""
        _say(f"stopped and saved at step {step}; the same command{without} resumes from there")
        return stop.status
    _say(f"done. Now: {_example(workdir, work.corpus)}")
    return 0


def _say(line: str) -> None:
    if processes.is_primary():
        print(line)


def _corpus(config: TrainOptions) -> tuple[str, Corpus]:
    """What --data names, and its short name: a prepared folder as it is, else a text, read whole."""
    prepared = [word for word in config.data if token_files.is_prepared(word)]
    prepared = [word for word in prepared if word not in sources.NAMED]
    if not prepared:
        source = sources.read(config.data, config.glob, config.bytes)
        return source.name, make_corpus(source.content, source.nats)
    if len(config.data) > 1:
        raise InputError(
            f"{prepared[0]} is a prepared text and is trained on alone; prepare all texts together"
        )
    if config.glob is not None or config.bytes:
        flag = "--bytes" if config.glob is None else "--glob"
        raise InputError(f"{flag} was decided when {prepared[0]} was prepared; leave it out")
    return token_files.read_meta(prepared[0]).name, token_files.load_corpus(prepared[0])


def _as_begun(config: TrainOptions, workdir: Path) -> TrainingConfig:
    """Return the training settings; some are taken from the run in the folder, if there is one.

    With dtype "auto" the run resumes in its own dtype, whatever is fast here, and its shuffled windows
    stay where they were.
    """
    how = config.training
    if not config.overwrite and run_description.is_run(workdir):
        described, _ = run_description.read(workdir)
        how = dataclasses.replace(how, overlap=described["training"].get("overlap"))
        if how.model.dtype == "auto":
            dtype = run_description.model_of(workdir, described).dtype
            how = dataclasses.replace(how, model=dataclasses.replace(how.model, dtype=dtype))
    return dataclasses.replace(how, model=how.model.resolved())


def _introduce(workdir: Path, work: _Work) -> None:
    model, corpus = work.config.model, work.corpus
    params = charlm.count(jax.eval_shape(lambda: charlm.init(model, corpus.vocabulary)))
    kind = "bytes" if corpus.vocabulary.by_bytes else "characters"
    different = "" if corpus.different is None else f", {corpus.different} different"
    print(
        f"{console.shown(work.name)}: {len(corpus.tokens):,} {kind}{different}; "
        f"the last {corpus.validation_size:,} are for validation"
    )
    if corpus.floor is not None:
        print(f"no model can do better on them than {corpus.floor:.4f} nats per character")
    read = work.config.characters_per_epoch(corpus) / corpus.train_size
    if read < 0.9:
        print(
            f"a pass reads {read:.0%} of the training text, since what does not fill a batch is left "
            "out, and other passes read other parts: lower --batch or --seq-len to read more of it"
        )
    print(
        f"{model.layers} x {model.cell} of {model.hidden_size}, {params:,} parameters, {model.dtype}; "
        f"{work.steps:,} steps on {accelerator.describe(work.devices.size)}; "
        f"run folder {console.quoted(workdir)}",
        flush=True,
    )


def _sample_prime(config: TrainOptions, corpus: Corpus) -> str | bytes:
    """Return the prime of the samples, checked before anything is written."""
    if config.sample_prime is None:
        return sampling.default_prime(corpus.vocabulary)
    if not config.sample_prime:
        raise InputError("--sample-prime is empty; give the samples at least one character")
    by_bytes = corpus.vocabulary.by_bytes
    prime = arguments.prime("--sample-prime", config.sample_prime, by_bytes)
    corpus.vocabulary.encode(prime)
    return prime


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


def _plain(config: TrainOptions) -> dict[str, Any]:
    described = dataclasses.asdict(config)
    described["workdir"] = None  # the folder may be moved
    return described


def leave(status: int) -> NoReturn:
    """End the process. At once where it failed: what a failed write left behind in orbax' threads may
    never end, and JAX would wait for processes that are gone."""
    if status == 1:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
