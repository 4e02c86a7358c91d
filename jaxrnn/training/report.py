"""The report of a training run: progress, metrics.jsonl, samples.txt, loss.png, TensorBoard.

The files can be cut back to where a checkpoint was saved, so that a resumed run leaves the same lines as
an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from jaxrnn import charlm, console, progress
from jaxrnn.charlm import sampling
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.training.metrics import (
    METRICS,
    PICTURE,
    Curve,
    Metric,
    bits,
    check_metrics,
)

# Length in tokens of the samples that are written while training.
SAMPLE_LENGTH = 300
SAMPLES, BOARD = "samples.txt", "tensorboard"


@runtime_checkable
class Reporter(Protocol):
    """The methods that `fit` calls to report on a run."""

    def note(self, line: str) -> None:
        """Show a line of its own."""

    def begin(self, step: int, total: int) -> None:
        """Begin, or begin again, at `step` of `total`."""

    def steps(
        self, step: int, loss: float, grad_norm: float, val_loss: float | None, seconds: float
    ) -> None:
        """Report a device call.

        Args:
          step: the number of steps taken.
          loss: mean loss of the steps since the last call, in nats per character.
          grad_norm: mean gradient norm of these steps.
          val_loss: validation loss after them, if there was an evaluation.
          seconds: duration of the device call, without the evaluation.
        """

    def sample(self, step: int, params: charlm.Params) -> bytes:
        """Draw a sample from the model as it is now and keep it; return it for `show`."""

    def show(self, step: int, sample: bytes) -> None:
        """Show a sample on the screen."""

    def position(self) -> dict[str, Any]:
        """Return the position in the files, as JSON, for a checkpoint."""

    def rewind(self, position: dict[str, Any]) -> None:
        """Cut the files back to a position; {} stands for the very beginning."""

    def end(self) -> None:
        """End the report. Raises nothing, so that an error that ended the loop is not hidden."""


class NullReport:
    """The report of the processes that leave showing and writing to the primary process.

    Args:
      prime: the beginning of the samples, as in the primary process. If the model is divided over
        several processes, all of them must take part in drawing a sample.
    """

    def __init__(self, prime: str | bytes) -> None:
        self._prime = prime

    def note(self, line: str) -> None:
        """Show nothing."""

    def begin(self, step: int, total: int) -> None:
        """Show nothing."""

    def steps(
        self, step: int, loss: float, grad_norm: float, val_loss: float | None, seconds: float
    ) -> None:
        """Write nothing."""

    def sample(self, step: int, params: charlm.Params) -> bytes:
        """Take part in drawing a sample."""
        return _draw_sample(params, self._prime)

    def show(self, step: int, sample: bytes) -> None:
        """Show nothing."""

    def position(self) -> dict[str, Any]:
        """Return the position in no files."""
        return {}

    def rewind(self, position: dict[str, Any]) -> None:
        """Change nothing."""

    def end(self) -> None:
        """End."""


class Report:
    """The report of a run on the screen and in its run directory.

    Args:
      run: the run directory.
      characters: characters (or whatever the tokens are) per training step, for the speed.
      floor: the validation loss that no model can beat, if it is known; in nats per token.
      prime: the beginning of the samples.
      tensorboard: also write event files for TensorBoard into the run directory.
      quiet: show nothing on the screen.
      unit: what a token is, as `Vocabulary.unit` says it.
    """

    def __init__(
        self,
        run: Path,
        characters: int,
        floor: float | None = None,
        prime: str | bytes = "\n",
        tensorboard: bool = False,
        quiet: bool = False,
        unit: str = "character",
    ) -> None:
        self._metrics = run / METRICS
        self._samples = run / SAMPLES
        self._picture = run / PICTURE
        self._characters = characters
        self._floor = floor
        self._prime = prime
        self._unit = unit
        # Time that the run has taken so far, earlier processes included.
        self._seconds = 0.0
        self._training_seconds = 0.0
        self._clock = time.perf_counter()
        self._last_step = 0
        self._val_loss: float | None = None
        self._losses = Curve()
        self._val_losses = Curve()
        self._missed_picture = False
        self._display: progress.Display
        self._display = progress.Silent() if quiet else progress.show(progress.STEPS)
        if tensorboard:
            require_tensorboard()
        self._wants_board = tensorboard
        self._board_folder = run / BOARD
        # tensorboardX's SummaryWriter, an optional package.
        self._board: Any = None

    # --- called by `fit` ---

    def note(self, line: str) -> None:
        """Show a line of its own."""
        self._display.line(line)

    def begin(self, step: int, total: int) -> None:
        """Begin, or begin again, at `step` of `total`."""
        self._last_step = step
        if self._wants_board and self._board is None:
            # The writer makes the folder, so it waits until the run may write.
            self._board = require_tensorboard()(str(self._board_folder))
        self._clock = time.perf_counter()
        self._display.begin("compiling", step, total)

    def steps(
        self, step: int, loss: float, grad_norm: float, val_loss: float | None, seconds: float
    ) -> None:
        """Write a line of metrics.jsonl, as `Reporter.steps` describes, and show it."""
        now = time.perf_counter()
        passed = max(now - self._clock, 1e-9)
        self._clock = now
        self._seconds += passed
        speed = (step - self._last_step) * self._characters / passed
        self._last_step = step
        self._training_seconds += seconds
        metric = Metric(
            step,
            float(loss),
            val_loss,
            float(grad_norm),
            speed,
            self._seconds,
            self._training_seconds,
        )
        if val_loss is not None:
            self._val_loss = val_loss
        self._remember(metric.step, metric.loss, val_loss)
        _append(self._metrics, metric.as_line().encode())
        if self._board is not None:
            for name, value in metric._asdict().items():
                if value is not None and name not in ("step", "seconds", "training_seconds"):
                    self._board.add_scalar(name, value, step)
        self._display.reach(step, self._describe(metric), important=val_loss is not None)
        if val_loss is not None:
            self.draw()

    def sample(self, step: int, params: charlm.Params) -> bytes:
        """Draw a sample from the model as it is now, append it to samples.txt and return it."""
        raw = _draw_sample(params, self._prime)
        _append(self._samples, f"--- step {step} ---\n".encode() + raw + b"\n\n")
        return raw

    def show(self, step: int, sample: bytes) -> None:
        """Show a sample on the screen, with control characters escaped."""
        text = console.shown_lines(sample.decode(errors="replace"))
        self._display.block(f"a sample at step {step}", text)

    def end(self) -> None:
        """End the report. Raises nothing, so that an error that ended the loop is not hidden."""
        with contextlib.suppress(Exception):
            self.draw()
        self._display.end()
        if self._board is not None:
            self._board.close()

    # --- where a resumed run starts ---

    def position(self) -> dict[str, Any]:
        """Return the lengths of the files, for a checkpoint. The files are synced to the disk first."""
        files = {}
        for path in self._files():
            if path.exists():
                with path.open("rb") as file:
                    files[path.name] = file.seek(0, os.SEEK_END)
                    os.fsync(file.fileno())
        return {
            "files": files,
            "seconds": self._seconds,
            "training_seconds": self._training_seconds,
            "step": self._last_step,
        }

    def rewind(self, position: dict[str, Any]) -> None:
        """Cut the files back to a position; {} stands for the very beginning.

        A file may be shorter than it was, or end in the middle of a line, for example after a power cut:
        its good lines are kept, and a note says what is missing.
        """
        sizes = position.get("files", {})
        for path in self._files():
            size = sizes.get(path.name, 0)
            found = path.stat().st_size if path.exists() else 0
            if found > size:
                with path.open("r+b") as file:
                    file.truncate(size)
            if found < size:
                self.note(f"{path} has lost {size - found:,} bytes since the checkpoint was saved")
        metrics, damaged = check_metrics(self._metrics)
        if damaged:
            self.note(f"{self._metrics}: {damaged} damaged line{'s' * (damaged > 1)} dropped")
            atomic_write(self._metrics, "".join(json.dumps(line) + "\n" for line in metrics))
        self._losses = Curve()
        self._val_losses = Curve()
        for line in metrics:
            self._remember(line["step"], line["loss"], line.get("val_loss"))
        self._seconds = position.get("seconds", 0.0)
        self._training_seconds = position.get("training_seconds", 0.0)
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
        """Draw loss.png. If that fails, a note says so once, and the training continues."""
        if not self._losses.points:
            return
        try:
            from jaxrnn.training import pictures

            figure = pictures.draw_losses(
                self._losses.points, self._val_losses.points, self._floor, self._unit
            )
            figure.savefig(self._picture, dpi=pictures.DPI)
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
        unit = "tokens" if self._unit == "token" else "chars"
        return "  ".join([*parts, f"{metric.chars_per_second:,.0f} {unit}/s"])


def _draw_sample(params: charlm.Params, prime: str | bytes) -> bytes:
    """Return a sample of the model, text as UTF-8."""
    if params.vocabulary.by_bytes:
        return cast(bytes, sampling.sample_bytes(params, prime, SAMPLE_LENGTH))
    return str(sampling.sample(params, prime, SAMPLE_LENGTH)).encode(errors="replace")


def _both(nats: float) -> str:
    return f"{nats:.3f} nats ({bits(nats):.3f} bits)"


class NotWritten(OSError):
    """A file of the run cannot be written; the message says which and why."""


def _append(path: Path, raw: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(raw)
    except OSError as error:
        raise NotWritten(
            f"could not save to {path}: {error.strerror}; the earlier checkpoints are intact"
        ) from error


def require_tensorboard() -> Any:
    """Return tensorboardX's SummaryWriter. Raises InputError if it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError('`tensorboard` needs: pip install "jaxrnn[tensorboard]"') from None
    return SummaryWriter
