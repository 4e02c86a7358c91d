"""Measure the records on Tiny Shakespeare, and the effect of each lever of the recipe.

    python -m benchmarks.shakespeare record sprint --seeds 0 1 2 3 4
    python -m benchmarks.shakespeare lever "Muon" --seeds 0 1
    python -m benchmarks.shakespeare adapt best-15-minutes
    python -m benchmarks.shakespeare text novel.txt
    python -m benchmarks.shakespeare report

record: train a record's preset, with the official validation text (the last tenth of the whole text), or
  with --choosing the last tenth of the training part.
lever: train the base recipe with one change, or several by " + ", with the last tenth of the training
  part for validation. "all" stands for every lever and the combinations of recipes.py.
  Trainings that have a log are not repeated.
adapt: the record's loss with dynamic evaluation, with a temperature, and as an ensemble of two seeds. It
  needs the run directories that `record NAME --seeds 0 1 --keep` and `record NAME --choosing --keep`
  leave in runs/; rates and temperature are chosen with the latter, on its validation text.
text: train on any text by the default preset, which depends on the length of the text, and by the former
  default, which did not, once as it was and once for as many seconds.
report: write the tables of LEADERBOARD.md and the pictures from the logs.

Each training writes a log to results/tinyshakespeare/: settings, versions, processor, commit, every
evaluation, and the speed of matrix products before and after, by which times of different machines can
be compared.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from benchmarks import measure
from benchmarks.shakespeare import adaptation, growing, report, training
from benchmarks.shakespeare.recipes import (
    BASE,
    COMBINED,
    FORMER_DEFAULT,
    FORMER_EPOCHS,
    LEVERS,
    RECORDS,
)
from benchmarks.shakespeare.report import Log
from jaxrnn.runs.train_options import parse
from jaxrnn.training.run_description import load

RUNS = measure.ROOT / "runs" / "tinyshakespeare"


def record(flags: argparse.Namespace) -> None:
    """Train a record from each seed and write the logs."""
    kind = "choosing" if flags.choosing else "record"
    for seed in flags.seeds:
        _train(
            f"{kind}-{flags.name}",
            RECORDS[flags.name],
            seed,
            official=not flags.choosing,
            keep=flags.keep,
        )


def lever(flags: argparse.Namespace) -> None:
    """Train the base recipe with one change or several, from each seed, and write the logs."""
    names = [*LEVERS, *growing.GROWING, *COMBINED] if flags.name == "all" else [flags.name]
    for seed in flags.seeds:
        for name in names:
            if name in growing.GROWING:
                _grow(name, seed)
                continue
            changes = [flag for one in name.split(" + ") for flag in LEVERS[one]]
            _train(f"lever-{name}", [*BASE, *changes], seed, official=False, keep=flags.keep)


def _grow(name: str, seed: int) -> None:
    output = _log_file(f"lever-{name}", seed)
    if output.exists():
        print(f"{output.name} is there already")
        return
    config = parse([*BASE, "--seed", str(seed)]).training
    log = growing.train(config, growing.GROWING[name], training.choosing_text())
    measure.write({"kind": "lever", "name": name, **log}, output)
    print(f"{name}, seed {seed}: {log['evaluations'][-1]['val_loss']:.4f}")


def adapt(flags: argparse.Namespace) -> None:
    """Compute the losses of a record's models that are adapted or combined, and write them."""
    runs = [
        RUNS / f"{kind}-{flags.name}-seed-{seed}"
        for kind, seed in (("choosing", 0), ("record", 0), ("record", 1))
    ]
    for run in runs:
        if not run.is_dir():
            sys.exit(
                f"error: there is no {run}; first run `record {flags.name} --seeds 0 1 --keep` and "
                f"`record {flags.name} --choosing --keep`"
            )
    found = adaptation.all_columns(*map(load, runs), training.choosing_text())
    output = report.LOGS / f"adapted-{flags.name}.json"
    measure.write(
        {"kind": "adapted", "name": flags.name, **found, **measure.surroundings(("flax",))}, output
    )
    print(f"{output.name}: {found['official']}")


