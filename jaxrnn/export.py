"""Write a trained char-RNN to files: `python -m jaxrnn.export RUN --safetensors play.safetensors`.

jaxrnn/formats/README.md describes the files. `--help` lists every setting.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from jaxrnn import arguments, stopping
from jaxrnn.commands import running
from jaxrnn.commands.export_options import ExportOptions


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.export") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""

    @running.lasting
    def work(options: ExportOptions) -> int:
        # Imported here because it imports JAX, for which --help need not wait.
        from jaxrnn.commands import exporter

        with stopping.catching(stopping.stop):
            exporter.run(options)
        return 0

    parse = functools.partial(arguments.parse, ExportOptions, prog, argv)
    return running.run(ExportOptions, parse, work, running.out_of_memory())


if __name__ == "__main__":
    running.start(main)
