"""The tables of LEADERBOARD.md and the pictures, from the logs of trainings."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Any

from benchmarks import measure, tables
from benchmarks.shakespeare.recipes import COMBINED, LEVERS, NANOGPT
from jaxrnn.devices.storage import atomic_write
from jaxrnn.training.metrics import BLUE, GREY, ORANGE

LOGS = measure.RESULTS / "tinyshakespeare"
PAGE = measure.ROOT / "benchmarks" / "LEADERBOARD.md"
# Speed in matrix products of the machine that comparable seconds are of, in GFLOP/s.
REFERENCE_SPEED = 470.0
# Marks of the axis of seconds.
SECONDS = (5, 10, 20, 50, 100, 200, 500, 1000)

# What a log can be of; trainings for choosing have no table.
KINDS = "record", "choosing", "adapted", "lever", "text"

Log = dict[str, Any]


def write() -> None:
    """Write the tables of LEADERBOARD.md and the pictures from the logs."""
    logs: dict[str, list[Log]] = {kind: [] for kind in KINDS}
    for path in sorted(LOGS.glob("*.json")):
        log = json.loads(path.read_bytes())
        logs[log["kind"]].append(log)
    single = [log for log in logs["lever"] if " + " not in log["name"]]
    combined = [log for log in logs["lever"] if log["name"] == "base" or " + " in log["name"]]
    page = PAGE.read_text(encoding="utf-8")
    page = _replaced(page, "records", record_table(logs["record"]))
    page = _replaced(page, "adapted", adapted_table(logs["adapted"]))
    page = _replaced(page, "levers", lever_table(single))
    page = _replaced(page, "combined", lever_table(combined))
    page = _replaced(page, "texts", text_table(logs["text"]))
    atomic_write(PAGE, page)
    _draw_records(logs["record"], LOGS / "records.png")
    if single:
        _draw_levers(single, LOGS / "levers.png")


def _replaced(page: str, name: str, content: str) -> str:
    """Return the page with the part between its two comments of this name replaced."""
    found = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    new, count = found.subn(lambda marks: f"{marks[1]}{content}\n{marks[2]}", page)
    if count != 1:
        raise ValueError(f"{PAGE.name} must have one part between the comments {name}")
    return new


# --- tables ---------------------------------------------------------------------------------------


def by_name(logs: Iterable[Log]) -> dict[str, list[Log]]:
    """Return the logs of each recipe, ordered by seed."""
    groups: dict[str, list[Log]] = {}
    for log in sorted(logs, key=lambda log: log["seed"]):
        groups.setdefault(log["name"], []).append(log)
    return groups


def final(log: Log) -> dict[str, float]:
    """Return the last evaluation of a training."""
    return log["evaluations"][-1]


def comparable_seconds(log: Log) -> float:
    """Return the seconds of training on a machine of REFERENCE_SPEED, if only products took time."""
    # Other work on the machine can only make it seem slower.
    speed = max(log["gflops_of_products"])
    return final(log)["training_seconds"] * speed / REFERENCE_SPEED


def record_table(logs: Iterable[Log]) -> str:
    """Return the table of the records in Markdown, a row for each training."""
    rows = []
    for name, group in by_name(logs).items():
        for log in group:
            last = final(log)
            rows.append(
                (
                    name,
                    str(log["seed"]),
                    f"{last['val_loss']:.4f}",
                    f"{last['training_seconds']:.1f}",
                    f"{comparable_seconds(log):.1f}",
                    f"{last['seconds'] - last['training_seconds']:.1f}",
                    f"{log['start_seconds']:.1f}",
                    str(last["step"]),
                    f"{log['cores']} cores, {log['cpu']}",
                    log["settings"]["model"]["dtype"],
                    log["date"][:10],
                    f"`{log['commit'][:8]}`",
                )
            )
    headings = (
        *("record", "seed", "validation", "seconds of training", "comparable seconds"),
        *("of evaluation and saving", "of starting and compiling", "steps", "processor", "dtype"),
        *("date", "commit"),
    )
    return tables.markdown_table(headings, rows)


def adapted_table(logs: Iterable[Log]) -> str:
    """Return the table of adapted and combined models in Markdown, a row for each record."""
    rows = []
    for log in logs:
        chosen, losses = log["chosen"], log["official"]
        rows.append(
            (
                log["name"],
                f"{losses['plain']:.4f}",
                f"{losses['temperature']:.4f} (temperature {chosen['temperature']})",
                f"{losses['ensemble of two']:.4f}",
                f"{losses['dynamic evaluation']:.4f} (rate {chosen['rate']:g}, back {chosen['back']:g})",
            )
        )
    headings = ("record", "one model", "temperature", "ensemble of two", "dynamic evaluation")
    return tables.markdown_table(headings, rows)


def lever_table(logs: Iterable[Log]) -> str:
    """Return the table of levers, or of combinations of them, in Markdown."""
    groups = by_name(logs)
    base = groups.get("base", [])
    known = [*LEVERS, *COMBINED]
    rows = []
    for name in [*(n for n in known if n in groups), *(n for n in groups if n not in known)]:
        group = groups[name]
        change, spread = _change(base, group)
        rows.append(
            (
                name,
                f"{_mean(group):.4f}",
                f"{change:+.4f}" + (f" ± {spread:.4f}" if len(group) > 1 else ""),
                f"{statistics.mean(log['training_loss'] for log in group):.3f}",
                f"{_milliseconds(group):.1f}",
                f"{_milliseconds(group) / _milliseconds(base):.2f}",
                f"{min(final(log)['training_seconds'] for log in group):.0f}",
                str(len(group)),
            )
        )
    headings = (
        *("lever", "validation", "change", "training loss", "ms per step", "x base"),
        *("seconds", "seeds"),
    )
    return tables.markdown_table(headings, rows)


def text_table(logs: Iterable[Log]) -> str:
    """Return the table of other texts in Markdown: the lowest validation loss by each default."""
    rows = []
    for log in sorted(logs, key=lambda log: log["bytes"]):
        runs = log["logs"].values()
        losses = [min(e["val_loss"] for e in run["evaluations"]) for run in runs]
        seconds = [final(run)["training_seconds"] for run in runs]
        cells = (f"{nats:.3f} in {s:.0f} s" for nats, s in zip(losses, seconds, strict=True))
        rows.append((log["name"], f"{log['bytes']:,}", *cells))
    headings = ("text", "bytes", "default", "former default", "former default for as long")
    return tables.markdown_table(headings, rows)


def _mean(group: list[Log]) -> float:
    return statistics.mean(final(log)["val_loss"] for log in group)


def _change(base: list[Log], group: list[Log]) -> tuple[float, float]:
    """Return the mean change of the validation loss by a lever, and half its range over the seeds."""
    losses = {log["seed"]: final(log)["val_loss"] for log in base}
    changes = [final(g)["val_loss"] - losses[g["seed"]] for g in group if g["seed"] in losses]
    if not changes:
        return nan, 0.0
    return statistics.mean(changes), (max(changes) - min(changes)) / 2


def _milliseconds(group: list[Log]) -> float:
    """Return the milliseconds of a step, of the fastest seed."""
    seconds_of_a_step = (final(log)["training_seconds"] / final(log)["step"] for log in group)
    return 1000 * min(seconds_of_a_step, default=nan)


# --- pictures -------------------------------------------------------------------------------------


def _draw_records(logs: Iterable[Log], path: Path) -> None:
    """Draw the validation loss of each record against the seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = [BLUE, ORANGE, "#5b9c4a", "#8d6cab"]
    for color, (name, group) in zip(colors, by_name(logs).items(), strict=False):
        for log in group:
            points = [(e["training_seconds"], e["val_loss"]) for e in log["evaluations"]]
            axes.plot(
                *zip(*points, strict=True), color=color, linewidth=1.2, marker="o", markersize=2.5
            )
        end = final(group[0])
        axes.annotate(
            f"{name}: {_mean(group):.3f}",
            (end["training_seconds"], end["val_loss"]),
            (-8, -4),
            textcoords="offset points",
            color=color,
            ha="right",
            va="top",
        )
    axes.axhline(NANOGPT, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"nanoGPT {NANOGPT}", (0, NANOGPT), (6, -4), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="top", color=GREY,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(SECONDS, [str(n) for n in SECONDS])
    axes.set_xticks([], minor=True)
    axes.set_ylim(axes.get_ylim()[0] - 0.02, 1.8)
    axes.set_xlabel("seconds of training on two CPU cores")
    axes.set_ylabel("validation loss, nats per character")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _draw_levers(logs: Iterable[Log], path: Path) -> None:
    """Draw the change of the validation loss by each lever, one bar each, with a mark per seed."""
    from matplotlib.figure import Figure

    groups = by_name(logs)
    base = groups.pop("base", [])
    losses = {log["seed"]: final(log)["val_loss"] for log in base}
    order = sorted(groups, key=lambda name: _change(base, groups[name])[0], reverse=True)
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(order)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(order):
        change, _ = _change(base, groups[name])
        axes.barh(row, change, color=BLUE if change < 0 else ORANGE, height=0.7)
        for log in groups[name]:
            if log["seed"] in losses:
                one = final(log)["val_loss"] - losses[log["seed"]]
                axes.plot(one, row, "|", color=GREY, markersize=9)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel("change of the validation loss, nats per character (to the left is better)")
    axes.set_title(f"one change each to the base, which has {_mean(base):.3f}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.savefig(path, dpi=120)
