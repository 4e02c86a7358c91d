"""Train a char-RNN: `python -m jaxrnn.train --data my.txt`.

Running the same command again resumes the run. `--help` lists every setting.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxrnn import console
from jaxrnn.commands import running
from jaxrnn.data.corpus import Corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError, first_line, is_out_of_memory
from jaxrnn.runs.train_options import TrainOptions, parse

# --- the command ---


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.train") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""
    argv = sys.argv[1:] if argv is None else argv
    parse_for = functools.partial(parse, argv, prog=prog)

    @running.lasting
    def work(options: TrainOptions) -> int:
        return run(options, parse_for)

    return running.run(TrainOptions, parse_for, work, _explain)


def _explain(error: Exception) -> str | None:
    """Return a line about an error of JAX that the user can do something about, or None."""
    import jax

    from jaxrnn.devices import processes
    from jaxrnn.training import loop

    if processes.is_peer_failure(error):
        return (
            f"process {jax.process_index()} of {jax.process_count()} lost the others "
            f"({first_line(error)}); the checkpoints are intact: restart all processes, and they resume "
            "from the newest one"
        )
    if is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}); the checkpoints are intact: {loop.SMALLER}, or "
            "prepare a large text with python -m jaxrnn.prepare"
        )
    return None


def run(options: TrainOptions, for_length: Callable[[int], TrainOptions] | None = None) -> int:
    """Train as the options say, on the screen and in the run directory. Return the exit status.

    Args:
      options: the options.
      for_length: returns the options for a training part of so many characters; None takes `options` for
        any length.
    """
    # Imported here because they import JAX, for which --help need not wait.
    from jaxrnn.devices import processes
    from jaxrnn.runs import trainer

    def say(line: str) -> None:
        if processes.is_primary():
            print(line, flush=True)

    work, result, stop = trainer.run(options, for_length, say=say)
    if result.complete:
        say(f"done. Now: {_example(work.workdir, work.corpus)}")
        return 0
    without = " without --overwrite" if options.overwrite else ""
    say(f"stopped and saved at step {result.step}; the same command{without} resumes from there")
    return stop.status


# --- what is printed ---


def _example(workdir: Path, corpus: Corpus) -> str:
    """Return a shell command that generates text with the run."""
    command = f"python -m jaxrnn.generate {console.quoted_path(workdir)}"
    if corpus.lines is not None:
        return f"{command} --count 20"
    prime = _example_prime(corpus)
    if prime is None:
        return command
    return f"{command} --prime{'=' if prime.startswith('-') else ' '}{console.quoted(prime)}"


def _example_prime(corpus: Corpus) -> str | None:
    """Return an example prime: "ROMEO:" if the text has it, else its first printable word, or None."""
    begin = corpus.vocabulary.decode(corpus.tokens[:1_000_000])
    if "ROMEO:" in begin and _is_known("ROMEO:", corpus.vocabulary):
        return "ROMEO:"
    words = (found[0][:20] for found in re.finditer(r"\S+", begin))
    printable = (word for word in words if word.isprintable() and "\ufffd" not in word)
    few = itertools.islice(printable, 100)
    return next((word for word in few if _is_known(word, corpus.vocabulary)), None)


def _is_known(text: str, vocabulary: Vocabulary) -> bool:
    """Return whether a vocabulary has the tokens of a part of its text, which may cut a token."""
    try:
        vocabulary.encode(text)
    except InputError:
        return False
    return True


if __name__ == "__main__":
    running.start(main)
