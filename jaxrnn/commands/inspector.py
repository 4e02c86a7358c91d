"""Find the units of `python -m jaxrnn.inspect` and write its page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from rich import filesize

from jaxrnn import charlm, console, progress
from jaxrnn.commands.inspect_options import InspectOptions
from jaxrnn.data import sources
from jaxrnn.data.encodings import Reading
from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from jaxrnn.formats import inspection as page
from jaxrnn.scores import texts
from jaxrnn.scores.texts import Text
from jaxrnn.training import run_directory
from jaxrnn.training.run_description import load
from jaxrnn.units import features, search
from jaxrnn.units.inspecting import Chosen, Inspection


def run(options: InspectOptions) -> None:
    """Find the units, print them and write the page.

    Raises:
      InputError: for options, a model or a text that cannot be used.
      OSError: if the page cannot be written.
    """
    accelerator.use(options.accelerator)
    chosen = _check_options(options)
    params = load(options.run, options.which, warn=console.note)
    source = _text(options, params)
    text = _beginning(source, options.length)
    with _display("choosing units", len(text)) as display:
        inspection = Inspection(params, text, options.find, options.record, chosen, display.reach)
    note = _note(source, len(text))
    print("\n".join(_table(inspection)))
    title = f"The units of {options.run.name} on {source.name}"
    with _display("writing", len(text)) as display:
        written = inspection.write(options.output, title, note, display.reach)
    size = filesize.decimal(written.size)
    shown = f"{written.shown:,} of {len(inspection.units):,} activations"
    print(f"\n{console.quoted(options.output)}: {note} {shown}, {size}; open it in a browser")


def _check_options(options: InspectOptions) -> list[Chosen]:
    """Return the units that were chosen.

    Raises InputError for options that do not belong together or cannot be used.
    """
    features.compiled(options.find)
    for name, default in (("glob", None), ("encoding", "auto"), ("newlines", "keep")):
        if getattr(options, name) != default and not options.text:
            raise InputError(f"`{name}` needs a TEXT: the text of the run is read as in training")
    if options.unknown != "error" and not options.text:
        raise InputError(
            "--unknown skip needs a TEXT: the text of the run has no unknown characters"
        )
    if not search.SHORTEST <= options.length <= page.LONGEST:
        raise InputError(
            f"length must be from {search.SHORTEST} to {page.LONGEST:,}, not {options.length:,}"
        )
    run_directory.check_output_file(options.output, options.run, "output")
    if options.text and sources.word_including(options.text, options.glob, options.output):
        raise InputError(f"--output {options.output} is part of the text; choose another")
    return [_chosen(word) for word in options.unit]


def _chosen(word: str) -> Chosen:
    """Return the layer and the unit of "LAYER:UNIT"."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", word)
    if not match:
        raise InputError(f"unit must be LAYER:UNIT, for example 1:12, not {word!r}")
    return int(match[1]), int(match[2])


def _text(options: InspectOptions, params: charlm.Params) -> Text:
    if not options.text:
        return texts.of_run(options.run)
    return texts.named(
        options.text,
        options.glob,
        params.vocabulary,
        options.unknown == "skip",
        1,
        Reading(options.encoding, options.newlines),
        of_lines=params.config.lines,
    )


def _beginning(source: Text, length: int) -> str:
    """Return the first characters of a text.

    With a vocabulary of longer tokens, the text may end within a token, which then has other ones.
    """
    parts: list[str] = []
    size = 0
    for piece in source.read():
        parts.append(piece.text)
        size += len(piece.text)
        if size >= length:
            break
    return "".join(parts)[:length]


def _note(source: Text, length: int) -> str:
    """Return a sentence about how much of the text was read."""
    if source.characters is not None and source.characters > length:
        return f"The first {length:,} of {source.characters:,} characters of the text."
    return f"{length:,} characters."


@contextlib.contextmanager
def _display(what: str, characters: int) -> Iterator[progress.Display]:
    display = progress.show_on_stderr(progress.CHARACTERS)
    display.begin(what, 0, characters)
    try:
        yield display
    finally:
        display.end()


def _table(inspection: Inspection) -> list[str]:
    """Return the lines that list the best units of each feature."""
    rows = [
        [console.shown(feature) if not n else "", str(found.unit),
         f"{found.r:.2f}", f"{found.r_chosen:.2f}"]
        for feature, best in inspection.found.items()
        for n, found in enumerate(best)
    ]  # fmt: skip
    rows = [["feature", "unit", "r, 2nd half", "r, 1st half (chosen on)"], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{feature:{widths[0]}}  {unit:{widths[1]}}  {r:>{widths[2]}}  {r_chosen:>11}".rstrip()
        for feature, unit, r, r_chosen in rows
    ]
    if inspection.not_found:
        lines.append(f"not in both halves of the text: {', '.join(inspection.not_found)}")
    return lines
