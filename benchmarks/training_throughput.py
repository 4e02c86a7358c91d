"""Characters per second in training: jaxrnn beside programs of other libraries that do the same work.

    python benchmarks/training_throughput.py            # both settings of the lecture
    python benchmarks/training_throughput.py --quick    # the smaller setting, under a minute
    python benchmarks/training_throughput.py --from FILE --markdown    # the table of a measured file

A step is the loss, its gradient, clipping by the global norm if the setting has it, and Adam. jaxrnn's
step runs as in `python -m jaxrnn.train`, several steps in one device call (`stepping.run_steps`). All
contenders start with the same weights, read the same random characters, and must reach the same losses
in the first STEPS steps; a contender that does not is reported and not timed. Then they continue in
turns (`measure.in_turns`).

Rows without a dtype are float32. jaxrnn chooses `bfloat16` by default on hardware that multiplies it
faster (for matrix products only; parameters, states and sums stay float32). PyTorch uses bfloat16 by
autocast.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: import from the repository and not from this folder.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import numpy as np
from rich.console import Console

from benchmarks import measure, peers, tables
from benchmarks.peers import Task
from benchmarks.problems import VOCABULARY
from jaxrnn import charlm
from jaxrnn.presets import PRESETS
from jaxrnn.training import optimizers, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import device_corpus

SETTINGS: dict[str, TrainingConfig] = {
    "lecture": PRESETS["lecture"].training,
    "lecture, older": TrainingConfig(
        model=charlm.ModelConfig(layers=2, hidden_size=128, embedding_size=128, dtype="auto"),
        batch=50,
        seq_len=50,
        learning_rate=2e-3,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        clip_norm=5.0,
    ),
}
# Training steps in one call.
STEPS = {"lecture": 4, "lecture, older": 20}
# The largest relative difference between losses.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
# The peers that have a training program.
PEERS = ("torch", "flax nnx", "keras")
HEADINGS = (
    "setting",
    "who",
    "characters/s",
    "x PyTorch",
    "x PyTorch bfloat16",
    "first call, s",
)


def task(config: TrainingConfig, steps: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """Return the steps as peers read them, and for jaxrnn a text [N] and where rows begin [K, B]."""
    rng = np.random.default_rng(0)
    length = steps * config.seq_len + 1
    text = rng.integers(len(VOCABULARY), size=config.batch * length).astype(np.uint8)
    starts = length * np.arange(config.batch) + config.seq_len * np.arange(steps)[:, None]
    places = starts[:, None, :] + np.arange(config.seq_len + 1)[:, None]
    params = jax.tree.map(np.asarray, charlm.init(config.model, VOCABULARY, config.seed))
    return Task(config, params, text[places].astype(np.int32)), text, starts.astype(np.int32)


def ours(config: TrainingConfig, text: np.ndarray, starts: np.ndarray) -> Callable[[], np.ndarray]:
    """Return jaxrnn's trainer, as `loop.fit` runs it between two lines of metrics."""
    optimizer = optimizers.make_optimizer(config, 2**31 - 1)
    source = device_corpus(text, "never")
    state = stepping.begin(config, optimizer, VOCABULARY, source.devices)
    fresh = np.array([config.shuffle or n == 0 for n in range(len(starts))])
    windows = source.windows(starts, config.seq_len)

    def run() -> np.ndarray:
        nonlocal state
        what = source.tokens, windows, fresh, len(starts)
        state, metrics = stepping.run_steps(config, optimizer, source.devices, state, *what)
        losses, _ = (np.asarray(m) for m in metrics)
        return losses

    return run