def text(flags: argparse.Namespace) -> None:
    """Train on a text by the default preset and by the former default for as long; write the log."""
    workdir = RUNS / f"text-{flags.path.stem}"

    def trained(recipe: list[str], seed: int = 0) -> Log:
        shutil.rmtree(workdir, ignore_errors=True)
        log = training.train([*recipe, "--sample-every", "0"], workdir, seed, flags.path)
        shutil.rmtree(workdir)
        return log

    now = trained([])
    former = trained([*FORMER_DEFAULT, "--epochs", str(FORMER_EPOCHS)])
    ratio = report.final(now)["training_seconds"] / report.final(former)["training_seconds"]
    equal_time = trained([*FORMER_DEFAULT, "--epochs", f"{FORMER_EPOCHS * ratio:.4g}"])
    logs = {"default": now, "former default": former, "former default, equal time": equal_time}
    size = len(flags.path.read_bytes())
    found = {"kind": "text", "name": flags.path.stem, "bytes": size, "logs": logs}
    measure.write(found, report.LOGS / f"text-{flags.path.stem}.json")
    for name, log in logs.items():
        best = min(e["val_loss"] for e in log["evaluations"])
        print(f"{name}: {best:.4f} in {report.final(log)['training_seconds']:.1f} s")


def _train(name: str, recipe: list[str], seed: int, official: bool, keep: bool) -> None:
    output = _log_file(name, seed)
    workdir = RUNS / output.stem
    if output.exists() and not keep:
        print(f"{output.name} is there already")
        return
    shutil.rmtree(workdir, ignore_errors=True)
    kind, _, recipe_name = name.partition("-")
    data = "shakespeare" if official else training.choosing_text()
    log = training.train(recipe, workdir, seed, data)
    validation = "official" if official else "last tenth of the training part"
    log = {"kind": kind, "name": recipe_name, "validation": validation, **log}
    measure.write(log, output)
    last = log["evaluations"][-1]
    print(f"{name}, seed {seed}: {last['val_loss']:.4f} in {last['training_seconds']:.1f} s")
    if not keep:
        shutil.rmtree(workdir)


def _log_file(name: str, seed: int) -> Path:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())
    return report.LOGS / f"{slug}-seed-{seed}.json"


def _lever_name(text: str) -> str:
    unknown = [one for one in text.split(" + ") if one not in LEVERS]
    if unknown and text not in ("all", *growing.GROWING):
        known = ", ".join([*LEVERS, *growing.GROWING])
        raise argparse.ArgumentTypeError(f"must be all or of {known}, not {text!r}")
    return text


def main() -> None:
    """Run the command."""
    parser = measure.Parser(
        prog="python -m benchmarks.shakespeare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=measure.Parser)
    for name, run in (("record", record), ("lever", lever)):
        command = commands.add_parser(name, help=run.__doc__)
        if name == "record":
            command.add_argument("name", choices=RECORDS)
            command.add_argument(
                "--choosing", action="store_true", help="validate on a part of the training text"
            )
        else:
            command.add_argument("name", type=_lever_name)
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
        command.add_argument(
            "--keep", action="store_true", help="train again, and keep the run directory in runs/"
        )
        command.set_defaults(run=run)
    command = commands.add_parser("adapt", help=adapt.__doc__)
    command.add_argument("name", choices=RECORDS)
    command.set_defaults(run=adapt)
    command = commands.add_parser("text", help=text.__doc__)
    command.add_argument("path", type=Path)
    command.set_defaults(run=text)
    command = commands.add_parser("report", help=report.write.__doc__)
    command.set_defaults(run=lambda flags: report.write())
    flags = parser.parse_args()
    flags.run(flags)


if __name__ == "__main__":
    main()
