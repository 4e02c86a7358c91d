"""Generate text with a trained model: `python -m jaxrnn.generate runs/play-small --prime "ROMEO:"`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrnn import arguments, charlm, console
from jaxrnn.arguments import shown_default
from jaxrnn.charlm import lines
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.sampling import (
    default_prime,
    sample_bytes_many,
    sample_many,
    stream,
    stream_bytes,
)
from jaxrnn.data import files
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory
from jaxrnn.errors import InputError
from jaxrnn.training import orbax_errors, run_directory, run_text
from jaxrnn.training.checkpoint import Which
from jaxrnn.training.run_description import load


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Generate text with a trained char-RNN and write it as it is drawn.

    The output is exactly the prime and its continuation; a line break follows on a terminal only. A
    model of bytes (trained with --bytes) writes bytes. A model of lines (trained with --lines) writes
    --count whole lines and nothing else; how many of them are new goes to standard error.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    prime: str | None = None
    """Beginning of the text, which the model continues. By default a line break. Of a model of lines,
    beginning of every line, by default empty."""
    prime_file: str | None = None
    """Read the prime from this file, or from standard input if -. The file is UTF-8; for a model of
    bytes it may be any file."""
    length: Annotated[
        int | Literal["endless"] | None, shown_default(f"500, for lines {lines.LENGTH}")
    ] = None
    """Number of characters to add (of bytes for a model of bytes). endless or -1 continues until it is
    interrupted. Of a model of lines, the most characters to add to a line; longer lines are cut."""
    count: int = 1
    """Number of texts, or of lines. If there are several texts, each gets a heading."""
    output: str | None = None
    """Write to this file, in UTF-8. By default, or if -, to standard output."""
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: accelerator.Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = dataclasses.field(
        default_factory=SamplingOptions
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 for success, 1 for a failure, 2 for bad input, 130 for Ctrl-C and 141 for a pipe
    whose reader has gone.
    """
    # Standard output is None if the shell closed it, as `>&-` does.
    output_is_closed = sys.stdout is None
    console.open_streams()
    try:
        options = arguments.parse(GenerateOptions, "python -m jaxrnn.generate", argv)
        if output_is_closed and _to_screen(options):
            return 1
        run(options)
    except InputError as error:
        console.error(arguments.in_flags(error, GenerateOptions))
        return 2
    except BrokenPipeError:
        return console.PIPE_CLOSED
    except OSError as error:
        console.error(error)
        return 1
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()
        return 130
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        console.error(f"the memory ran out ({line}); make --count smaller")
        return 1
    return 0


def run(options: GenerateOptions) -> None:
    """Generate and write the texts.

    Raises:
      InputError: for options, a run or a prime that cannot be used.
      OSError: if the output cannot be written.
    """
    accelerator.use(options.accelerator)
    if options.prime is not None and options.prime_file is not None:
        raise InputError("give --prime or --prime-file, not both")
    _check_output(options)
    params = load(options.run, options.which, warn=console.note)
    prime = _prime(options, params.vocabulary)
    pieces = _pieces(options, params, prime)
    if _to_screen(options):
        _show(pieces)
    else:
        _save(pieces, str(options.output))


def _prime(options: GenerateOptions, vocabulary: Vocabulary) -> str | bytes:
    """Return the prime: text, or bytes for a model of bytes."""
    if options.prime is not None:
        return arguments.prime("--prime", options.prime, vocabulary.by_bytes)
    if options.prime_file is not None:
        return files.read(options.prime_file, vocabulary.by_bytes)
    return default_prime(vocabulary)


def _lines(
    options: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterator[str | bytes]:
    """Return the lines, each as soon as it and those before it are drawn, and report on them."""
    length = _length(options, lines.LENGTH)
    length = lines.LONGEST if length is None else length
    if prime in ("\n", b"\n"):
        # Every line begins after a line break, so this is the same as no prime.
        prime = ""
    drawn = lines.draw_lines(params, options.count, prime, length, options.sampling)
    by_bytes, decode = params.vocabulary.by_bytes, params.vocabulary.decode

    def pieces() -> Iterator[str | bytes]:
        found: list[str | bytes] = []
        cut = 0
        for line in drawn:
            found.append(line.tokens.astype("uint8").tobytes() if by_bytes else decode(line.tokens))
            cut += line.cut
            yield found[-1]
            yield "\n"
        if cut:
            console.note(arguments.in_flags(lines.cut_note(cut, length), GenerateOptions))
        console.note(run_text.novelty(found, options.run))

    return pieces()


def _pieces(
    options: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterable[str | bytes]:
    """Return the output in pieces, each as soon as it is drawn."""
    if params.config.lines:
        return _lines(options, params, prime)
    length = _length(options, 500)
    by_bytes = params.vocabulary.by_bytes
    how = dataclasses.asdict(options.sampling)
    if options.count == 1:
        if by_bytes:
            return stream_bytes(params, prime, length, **how)
        return stream(params, prime, length, **how)
    if length is None:
        raise InputError(
            f"--length {options.length} is for one text, not for --count {options.count}"
        )
    if by_bytes:
        return _with_headings(sample_bytes_many(params, prime, length, count=options.count, **how))
    return _with_headings(sample_many(params, prime, length, count=options.count, **how))


def _length(options: GenerateOptions, default: int) -> int | None:
    """Return the length of a text, or None for an endless one."""
    if options.length == "endless" or options.length == -1:
        return None
    return default if options.length is None else options.length


def _with_headings(texts: Sequence[str | bytes]) -> Iterator[str | bytes]:
    for number, text in enumerate(texts, 1):
        yield f"--- {number} ---\n"
        yield text
        yield "\n"


def _to_screen(options: GenerateOptions) -> bool:
    return options.output in (None, "-")


def _check_output(options: GenerateOptions) -> None:
    """Raise InputError if the output is a file of the run or the file of the prime."""
    if options.output is None or _to_screen(options):
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
        try:
            if isinstance(piece, bytes):
                sys.stdout.buffer.write(piece)
            else:
                sys.stdout.write(piece)
            sys.stdout.flush()
        except OSError:
            console.abandon_output()
            raise
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


if __name__ == "__main__":
    orbax_errors.quieten()
    sys.exit(main())
