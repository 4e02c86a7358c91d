"""Fault injection: break a training again and again; it must end as an undisturbed run does.

    python -m benchmarks.endurance.faults                           # 200 kills at random moments
    python -m benchmarks.endurance.faults --faults 40 --kinds all   # every kind of fault in turn

The train command runs in a separate process and is restarted after each fault until it is done. If a run
is done before all faults were tried, another run follows. The losses, the samples and the digests of all
arrays of each run are compared with those of an undisturbed run. The kinds of faults:

    kill       SIGKILL, while it starts or trains
    term       SIGTERM: it must save, report that, and exit with status 143
    truncate   a file of its newest checkpoint is truncated while it is stopped
    readonly   it suddenly has no permission to write to its run directory
    full       its disk is suddenly full
    vanish     its run directory disappears, and comes back later

The fault "full" needs a separate disk, which only root can mount. Root ignores permissions ("readonly")
unless setpriv takes that right away. Faults that are not possible here are left out.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import measure

KINDS = ("kill", "term", "truncate", "readonly", "full", "vanish")
# Runs a command as root without root's right to write anywhere.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
OUTPUT = measure.RESULTS / "chaos.json"
TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n}\n" for n in range(80))
FLAGS = (
    "--cell gru --hidden-size 6 --embedding-size 4 --dropout 0.2 --dtype float32 --batch 4 "
    "--seq-len 8 --warmup 5 --log-every 2 --eval-every 8 --sample-every 40"
)
# The most seconds that a training runs undisturbed.
LIFE = 1.2
# Seconds after which a process counts as stuck.
PATIENCE = 1200
# Fields of a line of metrics.jsonl that differ from run to run.
TIMES = ("chars_per_second", "seconds", "training_seconds")


class FaultError(Exception):
    """The training did not survive a fault as it should; the message says how."""


class Training:
    """A training that is started, disturbed and restarted in its own run directory.

    Args:
      place: a folder for the text, the run directory and JAX's compilation cache.
      steps: number of steps of the whole training.
      name: name of the run directory in that folder.
    """

    def __init__(self, place: Path, steps: int, name: str) -> None:
        (place / "text.txt").write_text(TEXT, encoding="utf-8")
        self.run, self._place = place / name, place
        data = ["--data", str(place / "text.txt"), "--workdir", str(self.run)]
        self._command = [sys.executable, "-m", "jaxrnn.train", *data, f"--steps={steps}"]
        self._command += FLAGS.split()
        if os.geteuid() == 0 and shutil.which("setpriv"):
            self._command = [*UNPRIVILEGED, *self._command]
        self.process: subprocess.Popen[str] | None = None

    @property
    def metrics(self) -> Path:
        """The file metrics.jsonl."""
        return self.run / "metrics.jsonl"

    def start(self, wait: bool = True) -> bool:
        """Start, and with `wait` wait until it trains. Returns whether it still runs."""
        before = self._size()
        keep = {"JAX_COMPILATION_CACHE_DIR": str(self._place / "cache")}
        keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            self._command,
            env=measure.child_environment(JAX_PLATFORMS="cpu", **keep),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + PATIENCE
        while wait and self._size() == before and self.process.poll() is None:
            if time.monotonic() > end:
                raise FaultError("the training did not start")
            time.sleep(0.002)
            # The file is cut back when the training resumes.
            before = min(before, self._size())
        return self.process.poll() is None

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Send a signal, or none, and wait for the end; return (status, output, errors)."""
        if self.process is None:
            raise ValueError("the training was never started")
        if number is not None:
            self.process.send_signal(number)
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise FaultError(f"the training did not end within {PATIENCE} s") from None
        return self.process.returncode, out, err

    def outcome(self) -> dict[str, Any]:
        """Return all that must not depend on faults: losses, samples, digests of the last state."""
        lines = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        losses = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        newest = max(int(path.name) for path in (self.run / "checkpoints").iterdir())
        notes = self.run / "checkpoints" / str(newest) / "notes" / "metadata"
        samples = (self.run / "samples.txt").read_text(encoding="utf-8")
        return {
            "losses": losses,
            "samples": samples,
            "digest": json.loads(notes.read_text(encoding="utf-8"))["digest"],
        }

    def _size(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0


class FaultInjector:
    """Disturbs one training after the other by faults of some kinds.

    Args:
      place: a folder to work in.
      kinds: names in KINDS; each round tries all of them in random order.
      steps: number of steps of each training.
      seed: random seed for the order and the moments of the faults.
    """

    def __init__(self, place: Path, kinds: tuple[str, ...], steps: int, seed: int) -> None:
        self._place, self._kinds, self._steps = place, kinds, steps
        self._chance = random.Random(seed)
        # The kinds that this round has still to try.
        self._round: list[str] = []
        self.tried: collections.Counter[str] = collections.Counter()
        self.runs = 0

    def run(self, faults: int, report: Callable[[str], None] = lambda line: None) -> None:
        """Inject this many faults into running trainings, and finish every run.

        Args:
          faults: number of faults that hit a running training.
          report: called with a line of progress after each fault.

        Raises:
          FaultError: if a run did not end as the undisturbed one, or did not report what it must.
        """
        undisturbed = Training(self._place, self._steps, "undisturbed")
        undisturbed.start(wait=False)
        _done(undisturbed)
        wanted = undisturbed.outcome()
        while self.tried.total() < faults:
            training = Training(self._place, self._steps, f"run{self.runs}")
            self.runs += 1
            with _own_disk(training.run, "full" in self._kinds):
                while self.tried.total() < faults and self._disturb(training):
                    report(f"{self.tried.total()} faults, run {self.runs}")
                training.start(wait=False)
                _done(training)
                found = training.outcome()
                for part in wanted:
                    if found[part] != wanted[part]:
                        raise FaultError(
                            f"run {self.runs} has other {part} than the undisturbed run"
                        )
                shutil.rmtree(training.run / "checkpoints")

    def _disturb(self, training: Training) -> bool:
        """Run the training until a fault ends it. Returns whether the fault hit it while it ran."""
        if not self._round:
            self._round = self._chance.sample(self._kinds, len(self._kinds))
        kind = self._round[-1]
        early = kind == "kill" and self._chance.random() < 0.2
        alive = training.start(wait=not early)
        time.sleep(self._chance.uniform(0, 2.5 * LIFE if early else LIFE))
        assert training.process is not None
        if not alive or training.process.poll() is not None:
            training.end()
            return False
        getattr(self, f"_{kind}")(training)
        self.tried[self._round.pop()] += 1
        return True

    def _kill(self, training: Training) -> None:
        training.end(signal.SIGKILL)

    def _term(self, training: Training) -> None:
        status, out, err = training.end(signal.SIGTERM)
        last = out.splitlines()[-1]
        if not last.startswith("done.") and (
            status != 143 or not last.startswith("stopped and saved")
        ):
            raise FaultError(f"SIGTERM ended with status {status} and {last!r} {err!r}")

    def _truncate(self, training: Training) -> None:
        training.end(signal.SIGKILL)
        saved = [path for path in (training.run / "checkpoints").glob("*") if path.name.isdecimal()]
        if len(saved) < 2:
            # Without its only checkpoint the run would rightly start over.
            return
        newest = max(saved, key=lambda path: int(path.name))
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        with self._chance.choice(files).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.truncate(self._chance.randrange(size) if size else 0)

    def _readonly(self, training: Training) -> None:
        folders = [training.run, *(path for path in training.run.rglob("*") if path.is_dir())]
        files = [training.metrics, training.run / "samples.txt"]
        try:
            for path in [*folders, *filter(Path.exists, files)]:
                path.chmod(path.stat().st_mode & ~0o222)
            _failed_in_one_line(training)
        finally:
            for path in [*folders, *files]:
                if path.exists():
                    path.chmod(path.stat().st_mode | 0o200)

    def _full(self, training: Training) -> None:
        filler = training.run / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            _failed_in_one_line(training)
        finally:
            filler.unlink()

    def _vanish(self, training: Training) -> None:
        aside = training.run.with_suffix(".aside")
        if os.path.ismount(training.run):
            # A mounted disk cannot be renamed, so its content is moved.
            inside = [path for path in training.run.iterdir()]
            aside.mkdir()
            for path in inside:
                shutil.move(path, aside / path.name)
            _failed_in_one_line(training)
            for path in list(training.run.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in list(aside.iterdir()):
                shutil.move(path, training.run / path.name)
            aside.rmdir()
            return
        training.run.rename(aside)
        _failed_in_one_line(training)
        shutil.rmtree(training.run, ignore_errors=True)
        aside.rename(training.run)


def _done(training: Training) -> None:
    status, out, err = training.end()
    if status or err or not out.splitlines()[-1].startswith("done. "):
        raise FaultError(f"the training ended with status {status}: {err or out}")


def _failed_in_one_line(training: Training) -> None:
    """Check that the training reported in one line that it could not save, or was done before."""
    status, out, err = training.end()
    if status == 0 and out.splitlines()[-1].startswith("done. "):
        return
    lines = err.splitlines()
    if status != 1 or len(lines) != 1 or not lines[0].startswith("error: could not save to "):
        raise FaultError(f"it ended with status {status} and said {err!r}")


@contextmanager
def _own_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """Mount a small disk at the folder, if wanted."""
    if not wanted:
        yield
        return
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=8m", "none", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def possible() -> tuple[str, ...]:
    """Return the kinds of faults that this user can inject here."""
    missing = set()
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        missing.add("readonly")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _own_disk(Path(folder) / "disk", True):
                pass
        except (OSError, subprocess.CalledProcessError):
            missing.add("full")
    return tuple(kind for kind in KINDS if kind not in missing)


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Inject faults into a training again and again.")
    add = parser.add_argument
    add("--faults", type=measure.positive, default=200, help="number of faults (200)")
    add("--kinds", nargs="+", default=["kill"], choices=[*KINDS, "all"], help="kinds (kill)")
    add("--steps", type=measure.positive, default=2000, help="steps of each training (2000)")
    add("--seed", type=int, default=0, help="random seed for the order and moments of faults (0)")
    add("--output", type=Path, metavar="FILE", help=f"JSON file to write ({OUTPUT.name})")
    flags = parser.parse_args()
    kinds = possible() if "all" in flags.kinds else tuple(flags.kinds)
    console, begin = measure.screen(), time.monotonic()
    with tempfile.TemporaryDirectory() as place, console.status("undisturbed") as line:
        injector = FaultInjector(Path(place), kinds, flags.steps, flags.seed)
        try:
            injector.run(flags.faults, line.update)
        except FaultError as failure:
            sys.exit(f"error: after {dict(injector.tried)}: {failure}")
    record = {"benchmark": "chaos", **measure.surroundings(["orbax-checkpoint"])}
    record |= {"tried": dict(injector.tried), "runs": injector.runs, "steps": flags.steps}
    record |= {"seed": flags.seed, "seconds": time.monotonic() - begin}
    measure.write(record, flags.output or OUTPUT)
    table = Table("fault", "tried")
    for kind in kinds:
        table.add_row(kind, str(injector.tried[kind]))
    console.print(table)
    console.print(
        f"{injector.runs} of {injector.runs} runs ended bit-identical to the undisturbed run"
    )


if __name__ == "__main__":
    main()
