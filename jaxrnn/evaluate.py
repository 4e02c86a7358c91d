"""Measure how well a model predicts a text: `python -m jaxrnn.evaluate runs/play-small notes.txt`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from jaxrnn import arguments, stopping
from jaxrnn.commands import running
from jaxrnn.commands.evaluate_options import EvaluateOptions
from jaxrnn.errors import InputError


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.evaluate") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""

    def work(options: EvaluateOptions) -> int:
        # Imported here because it imports JAX, for which --help need not wait.
        from jaxrnn.commands import evaluator

        with stopping.catching(stopping.stop):
            try:
                evaluator.run(options)
            except InputError as error:
                raise InputError(_about_texts(str(error))) from None
            sys.stdout.flush()
        return 0

    parse = functools.partial(arguments.parse, EvaluateOptions, prog, argv)
    return running.run(EvaluateOptions, parse, work, running.out_of_memory("lower --parts"))


def _about_texts(message: str) -> str:
    """Return an error message of the library in terms of this command, which does not train."""
    message = message.replace("`data`", "TEXT").replace("; `as_bytes` reads it as it is", "")
    message = message.replace("give a text to train on", "give another text")
    if "never seen" in message:
        message += "; `unknown=skip` leaves them out"
    return message


if __name__ == "__main__":
    running.start(main)
