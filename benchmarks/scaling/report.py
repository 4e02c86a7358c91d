"""The tables of `scaling.py`: what is predicted, and apart from it what was measured."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.scaling import model as model
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
    "exchanges",
    "step, ms",
    "efficiency",
    "limit",
    "at least, ms",
    "by XLA's cycles, ms",
)
MEASURED = ("device", "who", "rows", "step, of one device's", "efficiency", "of 2 processes'")
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
        cells.append(f"{sum(c['count'] * c['turns'] for c in row['collectives']):,}")
        cells.append(f"{1e3 * row['step']:.2f}")
        full = row["memory"] > record["chips"][row["chip"]]["capacity"]
        cells.append("-" if share is None else f"{share:.0%}")
        cells.append(limit(row) + (", memory full" if full else ""))
        cells += [f"{1e3 * seconds:.2f}" for seconds in (row["floor"], by_xla(row))]
        found.setdefault(title, []).append(cells)
    return found


def limit(row: dict[str, Any]) -> str:
    """What takes the most of a step, and where that is the recurrence, what of it."""
    if row["limit"] != "recurrence":
        return row["limit"]
    needs = model.recurrence(model.CHIPS[row["chip"]], _work(row))
    return f"recurrence ({max(needs, key=lambda name: needs[name])})"


def by_xla(row: dict[str, Any]) -> float:
    """Seconds of a step whose rest takes the cycles that XLA estimates for it, one after the other."""
    terms = model.Terms(**row["terms"])
    cycles = row["of_a_device"]["estimated_cycles_of_the_rest"]
    rest = cycles / model.CHIPS[row["chip"]].clock
    return terms.step - max(terms.compute, terms.memory) + rest


def _work(row: dict[str, Any]) -> model.Work:
    return model.Work(**{name: row["of_a_device"][name] for name in model.Work._fields})


def measured(record: dict[str, Any]) -> list[list[str]]:
    """A row for each contender: its median time by one device's in the same turn, and by that of two
    processes that have nothing to tell each other."""
    made = []
    for result in record["measured"]:
        seconds = result["seconds"]
        first, apart = next(iter(seconds.values())), seconds.get("2 processes")
        for who, each in seconds.items():
            count = int(who.split()[0])
            ratio = _ratio(each, first)
            cells = [result["device"], who, str(count * result["rows"])]
            cells += [f"{ratio:.2f}", f"{1 / ratio:.0%}"]
            made.append([*cells, f"{_ratio(each, apart):.2f}" if apart and count == 2 else "-"])
    return made


def _ratio(seconds: list[float], others: list[float]) -> float:
    """The median over the turns."""
    return statistics.median(s / other for s, other in zip(seconds, others, strict=True))


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
