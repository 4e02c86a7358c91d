"""Characters per second in training: jaxrnn's own step against programs that do the same work.

    python benchmarks/training_throughput.py            # both settings of the lecture
    python benchmarks/training_throughput.py --quick    # the smaller one, under a minute
    python benchmarks/training_throughput.py --from FILE --markdown    # the table of a measured file

A step is the loss, its gradient, clipping by the global norm where the setting has it, and Adam.
jaxrnn's runs as `python -m jaxrnn.train` runs it, several in one call (`stepping.run_steps`). All
begin with the same weights, read the same random characters, and must come to the same losses on the
first STEPS steps; who does not is named and not timed. Then they go on in turns (`measure`).

Rows without a dtype are float32. `bfloat16` is what jaxrnn takes by itself where the hardware
multiplies it faster (matrix products only; parameters, states and sums stay float32); PyTorch runs it
by autocast.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from benchmarks import measure
import numpy as np
from benchmarks import peers
from benchmarks.peers import Task
from rich.console import Console
from rich.table import Table

import jaxrnn
from jaxrnn import charlm
from jaxrnn.devices import accelerator
from jaxrnn.train import PRESETS
from jaxrnn.training import stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import place

VOCABULARY = jaxrnn.Vocabulary.of("".join(map(chr, range(32, 97))))  # 65, as Tiny Shakespeare
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
STEPS = {"lecture": 4, "lecture, older": 20}  # of one call
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}  # between losses, of the loss
PEERS = ("torch", "flax nnx", "keras")  # that have a training program


def task(config: TrainingConfig, steps: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """The steps, and the same as jaxrnn reads them: a text [N] and where rows begin [K, B]."""
    rng = np.random.default_rng(0)
    length = steps * config.seq_len + 1
    text = rng.integers(len(VOCABULARY), size=config.batch * length).astype(np.uint8)
    starts = length * np.arange(config.batch) + config.seq_len * np.arange(steps)[:, None]
    places = starts[:, None, :] + np.arange(config.seq_len + 1)[:, None]
    params = jax.tree.map(np.asarray, charlm.init(config.model, VOCABULARY, config.seed))
    return Task(config, params, text[places].astype(np.int32)), text, starts.astype(np.int32)


def ours(config: TrainingConfig, text: np.ndarray, starts: np.ndarray) -> Callable[[], np.ndarray]:
    """jaxrnn's trainer, as `loop.fit` runs it between two lines of its log."""
    optimizer = stepping.make_optimizer(config, 2**31 - 1)
    source = place(text, "never")
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
    config: TrainingConfig, steps: int, there: dict[str, Any]
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """Everybody's trainer by name, jaxrnn in float32 first, and why some have none."""
    fast = accelerator.fast_dtype()
    entered: dict[str, Callable[[], np.ndarray]] = {}
    out: dict[str, str] = {}
    for dtype in dict.fromkeys(["float32", fast]):
        suffix = "" if dtype == "float32" else f" {dtype}"
        model = dataclasses.replace(config.model, dtype=dtype)
        settings = dataclasses.replace(config, model=model)
        given, text, starts = task(settings, steps)
        entered["jaxrnn" + suffix] = ours(settings, text, starts)
        for name in PEERS if dtype == "float32" else PEERS[:1]:
            if name not in there:
                continue
            try:
                entered[name + suffix] = there[name].trainer(given, dtype)
            except Exception as failure:  # a peer's own failure is reported, not ours to mend
                out[name + suffix] = measure.told(failure)
    return entered, out


def measured(
    config: TrainingConfig, steps: int, repeats: int, there: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each contender's losses on the first steps, seconds of that call (it compiles), raw seconds."""
    entered, out = contenders(config, steps, there)
    record: dict[str, dict[str, Any]] = {name: {"left_out": why} for name, why in out.items()}
    runs: dict[str, Callable[[], Any]] = {}
    truth = None
    for name, run in entered.items():
        try:
            first, losses = measure.timed(run)
        except Exception as failure:
            record[name] = {"left_out": measure.told(failure)}
            continue
        truth = losses if truth is None else truth
        record[name] = {"first_call": first, "losses": losses.tolist()}
        error = float(np.abs(losses / truth - 1).max())
        tolerance = TOLERANCES[name.split()[-1] if name.split()[-1] in TOLERANCES else "float32"]
        if error <= tolerance:
            runs[name] = run
        else:
            record[name]["left_out"] = f"its losses differ by {error:.1e}, more than {tolerance:g}"
    for name, times in measure.in_turns(runs, repeats).items():
        record[name] |= times
    return record


def rows(record: dict[str, Any]) -> list[list[str]]:
    """Of each setting and contender: characters per second, ratio to PyTorch's in both dtypes."""
    made = []
    for result in record["results"]:
        rates = {
            name: result["characters"] / statistics.median(c["seconds"])
            for name, c in result["contenders"].items()
            if "seconds" in c
        }
        for name, rate in sorted(rates.items(), key=lambda pair: -pair[1]):
            ratios = [
                f"{rate / rates[peer]:.2f}" if peer in rates else "-"
                for peer in ("torch", "torch bfloat16")
            ]
            compile_ = f"{result['contenders'][name]['first_call']:.1f}"
            made.append([result["setting"], name, f"{rate:,.0f}", *ratios, compile_])
    return made


HEADINGS = (
    "setting",
    "who",
    "characters/s",
    "x PyTorch",
    "x PyTorch bfloat16",
    "first call, s",
)


def show(record: dict[str, Any], console: Console) -> None:
    """The table, and who is not in it."""
    made = Table(title="training: characters per second (median)")
    for n, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if n < 2 else "right")
    for row in rows(record):
        made.add_row(*row)
    console.print(made)
    for name, why in record["missing"].items():
        console.print(f"without {name}: {why}", markup=False, soft_wrap=True)
    for result in record["results"]:
        for name, contender in result["contenders"].items():
            if "left_out" in contender:
                line = f"left out of {result['setting']}: {name} ({contender['left_out']})"
                console.print(line, markup=False, soft_wrap=True)


def markdown(record: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(record)])


def main() -> None:
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _measure(flags, console)
    if flags.markdown:
        print(markdown(record))
    else:
        show(record, console)


def _measure(flags: Any, console: Console) -> dict[str, Any]:
    output = flags.output
    if output is None and not flags.quick:
        output = measure.RESULTS / f"training_throughput-{measure.place()}.json"
    there, missing = peers.load()
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
            | {"contenders": measured(config, steps, flags.repeats, there)}
        )
        if output:
            measure.write(record, output)
            console.print(f"written to {output}")
    return record


def _flags() -> Any:
    parser = measure.Parser(description="training steps: jaxrnn against the same work elsewhere")
    say = parser.add_argument
    say("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help=" or ".join(SETTINGS))
    say("--steps", type=measure.whole, help="in one call (4 and 20; quick 3)")
    say("--repeats", type=measure.whole, help="turns of each contender (7; quick 3)")
    say("--quick", action="store_true", help="the older setting alone, nothing written")
    say("--output", type=Path, metavar="FILE", help="of the JSON")
    say("--from", dest="source", type=Path, metavar="FILE", help="report this, measure nothing")
    say("--markdown", action="store_true", help="print the table as Markdown")
    flags = parser.parse_args()
    flags.repeats = flags.repeats or (3 if flags.quick else 7)
    return flags


if __name__ == "__main__":
    main()
