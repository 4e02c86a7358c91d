"""Tables of results: helpers that all benchmarks share, and the report of `cell_throughput.py`.

The report of a record consists of tables on the screen, a summary in lines, a Markdown table, a picture,
and the rows of `choices.json`, by which `jaxrnn.unroll` picks an implementation.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

import jaxrnn
from benchmarks.contenders import OURS

CHOICES = Path(jaxrnn.__file__).parent / "recurrence" / "choices.json"
# Implementations to prefer, in this order, where times are nearly equal.
USUAL = ("native", "cudnn", "xla")
# Times are nearly equal up to this ratio.
TIE = 1.05
# The summary counts the sizes at which the default choice is slower than the best by more than this.
SLOWER = 1.05
HEADINGS = ("µs/step", "chars/s", "GFLOP/s", "GB/s", "x floor", "x peer")
MARKDOWN = (
    "cell",
    "B, T, I, H",
    "dtype",
    "pass",
    "jaxrnn",
    "PyTorch",
    "ratio",
    "best peer",
    "ratio",
    "x floor",
)

# --- for all benchmarks ---------------------------------------------------------------------------


def medians(contenders: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of each contender that was timed, the fastest first."""
    timed = {name: c["seconds"] for name, c in contenders.items() if "seconds" in c}
    found = {name: statistics.median(seconds) for name, seconds in timed.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: int = 0,
    **options: Any,
) -> Table:
    """Return a table for the screen.

    Args:
      title: the line above it.
      headings: of the columns.
      rows: the cells of each row.
      left: number of columns, from the first, that are aligned to the left; the others to the right.
      options: of `rich.table.Table`.
    """
    made = Table(title=title, **options)
    for n, heading in enumerate(headings):
        made.add_column(heading, justify="left" if n < left else "right", no_wrap=n < left)
    for row in rows:
        made.add_row(*row)
    return made


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def joined(size: Iterable[int]) -> str:
    """Return a size as text, such as "64, 100, 256, 512"."""
    return ", ".join(map(str, size))


# --- cells beside their peers -----------------------------------------------------------------------


def best(result: dict[str, Any], own: bool) -> tuple[str, float] | None:
    """Return name and seconds of the fastest of jaxrnn's implementations, or of the peers."""
    times = medians(result["contenders"])
    sides = ((n, t) for n, t in times.items() if n.startswith(OURS) == own)
    return next(sides, None)


def tables(record: dict[str, Any]) -> Group:
    """Return a table for each cell, size, dtype and pass."""
    return Group(*(_table(result) for result in record["results"]))


def _table(result: dict[str, Any]) -> Table:
    rows = []
    batch, steps = result["size"][:2]
    peer = best(result, own=False)
    for name, seconds in medians(result["contenders"]).items():
        row = (
            name + " *" * (name == result["default"]),
            f"{seconds / steps * 1e6:,.1f}",
            f"{batch * steps / seconds:,.0f}",
            f"{result['flops'] / seconds / 1e9:,.1f}",
            f"{result['bytes'] / seconds / 1e9:,.2f}",
            f"{seconds / result['floor']:.2f}",
            f"{seconds / peer[1]:.2f}" if peer else "-",
        )
        rows.append(row)
    headings = ("* default of unroll", *HEADINGS)
    return table(_title(result), headings, rows, left=1, title_justify="left", min_width=78)


