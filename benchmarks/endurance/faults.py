"""Breaks a training in many ways, again and again; what it ends with must be the undisturbed run's.

    python benchmarks/chaos.py                          # 200 kills at random moments; writes the JSON
    python benchmarks/chaos.py --faults 40 --kinds all  # every kind in turn

The training is the command, in a process of its own, started again after each fault until it is done;
a run that is done before the faults are all tried is followed by another. Each run is held against one
that nobody disturbed: its losses, its samples, and the digests of all its arrays. The kinds:

    kill       SIGKILL, while it starts or trains
    term       SIGTERM: it saves, says so, and leaves with 143
    truncate   a file of its newest checkpoint is cut short while it is down
    readonly   it may not write to its folder any more, from one moment to the next
    full       its disk has no room left, from one moment to the next
    vanish     its folder is gone, and comes back later

A disk of its own (full) needs root, and root is not held back by permissions (readonly) unless setpriv
takes that right away; what is not possible is left out.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import measure
from rich.table import Table

KINDS = ("kill", "term", "truncate", "readonly", "full", "vanish")
# root's right to write anywhere, taken from what is run by these words
HELD_BACK = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
OUTPUT = measure.RESULTS / "chaos.json"
TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n}\n" for n in range(80))
FLAGS = (
    "--cell gru --hidden-size 6 --embedding-size 4 --dropout 0.2 --dtype float32 --batch 4 --seq-len 8 --warmup 5 "
    "--log-every 2 --eval-every 8 --sample-every 40"
)
LIFE = 1.2  # seconds that a training is left alone, at most
PATIENCE = 1200  # seconds until a process counts as stuck
TIMES = ("chars_per_second", "seconds")  # of a line of metrics.jsonl; they differ from run to run


class Broken(Exception):
    """The training did not do what it promises; the message says what."""


class Victim:
    """A training that is started, hurt and started again in a folder of its own.

    Args:
      place: a folder for the text, the run and the programs that JAX keeps.
      steps: of the whole training.
      name: of the run's folder in there.
    """

    def __init__(self, place: Path, steps: int, name: str) -> None:
        (place / "text.txt").write_text(TEXT, encoding="utf-8")
        self.run, self._place = place / name, place
        data = ["--data", str(place / "text.txt"), "--workdir", str(self.run)]
        self._command = [sys.executable, "-m", "jaxrnn.train", *data, f"--steps={steps}"]
        self._command += FLAGS.split()
        if os.geteuid() == 0 and shutil.which("setpriv"):
            self._command = [*HELD_BACK, *self._command]
        self.process: subprocess.Popen[str] | None = None

    @property
    def metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    def start(self, wait: bool = True) -> bool:
        """Start; unless told not to, wait until it trains. Whether it still runs."""
        before = self._size()
        keep = {"JAX_COMPILATION_CACHE_DIR": str(self._place / "cache")}
        keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            self._command,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | keep,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + PATIENCE
        while wait and self._size() == before and self.process.poll() is None:
            if time.monotonic() > end:
                raise Broken("it did not start to train")
            time.sleep(0.002)
            before = min(before, self._size())  # cut back when it resumes
        return self.process.poll() is None

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Send a signal, or none, and wait for the end: (status, output, errors)."""
        if self.process is None:
            raise ValueError("it was never started")
        if number is not None:
            self.process.send_signal(number)
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Broken(f"it did not end within {PATIENCE} s") from None
        return self.process.returncode, out, err

    def outcome(self) -> dict[str, Any]:
        """All that must not depend on what happened: losses, samples, digests of the last state."""
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


