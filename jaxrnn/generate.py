"""Generate text with a trained model: `python -m jaxrnn.generate runs/play-small --prime "ROMEO:"`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from jaxrnn import arguments
from jaxrnn.commands import running
from jaxrnn.commands.generate_options import GenerateOptions


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.generate") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""
    # Standard output is None if the shell closed it, as `>&-` does.
    output_is_closed = sys.stdout is None

    def work(options: GenerateOptions) -> int:
        # Imported here because it imports JAX, for which --help need not wait.
        from jaxrnn.commands import generator

        if output_is_closed and options.to_screen:
            return 1
        generator.run(options)
        return 0

    parse = functools.partial(arguments.parse, GenerateOptions, prog, argv)
    return running.run(GenerateOptions, parse, work, running.out_of_memory("make --count smaller"))


if __name__ == "__main__":
    running.start(main)
