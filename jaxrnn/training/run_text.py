"""The text that a run was trained on, read again, and what is new among lines that its model drew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jaxrnn.data import sources, token_files
from jaxrnn.data.encodings import Reading
from jaxrnn.errors import InputError
from jaxrnn.training import run_description


def novelty(lines: Sequence[str | bytes], run: Path) -> str:
    """Return how many lines there are, are new, are in the text of the run, and are duplicates.

    Args:
      lines: the lines that its model drew, without line breaks.
      run: the run directory, or the file of the model.
    """
    different = set(lines)
    total = f"lines: {len(lines):,}"
    repeats = f"repeats of an earlier line: {len(lines) - len(different):,}"
    try:
        text = read(run)
    except InputError as error:
        # What follows the semicolon tells what to give instead.
        why = str(error).partition(";")[0]
        return f"{total}; {repeats}; not compared with the training text: {why}"
    trained = text.split("\n") if isinstance(text, str) else text.split(b"\n")
    # Empty lines of the text are left out of the training.
    known = different.intersection(filter(None, trained))
    seen = sum(line in known for line in lines)
    return f"{total}; new: {len(lines) - seen:,}; in the training text: {seen:,}; {repeats}"


def read(run: Path) -> str | bytes:
    """Return the whole text of a run, validation part included; bytes for a model of bytes.

    Raises:
      InputError: if the run does not say where its text is, or if it cannot be read any more.
    """
    if not os.path.isdir(run):
        raise InputError(f"{run} does not say where that text is")
    config, vocabulary = run_description.read(run)
    data, expected = config.get("data"), config.get("text", {}).get("sha256")
    if not data:
        raise InputError(f"the run in {run} does not say where that text is")
    if "-" in data:
        raise InputError("it was read from standard input")
    text: str | bytes
    if data[0] not in sources.NAMED and token_files.is_prepared(data[0]):
        corpus = token_files.load_corpus(data[0])
        text, sha256 = corpus.vocabulary.decode(corpus.tokens), corpus.sha256
        if vocabulary.by_bytes:
            text = corpus.tokens.tobytes()
    else:
        reading = Reading(config.get("encoding", "auto"), config.get("newlines", "keep"))
        text = sources.read(data, config.get("glob"), vocabulary.by_bytes, reading).content
        raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 != expected:
        raise InputError(f"{' '.join(map(str, data))} has changed since the training")
    return text
