"""The messages of orbax, kept off the screen."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep orbax's messages off the screen until the end of the block, as `quieten` does."""
    restore = quieten()
    try:
        yield
    finally:
        restore()


def quieten() -> Callable[[], None]:
    """Keep orbax's messages off the screen.

    orbax logs each of its steps. When one of its tasks meets a bad file, the other tasks end in
    threads of their own, some after their event loop was closed, and Python reports each of them; the
    error that matters was raised by `save`, `wait` or `restore` already.

    Returns:
      A function that restores what was changed: the level of absl's logger, a filter of asyncio's
      logger, the warnings filters and `sys.unraisablehook`. A command need not call it.
    """
    absl = logging.getLogger("absl")
    asyncio = logging.getLogger("asyncio")
    level = absl.level
    hook = sys.unraisablehook

    def drop_abandoned_tasks(unraisable: sys.UnraisableHookArgs) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        if not any("asyncio" in frame.filename or "orbax" in frame.filename for frame in frames):
            hook(unraisable)

    def is_news(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    absl.setLevel(logging.CRITICAL)
    asyncio.addFilter(is_news)
    filters = warnings.catch_warnings()
    filters.__enter__()
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = drop_abandoned_tasks

    def restore() -> None:
        absl.setLevel(level)
        asyncio.removeFilter(is_news)
        filters.__exit__(None, None, None)
        sys.unraisablehook = hook

    return restore
