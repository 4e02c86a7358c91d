"""Write text with a trained run: `python -m jaxrnn.generate runs/play-small --prime "ROMEO:"`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.data import files
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, memory
from jaxrnn.errors import InputError
from jaxrnn.training import run_directory
from jaxrnn.training.checkpoint import Which
from jaxrnn.training.run_description import load


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Write text with a trained char-RNN, as it is made.

    The output is exactly the prime and what the model adds to it; only a terminal gets a new line after
    it. A model of bytes (trained with --bytes) writes its bytes as they are.
    """

    run: tyro.conf.Positional[Path]
    """The folder that `python -m jaxrnn.train` wrote."""
    prime: str | None = None
    """How the text begins; without it a new line."""
    prime_file: str | None = None
    """Take the prime from a file, as it is, or from standard input with -. It is UTF-8, or any bytes
    for a model of bytes."""
    length: int | Literal["endless"] = 500
    """Characters to add (bytes, for a model of bytes); endless or -1 writes until it is stopped."""
    temperature: float = 1.0
    """Below 1 bolder on the likely, above 1 wilder."""
    mode: sampling.Mode = "categorical"
    """Draw every character, take the likeliest, or draw only after white space."""
    top_k: int | None = None
    """Draw among the k likeliest only."""
    top_p: float | None = None
    """Draw among the fewest characters whose probabilities reach p."""
    seed: int = 0
    """Random seed of the draws."""
    count: int = 1
    """Number of texts; with more than one, each has a heading."""
    output: str | None = None
    """Write to a file, in UTF-8, instead of standard output (-)."""
    which: Which = "best"
    """The checkpoint: lowest validation loss, or latest."""
    accelerator: accelerator.Accelerator = "auto"
    """Where to compute."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 done, 1 failed, 2 bad input, 130 for Ctrl-C, 141 for a pipe that lost its reader.
    """
    nowhere = sys.stdout is None  # closed, as by >&-
    console.open_streams()
    try:
        config = arguments.parse(GenerateOptions, "python -m jaxrnn.generate", argv)
        if nowhere and _to_screen(config):
            return 1
        run(config)
    except InputError as error:
        console.error(error)
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


def run(config: GenerateOptions) -> None:
    """Write the texts as configured."""
    accelerator.use(config.accelerator)
    if config.prime is not None and config.prime_file is not None:
        raise InputError("give --prime or --prime-file, not both")
    _check_output(config)
    params = load(config.run, config.which, warn=console.note)
    prime = _prime(config, params.vocabulary)
    try:
        texts = _texts(config, params, prime)
    except InputError as error:
        raise InputError(arguments.in_flags(str(error), GenerateOptions)) from None
    if _to_screen(config):
        _show(texts)
    else:
        _save(texts, str(config.output))


def _texts(
    config: GenerateOptions, params: charlm.Params, prime: str | bytes
) -> Iterable[str | bytes]:
    """Return the texts in pieces, each as soon as it is made."""
    draw: dict[str, Any] = {
        name: getattr(config, name) for name in ("temperature", "mode", "top_k", "top_p", "seed")
    }
    length = None if config.length == "endless" or config.length == -1 else config.length
    by_bytes = params.vocabulary.by_bytes
    if config.count == 1:
        stream = sampling.stream_bytes if by_bytes else sampling.stream
        return stream(params, prime, length, **draw)
    if length is None:
        raise InputError(
            f"--length {config.length} is for one text, not for --count {config.count}"
        )
    sample = sampling.sample_bytes if by_bytes else sampling.sample
    return _headed(sample(params, prime, length, **draw, count=config.count))


def _headed(texts: Any) -> Iterator[str | bytes]:
    for number, text in enumerate(texts, 1):
        yield f"--- {number} ---\n"
        yield text
        yield "\n"


def _to_screen(config: GenerateOptions) -> bool:
    return config.output in (None, "-")


def _check_output(config: GenerateOptions) -> None:
    """Raise InputError where the output is a file of the run, or the one that the prime is in."""
    if config.output is None or _to_screen(config):
        return
    output, prime = Path(config.output), config.prime_file
    run_directory.check_output(output, config.run)
    if (
        prime not in (None, "-")
        and output.exists()
        and Path(prime).exists()
        and output.samefile(prime)
    ):
        raise InputError(f"--output {output} is the --prime-file; choose another")


def _show(pieces: Iterable[str | bytes]) -> None:
    """Write to standard output, each piece at once."""
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
    """Write to a file, each piece at once."""
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


def _prime(config: GenerateOptions, vocabulary: Vocabulary) -> str | bytes:
    """Return the prime: text, or bytes for a model of bytes."""
    if config.prime is not None:
        return arguments.prime("--prime", config.prime, vocabulary.by_bytes)
    if config.prime_file is not None:
        return files.read(config.prime_file, vocabulary.by_bytes)
    return sampling.default_prime(vocabulary)


if __name__ == "__main__":
    sys.exit(main())
