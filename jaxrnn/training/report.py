"""What a training run shows and writes: progress, metrics.jsonl, samples.txt, loss.png, TensorBoard.

The files can be wound back to where a checkpoint was saved, so that a resumed run leaves the same
lines as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxrnn import charlm, console
from jaxrnn.charlm import sampling
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.training.curves import Curve, bits, draw_losses

SAMPLE_LENGTH = 300  # characters of the samples written while training
METRICS, SAMPLES, PICTURE, BOARD = "metrics.jsonl", "samples.txt", "loss.png", "tensorboard"


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
        prime: str | bytes = "\n",
        tensorboard: bool = False,
        quiet: bool = False,
    ) -> None:
        self._metrics, self._samples = run / METRICS, run / SAMPLES
        self._picture = run / PICTURE
        self._characters, self._floor, self._prime = characters, floor, prime
        self._seconds = 0.0  # of the run so far, whatever process they passed in
        self._clock = time.perf_counter()
        self._last_step, self._total = 0, 0
        self._val_loss: float | None = None
        self._losses, self._val_losses = Curve(), Curve()
        self._missed_picture = False
        self._screen = _screen(quiet)
        if tensorboard:
            require_tensorboard()
        self._wants_board, self._board_folder = tensorboard, run / BOARD
        self._board: Any = None

    # --- told by `fit` ---

    def note(self, line: str) -> None:
        """Something worth a line of its own."""
        self._screen.line(line)

    def begin(self, step: int, total: int) -> None:
        """The loop starts (again) at `step` of `total`."""
        self._last_step, self._total = step, total
        if self._wants_board and self._board is None:
            self._board = require_tensorboard()(str(self._board_folder))  # makes the folder
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
        _append(self._metrics, json.dumps(line).encode() + b"\n")
        if self._board is not None:
            for name, value in metric._asdict().items():
                if value is not None and name not in ("step", "seconds"):
                    self._board.add_scalar(name, value, step)
        self._screen.steps(metric, self._describe(metric), val_loss is not None)
        if val_loss is not None:
            self.draw()

    def sample(self, step: int, params: charlm.Params) -> bytes:
        """Draw a sample of the model as it is now and append it to samples.txt; bytes as they are.

        Returns it for `show`.
        """
        raw = self._sampled(params)
        _append(self._samples, f"--- step {step} ---\n".encode() + raw + b"\n\n")
        return raw

    def show(self, step: int, sample: bytes) -> None:
        """Show a sample on the screen."""
        self._screen.sample(step, console.shown_lines(sample.decode(errors="replace")))

    def _sampled(self, params: charlm.Params) -> bytes:
        how = params, self._prime, SAMPLE_LENGTH
        if params.vocabulary.by_bytes:
            return cast(bytes, sampling.sample_bytes(*how))
        return str(sampling.sample(*how)).encode(errors="replace")

    def end(self) -> None:
        """End the report. Raises nothing, so that an error that ended the loop is not hidden."""
        with contextlib.suppress(Exception):
            self.draw()
        self._screen.end()
        if self._board is not None:
            self._board.close()

    # --- where a resumed run starts ---

    def position(self) -> dict[str, Any]:
        """Return the lengths of the files, for a checkpoint. They are synced to the disk first."""
        files = {}
        for path in self._files():
            if path.exists():
                with path.open("rb") as file:
                    files[path.name] = file.seek(0, os.SEEK_END)
                    os.fsync(file.fileno())
        return {"files": files, "seconds": self._seconds, "step": self._last_step}

    def rewind(self, position: dict[str, Any]) -> None:
        """Cut the files back to a position; {} for the very beginning.

        A file may be shorter than it was, or end in a part of a line, as after a power cut: what is
        left of it is kept, and a note says what is missing.
        """
        sizes = position.get("files", {})
        for path in self._files():
            size, there = sizes.get(path.name, 0), path.stat().st_size if path.exists() else 0
            if there > size:
                with path.open("r+b") as file:
                    file.truncate(size)
            if there < size:
                self.note(f"{path} has lost {size - there:,} bytes since the checkpoint was saved")
        metrics, torn = _metrics(self._metrics)
        if torn:
            self.note(f"{self._metrics}: {torn} damaged line{'s' * (torn > 1)} dropped")
            atomic_write(self._metrics, "".join(json.dumps(line) + "\n" for line in metrics))
        self._losses, self._val_losses = Curve(), Curve()
        for line in metrics:
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
        """Draw loss.png. Where that fails, report it once; the training continues."""
        if not self._losses.points:
            return
        try:
            draw_losses(self._losses.points, self._val_losses.points, self._floor, self._picture)
        except ImportError:
            self._miss_picture('no loss.png without matplotlib: pip install "jaxrnn[plot]"')
        except Exception as error:
            self._miss_picture(f"no loss.png: {error}")

    def _miss_picture(self, line: str) -> None:
        if not self._missed_picture:
            self._missed_picture = True
            self.note(line)

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

    def __init__(self, prime: str | bytes) -> None:
        self._prime = prime

    def note(self, line: str) -> None: ...
    def begin(self, step: int, total: int) -> None: ...
    def steps(self, step: int, loss: float, grad_norm: float, val_loss: float | None) -> None: ...
    def end(self) -> None: ...
    def rewind(self, position: dict[str, Any]) -> None: ...

    def show(self, step: int, sample: bytes) -> None: ...

    def sample(self, step: int, params: charlm.Params) -> bytes:
        return self._sampled(params)

    def position(self) -> dict[str, Any]:
        return {}


class NotWritten(OSError):
    """A file of the run cannot be written; the message says which and why."""


def _append(path: Path, raw: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(raw)
    except OSError as error:
        raise NotWritten(
            f"could not save to {path}: {error.strerror}; the checkpoints before it are intact"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without damaged ones."""
    return _metrics(path)[0]


def _metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a metrics.jsonl that are as they were written, and how many are not."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    good = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if line.endswith(b"\n") and _is_metric(found):
                good.append(found)
    return good, len(lines) - len(good)


def _is_metric(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    step, losses = line.get("step"), [line.get("loss"), line.get("val_loss", 0.0)]
    return isinstance(step, int) and all(
        isinstance(loss, int | float) and math.isfinite(loss) for loss in losses
    )


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


def require_tensorboard() -> Any:
    """Return tensorboardX's SummaryWriter. Raises InputError where it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError('--tensorboard needs: pip install "jaxrnn[tensorboard]"') from None
    return SummaryWriter
