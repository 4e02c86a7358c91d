"""Train a char-RNN: `python -m jaxrnn.train --data my.txt`.

Running the same command again goes on where the run stands. `--help` lists every setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import tyro

from jaxrnn import accelerator, charlm, checkpoint, sampling, sources, text, tokens, training
from jaxrnn.errors import InputError
from jaxrnn.report import Report

Preset = Literal["small", "lecture", "shakespeare"]


@dataclasses.dataclass(frozen=True)
class Config:
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
    sample_prime: str | None = None
    """How the samples begin that are written while training; without it a new line."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run's folder."""
    training: training.Config = dataclasses.field(default_factory=training.Config)


PRESETS: dict[str, Config] = {
    "small": Config(
        training=training.Config(
            model=charlm.Config(dtype="auto"), batch=32, epochs=6.0, learning_rate=5e-3
        )
    ),
    "lecture": Config(
        preset="lecture",
        data=("shakespeare",),
        training=training.Config(
            model=charlm.Config(hidden=1024, embed=256, recurrent_init="glorot", dtype="auto"),
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
    "shakespeare": Config(
        preset="shakespeare",
        data=("shakespeare",),
        training=training.Config(
            model=charlm.Config(
                hidden=512, embed=64, dropout=0.4, weight_dropout=0.3, dtype="auto"
            ),
            learning_rate=3e-3,
            steps=3500,
        ),
    ),
}

# What may differ when a run is continued: how long and how it goes on, not what it is.
_FREE = {
    "name", "data", "glob", "preset", "workdir", "overwrite", "accelerator", "sample_prime",
    "tensorboard",
    "steps", "epochs", "learning_rate", "schedule", "warmup", "beta2", "clip_norm", "accumulate",
    "log_every", "eval_every", "sample_every", "memory_map", "dropout", "weight_dropout",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 1 failed, 2 bad input, 128 + n for signal n."""
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, training.Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there is a state to save
        return 128 + signal.SIGINT


def parse(argv: Sequence[str]) -> Config:
    """The settings of a command line: the preset's, changed by the other flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="small")
    preset = first.parse_known_args(argv)[0].preset
    return tyro.cli(
        Config,
        prog="python -m jaxrnn.train",
        default=PRESETS.get(preset, Config()),
        args=list(argv),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def run(config: Config) -> int:
    """Train as configured, on the screen and in the run's folder. Returns the exit status."""
    accelerator.use(config.accelerator)
    workdir = config.workdir or default_workdir(config)
    _make(workdir)
    lock = filelock.FileLock(workdir / "lock", timeout=0)
    try:
        with lock:
            return _run(config, workdir)
    except filelock.Timeout:
        raise InputError(
            f"another training is at work in {workdir}; wait for it or choose another --workdir"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"could not save to {workdir}: {error.strerror}; the checkpoints before it are intact"
            ) from error
        raise


def default_workdir(config: Config) -> Path:
    """runs/DATA-PRESET, the name once where both are the same."""
    names = dict.fromkeys([sources.name(config.data), config.preset])
    return Path("runs", "-".join(names))


def _run(config: Config, workdir: Path) -> int:
    model = _dtype_of_the_run(config.training.model, workdir, config.overwrite).resolved()
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, model=model))
    name, corpus = _corpus(config)
    config = dataclasses.replace(config, bytes=corpus.vocabulary.by_bytes)
    batches = config.training.batches(corpus)
    total = config.training.total_steps(batches)
    prime = _sample_prime(config, corpus)
    description = {**_plain(config), "text": {"name": name, "sha256": corpus.sha256}}
    if config.overwrite:
        _clear(workdir)
    _check_same_run(workdir, description, corpus.vocabulary)
    checkpoint.write_description(workdir, description, corpus.vocabulary)

    _introduce(config, workdir, name, corpus, total)
    characters = config.training.batch * config.training.seq_len
    report = Report(workdir, characters, corpus.floor, prime, config.tensorboard)
    stop = _Signals()
    with stop:
        _, step = training.fit(config.training, corpus, workdir, report, stop.asked)
    if step < total:
        print(f"stopped and saved at step {step}; the same command goes on from there")
        return stop.status
    print(f'done. Now: python -m jaxrnn.generate {workdir} --prime "{_example_prime(corpus)}"')
    return 0


def _corpus(config: Config) -> tuple[str, text.Corpus]:
    """What --data names, and its short name: a prepared folder as it is, else a text, read whole."""
    prepared = [word for word in config.data if tokens.is_prepared(word)]
    prepared = [word for word in prepared if word not in sources.NAMED]
    if not prepared:
        source = sources.read(config.data, config.glob, config.bytes)
        return source.name, text.corpus(source.content, source.nats)
    if len(config.data) > 1:
        raise InputError(
            f"{prepared[0]} is a prepared text and is trained on alone; prepare all texts together"
        )
    if config.glob is not None or config.bytes:
        flag = "--bytes" if config.glob is None else "--glob"
        raise InputError(f"{flag} was decided when {prepared[0]} was prepared; leave it out")
    return tokens.meta(prepared[0]).name, tokens.corpus(prepared[0])


def _dtype_of_the_run(model: charlm.Config, workdir: Path, overwrite: bool) -> charlm.Config:
    """With dtype "auto", go on in the dtype of the run that is there, whatever is fast here."""
    if model.dtype != "auto" or overwrite or not (workdir / "config.json").exists():
        return model
    described, _ = checkpoint.read_description(workdir)
    there = described.get("training", {}).get("model", {}).get("dtype", "auto")
    return dataclasses.replace(model, dtype=there)


def _introduce(config: Config, workdir: Path, name: str, corpus: text.Corpus, total: int) -> None:
    model = config.training.model
    params = charlm.count(charlm.init(model, corpus.vocabulary))
    size = len(corpus.vocabulary)
    print(
        f"{name}: {len(corpus.tokens):,} {'bytes' if config.bytes else 'characters'}, {size} "
        f"different; the last {corpus.validation_size:,} are for validation"
    )
    if corpus.floor is not None:
        print(f"no model can do better on them than {corpus.floor:.4f} nats per character")
    print(
        f"{model.layers} x {model.cell} of {model.hidden}, {params:,} parameters, {model.dtype}; "
        f"{total:,} steps on {accelerator.describe()}; run folder {workdir}",
        flush=True,
    )


def _sample_prime(config: Config, corpus: text.Corpus) -> str:
    """How the samples begin, checked before anything is written."""
    prime = config.sample_prime
    if prime is None:
        return sampling.default_prime(corpus.vocabulary)
    if not prime:
        raise InputError("--sample-prime is empty; give the samples at least one character")
    corpus.vocabulary.encode(prime)
    return prime


def _example_prime(corpus: text.Corpus) -> str:
    """A beginning for `generate`: ROMEO: where the text has him, else its own first word."""
    begin = corpus.vocabulary.decode(corpus.tokens[:1_000_000])
    if "ROMEO:" in begin:
        return "ROMEO:"
    words = "".join(c if c not in '"\\$`!' else " " for c in begin[:200]).split()
    return words[0][:20] if words else "..."


class _Signals:
    """Between enter and exit, Ctrl-C and SIGTERM only leave a mark; the second one is final."""

    def __init__(self) -> None:
        self.status = 0

    def asked(self) -> bool:
        return self.status != 0

    def __enter__(self) -> None:
        self._before = {n: signal.signal(n, self._mark) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mark(self, number: int, frame: Any) -> None:
        if self.asked():
            os._exit(128 + number)
        self.status = 128 + number
        print("\nstopping after this call of the device; once more to leave at once", flush=True)


# --- the run's folder ---


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {workdir}: {error.strerror}; choose another --workdir"
        ) from None


def _clear(workdir: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in ("checkpoints", "set-aside", "tensorboard"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in (
        "config.json",
        "vocab.json",
        "metrics.jsonl",
        "samples.txt",
        "loss.png",
        "tokens.npy",
    ):
        (workdir / name).unlink(missing_ok=True)


def _check_same_run(workdir: Path, new: dict[str, Any], vocabulary: text.Vocabulary) -> None:
    """Raises InputError where the folder holds a run of another model or another text."""
    if not (workdir / "config.json").exists():
        return
    old, _ = checkpoint.read_description(workdir)
    before, after = _flat(old), _flat(new)
    names = sorted((before.keys() | after.keys()) - _FREE)
    differing = [n for n in names if before.get(n) != after.get(n)]
    if differing:
        told = "; ".join(f"{n} is {before.get(n)} there and {after.get(n)} here" for n in differing)
        raise InputError(
            f"{workdir} holds a different run: {told}; choose another --workdir, or --overwrite it"
        )


def _plain(config: Config) -> dict[str, Any]:
    described = dataclasses.asdict(config)
    described["workdir"] = None  # the folder may be moved
    return described


def _flat(description: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in description.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat


if __name__ == "__main__":
    sys.exit(main())
