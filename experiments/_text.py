"""The texts of the experiments, and char-RNNs trained on them.

    text = _text.find("shakespeare", quick)       # Tiny Shakespeare; with quick, the play instead
    run = _text.learn(text, settings)             # trained by jaxrnn.train, or loaded if trained before

A model is trained once and stays in runs/experiments/; the next experiment that asks for the same text
and settings loads it. Delete the folder to train again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import console, train
from jaxrnn.data import sources
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.devices import storage
from jaxrnn.runs.train_options import TrainOptions
from jaxrnn.training import metrics, optimizers, run_description, stepping
from jaxrnn.training.config import TrainingConfig

MODELS = Path(__file__).parent.parent / "runs" / "experiments"
LINUX_FILE = "linux-kernel.txt"
# Bytes of the source of Linux that are about as many as Tiny Shakespeare has.
MILLION = 1_000_000
LINUX_ADVICE = (
    "{file} is missing: the C files of Linux's folder kernel/ in one file; fetch them with: "
    "mkdir -p {folder} && curl -L https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.6.tar.xz | "
    "tar -xJO --wildcards 'linux-6.6/kernel/*.c' > {path}"
)


class Text(NamedTuple):
    """A text to learn, as `jaxrnn.train` takes it.

    label: the name of the text in tables and folders.
    data, glob, bytes: the settings of `jaxrnn.train`.
    """

    label: str
    data: tuple[str, ...]
    glob: str | None = None
    bytes: bool = False

    def read(self) -> tuple[Corpus, str]:
        """Return the text in tokens, and as a string (with U+FFFD for bytes that are not UTF-8)."""
        source = sources.read(self.data, self.glob, self.bytes)
        content = source.content
        plain = content.decode(errors="replace") if isinstance(content, bytes) else content
        return make_corpus(content, source.nats), plain


class Run(NamedTuple):
    """A trained char-RNN.

    params: the parameters after the last step.
    steps, losses: the steps at which the training loss was reported, and the loss in nats per character.
    val_steps, val_losses: the same for the validation loss.
    seconds: duration of the training.
    speed: characters per second of training, without compilation and validation.
    """

    params: jaxrnn.Params
    steps: np.ndarray
    losses: np.ndarray
    val_steps: np.ndarray
    val_losses: np.ndarray
    seconds: float
    speed: float


def find(name: str, quick: bool) -> Text:
    """Return Tiny Shakespeare or the source of Linux; with quick, a text that needs no download instead.

    Raises:
      InputError: if the text is missing; the message says where it was expected and how to fetch it.
    """
    if name == "shakespeare":
        return Text("play", ("play",)) if quick else Text("shakespeare", ("shakespeare",))
    if quick:
        # The headers of XLA, which come with JAX.
        return Text("headers", (jax.ffi.include_dir(),), "*.h", bytes=True)
    path = storage.cache_folder() / LINUX_FILE
    if not path.is_file():
        folder, quoted = console.quoted_path(path.parent), console.quoted_path(path)
        raise jaxrnn.InputError(LINUX_ADVICE.format(file=path, folder=folder, path=quoted))
    return Text("linux", (str(path),), bytes=True)


def beginning(text: Text, size: int) -> Text:
    """Write the first `size` characters of a text (or bytes) to a file, and return that as a text."""
    content = sources.read(text.data, text.glob, text.bytes).content[:size]
    path = MODELS / f"{text.label}-{size}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Text(text.label, (str(path),), bytes=text.bytes)


def training_step(config: TrainingConfig, corpus: Corpus) -> Callable[[], Any]:
    """Return a function that runs one compiled training step, always the same one, to time it."""
    optimizer = optimizers.make_optimizer(config, config.steps or 1)
    state = stepping.create(config, optimizer, corpus.vocabulary)
    starts = config.batches(corpus).starts(0)
    tokens = jnp.int32(corpus.tokens[starts + np.arange(config.seq_len + 1)[:, None]])
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    return lambda: jax.block_until_ready(step(state, tokens, jnp.array(True)))


def learn(text: Text, settings: TrainingConfig) -> Run:
    """Train a char-RNN, resume it where it was stopped, or load it if it is trained already."""
    digest = hashlib.sha256(repr((text, settings)).encode()).hexdigest()[:8]
    workdir = MODELS / f"{text.label}-{settings.model.cell}-{settings.seed}-{digest}"
    status = train.run(
        TrainOptions(
            data=text.data,
            glob=text.glob,
            bytes=text.bytes,
            workdir=workdir,
            training=settings,
        )
    )
    if status:
        # Ctrl-C: the run is saved, but the experiment is not complete.
        raise KeyboardInterrupt
    lines = metrics.read_metrics(workdir / metrics.METRICS)
    judged = [line for line in lines if "val_loss" in line]
    training_alone = [line for line in lines if "val_loss" not in line] or lines
    return Run(
        run_description.load(workdir, "latest"),
        np.array([line["step"] for line in lines]),
        np.array([line["loss"] for line in lines]),
        np.array([line["step"] for line in judged]),
        np.array([line["val_loss"] for line in judged]),
        float(lines[-1]["seconds"]),
        float(np.median([line["chars_per_second"] for line in training_alone])),
    )
