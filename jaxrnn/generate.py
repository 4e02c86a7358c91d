"""Generate text with a trained model: `python -m jaxrnn.generate runs/play-small --prime "ROMEO:"`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxrnn import arguments, charlm, commands, console
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.data import files
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError, first_line, is_out_of_memory
from jaxrnn.literals import Accelerator, Which

# The functions import what imports JAX, for which --help need not wait.


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Generate text with a trained char-RNN and write it as it is drawn.

    The output is exactly the prime and its continuation; a line break follows on a terminal only. A
    model of bytes (trained with --bytes) writes bytes.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    prime: str | None = None
    """Beginning of the text, which the model continues. By default a line break."""
    prime_file: str | None = None
    """Read the prime from this file, or from standard input if -. The file is UTF-8; for a model of
    bytes it may be any file."""
    length: int | Literal["endless"] = 500
    """Number of characters to add (of bytes for a model of bytes, of tokens for one that was trained
    with --tokens). endless or -1 continues until it is
    interrupted."""
    count: int = 1
    """Number of texts. If there are several, each gets a heading."""
    output: str | None = None
    """Write to this file, in UTF-8. By default, or if -, to standard output."""
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = dataclasses.field(
        default_factory=SamplingOptions
    )


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.generate") -> int:
    """Run the command and return its exit status, as `commands.run` describes it."""
    # Standard output is None if the shell closed it, as `>&-` does.
    output_is_closed = sys.stdout is None

    def work(options: GenerateOptions) -> int:
        if output_is_closed and _to_screen(options):
            return 1
        run(options)
        return 0

    parse = functools.partial(arguments.parse, GenerateOptions, prog, argv)
    return commands.run(GenerateOptions, parse, work, _explain)


def _explain(error: Exception) -> str | None:
    if not is_out_of_memory(error):
        return None
    return f"the memory ran out ({first_line(error)}); make --count smaller"


def run(options: GenerateOptions) -> None:
    """Generate and write the texts.

    Raises:
      InputError: for options, a run or a prime that cannot be used.
      OSError: if the output cannot be written.
    """
    from jaxrnn.devices import accelerator
    from jaxrnn.training.run_description import load

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
    from jaxrnn.charlm.sampling import default_prime

    return default_prime(vocabulary)


def _pieces(
    options: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterable[str | bytes]:
    """Return the output in pieces, each as soon as it is drawn."""
    from jaxrnn.charlm import sampling

    length = None if options.length == "endless" or options.length == -1 else options.length
    by_bytes = params.vocabulary.by_bytes
    how = dataclasses.asdict(options.sampling)
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
    from jaxrnn.training import run_directory

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
    commands.start(main)
