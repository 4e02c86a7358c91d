"""What the benchmarks share: where they ran, the turns in which contenders run, the files they write.

Contenders run in one process and in turns. A turn begins with a short pause, the same for all, since
the idle threads of PyTorch and XLA spin for some milliseconds after a call and would take the cores
from whoever comes next; then, where calls are short, with one that is not counted, since threads that
fell asleep in the pause take milliseconds to wake; and short calls repeat until the turn is long.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from rich.console import Console

from jaxrnn.console import open_streams

RESULTS = Path(__file__).parent / "results"
PAUSE = 0.02  # seconds before a turn
TURN = 0.05  # seconds that a turn lasts at least, by repeating calls that are shorter
WARM = 0.2  # seconds; a turn of shorter calls begins with one that is not counted


class Parser(argparse.ArgumentParser):
    """Bad input is one line and the exit status 2. What is printed after parsing suits any encoding."""

    def parse_args(self, *args: Any, **named: Any) -> Any:
        open_streams()
        return super().parse_args(*args, **named)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def screen(stderr: bool = False) -> Console:
    """Where tables are shown: as wide as the terminal, or in a file as they need."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def whole(text: str) -> int:
    """A flag's whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def sizes(letters: str) -> Callable[[str], tuple[int, ...]]:
    """A flag's size, as in "64,100,256,512" for letters "B,T,I,H"."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != len(letters.split(",")):
            raise argparse.ArgumentTypeError(f"must be {letters}, not {text!r}")
        return tuple(whole(part) for part in parts)

    return parse


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what it was measured; a package that is missing has the version null.

    runtime: of the device, as JAX names it: on NVIDIA's the version of CUDA.
    driver: what nvidia-smi says of the first card, null where there is none.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "runtime": " ".join(jax.devices()[0].client.platform_version.split()),
        "driver": _driver(),
        "cpu": (model or [platform.processor()])[0],
        "cores": cores(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("jaxrnn", "jax", "jaxlib", "numpy", *packages)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def place() -> str:
    """The device as part of a file's name: "cpu-2-cores", "nvidia-h200"."""
    device = jax.devices()[0]
    name = f"cpu {cores()} cores" if device.platform == "cpu" else device.device_kind
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, which waits for its device itself, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def in_turns(
    runs: dict[str, Callable[[], Any]], repeats: int, pause: float = PAUSE
) -> dict[str, dict[str, Any]]:
    """Raw seconds per call, one number a turn, every contender once in every round.

    Each round begins with another contender, so that none always follows the same one. Compiled and
    run once, they should be, before.
    """
    calls, uncounted = {}, {}
    for name, run in runs.items():
        time.sleep(pause)
        once = min(timed(run)[0] for _ in range(2))
        calls[name], uncounted[name] = math.ceil(TURN / once), once < WARM
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        at = turn % len(names) if names else 0
        for name in names[at:] + names[:at]:
            time.sleep(pause)
            if uncounted[name]:
                runs[name]()
            start = time.perf_counter()
            for _ in range(calls[name]):
                runs[name]()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: {"calls": calls[name], "seconds": seconds[name]} for name in runs}


def error(got: Any, want: Any) -> float:
    """The largest error of any array of a tree, in units of its array's largest entry.

    An array that `got` does not have, None where `want` has one, is passed over.
    """
    got, want = (jax.tree.leaves(tree, is_leaf=lambda x: x is None) for tree in (got, want))
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        if g is None:
            continue
        g, w = np.asarray(g).astype(np.float64), np.asarray(w).astype(np.float64)
        if g.shape != w.shape:
            raise ValueError(f"an array of shape {g.shape} where the reference has {w.shape}")
        off = np.abs(g - w).max(initial=0) / max(np.abs(w).max(initial=0), 1e-300)
        worst = max(worst, float(off) if np.isfinite(off) else math.inf)
    return worst


def told(failure: Exception) -> str:
    """A failure in a line."""
    return f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:200]}"


def write(record: dict[str, Any], output: Path) -> None:
    """One JSON file, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    text = re.sub(
        r"\[[^][{}\"]*\]", lambda list: " ".join(list[0].split()), json.dumps(record, indent=1)
    )
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(output)


def read(path: Path) -> dict[str, Any]:
    """A file that `write` wrote. Ends the program with one line where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        sys.exit(f"error: cannot read {path}: {problem}")


def _commit() -> str:
    """Of the sources; a copy without its repository is told which by JAXRNN_COMMIT."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        described = told.stdout.strip()
    except OSError:  # no git here
        described = ""
    return described or os.environ.get("JAXRNN_COMMIT", "")


def _driver() -> dict[str, str] | None:
    asked = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first = told.stdout.partition("\n")[0].split(", ")
    return dict(zip(asked, first, strict=False))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
