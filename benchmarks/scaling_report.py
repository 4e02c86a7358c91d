"""The tables of `scaling.py`: what is predicted, and apart from it what was measured."""

from __future__ import annotations

import statistics
from typing import Any

import scaling_model as model
from rich.console import Console
from rich.table import Table

PREDICTED = (
    "chip",
    "chips",
    "mesh",
    "rows a chip",
    "GFLOP",
    "HBM, MB",
    "memory, MB",
    "sent, MB",
    "step, ms",
    "at least, ms",
    "efficiency",
    "limit",
)
MEASURED = ("device", "who", "rows", "step, of one device's", "efficiency")
NOTE = "predicted: nothing of this ran on a TPU"


def alone(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """The row of one chip that this one's efficiency goes by; None where there is none."""
    same = ("chip", "hidden", "fixed")
    for other in rows:
        if other["chips"] == 1 and all(other[name] == row[name] for name in same):
            return other
    return None


def efficiency(
    rows: list[dict[str, Any]], row: dict[str, Any], which: str = "step"
) -> float | None:
    """Rows per second and chip, by those of one chip; None where one chip is not among the rows."""
    one = alone(rows, row)
    if one is None:
        return None
    return model.efficiency(row["rows"], row[which], row["chips"], one["rows"] / one[which])


def groups(record: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The rows of each table of predictions, by its title."""
    rows = record["predicted"]
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        kept = f"{row['rows'] // row['chips']} rows a chip"
        kept = kept if row["fixed"] == "chip" else f"{row['rows']} rows in all"
        title = f"{record['layers']} x {row['hidden']} units, {kept}"
        share = efficiency(rows, row)
        cells = [row["chip"], str(row["chips"]), " x ".join(map(str, row["mesh"].values()))]
        cells.append(f"{row['rows'] / row['chips']:g}")
        cells.append(f"{row['flops'] / 1e9:,.0f}")
        cells += [f"{row[name] / 1e6:,.0f}" for name in ("hbm_bytes", "memory")]
        cells.append(f"{row['sent_bytes'] / 1e6:,.1f}")
        cells += [f"{1e3 * row[name]:.2f}" for name in ("step", "floor")]
        full = row["memory"] > record["chips"][row["chip"]]["capacity"]
        cells.append("-" if share is None else f"{share:.0%}")
        cells.append(row["limit"] + (", memory full" if full else ""))
        found.setdefault(title, []).append(cells)
    return found


def measured(record: dict[str, Any]) -> list[list[str]]:
    """A row for each contender: its median time by one device's in the same turn."""
    made = []
    for result in record["measured"]:
        seconds = result["seconds"]
        first = next(iter(seconds.values()))
        for who, each in seconds.items():
            count = int(who.split()[0])
            ratio = statistics.median(s / one for s, one in zip(each, first, strict=True))
            rows = str(count * result["rows"])
            made.append([result["device"], who, rows, f"{ratio:.2f}", f"{1 / ratio:.0%}"])
    return made


def show(record: dict[str, Any], console: Console) -> None:
    """All tables."""
    for title, rows in groups(record).items():
        console.print(_table(f"{title} ({NOTE})", PREDICTED, rows))
    if record["measured"]:
        console.print(_table("measured here", MEASURED, measured(record)))


def _table(title: str, headings: tuple[str, ...], rows: list[list[str]]) -> Table:
    made = Table(title=title)
    for heading in headings:
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def markdown(record: dict[str, Any]) -> str:
    """The same as Markdown."""
    parts = []
    for title, rows in groups(record).items():
        parts.append("\n".join([f"{title} ({NOTE}):", "", *_lines(PREDICTED, rows)]))
    if record["measured"]:
        parts.append("\n".join(["Measured:", "", *_lines(MEASURED, measured(record))]))
    return "\n\n".join(parts)


def _lines(headings: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
