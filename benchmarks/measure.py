"""Timing, command-line flags and result files that all benchmarks share.

Contenders run in one process and in turns. A turn consists of

- a pause, the same for all contenders: idle threads of PyTorch and XLA spin for some milliseconds after
  a call and would take the cores from the next contender;
- if calls are short, one call that is not counted: threads that fell asleep during the pause take
  milliseconds to wake up;
- as many counted calls as fill a minimum time.
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
from jaxrnn.devices import accelerator
from jaxrnn.devices.storage import atomic_write

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Seconds of the pause before a turn.
PAUSE = 0.02
# Minimum seconds of a turn; shorter calls are repeated.
TURN = 0.05


class Parser(argparse.ArgumentParser):
    """Argument parser that reports bad input in one line and exits with status 2."""

    def parse_args(self, *args: Any, **named: Any) -> Any:
        # From here on, whatever is printed suits the encoding of the terminal.
        open_streams()
        return super().parse_args(*args, **named)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def screen(stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or 160 columns wide if the output is a file."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def positive(text: str) -> int:
    """Parse the whole number of a flag, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def sizes(letters: str) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of sizes such as "64,100,256,512", for letters such as "B,T,I,H"."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != len(letters.split(",")):
            raise argparse.ArgumentTypeError(f"must be {letters}, not {text!r}")
        return tuple(positive(part) for part in parts)

    return parse


def child_environment(**variables: str) -> dict[str, str]:
    """Return this environment with more variables, and with the repository in PYTHONPATH."""
    folders = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, folders))
    return os.environ | {"PYTHONPATH": path} | variables


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Return the machine, versions, date and commit of a measurement.

    Args:
      packages: packages whose versions are recorded besides the usual ones.

    Returns:
      a dict for a JSON file. `versions` has null for a package that is missing, `runtime` is JAX's
      description of the device's runtime (CUDA's version on an NVIDIA GPU), and `driver` what nvidia-smi
      reports of the first GPU, null without one.
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
    """Return the device as part of a file name: "nvidia-h200", or "cpu-2-cores-avx512-bf16".

    The name of a CPU ends with the best of its instructions for matrix products.
    """
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        flags = accelerator.processor_flags()
        best = next((n for n in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if n in flags), "")
        name = f"cpu {cores()} cores {best.replace('amx_bf16', 'amx')}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of one call, which must wait for its device, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def in_turns(
    runs: dict[str, Callable[[], Any]], repeats: int, pause: float = PAUSE
) -> dict[str, dict[str, Any]]:
    """Time contenders in turns: in every round each has one turn.

    Each round begins with another contender. Each turn begins with a call that is not counted, after
    which the caches and the freed memory are the contender's own.

    Args:
      runs: a call for each contender, by name; it must be compiled and have run once.
      repeats: number of rounds.
      pause: seconds before each turn.

    Returns:
      for each contender "calls", the number of calls in a turn, and "seconds", the raw seconds per call
      of each turn.
    """
    calls = {}
    for name, run in runs.items():
        time.sleep(pause)
        once = min(timed(run)[0] for _ in range(2))
        calls[name] = math.ceil(TURN / once)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        at = turn % len(names) if names else 0
        for name in names[at:] + names[:at]:
            time.sleep(pause)
            runs[name]()
            start = time.perf_counter()
            for _ in range(calls[name]):
                runs[name]()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: {"calls": calls[name], "seconds": seconds[name]} for name in runs}


def error(got: Any, want: Any) -> float:
    """Return the largest error of any array of a tree, in units of its array's largest entry.

    Arrays that are None in `got` are skipped.

    Raises:
      ValueError: if an array has another shape than the reference.
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


def one_line(failure: BaseException) -> str:
    """Return a failure's type and the first line of its message."""
    return f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:200]}"


def write(record: dict[str, Any], output: Path) -> None:
    """Write a JSON file atomically, with each list of numbers on one line."""
    output.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(
        r"\[[^][{}\"]*\]", lambda list: " ".join(list[0].split()), json.dumps(record, indent=1)
    )
    atomic_write(output, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a file that `write` wrote, or end the program with a line that says why it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        sys.exit(f"error: cannot read {path}: {problem}")


def _commit() -> str:
    """Return the commit of the sources; without a repository, that of the variable JAXRNN_COMMIT."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        described = git.stdout.strip()
    except OSError:
        # Git is not installed.
        described = ""
    return described or os.environ.get("JAXRNN_COMMIT", "")


def _driver() -> dict[str, str] | None:
    """Return name, driver, memory, clock and power limit of the first GPU; None without nvidia-smi."""
    asked = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first = found.stdout.partition("\n")[0].split(", ")
    return dict(zip(asked, first, strict=False))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
