"""Requests to stop a training: signals, and an output pipe that has lost its reader."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

import jax

from jaxrnn import console, stopping
from jaxrnn.devices import processes


class Stop:
    """Whether the training was asked to stop.

    Inside `with Stop() as stop`, the first signal is only noted, and the training saves and stops where
    it asks `stop.asked()`. With several processes, SIGTERM is left to JAX, which informs all of them
    (`Checkpoints.preempted`). Standard output that has lost its reader counts as a request, too.

    Args:
      leave: names of signals to leave alone.
      again: called with the exit status when there is another signal.
      quiet: print nothing.
    """

    def __init__(
        self,
        leave: tuple[str, ...] = (),
        again: Callable[[int], None] = stopping.exit_at_once,
        quiet: bool = False,
    ) -> None:
        self._status = 0
        self._quiet = quiet
        if jax.process_count() > 1:
            leave = (*leave, "SIGTERM")
        self._catching = stopping.catching(self._note, leave, again)

    @property
    def status(self) -> int:
        """The exit status: 128 + the signal's number; SIGTERM's if JAX took the signal."""
        return self._status or 128 + signal.SIGTERM

    def asked(self) -> bool:
        """Return whether this or another process was asked to stop. All processes must call it."""
        if console.pipe_closed():
            self._status = self._status or console.PIPE_CLOSED
        self._status = max(processes.allgather_json(self._status))
        return self._status != 0

    def __enter__(self) -> Stop:
        self._catching.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._catching.__exit__(None, None, None)

    def _note(self, status: int) -> None:
        self._status = self._status or status
        if not self._quiet:
            _print("\nstopping after this device call; repeat the signal to stop at once\n")


def _print(text: str) -> None:
    """Write to standard output from a signal handler."""
    # The pipe may have lost its reader (OSError), or the stream may be closed (ValueError).
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except RuntimeError:
            # The signal interrupted another write to the stream, which cannot be entered twice.
            # This line goes out first, then the rest of the interrupted write.
            os.write(sys.stdout.fileno(), text.encode("ascii"))
