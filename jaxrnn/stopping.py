"""Being asked to stop: Ctrl-C and SIGTERM save and leave, in all processes at the same step."""

from __future__ import annotations

import os
import signal
from typing import Any

import jax

from jaxrnn import distributed


class Stop:
    """Between enter and exit, Ctrl-C and SIGTERM only leave a mark; the second one is final.

    Where there are several processes, SIGTERM is left to JAX, which tells all of them
    (`Checkpoints.preempted`).
    """

    def __init__(self) -> None:
        self._status = 0

    @property
    def status(self) -> int:
        """What to exit with: 128 + the signal's number; SIGTERM's where JAX took it."""
        return self._status or 128 + signal.SIGTERM

    def asked(self) -> bool:
        """Whether this or another process was. All must call it."""
        self._status = max(distributed.gather(self._status))
        return self._status != 0

    def __enter__(self) -> Stop:
        several = jax.process_count() > 1
        numbers = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
        self._before = {number: signal.signal(number, self._mark) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mark(self, number: int, frame: Any) -> None:
        if self._status:
            os._exit(128 + number)
        self._status = 128 + number
        print("\nstopping after this call of the device; once more to leave at once", flush=True)
