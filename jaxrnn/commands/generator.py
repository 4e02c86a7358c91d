"""Draw and write the texts of `python -m jaxrnn.generate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import lines, sampling
from jaxrnn.charlm.decoder import LONGEST
from jaxrnn.charlm.options import LINE_LENGTH
from jaxrnn.commands import interactive
from jaxrnn.commands.generate_options import GenerateOptions
from jaxrnn.data import files
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from jaxrnn.runs import run_text
from jaxrnn.training import run_directory
from jaxrnn.training.run_description import load

# Default length of a text.
LENGTH = 500


def run(options: GenerateOptions) -> None:
    """Generate and write the texts.

    Raises:
      InputError: for options, a run or a prime that cannot be used.
      OSError: if the output cannot be written.
    """
    accelerator.use(options.accelerator)
    if options.prime is not None and options.prime_file is not None:
        raise InputError("give --prime or --prime-file, not both")
    _check_interactive(options)
    _check_output(options)
    params = load(options.run, options.which, warn=console.note)
    if options.interactive and params.config.lines:
        raise InputError(
            "`interactive` needs a model of running text, and this one was trained with `lines`; use "
            "`prime` to begin its lines"
        )
    prime = _prime(options, params.vocabulary)
    if options.interactive:
        given = None if options.prime is None and options.prime_file is None else prime
        length, stop = _length(options, LENGTH), _stop(options, params.vocabulary)
        interactive.run(params, options.sampling, given, length, stop)
        return
    pieces = _pieces(options, params, prime)
    if options.to_screen:
        _show(pieces)
    else:
        _save(pieces, str(options.output))


def _prime(options: GenerateOptions, vocabulary: Vocabulary) -> str | bytes:
    """Return the prime: text, or bytes for a model of bytes."""
    if options.prime is not None:
        return arguments.prime("--prime", options.prime, vocabulary.by_bytes)
    if options.prime_file is not None:
        return files.read(options.prime_file, vocabulary.by_bytes)
    return sampling.default_prime(vocabulary)


def _pieces(
    options: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterable[str | bytes]:
    """Return the output in pieces, each as soon as it is drawn."""
    if params.config.lines:
        return _lines(options, params, prime)
    length = _length(options, LENGTH)
    by_bytes = params.vocabulary.by_bytes
    how = dataclasses.asdict(options.sampling) | {"stop": _stop(options, params.vocabulary)}
    if options.count == 1:
        if by_bytes:
            return sampling.stream_bytes(params, prime, length, **how)
        return sampling.stream(params, prime, length, **how)
    if length is None:
        raise InputError(
            f"--length {options.length} is for one text, not for --count {options.count}"
        )
    draw = sampling.sample_bytes_many if by_bytes else sampling.sample_many
    return _with_headings(draw(params, prime, length, count=options.count, **how))


def _lines(
    options: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterator[str | bytes]:
    """Return the lines, each as soon as it and those before it are drawn, and report on them."""
    if options.stop or options.stop_at_line:
        flag = "stop" if options.stop else "stop_at_line"
        raise InputError(f"leave `{flag}` out: each line of this model ends on its own")
    length = _length(options, LINE_LENGTH)
    length = LONGEST if length is None else length
    if prime in ("\n", b"\n"):
        # Every line begins after a line break, so this is the same as no prime.
        prime = ""
    drawn = lines.draw_lines(params, options.count, prime, length, options.sampling)
    vocabulary = params.vocabulary
    written = vocabulary.to_bytes if vocabulary.by_bytes else vocabulary.decode

    def pieces() -> Iterator[str | bytes]:
        whole: list[str | bytes] = []
        cut = 0
        for line in drawn:
            text = written(line.tokens)
            cut += line.cut
            if not line.cut:
                whole.append(text)
            yield text
            yield "\n"
        if cut:
            note = f"{lines.cut_note(cut, length)} and are not compared"
            console.note(arguments.in_flags(note, GenerateOptions))
        console.note(run_text.novelty(whole, options.run))

    return pieces()


def _length(options: GenerateOptions, default: int) -> int | None:
    """Return the number of tokens to add, or None for endless."""
    if options.length == "endless" or options.length == -1:
        return None
    return default if options.length is None else options.length


def _stop(options: GenerateOptions, vocabulary: Vocabulary) -> list[str | bytes]:
    """Return the stop strings."""
    strings = [arguments.prime("--stop", typed, vocabulary.by_bytes) for typed in options.stop]
    return [*strings, "\n"] if options.stop_at_line else strings


def _with_headings(texts: Sequence[str | bytes]) -> Iterator[str | bytes]:
    for number, text in enumerate(texts, 1):
        yield f"--- {number} ---\n"
        yield text
        yield "\n"


def _check_interactive(options: GenerateOptions) -> None:
    """Raise InputError for options that --interactive excludes."""
    if not options.interactive:
        return
    if options.count != 1:
        raise InputError(f"--interactive writes one text, not --count {options.count}")
    if options.prime_file == "-":
        raise InputError("--interactive reads lines from standard input; give --prime-file a file")
    if not options.to_screen:
        raise InputError("--interactive writes to standard output; use /save instead of --output")


def _check_output(options: GenerateOptions) -> None:
    """Raise InputError if the output is a file of the run or the file of the prime."""
    if options.output is None or options.to_screen:
        return
    output = Path(options.output)
    run_directory.check_output(output, options.run)
    if options.prime_file in (None, "-"):
        return
    prime_file = Path(options.prime_file)
    if output.exists() and prime_file.exists() and output.samefile(prime_file):
        raise InputError(f"--output {output} is the --prime-file; choose another")


def _show(pieces: Iterable[str | bytes]) -> None:
    """Write each piece to standard output at once."""
    last: str | bytes = ""
    for piece in pieces:
        console.write(piece)
        last = piece or last
    if sys.stdout.isatty() and last[-1:] not in ("\n", b"\n"):
        print()


def _save(pieces: Iterable[str | bytes], output: str) -> None:
    """Write each piece to a file at once."""
    try:
        file = open(output, "wb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"cannot write to {output}: {error.strerror}; choose another --output"
        ) from error
    with file:
        for piece in pieces:
            raw = piece if isinstance(piece, bytes) else piece.encode(errors="replace")
            try:
                while raw:
                    raw = raw[file.write(raw) :]
            except OSError as error:
                raise OSError(f"could not write to {output}: {error.strerror}") from error
