"""What a training run shows and writes: progress, metrics.jsonl, samples.txt, loss.png, TensorBoard.

The files can be wound back to where a checkpoint was saved, so that a resumed run leaves the same
lines as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from jaxrnn import charlm, sampling
from jaxrnn.curves import Curve, bits, draw_losses
from jaxrnn.errors import InputError

SAMPLE_LENGTH = 300  # characters of the samples written while training


class Metric(NamedTuple):
    """A line of metrics.jsonl. Losses in nats per character."""

    step: int
    loss: float
    val_loss: float | None
    grad_norm: float
    chars_per_second: float
    seconds: float


class Report:
    """Tells a run as it happens.

    Args:
      run: the run directory.
      characters: per step, for the speed.
      floor: the validation loss that no model can beat, where it is known.
      prime: how the samples begin.
      tensorboard: also write event files for TensorBoard into the run directory.
      quiet: show nothing on the screen.
    """

    def __init__(
        self,
        run: Path,
        characters: int,
        floor: float | None = None,
        prime: str = "\n",
        tensorboard: bool = False,
        quiet: bool = False,
    ) -> None:
        self._metrics, self._samples = run / "metrics.jsonl", run / "samples.txt"
        self._picture = run / "loss.png"
        self._characters, self._floor, self._prime = characters, floor, prime
        self._seconds = 0.0  # of the run so far, whatever process they passed in
        self._clock = time.perf_counter()
        self._last_step, self._total = 0, 0
        self._val_loss: float | None = None
        self._losses, self._val_losses = Curve(), Curve()
        self._missed_matplotlib = False
        self._screen = _screen(quiet)
        self._board = _tensorboard(run) if tensorboard else None

    # --- told by `fit` ---

    def note(self, line: str) -> None:
        """Something worth a line of its own."""
        self._screen.line(line)

    def begin(self, step: int, total: int) -> None:
        """The loop starts (again) at `step` of `total`."""
        self._last_step, self._total = step, total
        self._clock = time.perf_counter()
        self._screen.begin(step, total)

    def steps(self, step: int, loss: float, grad_norm: float, val_loss: float | None) -> None:
        """The mean loss and gradient norm since the last call, and a validation loss if just made."""
        now = time.perf_counter()
        passed, self._clock = max(now - self._clock, 1e-9), now
        self._seconds += passed
        speed = (step - self._last_step) * self._characters / passed
        self._last_step = step
        metric = Metric(step, float(loss), val_loss, float(grad_norm), speed, self._seconds)
        if val_loss is not None:
            self._val_loss = val_loss
        self._remember(metric.step, metric.loss, val_loss)
        line = {name: value for name, value in metric._asdict().items() if value is not None}
        _append(self._metrics, json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in metric._asdict().items():
                if value is not None and name not in ("step", "seconds"):
                    self._board.add_scalar(name, value, step)
        self._screen.steps(metric, self._describe(metric), val_loss is not None)
        if val_loss is not None:
            self.draw()

    def sample(self, step: int, params: charlm.Params) -> None:
        """Write a sample of the model as it stands."""
        text = self._sampled(params)
        _append(self._samples, f"--- step {step} ---\n{text}\n\n")
        self._screen.sample(step, str(text))

    def _sampled(self, params: charlm.Params) -> Any:
        return sampling.sample(params, self._prime, SAMPLE_LENGTH)

    def end(self) -> None:
        """The loop is over, or broken off; then nothing here stands before what broke it."""
        with contextlib.suppress(OSError):
            self.draw()
        self._screen.end()
        if self._board is not None:
            self._board.close()

    # --- where a resumed run goes on ---

    def position(self) -> dict[str, Any]:
        """How long the files are, to go into a checkpoint."""
        files = {path.name: path.stat().st_size for path in self._files() if path.exists()}
        return {"files": files, "seconds": self._seconds, "step": self._last_step}

    def rewind(self, position: dict[str, Any]) -> None:
        """Cut the files back to a position; {} for the very beginning."""
        for path in self._files():
            if path.exists():
                size = position.get("files", {}).get(path.name, 0)
                with path.open("r+b") as file:
                    file.truncate(min(size, path.stat().st_size))
        self._losses, self._val_losses = Curve(), Curve()
        for line in read_metrics(self._metrics):
            self._remember(line["step"], line["loss"], line.get("val_loss"))
        self._seconds = position.get("seconds", 0.0)
        self._last_step = position.get("step", 0)
        self._clock = time.perf_counter()

    def _remember(self, step: int, loss: float, val_loss: float | None) -> None:
        self._losses.add(float(step), loss)
        if val_loss is not None:
            self._val_losses.add(float(step), val_loss)

    def _files(self) -> tuple[Path, Path]:
        return self._metrics, self._samples

    # --- drawing ---

    def draw(self) -> None:
        """Draw loss.png; without matplotlib, say once what to install."""
        if not self._losses.points:
            return
        try:
            draw_losses(self._losses.points, self._val_losses.points, self._floor, self._picture)
        except ImportError:
            if not self._missed_matplotlib:
                self._missed_matplotlib = True
                self.note('no loss.png without matplotlib: pip install "jaxrnn[plot]"')
        except OSError as error:
            raise _unsaved(self._picture, error) from error

    def _describe(self, metric: Metric) -> str:
        parts = [f"loss {_both(metric.loss)}"]
        if self._val_loss is not None:
            parts.append(f"val {_both(self._val_loss)}")
        if self._floor is not None:
            parts.append(f"floor {self._floor:.3f}")
        return "  ".join([*parts, f"{metric.chars_per_second:,.0f} chars/s"])


class Unheard(Report):
    """Of the processes that leave telling and writing to the first.

    prime: as of the first; samples of a model that is divided over processes are drawn by all of them.
    """

    def __init__(self, prime: str) -> None:
        self._prime = prime

    def note(self, line: str) -> None: ...
    def begin(self, step: int, total: int) -> None: ...
    def steps(self, step: int, loss: float, grad_norm: float, val_loss: float | None) -> None: ...
    def end(self) -> None: ...
    def rewind(self, position: dict[str, Any]) -> None: ...

    def sample(self, step: int, params: charlm.Params) -> None:
        self._sampled(params)

    def position(self) -> dict[str, Any]:
        return {}


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        raise _unsaved(path, error) from error


def _unsaved(path: Path, error: OSError) -> OSError:
    return OSError(
        f"could not save to {path}: {error.strerror}; the checkpoints before it are intact"
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _both(nats: float) -> str:
    return f"{nats:.3f} nats ({bits(nats):.3f} bits)"


# --- the screen: a progress bar on a terminal, plain lines elsewhere ---

PLAIN_EVERY = 10.0  # seconds between plain lines, besides those with a validation loss


class _Silent:
    """Shows nothing; what the screens have in common."""

    def line(self, text: str) -> None: ...
    def begin(self, step: int, total: int) -> None: ...
    def steps(self, metric: Metric, text: str, judged: bool) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def end(self) -> None: ...


class _Plain(_Silent):
    """Lines for a file or a pipe."""

    def __init__(self) -> None:
        self._total = 0
        self._told = -math.inf

    def line(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, step: int, total: int) -> None:
        self._total = total

    def steps(self, metric: Metric, text: str, judged: bool) -> None:
        if judged or time.monotonic() - self._told >= PLAIN_EVERY:
            self._told = time.monotonic()
            self.line(f"step {metric.step}/{self._total}  {text}")

    def sample(self, step: int, text: str) -> None:
        self.line(f"--- a sample at step {step} ---\n{text}\n---")


class _Bar(_Silent):
    """A rich progress bar with the losses, the speed and the time left."""

    def __init__(self, console: Any) -> None:
        from rich import progress

        self._console = console
        self._progress = progress.Progress(
            progress.TextColumn("{task.completed}/{task.total}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.description}"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, step: int, total: int) -> None:
        self._task = self._progress.add_task("compiling", completed=step, total=total)
        self._progress.start()

    def steps(self, metric: Metric, text: str, judged: bool) -> None:
        self._progress.update(self._task, completed=metric.step, description=text)

    def sample(self, step: int, text: str) -> None:
        from rich.panel import Panel
        from rich.text import Text

        self._console.print(Panel(Text(text), title=f"step {step}", title_align="left"))

    def end(self) -> None:
        self._progress.stop()


def _screen(quiet: bool) -> _Silent:
    if quiet:
        return _Silent()
    from rich.console import Console

    console = Console()
    return _Bar(console) if console.is_terminal else _Plain()


def _tensorboard(run: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError('--tensorboard needs: pip install "jaxrnn[tensorboard]"') from None
    return SummaryWriter(str(run / "tensorboard"))
