"""Text larger than memory: the memory and time of preparing it and of training on it.

    nice python -m benchmarks.endurance.large_text            # 4 GB; needs 12 GB of disk meanwhile
    python -m benchmarks.endurance.large_text --quick         # 4 MB; writes no file

The text is generated from a seed. A quarter of its parts have letters beyond ASCII, and its last
character occurs nowhere else, so the vocabulary has to be sorted at the end. `python -m
jaxrnn.prepare` and `python -m jaxrnn.train` run on it in separate processes, and again on its first
megabyte. The difference is the cost of the large text. Resident memory is read several times a second
from Linux: RssAnon is memory of the process itself, RssFile are pages of mapped files, which the
system can take back at any time, and VmHWM is the kernel's own peak of both.

Then the windows that a step reads are made without a model, as `loop.fit` makes them, with the file in
the page cache (warm) and not in it (cold), and over a whole pass of the text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.endurance.process import FIELDS, memory_of
from jaxrnn.data import token_files
from jaxrnn.presets import PRESETS
from jaxrnn.training.feed import device_corpus

# Bytes of the text that the large one is compared with.
SMALL = 1_000_000
# Seconds between two readings of a process's memory.
INTERVAL = 0.05
# The preset with the shortest step, which reading must not delay.
CONFIG = PRESETS["small"].training
ORDERS = {"streams": [], "shuffled": ["--shuffle"]}
QUICK = ["--hidden-size", "16", "--embedding-size", "8"]
ENDLESS = ["--steps", "1000000", "--eval-every", "1000000", "--sample-every", "0"]


# --- the text ---


def write_text(path: Path, size: int) -> None:
    """Write a text of this many bytes: random words, in pieces of 1 MB that are repeated."""
    rng = np.random.default_rng(0)
    plain = "abcdefghijklmnopqrstuvwxyzETAOIN"
    pieces = [_piece(rng, plain if n % 4 else plain + "äöüßéèçñαβγδ") for n in range(32)]
    end = " ¡\n".encode()
    with path.open("wb") as file:
        for number in range(-(-size // 1_000_000)):
            # The number makes every piece different.
            head = f"\n{number:08d}\n\n".encode()
            piece = head + pieces[rng.integers(len(pieces))][len(head) :]
            left = size - file.tell() - len(end)
            file.write(
                piece if left > len(piece) else piece[:left].decode(errors="ignore").encode()
            )
        file.write(end)


def _piece(rng: np.random.Generator, letters: str) -> bytes:
    words = ["".join(rng.choice(list(letters), n)) for n in rng.integers(2, 10, 3000)]
    text = " ".join(words[i] for i in rng.zipf(1.3, 250_000) % len(words))
    lines = [text[at : at + 80] for at in range(0, len(text), 80)]
    return "\n".join(lines).encode()[:1_000_000].decode(errors="ignore").encode().ljust(1_000_000)


# --- processes and their memory ---


def watched(
    arguments: list[str], folder: Path, over: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command of jaxrnn to its end, or until `over`; return seconds and peak memory in bytes."""
    env = measure.child_environment()
    most: dict[str, int] = {}
    began = time.perf_counter()
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, env=env, stdout=log, stderr=log
        )
        stopped = False
        while process.poll() is None:
            for name, size in memory_of(process.pid).items():
                most[name] = max(most.get(name, 0), size)
            if not stopped and over():
                # It saves and exits.
                process.send_signal(signal.SIGTERM)
                stopped = True
            time.sleep(INTERVAL)
    if process.returncode != (128 + signal.SIGTERM if stopped else 0):
        sys.exit(
            f"error: {' '.join(arguments)} failed: {(folder / 'log').read_text(encoding='utf-8')[-500:]}"
        )
    return {"seconds": time.perf_counter() - began, **most}


def prepared(folder: Path, name: str) -> dict[str, Any]:
    """Return time and memory of preparing a text, including the start of Python."""
    data = folder / f"{name}.txt"
    taken = watched(["jaxrnn.prepare", "--data", data.name, "--output", name], folder)
    meta = token_files.read_meta(folder / name)
    return {"bytes": data.stat().st_size, "tokens": meta.count, "dtype": meta.dtype.name, **taken}


