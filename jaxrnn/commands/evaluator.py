"""Score the text of `python -m jaxrnn.evaluate` and write the requested outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxrnn import charlm, console, progress
from jaxrnn.charlm.dynamic import DynamicScorer
from jaxrnn.charlm.options import DynamicOptions
from jaxrnn.charlm.scoring import Scorer
from jaxrnn.commands.evaluate_options import EvaluateOptions
from jaxrnn.data import sources
from jaxrnn.data.encodings import Reading
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from jaxrnn.formats import surprisal
from jaxrnn.scores import texts
from jaxrnn.scores.compressors import CompressedSizes
from jaxrnn.scores.lines import LinePrinter
from jaxrnn.scores.pieces import Piece, per_character
from jaxrnn.scores.summary import DYNAMIC, STATIC, Summary
from jaxrnn.scores.texts import Text
from jaxrnn.shapes import Float
from jaxrnn.training import run_directory
from jaxrnn.training.run_description import load


@runtime_checkable
class Output(Protocol):
    """An output that shows the characters of a text with their information in nats."""

    def add(self, text: str, nats: Float[np.ndarray, "N"]) -> None:
        """Write the next part of the text."""

    def finish(self) -> None:
        """Write what is left."""


def run(options: EvaluateOptions) -> None:
    """Evaluate the text and write the requested outputs.

    Raises:
      InputError: for options, a model or a text that cannot be used.
      OSError: if an output cannot be written.
    """
    accelerator.use(options.accelerator)
    _check_options(options)
    params = load(options.run, options.which, warn=console.note)
    text = _text(options, params)
    if options.surprisal is not None and text.characters is not None:
        surprisal.check_length(text.characters)
    summary = _evaluate(options, params, text)
    summary.print(to_stderr=options.per_line == "json")


def _check_options(options: EvaluateOptions) -> None:
    """Raise InputError for options that do not belong together, and for an output that is refused."""
    if options.sort and options.per_line is None:
        raise InputError("--sort needs --per-line table or --per-line json")
    if options.dynamic_evaluation != DynamicOptions() and not options.dynamic:
        names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(DynamicOptions))
        raise InputError(f"{names} need --dynamic; add that, or leave them out")
    if options.glob is not None and not options.text:
        raise InputError("--glob chooses files from a folder, but no TEXT is given")
    for name in ("encoding", "newlines"):
        if getattr(options, name) != getattr(EvaluateOptions, name) and not options.text:
            raise InputError(f"`{name}` needs a TEXT: the text of the run is read as in training")
    if options.unknown != "error" and not options.text:
        raise InputError(
            "--unknown skip needs a TEXT: the text of the run has no unknown characters"
        )
    if options.parts < 1:
        raise InputError(f"parts must be at least 1, not {options.parts}")
    if options.surprisal is not None:
        run_directory.check_output_file(options.surprisal, options.run, "surprisal")
        if options.text and sources.word_including(options.text, options.glob, options.surprisal):
            raise InputError(f"--surprisal {options.surprisal} is part of the text; choose another")


def _text(options: EvaluateOptions, params: charlm.Params) -> Text:
    if not options.text:
        return texts.of_run(options.run)
    skip = options.unknown == "skip"
    reading = Reading(options.encoding, options.newlines)
    return texts.named(
        options.text,
        options.glob,
        params.vocabulary,
        skip,
        options.parts,
        reading,
        of_lines=params.config.lines,
    )


def _evaluate(options: EvaluateOptions, params: charlm.Params, text: Text) -> Summary:
    """Read the text once for everything that was asked for, and return the figures."""
    summary, sizes = Summary(text.name), CompressedSizes()
    with _outputs(options, text) as outputs, _display(options, text) as display:
        static = dynamic = None
        if outputs or text.loss is None:
            static = Scorer(params, text.prime, options.parts)
        if options.dynamic:
            dynamic = DynamicScorer(params, text.prime, options.dynamic_evaluation)
        for piece in text.read():
            summary.add(piece)
            sizes.add(piece.raw)
            if static is not None:
                nats = static.score(piece.tokens)
                summary.add_nats(STATIC, nats)
                _show(piece, nats, params.vocabulary, outputs)
            if dynamic is not None:
                summary.add_nats(DYNAMIC, dynamic.score(piece.tokens))
            display.reach(summary.characters)
        if text.loss is not None:
            summary.nats[STATIC] = text.loss(params) * summary.tokens
        if dynamic is not None:
            summary.add_nats(DYNAMIC, dynamic.finish())
        _check_figures(summary)
    summary.sizes = sizes.finish()
    return summary


def _check_figures(summary: Summary) -> None:
    """Raise InputError if nothing was scored, or the scores are not numbers."""
    if not summary.characters:
        raise InputError(
            "nothing is left of the text: the model has never seen its characters, or the text has "
            "only empty lines, which a model of lines leaves out; give another text"
        )
    if not math.isfinite(sum(summary.nats.values())):
        raise InputError(
            "the model predicts probabilities that are not numbers; give one whose training has not "
            "diverged"
        )


def _show(
    piece: Piece,
    nats: Float[np.ndarray, "N"],
    vocabulary: Vocabulary,
    outputs: Sequence[Output],
) -> None:
    """Write the scores of a piece to the outputs that show single characters or lines."""
    if outputs and piece.text:
        of_characters = per_character(vocabulary, piece, nats)
        for output in outputs:
            output.add(piece.text, of_characters)


@contextlib.contextmanager
def _outputs(options: EvaluateOptions, text: Text) -> Iterator[list[Output]]:
    """Open the outputs that show the text, and finish them at the end."""
    with contextlib.ExitStack() as stack:
        found: list[Output] = []
        if options.surprisal is not None:
            title = f"{text.name}, as {options.run.name} reads it"
            found.append(stack.enter_context(surprisal.writing(options.surprisal, title)))
        if options.per_line is not None:
            found.append(LinePrinter(options.per_line, options.sort))
        yield found
        for output in found:
            output.finish()


@contextlib.contextmanager
def _display(options: EvaluateOptions, text: Text) -> Iterator[progress.Display]:
    """Show the progress, unless lines of the text go to the same terminal."""
    display: progress.Display = progress.Silent()
    if options.per_line is None or options.sort or not sys.stdout.isatty():
        display = progress.show_on_stderr(progress.CHARACTERS)
    display.begin("scoring", 0, text.characters)
    try:
        yield display
    finally:
        display.end()