class Chaos:
    """Faults of some kinds against one training after the other.

    Args:
      place: a folder to work in.
      kinds: of KINDS, in rounds of all of them, each in random order.
      steps: of each training.
      seed: of the order and the moments.
    """

    def __init__(self, place: Path, kinds: tuple[str, ...], steps: int, seed: int) -> None:
        self._place, self._kinds, self._steps = place, kinds, steps
        self._chance = random.Random(seed)
        self._round: list[str] = []  # the kinds that this round has still to try
        self.tried: collections.Counter[str] = collections.Counter()
        self.runs = 0

    def go(self, faults: int, told: Any = lambda line: None) -> None:
        """Try so many faults that met a running training, and end every run that was begun.

        Raises:
          Broken: where a run did not end as the undisturbed one, or did not say what it must.
        """
        undisturbed = Victim(self._place, self._steps, "undisturbed")
        undisturbed.start(wait=False)
        _done(undisturbed)
        wanted = undisturbed.outcome()
        while self.tried.total() < faults:
            victim = Victim(self._place, self._steps, f"run{self.runs}")
            self.runs += 1
            with _own_disk(victim.run, "full" in self._kinds):
                while self.tried.total() < faults and self._hurt(victim):
                    told(f"{self.tried.total()} faults, run {self.runs}")
                victim.start(wait=False)
                _done(victim)
                found = victim.outcome()
                for part in wanted:
                    if found[part] != wanted[part]:
                        raise Broken(f"run {self.runs} has other {part} than the undisturbed one")
                shutil.rmtree(victim.run / "checkpoints")

    def _hurt(self, victim: Victim) -> bool:
        """One life of the training and what ends it. Whether the fault met it alive."""
        if not self._round:
            self._round = self._chance.sample(self._kinds, len(self._kinds))
        kind = self._round[-1]
        early = kind == "kill" and self._chance.random() < 0.2
        alive = victim.start(wait=not early)
        time.sleep(self._chance.uniform(0, 2.5 * LIFE if early else LIFE))
        assert victim.process is not None
        if not alive or victim.process.poll() is not None:
            victim.end()
            return False
        getattr(self, f"_{kind}")(victim)
        self.tried[self._round.pop()] += 1
        return True

    def _kill(self, victim: Victim) -> None:
        victim.end(signal.SIGKILL)

    def _term(self, victim: Victim) -> None:
        status, out, err = victim.end(signal.SIGTERM)
        last = out.splitlines()[-1]
        if not last.startswith("done.") and (
            status != 143 or not last.startswith("stopped and saved")
        ):
            raise Broken(f"SIGTERM ended with status {status} and {last!r} {err!r}")

    def _truncate(self, victim: Victim) -> None:
        victim.end(signal.SIGKILL)
        saved = [path for path in (victim.run / "checkpoints").glob("*") if path.name.isdecimal()]
        if len(saved) < 2:
            return  # the only one; without it the run would begin again, as it should
        newest = max(saved, key=lambda path: int(path.name))
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        with self._chance.choice(files).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.truncate(self._chance.randrange(size) if size else 0)

    def _readonly(self, victim: Victim) -> None:
        folders = [victim.run, *(path for path in victim.run.rglob("*") if path.is_dir())]
        files = [victim.metrics, victim.run / "samples.txt"]
        try:
            for path in [*folders, *filter(Path.exists, files)]:
                path.chmod(path.stat().st_mode & ~0o222)
            _failed_in_one_line(victim)
        finally:
            for path in [*folders, *files]:
                if path.exists():
                    path.chmod(path.stat().st_mode | 0o200)

    def _full(self, victim: Victim) -> None:
        filler = victim.run / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            _failed_in_one_line(victim)
        finally:
            filler.unlink()

    def _vanish(self, victim: Victim) -> None:
        aside = victim.run.with_suffix(".aside")
        if os.path.ismount(victim.run):  # the disk is another's now; move what is on it
            inside = [path for path in victim.run.iterdir()]
            aside.mkdir()
            for path in inside:
                shutil.move(path, aside / path.name)
            _failed_in_one_line(victim)
            for path in list(victim.run.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in list(aside.iterdir()):
                shutil.move(path, victim.run / path.name)
            aside.rmdir()
            return
        victim.run.rename(aside)
        _failed_in_one_line(victim)
        shutil.rmtree(victim.run, ignore_errors=True)
        aside.rename(victim.run)


def _done(victim: Victim) -> None:
    status, out, err = victim.end()
    if status or err or not out.splitlines()[-1].startswith("done. "):
        raise Broken(f"the training ended with status {status}: {err or out}")


def _failed_in_one_line(victim: Victim) -> None:
    """It must see by itself that it cannot save, and say so; or it was done before."""
    status, out, err = victim.end()
    if status == 0 and out.splitlines()[-1].startswith("done. "):
        return
    lines = err.splitlines()
    if status != 1 or len(lines) != 1 or not lines[0].startswith("error: could not save to "):
        raise Broken(f"it ended with status {status} and said {err!r}")


@contextmanager
def _own_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """A small disk of its own at the folder, if wanted."""
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
    """The kinds that this user can try here."""
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
    parser = measure.Parser(description="break a training again and again")
    parser.add_argument("--faults", type=measure.positive, default=200)
    parser.add_argument(
        "--kinds", nargs="+", default=["kill"], choices=[*KINDS, "all"], help="(default kill)"
    )
    parser.add_argument("--steps", type=measure.positive, default=2000, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help=f"of the JSON (default {OUTPUT.name})")
    flags = parser.parse_args()
    kinds = possible() if "all" in flags.kinds else tuple(flags.kinds)
    console, begin = measure.screen(), time.monotonic()
    with tempfile.TemporaryDirectory() as place, console.status("undisturbed") as line:
        chaos = Chaos(Path(place), kinds, flags.steps, flags.seed)
        try:
            chaos.go(flags.faults, line.update)
        except Broken as broken:
            sys.exit(f"error: after {dict(chaos.tried)}: {broken}")
    record = {"benchmark": "chaos", **measure.surroundings(["orbax-checkpoint"])}
    record |= {"tried": dict(chaos.tried), "runs": chaos.runs, "steps": flags.steps}
    record |= {"seed": flags.seed, "seconds": time.monotonic() - begin}
    measure.write(record, flags.output or OUTPUT)
    table = Table("fault", "tried")
    for kind in kinds:
        table.add_row(kind, str(chaos.tried[kind]))
    console.print(table)
    console.print(f"{chaos.runs} of {chaos.runs} runs ended as the undisturbed one, to the bit")


if __name__ == "__main__":
    main()
