"""Being asked to stop: Ctrl-C, SIGTERM and SIGHUP save and leave, in all processes at the same step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn import console
from jaxrnn.devices import processes

NAMES = "SIGINT", "SIGTERM", "SIGHUP"  # of Ctrl-C, of `kill`, and of a terminal that goes away


def handle(handler: Callable[[int, Any], None], leave: tuple[str, ...] = ()) -> dict[int, Any]:
    """Let a function handle the signals that ask a program to stop. Returns the handlers before.

    A signal that came ignored stays ignored: nohup ignores SIGHUP so that a program outlives its
    terminal, and a shell ignores SIGINT in what a script starts in the background.

    Args:
      handler: as for `signal.signal`.
      leave: names of signals to leave alone.
    """
    numbers = [
        getattr(signal, name) for name in NAMES if name not in leave and hasattr(signal, name)
    ]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class Stop:
    """Between enter and exit, the signals only leave a mark; the second one is final.

    Where there are several processes, SIGTERM is left to JAX, which informs all of them
    (`Checkpoints.preempted`). Standard output that has lost its reader counts as asking, too.
    """

    def __init__(self) -> None:
        self._status = 0

    @property
    def status(self) -> int:
        """The exit status: 128 + the signal's number; SIGTERM's where JAX took it."""
        return self._status or 128 + signal.SIGTERM

    def asked(self) -> bool:
        """Whether this or another process was asked to stop. All must call it."""
        if console.pipe_closed():
            self._status = self._status or console.PIPE_CLOSED
        self._status = max(processes.allgather_json(self._status))
        return self._status != 0

    def __enter__(self) -> Stop:
        self._before = handle(self._mark, leave=("SIGTERM",) if jax.process_count() > 1 else ())
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mark(self, number: int, frame: Any) -> None:
        if self._status:
            os._exit(128 + number)
        self._status = 128 + number
        _say("\nstopping after this call of the device; once more to leave at once\n")


def _say(text: str) -> None:
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
