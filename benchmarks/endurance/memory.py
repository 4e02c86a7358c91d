"""Memory of a long training, and memory that each save leaves behind.

    python -m benchmarks.endurance.memory training               # an hour; writes JSON and a picture
    python -m benchmarks.endurance.memory training --minutes 1   # a short run; writes no file
    python -m benchmarks.endurance.memory saves                  # some minutes; writes JSON

training: memory must not grow during an hour of training, and nothing may be compiled twice. The train
command runs in a separate process, which SIGTERM ends. Its resident memory is read from the kernel every
few seconds (on a CPU the device's memory is the host's), and its compiled programs from JAX's log, by
name and by the shapes and shardings of their arguments. Growth is the slope of a straight line through
the second half of the curve, since allocators and caches take memory once at the beginning.

saves: what a save leaves behind, for the state of the preset small, each way in a separate process: as
  orbax does it; without tensorstore's `experimental_collect_matching_metrics`, which orbax calls four
  times a save; and with `memory.limit_heap_growth` in addition, as the train command does. Memory is
  that of the process itself (RssAnon), and objects are those that Python's collector knows. Growth is
  the slope of a straight line through all but the first quarter.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.endurance.process import memory_of

TRAINING_OUTPUT = measure.RESULTS / "long_run.json"
SAVES_OUTPUT = measure.RESULTS / "save_growth.json"

# Seconds between two readings of the memory.
INTERVAL = 5.0
# More training steps than fit into an hour.
STEPS = 10_000_000
PROGRAM = re.compile(r"Compiling (jit\(.*?\)) with global shapes and types (.*)")

WAYS = ("as it is", "without tensorstore's metrics", "as train does")
SAVES = 400
# Readings of the memory during the saves.
READINGS = 40


# --- training -------------------------------------------------------------------------------------


def training(flags: argparse.Namespace) -> None:
    """Train for some time, report memory and compilations, and write files after an hour or more."""
    with tempfile.TemporaryDirectory() as folder:
        found = watch(flags.minutes, flags.flags, Path(folder))
    record = {"benchmark": "long_run", **measure.surroundings(["orbax-checkpoint"]), **found}
    record |= {"bytes an hour": growth(found["looks"])}
    print(
        f"{len(found['looks'])} readings; {found['looks'][-1][1] / 2**20:.0f} MiB at the end, "
        f"{record['bytes an hour'] / 2**20:+.1f} MiB per hour; {len(found['compiled'])} programs "
        f"compiled, compiled twice: {', '.join(found['compiled again']) or 'none'}"
    )
    if flags.minutes >= 60:
        measure.write(record, TRAINING_OUTPUT)
        draw(record, TRAINING_OUTPUT.with_suffix(".png"))


def watch(minutes: float, flags: list[str], folder: Path) -> dict[str, Any]:
    """Train for some minutes in a folder.

    Returns:
      "looks": [seconds, bytes of the process itself, bytes of mapped files] of each reading.
      "compiled": [seconds, name] of each compiled program.
      "compiled again": names of programs that were compiled twice for the same arguments.
      "lines of metrics": number of lines of metrics.jsonl.
      "flags": the flags of the training.
    """
    log, run = folder / "log", folder / "run"
    command = [sys.executable, "-m", "jaxrnn.train", "--workdir", str(run), f"--steps={STEPS}"]
    with (
        log.open("w", encoding="utf-8") as errors,
        (folder / "out").open("w", encoding="utf-8") as out,
    ):
        process = subprocess.Popen(
            [*command, *flags],
            env=measure.child_environment(JAX_LOG_COMPILES="1"),
            stdout=out,
            stderr=errors,
        )
        begin = time.monotonic()
        looks: list[list[float]] = []
        compiled: list[tuple[float, str, str]] = []
        while (passed := time.monotonic() - begin) < 60 * minutes and process.poll() is None:
            time.sleep(INTERVAL)
            programs = PROGRAM.findall(log.read_text(encoding="utf-8"))
            compiled += [(passed, *program) for program in programs[len(compiled) :]]
            memory = memory_of(process.pid)
            if process.poll() is None:
                looks.append([passed, memory["RssAnon"], memory["RssFile"]])
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=300)
    if status != 128 + signal.SIGTERM:
        last = log.read_text(encoding="utf-8")[-500:]
        sys.exit(f"error: the training ended with status {status}: {last}")
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
    """Return bytes per hour, by a straight line through the second half of the curve."""
    late = np.array(looks[len(looks) // 2 :])
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 3600)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw memory over time, with marks where programs were compiled."""
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


# --- saves ----------------------------------------------------------------------------------------


def saves(flags: argparse.Namespace) -> None:
    """Report what a save leaves behind in each way, and write a JSON file after SAVES or more."""
    if flags.way:
        print(json.dumps(grown(flags.way, flags.saves)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.endurance.memory", "saves", "--way", way]
        done = subprocess.run(
            [*command, "--saves", str(flags.saves)],
            env=measure.child_environment(),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found[way] = json.loads(done.stdout)
        print(
            f"{way}: {found[way]['bytes'] / 1e3:.0f} kB and {found[way]['objects']:.1f} objects per "
            f"save, {found[way]['bytes at the end'] / 2**20:.0f} MiB at the end"
        )
    if flags.saves >= SAVES:
        packages = ["orbax-checkpoint", "tensorstore"]
        record = {"benchmark": "save_growth", **measure.surroundings(packages)}
        measure.write(record | {"saves": flags.saves, "a save leaves": found}, SAVES_OUTPUT)


def grown(way: str, count: int) -> dict[str, Any]:
    """Save this many times in this process; return bytes and objects per save, and bytes at the end."""
    # Imported here because watching a training needs none of it.
    import jax
    import jax.numpy as jnp
    import tensorstore

    from benchmarks.problems import VOCABULARY
    from jaxrnn import charlm
    from jaxrnn.devices import memory
    from jaxrnn.presets import PRESETS
    from jaxrnn.training.checkpoint import Checkpoints

    if way == WAYS[1]:
        tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    if way == WAYS[2]:
        memory.limit_heap_growth()
    params = charlm.init(PRESETS["small"].training.model, VOCABULARY, 0)
    moments = jax.tree.map(jnp.ones_like, (params, params))
    looks = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for number in range(count):
            checkpoints.save(number, params, moments, {"validation": 1.0 / (number + 1)})
            checkpoints.wait()
            if number >= count // 4 and number % max(1, count // READINGS) == 0:
                gc.collect()
                looks.append((number, memory_of("self")["RssAnon"], len(gc.get_objects())))
        checkpoints.close()
    number, size, objects = np.array(looks, float).T
    slopes = (float(np.polyfit(number, y, 1)[0]) for y in (size, objects))
    return dict(zip(("bytes", "objects"), slopes, strict=True)) | {"bytes at the end": size[-1]}


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Measure the memory of a long training, or of saves.")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    part = kinds.add_parser("training", help="train for an hour and watch its memory")
    part.add_argument("--minutes", type=float, default=60.0, help="duration of the training (60)")
    part.add_argument("flags", nargs="*", help="flags of the train command, after --")
    part.set_defaults(run=training)
    part = kinds.add_parser("saves", help="save many times and watch the memory")
    part.add_argument("--saves", type=measure.positive, default=SAVES, help=f"saves ({SAVES})")
    part.add_argument("--way", choices=WAYS, help="one way, in this process; prints JSON")
    part.set_defaults(run=saves)
    flags = parser.parse_args()
    flags.run(flags)


if __name__ == "__main__":
    main()