def summary(record: dict[str, Any]) -> str:
    """Return missing peers, the floor, the default choice and the ratios to each peer, as lines."""
    lines = [f"measured on {_where(record)}"]
    lines += [f"without {name}: {why}" for name, why in record["missing"].items()]
    for (name, why), titles in _left_out(record).items():
        lines.append(f"left out of {', '.join(titles)}: {name} ({why})")
    for dtype, found in record["floor"]["flops_per_second"].items():
        lines.append(f"floor: {found['rate'] / 1e9:,.0f} GFLOP/s in {dtype} (by {found['by']})")
    copied = record["floor"]["bytes_per_second"]
    lines.append(f"floor: {copied['rate'] / 1e9:,.1f} GB/s (by {copied['by']})")
    slower = [(_over(result), result) for result in record["results"]]
    slower = [(ratio, result) for ratio, result in slower if ratio is not None]
    if slower:
        ratio, result = max(slower, key=lambda pair: pair[0])
        many = sum(each > SLOWER for each, _ in slower)
        lines.append(
            f"the default choice takes at most {ratio:.2f} times as long as jaxrnn's fastest "
            f"implementation ({_title(result)}); above {SLOWER}: {many} of {len(slower)}"
        )
    for (dtype, what), group in _groups(record["results"], "dtype", "pass"):
        for name in _peers(group):
            ratios = [_ratio(result, name) for result in group]
            known = [ratio for ratio in ratios if ratio]
            if known:
                lines.append(
                    f"{dtype} {what}: jaxrnn takes {_mean(known):.2f} of {name}'s time "
                    f"(geometric mean of {len(known)}; {min(known):.2f} to {max(known):.2f})"
                )
    return "\n".join(lines)


def wrong(record: dict[str, Any]) -> list[str]:
    """Return the places where one of jaxrnn's implementations failed the check, and why."""
    return [
        f"{name} at {_title(result)} ({contender['left_out']})"
        for result in record["results"]
        for name, contender in result["contenders"].items()
        if name.startswith(OURS) and "left_out" in contender
    ]


