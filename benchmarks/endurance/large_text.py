"""Text larger than memory: what preparing it and training on it take, in memory and in time.

    nice python benchmarks/input_pipeline.py            # 4 GB; needs 12 GB of disk for a while
    python benchmarks/input_pipeline.py --quick         # 4 MB, nothing written

A text is made up (from a seed; a quarter of its parts with letters beyond ASCII, its last character
one that no other place has, so that the vocabulary has to be sorted at the end). `python -m
jaxrnn.prepare` and `python -m jaxrnn.train` run on it as processes of their own, and again on its first
megabyte: what they take more for the large one is what the large one costs. Resident memory is what
Linux says of the process, several times a second: RssAnon is its own, RssFile the pages of files that it
has mapped, which the system can take back at any time; VmHWM is the kernel's own peak of both.

Then the windows that a step reads are made without a model, as `training.fit` makes them, with the
file in the system's cache (warm) and out of it (cold), and over a whole pass of the text.
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

from benchmarks import measure
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrnn.data import token_files
from jaxrnn.train import PRESETS
from jaxrnn.training.feed import device_corpus

SMALL = 1_000_000  # bytes of the text that the large one is held against
SAMPLE = 0.05  # seconds between two looks at a process's memory
CONFIG = PRESETS["small"].training  # the smallest step, which the input must not hold up
MEMORY = ("VmHWM", "RssAnon", "RssFile")
ORDERS = {"streams": [], "shuffled": ["--shuffle"]}
QUICK = ["--hidden-size", "16", "--embedding-size", "8"]
ENDLESS = ["--steps", "1000000", "--eval-every", "1000000", "--sample-every", "0"]


# --- the text ---


def write_text(path: Path, size: int) -> None:
    """A text of so many bytes: words of four sorts of letters, in pieces of 1 MB that come again."""
    rng = np.random.default_rng(0)
    plain = "abcdefghijklmnopqrstuvwxyzETAOIN"
    pieces = [_piece(rng, plain if n % 4 else plain + "äöüßéèçñαβγδ") for n in range(32)]
    end = " ¡\n".encode()
    with path.open("wb") as file:
        for number in range(-(-size // 1_000_000)):
            head = f"\n{number:08d}\n\n".encode()  # no two pieces alike
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


def memory_of(process: int | str) -> dict[str, int]:
    """Bytes of RssAnon, RssFile and their peak together, VmHWM; none of a process that is over."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    sizes = {
        line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "Vm"))
    }
    return {name: int(sizes[name]) << 10 for name in MEMORY if name in sizes}


