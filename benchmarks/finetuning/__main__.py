"""Measure what fine-tuning gains over training from scratch on a short text, at equal steps.

    python -m benchmarks.finetuning --seeds 0 1 2

Train on Tiny Shakespeare once. Then, for each seed, train on a text of 50,000 characters from initial
weights, from the trained model, and from the trained model with its layer frozen, with the same settings
and steps. The text is the beginning of the reference of the Python language, which comes with Python;
the model gets tokens for the characters that Shakespeare does not use.

Each training writes a log to results/finetuning/; trainings that have a log are not repeated. The table
in benchmarks/finetuning/README.md is then made from the logs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pydoc_data.topics
import shutil
import statistics
from pathlib import Path

from benchmarks import measure, tables
from benchmarks.shakespeare import training
from benchmarks.shakespeare.report import Log
from jaxrnn.devices.storage import atomic_write

LOGS = measure.RESULTS / "finetuning"
RUNS = measure.ROOT / "runs" / "finetuning"
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
# Length of the text to fine-tune on, in characters.
LENGTH = 50_000

MODEL = ["--hidden-size", "256", "--sample-every", "0"]
PRETRAINING = [*MODEL, "--steps", "600", "--eval-every", "300"]
# Seven passes over the text, with the learning rate of the preset for these batches.
TARGET = [*MODEL, "--batch", "16", "--seq-len", "64", "--steps", "300", "--eval-every", "25"]
TARGET += ["--learning-rate", "8e-3", "--dropout", "0.3", "--weight-dropout", "0"]
FROM_MODEL = ["--extend-vocabulary", "--init-from"]
# The flags of each way of training on the text. {run} is the run directory of the first training.
WAYS = {
    "from scratch": TARGET,
    "fine-tuned": [*TARGET, *FROM_MODEL, "{run}"],
    "fine-tuned, layer frozen": [*TARGET, *FROM_MODEL, "{run}", "--freeze", "layers"],
}


def python_reference(folder: Path) -> Path:
    """Return a file with the beginning of the reference of the Python language."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))[:LENGTH]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python-reference.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def pretrained(source: str | Path, more: list[str]) -> Path:
    """Return the run directory of the model to start from, which is trained if it is not there yet.

    Args:
      source: the text, as the train command takes it.
      more: flags that override the others.
    """
    workdir = RUNS / "pretrained"
    if not _log_file("pretrained", 0).exists() or not workdir.exists():
        shutil.rmtree(workdir, ignore_errors=True)
        log = training.train([*PRETRAINING, *more], workdir, 0, source)
        _write("pretrained", 0, log, source)
    return workdir


def measure_way(name: str, seed: int, first: Path, target: Path, more: list[str]) -> None:
    """Train in one way and write the log, unless it is there already.

    Args:
      name: the way of training, one of WAYS.
      seed: the random seed of the batches, the dropout and the initial parameters.
      first: the run directory of the model to start from.
      target: the text.
      more: flags that override the others.
    """
    output = _log_file(name, seed)
    if output.exists():
        print(f"{output.name} is there already")
        return
    workdir = RUNS / output.stem
    shutil.rmtree(workdir, ignore_errors=True)
    flags = [flag.format(run=first) for flag in WAYS[name]]
    log = training.train([*flags, *more], workdir, seed, target)
    # Without the path of the run directory, which differs between machines.
    log["flags"] = [*WAYS[name], *more]
    _write(name, seed, log, target)
    shutil.rmtree(workdir)


def _write(name: str, seed: int, log: Log, data: str | Path) -> None:
    path = Path(data)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    measure.write({"name": name, "text": path.name, "sha256": sha256, **log}, _log_file(name, seed))


def _log_file(name: str, seed: int) -> Path:
    return LOGS / f"{name.replace(',', '').replace(' ', '-')}-seed-{seed}.json"


# --- report ---


def best(log: Log) -> float:
    """Return the lowest validation loss of a training."""
    return min(evaluation["val_loss"] for evaluation in log["evaluations"])


def table(logs: list[Log]) -> str:
    """Return the table of the logs in Markdown.

    Differences are from the training from scratch with the same seed, and ± is the standard deviation
    over the seeds. Logs of seeds without a training from scratch are left out.
    """
    scratch = {log["seed"]: best(log) for log in logs if log["name"] == "from scratch"}
    rows = []
    for name in WAYS:
        own = [log for log in logs if log["name"] == name and log["seed"] in scratch]
        if not own:
            continue
        reached = [_steps_to(log, scratch[log["seed"]]) for log in own]
        differences = [best(log) - scratch[log["seed"]] for log in own]
        rows.append(
            (
                name,
                _mean([best(log) for log in own]),
                "" if name == "from scratch" else _mean(differences, "+"),
                ", ".join("never" if steps is None else str(steps) for steps in reached),
                str(len(own)),
            )
        )
    headings = (
        *("training", "best validation loss", "difference"),
        *("steps to the best loss from scratch, by seed", "seeds"),
    )
    return tables.markdown_table(headings, rows)


def _steps_to(log: Log, loss: float) -> int | None:
    """Return the steps after which a training was first evaluated at this loss or below."""
    return next((e["step"] for e in log["evaluations"] if e["val_loss"] <= loss), None)


def _mean(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{spread}"


def write_table() -> None:
    """Write the table of the page from the logs."""
    logs = [json.loads(path.read_bytes()) for path in LOGS.glob("*.json")]
    logs = sorted((log for log in logs if log["name"] in WAYS), key=lambda log: log["seed"])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    atomic_write(PAGE, f"{before}{BEGIN}{table(logs)}\n{END}{after}")


def main() -> None:
    """Run the command."""
    parser = measure.Parser(
        prog="python -m benchmarks.finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    flags = parser.parse_args()
    target = python_reference(RUNS)
    for seed in flags.seeds:
        for name in flags.ways:
            measure_way(name, seed, pretrained("shakespeare", []), target, [])
    write_table()


if __name__ == "__main__":
    main()