def contenders(
    config: TrainingConfig, steps: int, available: dict[str, Any]
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """Return the trainers by name, jaxrnn in float32 first, and why some peers have none."""
    fast = dataclasses.replace(config.model, dtype="auto").resolved().dtype
    entered: dict[str, Callable[[], np.ndarray]] = {}
    out: dict[str, str] = {}
    for dtype in dict.fromkeys(["float32", fast]):
        suffix = "" if dtype == "float32" else f" {dtype}"
        model = dataclasses.replace(config.model, dtype=dtype)
        settings = dataclasses.replace(config, model=model)
        given, text, starts = task(settings, steps)
        entered["jaxrnn" + suffix] = ours(settings, text, starts)
        for name in PEERS if dtype == "float32" else PEERS[:1]:
            if name not in available:
                continue
            try:
                entered[name + suffix] = available[name].trainer(given, dtype)
            except Exception as failure:
                # The failure of a peer is reported and does not end the benchmark.
                out[name + suffix] = measure.one_line(failure)
    return entered, out


def measured(
    config: TrainingConfig,
    steps: int,
    repeats: int,
    available: dict[str, Any],
    tolerances: Mapping[str, float] = TOLERANCES,
) -> dict[str, dict[str, Any]]:
    """Check the contenders' losses on the first steps, and time those that are right.

    Args:
      config: settings of the training.
      steps: training steps in one call.
      repeats: turns of each contender.
      available: the peers that run here, by name.
      tolerances: the largest relative difference between losses, by dtype.

    Returns:
      for each contender its losses, the seconds of the first call (which compiles) and its raw seconds
      per call; or under "left_out" the reason why it was not timed.
    """
    entered, out = contenders(config, steps, available)
    record: dict[str, dict[str, Any]] = {name: {"left_out": why} for name, why in out.items()}
    runs: dict[str, Callable[[], Any]] = {}
    truth = None
    for name, run in entered.items():
        try:
            first, losses = measure.timed(run)
        except Exception as failure:
            record[name] = {"left_out": measure.one_line(failure)}
            continue
        truth = losses if truth is None else truth
        record[name] = {"first_call": first, "losses": losses.tolist()}
        error = float(np.abs(losses / truth - 1).max())
        dtype = name.split()[-1]
        tolerance = tolerances[dtype if dtype in tolerances else "float32"]
        if error <= tolerance:
            runs[name] = run
        else:
            record[name]["left_out"] = f"the losses differ by {error:.1e}, more than {tolerance:g}"
    for name, times in measure.in_turns(runs, repeats).items():
        record[name] |= times
    return record


def rows(record: dict[str, Any]) -> list[list[str]]:
    """Return a row for each setting and contender, with ratios to PyTorch in both dtypes."""
    made = []
    for result in record["results"]:
        times = tables.medians(result["contenders"])
        rates = {name: result["characters"] / seconds for name, seconds in times.items()}
        for name, rate in rates.items():
            ratios = [
                f"{rate / rates[peer]:.2f}" if peer in rates else "-"
                for peer in ("torch", "torch bfloat16")
            ]
            compile_ = f"{result['contenders'][name]['first_call']:.1f}"
            made.append([result["setting"], name, f"{rate:,.0f}", *ratios, compile_])
    return made


def show(record: dict[str, Any], console: Console) -> None:
    """Print the table, and the contenders that are missing in it."""
    title = "training: characters per second (median)"
    console.print(tables.table(title, HEADINGS, rows(record), left=2))
    for name, why in record["missing"].items():
        console.print(f"without {name}: {why}", markup=False, soft_wrap=True)
    for result in record["results"]:
        for name, contender in result["contenders"].items():
            if "left_out" in contender:
                line = f"left out of {result['setting']}: {name} ({contender['left_out']})"
                console.print(line, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command."""
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _measure(flags, console)
    if flags.markdown:
        print(tables.markdown_table(HEADINGS, rows(record)))
    else:
        show(record, console)


def _measure(flags: Any, console: Console) -> dict[str, Any]:
    output = flags.output
    if output is None and not flags.quick:
        output = measure.RESULTS / f"training_throughput-{measure.place()}.json"
    available, missing = peers.load()
    record: dict[str, Any] = {"benchmark": "training_throughput"}
    record |= measure.surroundings(("torch", "flax", "optax", "keras"))
    record["missing"] = {name: why for name, why in missing.items() if name in PEERS}
    record |= {"pause": measure.PAUSE, "tolerances": TOLERANCES, "results": []}
    for name in flags.settings or (list(SETTINGS)[1:] if flags.quick else list(SETTINGS)):
        config = SETTINGS[name]
        steps = flags.steps or (3 if flags.quick else STEPS[name])
        console.print(f"{name}: {config.batch} rows, {steps} steps of {config.seq_len} ...")
        record["results"].append(
            {"setting": name, "config": dataclasses.asdict(config), "steps": steps}
            | {"characters": steps * config.batch * config.seq_len}
            | {"contenders": measured(config, steps, flags.repeats, available)}
        )
        if output:
            measure.write(record, output)
            console.print(f"written to {output}")
    return record


def _flags() -> Any:
    parser = measure.Parser(description="Time training steps: jaxrnn beside other libraries.")
    add = parser.add_argument
    names = " or ".join(f'"{name}"' for name in SETTINGS)
    add("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help=f"settings: {names}")
    add("--steps", type=measure.positive, help="steps in one call (4 and 20; with --quick 3)")
    add("--repeats", type=measure.positive, help="turns of each contender (7; with --quick 3)")
    add("--quick", action="store_true", help="only the older setting; writes no file")
    add("--output", type=Path, metavar="FILE", help="JSON file to write")
    add("--from", dest="source", type=Path, metavar="FILE", help="report this file; time nothing")
    add("--markdown", action="store_true", help="print the table as Markdown")
    flags = parser.parse_args()
    flags.repeats = flags.repeats or (3 if flags.quick else 7)
    return flags


if __name__ == "__main__":
    main()