def trained(folder: Path, name: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """Return time and memory of some training steps.

    "step_seconds" are raw seconds per step between two lines of metrics; the first line is left out,
    since it includes compilation.
    """
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    metrics = run / "metrics.jsonl"

    def lines() -> list[str]:
        return metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []

    command = ["jaxrnn.train", "--data", name, "--workdir", run.name, *ENDLESS, *flags]
    taken = watched(command, folder, lambda: len(lines()) > steps // CONFIG.log_every)
    logged = [json.loads(line)["seconds"] for line in lines()]
    return {**taken, "step_seconds": (np.diff(logged) / CONFIG.log_every).tolist()}


# --- the windows alone ---


def windows_alone(folder: Path, shuffled: bool, repeats: int, steps: int) -> dict[str, Any]:
    """Return the raw seconds per step of making the windows, warm and cold."""
    corpus = token_files.load_corpus(folder / "big")
    config = dataclasses.replace(CONFIG, shuffle=shuffled)
    batches = config.batches(corpus)
    source = device_corpus(corpus.tokens)
    # With --shuffle, this makes the order of the pass.
    order, _ = measure.timed(lambda: batches.starts(0))

    def plan(step: int) -> np.ndarray:
        starts = np.stack([batches.starts(n) for n in range(step, step + config.log_every)])
        return source.windows(starts, config.seq_len)

    record: dict[str, Any] = {"first_starts": order, "per_epoch": batches.per_epoch}
    calls = max(1, min(steps, batches.per_epoch - config.log_every) // config.log_every)
    for state in ("warm", "cold"):
        seconds = []
        for turn in range(repeats):
            # With --shuffle, each turn reads other places.
            begin = turn * calls if shuffled else 0
            if state == "cold":
                _out_of_cache(folder / "big" / token_files.TOKENS)
            for call in range(calls):
                step = (begin + call) * config.log_every % batches.per_epoch
                plan(step) if state == "warm" else None
                seconds.append(measure.timed(lambda step=step: plan(step))[0] / config.log_every)
        record[state] = seconds
    return record


def whole_pass(folder: Path) -> dict[str, Any]:
    """Make all windows of a pass over the text; return seconds and the growth of memory."""
    corpus = token_files.load_corpus(folder / "big")
    batches, source = CONFIG.batches(corpus), device_corpus(corpus.tokens)
    before, most = memory_of("self"), dict.fromkeys(("RssAnon", "RssFile"), 0)
    began = time.perf_counter()
    for step in range(0, batches.per_epoch, CONFIG.log_every):
        ahead = range(step, min(step + CONFIG.log_every, batches.per_epoch))
        source.windows(np.stack([batches.starts(n) for n in ahead]), CONFIG.seq_len)
        if step % 1000 == 0:
            most = {name: max(most[name], memory_of("self")[name] - before[name]) for name in most}
    seconds = time.perf_counter() - began
    return {"steps": batches.per_epoch, "seconds": seconds, **most}


def _out_of_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- the report ---


def show(record: dict[str, Any], console: Console) -> None:
    """Print the cost of the large text."""
    table = Table(title="text larger than memory")
    for heading in ("what", "1 MB", f"{record['bytes'] / 1e9:g} GB", "difference"):
        table.add_column(heading, justify="left" if heading == "what" else "right")

    def row(what: str, pair: dict[str, dict[str, Any]], name: str) -> None:
        small, big = (pair[size][name] / 1e6 for size in ("small", "big"))
        table.add_row(what, f"{small:,.0f}", f"{big:,.0f}", f"{big - small:+,.0f}")

    for name in FIELDS:
        row(f"prepare, {name}, MB", record["prepare"], name)
    for order, pair in record["train"].items():
        for name in FIELDS:
            row(f"train {order}, {name}, MB", pair, name)
    console.print(table)
    big = record["prepare"]["big"]
    console.print(f"prepared at {big['bytes'] / big['seconds'] / 1e6:,.0f} MB/s")
    for order, alone in record["windows"].items():
        step = statistics.median(record["train"][order]["big"]["step_seconds"])
        for state in ("warm", "cold"):
            made = statistics.mean(alone[state])
            console.print(
                f"{order}, {state}: {1e6 * made:,.0f} us for the windows of a step of "
                f"{1e3 * step:,.1f} ms, {made / step:.2%}"
            )
    done = record["pass"]
    console.print(
        f"windows of a pass of {done['steps']:,} steps: {done['seconds']:,.0f} s, "
        f"RssAnon {done['RssAnon'] / 1e6:+,.1f} MB, RssFile {done['RssFile'] / 1e6:+,.1f} MB"
    )


def main() -> None:
    """Run the command."""
    flags = _flags()
    console = measure.screen()
    size = int(flags.gigabytes * 1e9)
    folder = Path(tempfile.mkdtemp(prefix="input-pipeline-", dir=flags.folder))
    record = {"benchmark": "input_pipeline", **measure.surroundings(())}
    record |= {"bytes": size, "steps": flags.steps, "load": os.getloadavg()[0]}
    try:
        console.print(f"a text of {size / 1e9:g} GB ...")
        write_text(folder / "big.txt", size)
        with (folder / "big.txt").open("rb") as file:
            (folder / "small.txt").write_bytes(file.read(SMALL))
        console.print("preparing ...")
        record["prepare"] = {name: prepared(folder, name) for name in ("small", "big")}
        (folder / "big.txt").unlink()
        record["train"], record["windows"] = {}, {}
        more = QUICK if flags.quick else []
        for order, flag in list(ORDERS.items())[: 1 if flags.quick else 2]:
            console.print(f"training, {order} ...")
            record["train"][order] = {
                name: trained(folder, name, flags.steps, [*flag, *more])
                for name in ("small", "big")
            }
            record["windows"][order] = windows_alone(
                folder, order == "shuffled", flags.repeats, flags.steps
            )
        console.print("a whole pass ...")
        record["pass"] = whole_pass(folder)
    finally:
        shutil.rmtree(folder)
    show(record, console)
    output = flags.output
    if output is None and not flags.quick:
        output = measure.RESULTS / "input_pipeline.json"
    if output:
        measure.write(record, output)
        console.print(f"written to {output}")


def _flags() -> Any:
    parser = measure.Parser(description="Measure memory and time of text larger than memory.")
    add = parser.add_argument
    add("--gigabytes", type=float, help="size of the text (4; with --quick 0.004)")
    add("--steps", type=measure.positive, help="steps of each training (300; with --quick 20)")
    add("--repeats", type=measure.positive, default=5, help="turns of the windows alone (5)")
    add("--quick", action="store_true", help="a few MB; writes no file")
    add("--folder", type=Path, help="folder for the text (default: the system's temporary folder)")
    add("--output", type=Path, metavar="FILE", help="JSON file to write")
    flags = parser.parse_args()
    flags.gigabytes = flags.gigabytes or (0.004 if flags.quick else 4.0)
    flags.steps = flags.steps or (20 if flags.quick else 300)
    if flags.gigabytes < 0.002:
        parser.error("--gigabytes must be at least 0.002")
    if not Path("/proc/self/status").exists():
        parser.error("this reads memory from /proc, which only Linux has")
    return flags


if __name__ == "__main__":
    main()
