"""Progress of long work: a bar on a terminal or in a notebook, plain lines in a file or a pipe.

display = show(STEPS)
display.line("something worth a line of its own")
display.begin("training", done=0, total=3000)
display.reach(10, "loss 3.2")          # as often as there is news
display.end()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rich import filesize, progress
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

# Seconds between plain lines, besides the important ones.
PLAIN_EVERY = 10.0
# Seconds between changes of the bar in a notebook, which are messages to its page.
NOTEBOOK_EVERY = 0.25


@runtime_checkable
class Display(Protocol):
    """The progress display that a command updates while it works."""

    def line(self, text: str) -> None:
        """Show a line of its own."""

    def block(self, title: str, text: str) -> None:
        """Show a text of many lines."""

    def begin(self, what: str, done: int, total: int | None) -> None:
        """Begin a stage of the work, `done` of `total` finished; the total may be unknown."""

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Show that `done` of the stage is finished, and a text beside it.

        important: show a plain line now, even if there was one just before.
        """

    def end(self) -> None:
        """End the stage, finished or not."""


class Stage(NamedTuple):
    """A stage of the work; `rate` is in units per second since it began."""

    what: str
    done: int
    total: int | None
    rate: float = 0.0
    text: str = ""


class Unit(NamedTuple):
    """The unit in which progress is counted, such as training steps or bytes.

    line: makes a plain line of a stage.
    columns: makes the columns of the bar.
    last: show a plain line at the end of each stage.
    """

    line: Callable[[Stage], str]
    columns: Callable[[], tuple[progress.ProgressColumn, ...]]
    last: bool


def _step_columns() -> tuple[progress.ProgressColumn, ...]:
    return (
        progress.TextColumn("{task.completed}/{task.total}"),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.description}"),
        progress.TimeRemainingColumn(),
    )


def _byte_columns() -> tuple[progress.ProgressColumn, ...]:
    return (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )


def _character_columns() -> tuple[progress.ProgressColumn, ...]:
    return (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.completed:,} characters"),
        progress.TimeRemainingColumn(),
    )


def _step_line(stage: Stage) -> str:
    return f"step {stage.done}/{stage.total}  {stage.text}"


def _byte_line(stage: Stage) -> str:
    total = "" if stage.total is None else f" of {filesize.decimal(stage.total)}"
    done = filesize.decimal(stage.done)
    return f"{stage.what}: {done}{total}, {stage.rate / 1e6:,.0f} MB/s"


def _character_line(stage: Stage) -> str:
    total = "" if stage.total is None else f" of {stage.total:,}"
    return f"{stage.what}: {stage.done:,}{total} characters, {stage.rate:,.0f} characters/s"


STEPS = Unit(_step_line, _step_columns, last=False)
BYTES = Unit(_byte_line, _byte_columns, last=True)
CHARACTERS = Unit(_character_line, _character_columns, last=True)


class Silent:
    """A display that shows nothing."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def block(self, title: str, text: str) -> None:
        """Show nothing."""

    def begin(self, what: str, done: int, total: int | None) -> None:
        """Show nothing."""

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class Lines:
    """A display of plain lines, for a file or a pipe."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._stage = Stage("", 0, None)
        self._first = 0
        self._began = time.monotonic()
        self._printed: float | None = None

    def line(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def block(self, title: str, text: str) -> None:
        """Print a text between two lines."""
        self.line(f"--- {title} ---\n{text}\n---")

    def begin(self, what: str, done: int, total: int | None) -> None:
        """Begin a stage."""
        self._stage = Stage(what, done, total)
        self._first = done
        self._began = time.monotonic()
        # A stage that ends with a line does not need one at its beginning.
        self._printed = self._began if self._unit.last else None

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Print a line if it is important or the last one is PLAIN_EVERY seconds ago."""
        self._stage = self._stage._replace(done=done, text=text)
        due = self._printed is None or time.monotonic() - self._printed >= PLAIN_EVERY
        if important or due:
            self._print()

    def end(self) -> None:
        """Print the last line of the stage where the unit has one."""
        if self._unit.last:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        passed = max(self._printed - self._began, 1e-9)
        rate = (self._stage.done - self._first) / passed
        self.line(self._unit.line(self._stage._replace(rate=rate)))


class Bar:
    """A display with a progress bar, the speed and the time left, for a terminal."""

    def __init__(self, unit: Unit, console: Console) -> None:
        self._unit, self._console = unit, console
        self._progress: progress.Progress | None = None
        self._task = progress.TaskID(0)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def block(self, title: str, text: str) -> None:
        """Print a text in a frame above the bar."""
        self._console.print(Panel(Text(text), title=title, title_align="left"))

    def begin(self, what: str, done: int, total: int | None) -> None:
        """Begin a stage with a separate bar."""
        self.end()
        self._progress = progress.Progress(*self._unit.columns(), console=self._console)
        self._task = self._progress.add_task(what, completed=done, total=total)
        self._progress.start()

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=text or None)

    def end(self) -> None:
        """Stop the bar; it stays on the screen as it is."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class NotebookBar(Bar):
    """A display with a progress bar for a Jupyter notebook: one output, which is replaced.

    rich's own needs ipywidgets, and the saved notebook would not show it.
    """

    def __init__(self, unit: Unit, console: Console) -> None:
        super().__init__(unit, console)
        # IPython's handle of the output, an optional package.
        self._output: Any = None
        self._shown = 0.0

    def line(self, text: str) -> None:
        """Print a line below the bar."""
        print(text)

    def begin(self, what: str, done: int, total: int | None) -> None:
        """Begin a stage with a separate bar."""
        from IPython.display import display

        self.end()
        self._progress = progress.Progress(*self._unit.columns(), console=self._console)
        self._task = self._progress.add_task(what, completed=done, total=total)
        self._output = display(self._formats(), raw=True, display_id=True)
        self._shown = time.monotonic()

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Move the bar, at most every NOTEBOOK_EVERY seconds on the screen."""
        super().reach(done, text, important)
        if time.monotonic() - self._shown >= NOTEBOOK_EVERY:
            self._show()

    def end(self) -> None:
        """Show the bar as it is; it stays in the notebook."""
        if self._progress is not None:
            self._progress.stop_task(self._task)
            self._show()
        self._progress = None

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._output.update(self._formats(), raw=True)

    def _formats(self) -> dict[str, str]:
        """Return the bar as HTML, and as text without escape codes, which many viewers cannot show."""
        assert self._progress is not None
        table = self._progress.make_tasks_table(self._progress.tasks)
        formats = table._repr_mimebundle_((), ())
        return {**formats, "text/plain": Text.from_ansi(formats["text/plain"]).plain}


def terminal() -> Console | None:
    """Return the terminal on standard output, or None where it is a file, a pipe or a notebook."""
    console = Console()
    return console if console.is_terminal else None


def show(unit: Unit) -> Display:
    """Return the display: a bar on a terminal or in a notebook, plain lines elsewhere."""
    console = Console()
    if console.is_jupyter:
        return NotebookBar(unit, console)
    return Bar(unit, console) if console.is_terminal else Lines(unit)


def show_on_stderr(unit: Unit) -> Display:
    """Return a bar if standard error is a terminal, and otherwise a display that shows nothing.

    It is for commands whose standard output is read by other programs.
    """
    console = Console(stderr=True)
    return Bar(unit, console) if console.is_terminal else Silent()
