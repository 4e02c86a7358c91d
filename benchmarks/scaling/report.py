"""The tables of predictions and, separately, of measurements."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Console

from benchmarks import tables
from benchmarks.scaling import model

PREDICTED = (
    "chip",
    "chips",
    "mesh",
    "rows per chip",
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
MEASURED = ("device", "who", "rows", "step / one device's", "efficiency", "/ 2 processes'")
NOTE = "predicted: nothing of this ran on a TPU"


def alone(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of one chip that this row is compared with; None if there is none."""
    same = ("chip", "hidden", "fixed")
    for other in rows:
        if other["chips"] == 1 and all(other[name] == row[name] for name in same):
            return other
    return None


def efficiency(
    rows: list[dict[str, Any]], row: dict[str, Any], which: str = "step"
) -> float | None:
    """Return rows per second and chip, divided by those of one chip; None without such a row."""
    one = alone(rows, row)
    if one is None:
        return None
    return model.efficiency(row["rows"], row[which], row["chips"], one["rows"] / one[which])


def groups(record: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the rows of each table of predictions by its title."""
    rows = record["predicted"]
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        kept = f"{row['rows'] // row['chips']} rows per chip"
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
    """Return the largest term of a step, and for the recurrence its largest part."""
    if row["limit"] != "recurrence":
        return row["limit"]
    needs = model.recurrence(model.CHIPS[row["chip"]], _work(row))
    return f"recurrence ({max(needs, key=lambda name: needs[name])})"


def by_xla(row: dict[str, Any]) -> float:
    """Return the seconds of a step if its rest takes the cycles that XLA estimates, without overlap."""
    terms = model.Terms(**row["terms"])
    cycles = row["of_a_device"]["estimated_cycles_of_the_rest"]
    rest = cycles / model.CHIPS[row["chip"]].clock
    return terms.step - max(terms.compute, terms.memory) + rest


def _work(row: dict[str, Any]) -> model.Work:
    return model.Work(**{name: row["of_a_device"][name] for name in model.Work._fields})


def measured(record: dict[str, Any]) -> list[list[str]]:
    """Return a row for each contender.

    It has the median of its time divided by that of one device in the same turn, and by that of two
    processes that do not communicate.
    """
    made = []
    for result in record["measured"]:
        seconds = result["seconds"]
        first, separate = next(iter(seconds.values())), seconds.get("2 processes")
        for who, each in seconds.items():
            count = int(who.split()[0])
            ratio = _ratio(each, first)
            cells = [result["device"], who, str(count * result["rows"])]
            cells += [f"{ratio:.2f}", f"{1 / ratio:.0%}"]
            made.append(
                [*cells, f"{_ratio(each, separate):.2f}" if separate and count == 2 else "-"]
            )
    return made


def _ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median over the turns of the ratio."""
    return statistics.median(s / other for s, other in zip(seconds, others, strict=True))


def show(record: dict[str, Any], console: Console) -> None:
    """Print all tables."""
    for title, rows in groups(record).items():
        console.print(tables.table(f"{title} ({NOTE})", PREDICTED, rows))
    if record["measured"]:
        console.print(tables.table("measured on this machine", MEASURED, measured(record)))


def markdown(record: dict[str, Any]) -> str:
    """Return all tables in Markdown."""
    parts = []
    for title, rows in groups(record).items():
        parts += [f"{title} ({NOTE}):", tables.markdown_table(PREDICTED, rows)]
    if record["measured"]:
        parts += ["Measured:", tables.markdown_table(MEASURED, measured(record))]
    return "\n\n".join(parts)
