"""Write text with a trained run: `python -m jaxrnn.generate runs/play-small --prime "ROMEO:"`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import tyro

from jaxrnn import accelerator, sampling
from jaxrnn.checkpoint import Which, load
from jaxrnn.errors import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Write text with a trained char-RNN, as it is made."""

    run: tyro.conf.Positional[Path]
    """The folder that `python -m jaxrnn.train` wrote."""
    prime: str | None = None
    """How the text begins; without it a new line."""
    prime_file: Path | None = None
    """Take the prime from a file (UTF-8)."""
    length: int = 500
    """Characters to add."""
    temperature: float = 1.0
    """Below 1 bolder on the likely, above 1 wilder."""
    mode: sampling.Mode = "categorical"
    """Draw every character, take the likeliest, or draw only after white space."""
    top_k: int | None = None
    """Draw among the k likeliest only."""
    top_p: float | None = None
    """Draw among the fewest characters whose probabilities reach p."""
    seed: int = 0
    """Of the draws."""
    count: int = 1
    """How many texts."""
    output: Path | None = None
    """Write to a file instead of the screen."""
    which: Which = "best"
    """The checkpoint: lowest validation loss, or latest."""
    accelerator: accelerator.Accelerator = "auto"
    """Where to compute."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 1 failed, 2 bad input, 130 for Ctrl-C."""
    try:
        config = tyro.cli(Config, prog="python -m jaxrnn.generate", args=argv)
        run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def run(config: Config) -> None:
    """Write the texts as configured."""
    accelerator.use(config.accelerator)
    prime = _prime(config)
    params = load(config.run, config.which)
    if prime is None:
        prime = sampling.default_prime(params.vocabulary)
    draw = {
        name: getattr(config, name)
        for name in ("length", "temperature", "mode", "top_k", "top_p", "seed")
    }
    if config.count == 1:
        pieces = sampling.stream(params, prime, **draw)
    else:
        texts = sampling.sample(params, prime, **draw, count=config.count)
        pieces = (f"--- {n} ---\n{text}\n" for n, text in enumerate(texts, 1))
    if config.output is None:
        _write(pieces, sys.stdout)
    else:
        with config.output.open("w", encoding="utf-8") as file:
            _write(pieces, file)


def _write(pieces: Iterable[str], file: TextIO) -> None:
    for piece in pieces:
        file.write(piece)
        file.flush()
    file.write("\n")


def _prime(config: Config) -> str | None:
    if config.prime_file is None:
        return config.prime
    if config.prime is not None:
        raise InputError("give --prime or --prime-file, not both")
    try:
        return config.prime_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{config.prime_file} is not UTF-8: {error.reason} at {error.start}"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {config.prime_file}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
