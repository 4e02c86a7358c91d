"""Trains for an hour and watches: memory must not grow, and nothing may be compiled again.

    python benchmarks/long_run.py                  # an hour; writes the JSON and the picture
    python benchmarks/long_run.py --minutes 1      # a look; writes nothing

The training is the command, in a process of its own, ended with SIGTERM. Its resident memory is read
from the kernel every few seconds (on a CPU the device's memory is the host's), the programs it compiles
from JAX's own log: by name, with the shapes and places of what each is given. One that is compiled for
the same twice is compiled again. Growth is the slope of a straight line through the second half of the
curve: what allocators and caches take in the beginning they take once.
"""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
import numpy as np
from matplotlib.figure import Figure

OUTPUT = measure.RESULTS / "long_run.json"
EVERY = 5.0  # seconds between two looks
STEPS = 10_000_000  # more than an hour has
PROGRAM = re.compile(r"Compiling (jit\(.*?\)) with global shapes and types (.*)")


def resident(process: int | str) -> dict[str, int]:
    """Bytes of RAM of a process ("self" for this one): its own, and of files it has mapped."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", status))
    return {"own": 1024 * int(found["RssAnon"]), "files": 1024 * int(found["RssFile"])}


def watch(minutes: float, flags: list[str], place: Path) -> dict[str, Any]:
    """Train for so long: seconds and bytes at every look, and when each program was compiled."""
    log, run = place / "log", place / "run"
    command = [sys.executable, "-m", "jaxrnn.train", "--workdir", str(run), f"--steps={STEPS}"]
    with (
        log.open("w", encoding="utf-8") as errors,
        (place / "out").open("w", encoding="utf-8") as out,
    ):
        process = subprocess.Popen(
            [*command, *flags],
            env=os.environ | {"JAX_LOG_COMPILES": "1"},
            stdout=out,
            stderr=errors,
        )
        begin, looks = time.monotonic(), []
        compiled: list[tuple[float, str, str]] = []
        while (passed := time.monotonic() - begin) < 60 * minutes and process.poll() is None:
            time.sleep(EVERY)
            programs = PROGRAM.findall(log.read_text(encoding="utf-8"))
            compiled += [(passed, *program) for program in programs[len(compiled) :]]
            if process.poll() is None:
                looks.append([passed, *resident(process.pid).values()])
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=300)
    if status != 128 + signal.SIGTERM:
        sys.exit(
            f"error: the training ended with status {status}: {log.read_text(encoding='utf-8')[-500:]}"
        )
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    kinds = collections.Counter(tuple(program) for _, *program in compiled)
    again = sorted(name for (name, _), times in kinds.items() if times > 1)
    return {
        "looks": looks,
        "compiled": [program[:2] for program in compiled],
        "compiled again": again,
        "lines of metrics": lines,
        "flags": flags,
    }


def growth(looks: list[list[float]]) -> float:
    """Bytes an hour, by a straight line through the second half of the curve."""
    late = np.array(looks[len(looks) // 2 :])
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 3600)


def draw(record: dict[str, Any], path: Path) -> None:
    looks = np.array(record["looks"])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(looks[:, 0] / 60, looks[:, 1] / 2**20, color="#4a90c2")
    axes.plot(
        [passed / 60 for passed, _ in record["compiled"]],
        [0] * len(record["compiled"]),
        "|",
        color="#d95f02",
    )
    axes.annotate("programs compiled", (0, 0), (8, 8), textcoords="offset points", color="#d95f02")
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = measure.Parser(description="train for an hour and watch")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("flags", nargs="*", help="of the training, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = watch(given.minutes, given.flags, Path(place))
    record = {"benchmark": "long_run", **measure.surroundings(["orbax-checkpoint"]), **found}
    record |= {"bytes an hour": growth(found["looks"])}
    print(
        f"{len(found['looks'])} looks; {found['looks'][-1][1] / 2**20:.0f} MiB at the end, "
        f"{record['bytes an hour'] / 2**20:+.1f} MiB an hour; {len(found['compiled'])} programs "
        f"compiled, again: {', '.join(found['compiled again']) or 'none'}"
    )
    if given.minutes >= 60:
        measure.write(record, OUTPUT)
        draw(record, OUTPUT.with_suffix(".png"))


if __name__ == "__main__":
    main()