def watched(
    arguments: list[str], folder: Path, over: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command of jaxrnn to its end, or until `over`: seconds, and the most memory, in bytes."""
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root)}
    most: dict[str, int] = {}
    began = time.perf_counter()
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, env=env, stdout=log, stderr=log
        )
        told = False
        while process.poll() is None:
            for name, size in memory_of(process.pid).items():
                most[name] = max(most.get(name, 0), size)
            if not told and over():
                process.send_signal(signal.SIGTERM)  # it saves and stops
                told = True
            time.sleep(SAMPLE)
    if process.returncode != (128 + signal.SIGTERM if told else 0):
        sys.exit(
            f"error: {' '.join(arguments)} failed: {(folder / 'log').read_text(encoding='utf-8')[-500:]}"
        )
    return {"seconds": time.perf_counter() - began, **most}


def prepared(folder: Path, name: str) -> dict[str, Any]:
    """What preparing a text takes, from the start of Python on."""
    data = folder / f"{name}.txt"
    taken = watched(["jaxrnn.prepare", "--data", data.name, "--output", name], folder)
    meta = token_files.read_meta(folder / name)
    return {"bytes": data.stat().st_size, "tokens": meta.count, "dtype": meta.dtype.name, **taken}


def trained(folder: Path, name: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """What so many steps of training take; seconds per step are raw, from one line of the log to the
    next, without the first, which compiles."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    metrics = run / "metrics.jsonl"

    def lines() -> list[str]:
        return metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []

    command = ["jaxrnn.train", "--data", name, "--workdir", run.name, *ENDLESS, *flags]
    taken = watched(command, folder, lambda: len(lines()) > steps // CONFIG.log_every)
    told = [json.loads(line)["seconds"] for line in lines()]
    return {**taken, "step_seconds": (np.diff(told) / CONFIG.log_every).tolist()}


# --- the windows alone ---


def windows_alone(folder: Path, shuffled: bool, repeats: int, steps: int) -> dict[str, Any]:
    """Seconds per step of making what the steps read, warm and cold; raw, a number per call's share."""
    corpus = token_files.load_corpus(folder / "big")
    config = dataclasses.replace(CONFIG, shuffle=shuffled)
    batches = config.batches(corpus)
    source = device_corpus(corpus.tokens)
    order, _ = measure.timed(lambda: batches.starts(0))  # shuffled, it makes the order of the pass

    def plan(step: int) -> np.ndarray:
        starts = np.stack([batches.starts(n) for n in range(step, step + config.log_every)])
        return source.windows(starts, config.seq_len)

    record: dict[str, Any] = {"first_starts": order, "per_epoch": batches.per_epoch}
    calls = max(1, min(steps, batches.per_epoch - config.log_every) // config.log_every)
    for state in ("warm", "cold"):
        seconds = []
        for turn in range(repeats):
            begin = turn * calls if shuffled else 0  # shuffled, always to other places
            if state == "cold":
                _out_of_cache(folder / "big" / token_files.TOKENS)
            for call in range(calls):
                step = (begin + call) * config.log_every % batches.per_epoch
                plan(step) if state == "warm" else None
                seconds.append(measure.timed(lambda step=step: plan(step))[0] / config.log_every)
        record[state] = seconds
    return record


def whole_pass(folder: Path) -> dict[str, Any]:
    """All windows of a pass over the text, and the most memory that the process had more than before."""
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
    """What the large text costs."""
    table = Table(title="text larger than memory")
    for heading in ("what", "1 MB", f"{record['bytes'] / 1e9:g} GB", "difference"):
        table.add_column(heading, justify="left" if heading == "what" else "right")

    def row(what: str, pair: dict[str, dict[str, Any]], name: str) -> None:
        small, big = (pair[size][name] / 1e6 for size in ("small", "big"))
        table.add_row(what, f"{small:,.0f}", f"{big:,.0f}", f"{big - small:+,.0f}")

    for name in MEMORY:
        row(f"prepare, {name}, MB", record["prepare"], name)
    for order, pair in record["train"].items():
        for name in MEMORY:
            row(f"train {order}, {name}, MB", pair, name)
    console.print(table)
    big = record["prepare"]["big"]
    console.print(f"prepared at {big['bytes'] / big['seconds'] / 1e6:,.0f} MB/s")
    for order, alone in record["windows"].items():
        step = statistics.median(record["train"][order]["big"]["step_seconds"])
        for state in ("warm", "cold"):
            made = statistics.mean(alone[state])
            console.print(
                f"{order}, {state}: windows {1e6 * made:,.0f} us of a step of {1e3 * step:,.1f} ms, "
                f"{made / step:.2%}"
            )
    done = record["pass"]
    console.print(
        f"a pass of {done['steps']:,} steps' windows: {done['seconds']:,.0f} s, "
        f"RssAnon {done['RssAnon'] / 1e6:+,.1f} MB, RssFile {done['RssFile'] / 1e6:+,.1f} MB"
    )


def main() -> None:
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
    parser = measure.Parser(description="text larger than memory: what it takes")
    say = parser.add_argument
    say("--gigabytes", type=float, help="of the text (4; quick 0.004)")
    say("--steps", type=measure.positive, help="of each training (300; quick 20)")
    say("--repeats", type=measure.positive, default=5, help="turns of the windows alone (5)")
    say("--quick", action="store_true", help="a few MB, nothing written")
    say("--folder", type=Path, help="where the text is made; without it the system's")
    say("--output", type=Path, metavar="FILE", help="of the JSON")
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
