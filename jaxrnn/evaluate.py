"""Measure how well a model predicts a text: `python -m jaxrnn.evaluate runs/play-small notes.txt`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
import tyro
from rich.console import Console

from jaxrnn import arguments, charlm, console, progress
from jaxrnn.arguments import shown_default
from jaxrnn.charlm.dynamic import DynamicOptions, DynamicScorer
from jaxrnn.charlm.scoring import Scorer
from jaxrnn.data import sources
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory
from jaxrnn.errors import InputError
from jaxrnn.formats import surprisal
from jaxrnn.scores import texts
from jaxrnn.scores.compressors import CompressedSizes
from jaxrnn.scores.lines import Format, LinePrinter
from jaxrnn.scores.pieces import Piece, per_character
from jaxrnn.scores.summary import DYNAMIC, STATIC, Summary
from jaxrnn.scores.texts import Text
from jaxrnn.shapes import Float
from jaxrnn.training import orbax_errors, run_directory, signals
from jaxrnn.training.checkpoint import Which
from jaxrnn.training.run_description import load


@runtime_checkable
class Output(Protocol):
    """An output that shows the characters of a text with their information in nats."""

    def add(self, text: str, nats: Float[np.ndarray, "N"]) -> None:
        """Write the next part of the text."""

    def finish(self) -> None:
        """Write what is left."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure how well a char-RNN predicts a text, beside gzip, xz and bzip2.

    The table shows the information of the text in nats and bits per character and in bits per byte of
    UTF-8, and the size in bytes that an ideal coder with the model's predictions would reach.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    text: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[TEXT ...]", help_behavior_hint=""),
    ] = ()
    """Texts, which are joined: files, folders, "-" (standard input), "shakespeare" or "play". Without
    any, the validation text of the run, with the loss computed as in training."""
    glob: Annotated[str | None, shown_default("*.txt")] = None
    """Pattern of the files to read from folders, for example "*.c"."""
    unknown: Literal["error", "skip"] = "error"
    """What to do about characters that the model has never seen: stop with an error that names them, or
    leave them out, neither read nor counted."""
    parts: int = 1
    """Read the text in this many parts side by side, which is faster. Each part begins with an empty
    state 256 characters before its own first, so the result is not exact: it is usually wrong by less
    than one in a thousand. For a model of lines no longer than 256 characters it is exact."""
    per_line: Annotated[Format | None, tyro.conf.arg(metavar="{table,json}")] = None
    """Write the score of each line to standard output: a table, or JSON lines and nothing else."""
    sort: bool = False
    """Sort the lines by nats per character, the highest first. All of them are kept in memory."""
    surprisal: Path | None = None
    """Write an HTML page to this file that shows the text coloured by surprisal."""
    dynamic: bool = False
    """Also score the text with dynamic evaluation (Krause et al. 2018): the model learns from each
    segment of the text after it was scored."""
    dynamic_evaluation: tyro.conf.OmitArgPrefixes[DynamicOptions] = dataclasses.field(
        default_factory=DynamicOptions
    )
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: accelerator.Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 for success, 1 for a failure, 2 for bad input, 128 + n after signal n, and 141 if
    standard output was a pipe that lost its reader.
    """
    console.open_streams()
    try:
        options = arguments.parse(EvaluateOptions, "python -m jaxrnn.evaluate", argv)
        with signals.catching(signals.stop):
            run(options)
            sys.stdout.flush()
    except InputError as error:
        console.error(_in_flags(error))
        return 2
    except BrokenPipeError:
        console.abandon_output()
        return console.PIPE_CLOSED
    except OSError as error:
        console.error(error)
        return 1
    except signals.Stopped as stopped:
        return int(stopped.args[0])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        console.error(f"the memory ran out ({orbax_errors.first_line(error)}); lower --parts")
        return 1
    return 0


def _in_flags(error: InputError) -> str:
    """Return an error message in terms of this command: the model decides how texts are read."""
    message = str(error).replace("`data`", "TEXT").replace("; `as_bytes` reads it as it is", "")
    message = message.replace("give a text to train on", "give another text")
    if "never seen" in message:
        message += "; `unknown=skip` leaves them out"
    return arguments.in_flags(message, EvaluateOptions)


def run(options: EvaluateOptions) -> None:
    """Evaluate and write what was asked for.

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
    summary.print(Console(stderr=options.per_line == "json"))


def _check_options(options: EvaluateOptions) -> None:
    """Raise InputError for options that do not belong together, and for an output that is refused."""
    if options.sort and options.per_line is None:
        raise InputError("--sort needs --per-line table or --per-line json")
    if options.dynamic_evaluation != DynamicOptions() and not options.dynamic:
        names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(DynamicOptions))
        raise InputError(f"{names} need --dynamic; add that, or leave them out")
    if options.glob is not None and not options.text:
        raise InputError("--glob chooses files from a folder, but no TEXT is given")
    if options.unknown != "error" and not options.text:
        raise InputError("--unknown skip needs a TEXT: the model has seen all of its own")
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
    return texts.named(options.text, options.glob, params.vocabulary, skip, options.parts)


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
        raise InputError("nothing is left of the text: the model has never seen its characters")
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


if __name__ == "__main__":
    orbax_errors.quieten()
    sys.exit(main())
