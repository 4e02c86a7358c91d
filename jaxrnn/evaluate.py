"""Measure how well a model predicts a text: `python -m jaxrnn.evaluate runs/play-small notes.txt`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from jaxrnn import arguments, stopping
from jaxrnn.commands import running
from jaxrnn.commands.evaluate_options import EvaluateOptions


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.evaluate") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""

    def work(options: EvaluateOptions) -> int:
        # Imported here because it imports JAX, for which --help need not wait.
        from jaxrnn.commands import evaluator

        with stopping.catching(stopping.stop), running.reading_text():
            evaluator.run(options)
            sys.stdout.flush()
        return 0

    parse = functools.partial(arguments.parse, EvaluateOptions, prog, argv)
    return running.run(EvaluateOptions, parse, work, running.out_of_memory("lower --parts"))


if __name__ == "__main__":
    running.start(main)
