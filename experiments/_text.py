"""What the experiments on text share: where the texts are, and char-RNNs that were trained on them.

    text = _text.find("shakespeare", quick)       # Tiny Shakespeare; quick: the play instead
    run = _text.learn(text, settings)             # trained by jaxrnn.train, or found trained already

A model is trained once: it stays in runs/experiments/, and the next experiment that asks for the same
text and settings takes it from there. Delete the folder to train anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import jaxrnn
from jaxrnn import console, train
from jaxrnn.data import sources
from jaxrnn.data.corpus import Corpus, make_corpus
from jaxrnn.devices import storage
from jaxrnn.training import report, run_description
from jaxrnn.training.config import TrainingConfig

MODELS = Path(__file__).parent.parent / "runs" / "experiments"
LINUX_FILE = "linux-kernel.txt"
LINUX_ADVICE = (
    "there is no {file}, the C files of Linux' folder kernel/ in one; fetch them with: "
    "mkdir -p {folder} && curl -L https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.6.tar.xz | "
    "tar -xJO --wildcards 'linux-6.6/kernel/*.c' > {path}"
)


class Text(NamedTuple):
    """A text to learn from, as `jaxrnn.train` takes it.

    label: its name in tables and folders.
    data, glob, bytes: settings of `jaxrnn.train`.
    """

    label: str
    data: tuple[str, ...]
    glob: str | None = None
    bytes: bool = False

    def read(self) -> tuple[Corpus, str]:
        """The text in tokens, and as a string (a byte that is not UTF-8 as U+FFFD)."""
        source = sources.read(self.data, self.glob, self.bytes)
        content = source.content
        plain = content.decode(errors="replace") if isinstance(content, bytes) else content
        return make_corpus(content, source.nats), plain


class Run(NamedTuple):
    """A trained char-RNN.

    params: of the last step.
    steps, losses: where the training loss was written down, and it, nats per character.
    val_steps, val_losses: the same of the validation loss.
    seconds: that training took.
    speed: characters per second of training, without compiling and the validation.
    """

    params: jaxrnn.Params
    steps: np.ndarray
    losses: np.ndarray
    val_steps: np.ndarray
    val_losses: np.ndarray
    seconds: float
    speed: float


def find(name: str, quick: bool) -> Text:
    """Tiny Shakespeare or Linux' source; where quick, texts that are always there in their place.

    Raises InputError where it is missing: it says what to fetch, and where it was looked for.
    """
    if name == "shakespeare":
        return Text("play", ("play",)) if quick else Text("shakespeare", ("shakespeare",))
    if quick:  # XLA's headers, which come with JAX
        return Text("headers", (jax.ffi.include_dir(),), "*.h", bytes=True)
    path = storage.cache_folder() / LINUX_FILE
    if not path.is_file():
        folder, quoted = console.quoted_path(path.parent), console.quoted_path(path)
        raise jaxrnn.InputError(LINUX_ADVICE.format(file=path, folder=folder, path=quoted))
    return Text("linux", (str(path),), bytes=True)


def beginning(text: Text, size: int) -> Text:
    """The first `size` characters of a text (bytes, where it is read as bytes), kept in a file."""
    content = sources.read(corpus.data, corpus.glob, corpus.bytes).content[:size]
    path = MODELS / f"{corpus.label}-{size}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Text(corpus.label, (str(path),), bytes=corpus.bytes)


def learn(text: Text, settings: TrainingConfig) -> Run:
    """Train a char-RNN, or go on where that was stopped, or take it if it is done."""
    digest = hashlib.sha256(repr((text, settings)).encode()).hexdigest()[:8]
    workdir = MODELS / f"{corpus.label}-{settings.model.cell}-{settings.seed}-{digest}"
    status = train.run(
        train.TrainOptions(
            data=corpus.data,
            glob=corpus.glob,
            bytes=corpus.bytes,
            workdir=workdir,
            training=settings,
        )
    )
    if status:  # Ctrl-C: the run is saved, and the experiment is not complete
        raise KeyboardInterrupt
    lines = report.read_metrics(workdir / report.METRICS)
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