def markdown(record: dict[str, Any]) -> str:
    """Return the table of `benchmarks/README.md`: µs per step of the default, PyTorch, the best peer."""
    rows = []
    for result in record["results"]:
        times, steps = medians(result["contenders"]), result["size"][1]
        peer = best(result, own=False)
        mine = times.get(result["default"])

        def micro(seconds: float | None, steps: int = steps) -> str:
            return f"{seconds / steps * 1e6:,.1f}" if seconds else "-"

        def ratio(to: float | None, mine: float | None = mine) -> str:
            return f"{mine / to:.2f}" if mine and to else "-"

        cells = (
            result["cell"],
            joined(result["size"]),
            result["dtype"],
            result["pass"],
            f"{micro(mine)} ({result['default'].removeprefix(OURS)})",
            micro(times.get("torch")),
            ratio(times.get("torch")),
            f"{micro(peer[1])} ({peer[0]})" if peer else "-",
            ratio(peer[1] if peer else None),
            ratio(result["floor"]),
        )
        rows.append(cells)
    return markdown_table(MARKDOWN, rows)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw all ratios to PyTorch (without it, to the fastest peer or jaxrnn's plain scan) to a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(_groups(record["results"], "pass"))
    names = list(dict.fromkeys(n for r in record["results"] for n in r["contenders"]))
    names = [n for n in names if any(n in medians(r["contenders"]) for r in record["results"])]
    rows = max(len(group) for _, group in groups)
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(3.4 + len(groups) * (0.95 * len(names) + 0.4), 2.2 + 0.32 * rows),
        squeeze=False,
        layout="constrained",
    )
    for n, (axis, ((what,), group)) in enumerate(zip(axes[0], groups, strict=True)):
        for y, result in enumerate(group):
            base, times = _base(result), medians(result["contenders"])
            for x, name in enumerate(names):
                if name not in times or base is None:
                    continue
                ratio = times[name] / times[base]
                shade = max(-1.0, min(1.0, math.log2(ratio)))
                colour = plt.get_cmap("PuOr_r")(0.5 + 0.35 * shade)
                axis.add_patch(plt.Rectangle((x, y), 1, 1, color=colour, linewidth=0))
                strong = "bold" if name == result["default"] else "normal"
                text = "1" if name == base else f"{ratio:.2f}"
                ink = "white" if abs(shade) > 0.6 else "black"
                at = x + 0.5, y + 0.5
                axis.text(*at, text, ha="center", va="center", weight=strong, color=ink)
        axis.set(xlim=(0, len(names)), ylim=(len(group), 0))
        axis.set_xticks([x + 0.5 for x in range(len(names))], [n.replace(" ", "\n") for n in names])
        titles = [_title(result, what=False) for result in group] if n == 0 else []
        axis.set_yticks([y + 0.5 for y in range(len(titles))], titles)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(what, pad=12)
    figure.suptitle(
        f"Time relative to the contender marked 1, on {_where(record)}: purple is faster, orange "
        "slower\nbold: the default of jaxrnn.unroll; rows: cell, B, T, I, H"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_choices(record: dict[str, Any]) -> int:
    """Write jaxrnn's fastest implementation of each size to CHOICES; return how many this record has.

    An implementation is judged by the product of its times over both passes and all sizes that share B
    and H, since `unroll` does not know which pass will follow. Rows of other platforms, and of sizes
    that this record does not have, are kept.
    """
    keys = ("platform", "device", "cell", "dtype", "batch", "hidden")
    kept = json.loads(CHOICES.read_text(encoding="utf-8")) if CHOICES.exists() else []
    rows = {tuple(row.get(key, "") for key in keys): row for row in kept}
    found = [r | {"batch": r["size"][0], "hidden": r["size"][3]} for r in record["results"]]
    # A measurement on one GPU does not apply to other GPUs.
    device = record["device"] if record["platform"] == "gpu" else ""
    found = [r | {"platform": record["platform"], "device": device} for r in found]
    count = 0
    for values, group in _groups(found, *keys):
        name = _fastest(group)
        if name:
            row = {key: v for key, v in zip(keys, values, strict=True) if v != ""}
            rows[values] = row | {"implementation": name}
            count += 1
    lines = [json.dumps(rows[values]) for values in sorted(rows)]
    CHOICES.write_text("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n", encoding="utf-8")
    return count


def _fastest(group: list[dict[str, Any]]) -> str | None:
    every = [medians(result["contenders"]) for result in group]
    names = [name for name in every[0] if name.startswith(OURS) and all(name in t for t in every)]
    means = {name.removeprefix(OURS): _mean([times[name] for times in every]) for name in names}
    if not means:
        return None
    name = min(means, key=lambda each: means[each])
    alike = (usual for usual in USUAL if means.get(usual, math.inf) <= TIE * means[name])
    return next(alike, name)


def _over(result: dict[str, Any]) -> float | None:
    """Return the time of the default choice divided by that of jaxrnn's fastest implementation."""
    mine, own = medians(result["contenders"]).get(result["default"]), best(result, own=True)
    return mine / own[1] if mine and own else None


def _ratio(result: dict[str, Any], name: str) -> float | None:
    times = medians(result["contenders"])
    both = name in times and result["default"] in times
    return times[result["default"]] / times[name] if both else None


def _base(result: dict[str, Any]) -> str | None:
    times, peer = medians(result["contenders"]), best(result, own=False)
    if "torch" in times:
        return "torch"
    return peer[0] if peer else next((n for n in times if n == OURS + "scan"), None)


def _peers(group: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for result in group for name in medians(result["contenders"]))
    return [name for name in names if not name.startswith(OURS)]


def _left_out(record: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Return where each contender is missing and why: cells that it lacks, and results that failed."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for result in record["results"]:
        for name, why in result["unserved"].items():
            places.setdefault((name, why), {})[result["cell"]] = None
        for name, contender in result["contenders"].items():
            if "left_out" in contender:
                places.setdefault((name, contender["left_out"]), {})[_title(result)] = None
    return {reason: list(titles) for reason, titles in places.items()}


def _groups(results: Any, *keys: str) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Group results by the values of some keys, in the order of their first results."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return iter(groups.items())


def _title(result: dict[str, Any], what: bool = True) -> str:
    size = joined(result["size"])
    dtype = "" if result["dtype"] == "float32" and not what else f", {result['dtype']}"
    return f"{result['cell']}, {size}{dtype}" + (f", {result['pass']}" if what else "")


def _where(record: dict[str, Any]) -> str:
    if record["platform"] != "cpu":
        return record["device"]
    return f"{record['cores']} CPU core" + "s" * (record["cores"] > 1)


def _mean(ratios: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, ratios)))
