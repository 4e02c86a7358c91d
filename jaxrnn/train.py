"""Train a char-RNN: `python -m jaxrnn.train --data my.txt`.

Running the same command again resumes the run. `--help` lists every setting.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax

from jaxrnn import arguments, console, trainer
from jaxrnn.data.corpus import Corpus
from jaxrnn.devices import accelerator, memory, processes
from jaxrnn.errors import InputError
from jaxrnn.train_options import TrainOptions, default_workdir, parse
from jaxrnn.training import loop, orbax_errors, run_directory
from jaxrnn.training.saved_states import Diverged
from jaxrnn.training.signals import Stop

# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 after success, 1 after a failure, 2 after bad input, 128 + n after signal n, and 141
    if standard output was a pipe that lost its reader.
    """
    console.open_streams()
    try:
        argv = sys.argv[1:] if argv is None else argv
        options = parse(argv)
        with console.lasting_output():
            status = run(options, functools.partial(parse, argv))
            return console.PIPE_CLOSED if status == 0 and console.pipe_closed() else status
    except processes.RemoteError:
        # The process that met the error reports it.
        return 2
    except InputError as error:
        _print_error(error)
        return 2
    except (OSError, Diverged) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        # There is no state to save yet.
        return 128 + signal.SIGINT
    except Exception as error:
        line = orbax_errors.first_line(error)
        if processes.is_peer_failure(error):
            _print_error(
                f"process {jax.process_index()} of {jax.process_count()} lost the others ({line}); the "
                "checkpoints are intact: restart all processes, and they resume from the newest one"
            )
        elif memory.is_out_of_memory(error):
            _print_error(
                f"out of memory ({line}); the checkpoints are intact: {loop.SMALLER}, or prepare a "
                "large text with python -m jaxrnn.prepare"
            )
        else:
            raise
        return 1


def _print_error(error: object) -> None:
    console.error(arguments.in_flags(error, TrainOptions))


def run(options: TrainOptions, for_length: Callable[[int], TrainOptions] | None = None) -> int:
    """Train as the options say, on the screen and in the run directory. Return the exit status.

    Args:
      options: the options.
      for_length: returns the options for a training part of so many characters; None takes `options` for
        any length.
    """
    memory.limit_heap_growth()
    processes.start(options.processes)
    accelerator.use(options.accelerator)
    workdir = options.workdir or default_workdir(options)
    work = processes.run_on_all(lambda: trainer.read(options, workdir, for_length))
    run_directory.require_equal_settings(work.description)
    if processes.is_primary():
        trainer.introduce(work)
    # Everything that can be refused is refused before anything is made, changed or deleted.
    processes.run_on_all(lambda: trainer.check_machine(work))
    with run_directory.lock(workdir):
        report = processes.run_on_all(lambda: trainer.take_over(work))
        with Stop() as stop:
            result = loop.fit(
                work.training,
                work.corpus,
                workdir,
                report,
                stop.asked,
                work.devices,
                lambda: trainer.write_description(work),
                None if work.start is None else work.start.parameters,
            )
    if not result.complete:
        without = " without --overwrite" if options.overwrite else ""
        _say(
            f"stopped and saved at step {result.step}; the same command{without} resumes from there"
        )
        return stop.status
    _say(f"done. Now: {_example(workdir, work.corpus)}")
    return 0


# --- the last line ---


def _say(line: str) -> None:
    if processes.is_primary():
        print(line)


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
    if "ROMEO:" in begin:
        return "ROMEO:"
    words = (found[0][:20] for found in re.finditer(r"\S+", begin))
    return next((word for word in words if word.isprintable() and "\ufffd" not in word), None)


def leave(status: int) -> NoReturn:
    """End the process, at once if the status is 1.

    After a failed write, threads of orbax may never end, and after the loss of a process, JAX would wait
    for it.
    """
    if status == 1:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    orbax_errors.quieten()
    leave(main())
