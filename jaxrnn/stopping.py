"""Requests to stop a command: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

# Sent by Ctrl-C, by `kill`, and when the terminal is closed.
NAMES = "SIGINT", "SIGTERM", "SIGHUP"


@contextlib.contextmanager
def catching(react: Callable[[int], None], leave: tuple[str, ...] = ()) -> Iterator[None]:
    """Call a function when a signal asks the program to stop; a second signal ends it at once.

    A signal that is ignored when the block begins stays ignored: nohup ignores SIGHUP so that a program
    outlives its terminal, and a shell ignores SIGINT in what a script starts in the background. When
    the block ends, the handlers are again those from before.

    Args:
      react: called with the exit status that the signal stands for, 128 + its number. It may raise.
      leave: names of signals to leave alone.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        react(128 + number)

    names = [name for name in NAMES if name not in leave and hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """The user asked a command to stop; the argument is the exit status."""


def stop(status: int) -> None:
    """Raise Stopped, so that a command ends where it is and cleans up; `catching` takes it."""
    raise Stopped(status)
