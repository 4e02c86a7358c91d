"""The text that a run was trained on, read again, and what is new among lines that its model drew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrnn.data.corpus import Corpus
from jaxrnn.errors import InputError
from jaxrnn.runs import train_text
from jaxrnn.runs.train_options import TrainOptions
from jaxrnn.training import run_description
from jaxrnn.training.config import TrainingConfig


def read(run: Path) -> tuple[TrainOptions, str, Corpus]:
    """Return the options of a run, and the short name and the tokens of its text.

    Raises:
      InputError: if the path is not a run directory, or if its text cannot be read from here or has
        changed.
    """
    if not os.path.isdir(run):
        raise InputError(f"{run} does not say where its text is")
    config, vocabulary = run_description.read(run)
    options = _options(run, config)
    where = " ".join(options.data)
    if not options.data:
        raise InputError("the text was given from Python, not read from a file")
    if "-" in options.data:
        raise InputError("the text was read from standard input")
    try:
        name, corpus = train_text.read_corpus(options, vocabulary)
    except InputError as error:
        # The part after the semicolon is advice for choosing a training text.
        why = str(error).partition(";")[0]
        raise InputError(
            f"the text of the run, {where}, cannot be read from here ({why})"
        ) from None
    expected = config["text"]["sha256"]
    if corpus.sha256 != expected:
        raise InputError(
            f"the text of the run, {where}, has changed since (sha256 {expected[:12]}... then and "
            f"{corpus.sha256[:12]}... now)"
        )
    return options, name, corpus


def _options(run: Path, config: dict[str, Any]) -> TrainOptions:
    """Return the options of a run that describe its text and how it was evaluated."""
    try:
        training = TrainingConfig.of(config["training"])
        # The vocabulary says what the tokens are, and a prepared text refuses the flags.
        return TrainOptions(
            data=tuple(config["data"]),
            glob=config.get("glob"),
            encoding=config.get("encoding", "auto"),
            newlines=config.get("newlines", "keep"),
            training=training,
        )
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{run} has a damaged description: {run_description.DESCRIPTION}: {error}"
        ) from None


def novelty(lines: Sequence[str | bytes], run: Path) -> str:
    """Report how many lines were drawn, and how many are new, in the training text, or repeated.

    Args:
      lines: the lines that the model drew, without line breaks.
      run: the run directory, or the file of the model.
    """
    different = set(lines)
    total = f"lines: {len(lines):,}"
    repeats = f"repeats of an earlier line: {len(lines) - len(different):,}"
    try:
        _, _, corpus = read(run)
    except InputError as error:
        return f"{total}; {repeats}; not compared with the training text: {error}"
    # Empty lines are left out of the training.
    known = different.intersection(filter(None, _training_lines(corpus)))
    seen = sum(line in known for line in lines)
    return f"{total}; new: {len(lines) - seen:,}; in the training text: {seen:,}; {repeats}"


def _training_lines(corpus: Corpus) -> list[str] | list[bytes]:
    """Return the lines of the training part, and an empty one at its end."""
    tokens = corpus.tokens[: corpus.split]
    if corpus.vocabulary.by_bytes:
        return tokens.tobytes().split(b"\n")
    return corpus.vocabulary.decode(tokens).split("\n")
