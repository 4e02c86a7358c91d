"""Show what the units of a model do: `python -m jaxrnn.inspect runs/play-small notes.txt`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from jaxrnn import arguments, stopping
from jaxrnn.commands import running
from jaxrnn.commands.inspect_options import InspectOptions


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.inspect") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""

    @running.lasting
    def work(options: InspectOptions) -> int:
        # Imported here because it imports JAX, for which --help need not wait.
        from jaxrnn.commands import inspector

        with stopping.catching(stopping.stop), running.reading_text():
            inspector.run(options)
            sys.stdout.flush()
        return 0

    parse = functools.partial(arguments.parse, InspectOptions, prog, argv)
    return running.run(InspectOptions, parse, work, running.out_of_memory("lower --length"))


if __name__ == "__main__":
    running.start(main)
