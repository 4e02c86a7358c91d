"""What `cell_throughput.py` shows of a record: tables, a picture, and the choices for `unroll`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

CHOICES = Path(__file__).parents[1] / "jaxrnn" / "kernels" / "choices.json"
OURS = "jaxrnn "  # how the names of jaxrnn's own implementations begin
USUAL = ("native", "xla")  # in this order, where times are alike
TIE = 1.05  # times nearer than this are alike
TOLD = 1.05  # the default choice should not be slower than the best by more


def medians(result: dict[str, Any]) -> dict[str, float]:
    """Seconds per call of everybody who was timed, the fastest first."""
    timed = {n: c["seconds"] for n, c in result["contenders"].items() if "seconds" in c}
    found = {name: statistics.median(seconds) for name, seconds in timed.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def best(result: dict[str, Any], own: bool) -> tuple[str, float] | None:
    """The fastest of jaxrnn's implementations, or of the peers, and its seconds."""
    sides = ((n, t) for n, t in medians(result).items() if n.startswith(OURS) == own)
    return next(sides, None)


def tables(record: dict[str, Any]) -> Group:
    """Everything that was timed, for the screen."""
    return Group(*(_table(result) for result in record["results"]))


def _table(result: dict[str, Any]) -> Table:
    made = Table(title=_title(result), title_justify="left", min_width=78)
    made.add_column("* unroll's pick", no_wrap=True)
    for heading in ("µs/step", "chars/s", "GFLOP/s", "GB/s", "x floor", "x peer"):
        made.add_column(heading, justify="right")
    batch, steps = result["size"][:2]
    peer = best(result, own=False)
    for name, seconds in medians(result).items():
        made.add_row(
            name + " *" * (name == result["default"]),
            f"{seconds / steps * 1e6:,.1f}",
            f"{batch * steps / seconds:,.0f}",
            f"{result['flops'] / seconds / 1e9:,.1f}",
            f"{result['bytes'] / seconds / 1e9:,.2f}",
            f"{seconds / result['floor']:.2f}",
            f"{seconds / peer[1]:.2f}" if peer else "-",
        )
    return made


def summary(record: dict[str, Any]) -> str:
    """What the table says, in lines: missing peers, the floor, the default choice, the ratios."""
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
        many = sum(each > TOLD for each, _ in slower)
        lines.append(
            f"the default choice is at most {ratio:.2f} times the best of jaxrnn's own "
            f"({_title(result)}); above {TOLD}: {many} of {len(slower)}"
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
    """Where one of jaxrnn's own implementations failed the check; nowhere, it should be."""
    return [
        f"{name} at {_title(result)} ({contender['left_out']})"
        for result in record["results"]
        for name, contender in result["contenders"].items()
        if name.startswith(OURS) and "left_out" in contender
    ]


def markdown(record: dict[str, Any]) -> str:
    """The table of `benchmarks/README.md`: µs per step of the default choice, PyTorch, the best peer."""
    lines = [
        "| cell | B, T, I, H | dtype | pass | jaxrnn | PyTorch | ratio | best peer | ratio | x floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        times, steps, peer = medians(result), result["size"][1], best(result, own=False)
        mine = times.get(result["default"])

        def micro(seconds: float | None, steps: int = steps) -> str:
            return f"{seconds / steps * 1e6:,.1f}" if seconds else "-"

        def ratio(to: float | None, mine: float | None = mine) -> str:
            return f"{mine / to:.2f}" if mine and to else "-"

        cells = (
            result["cell"],
            ", ".join(map(str, result["size"])),
            result["dtype"],
            result["pass"],
            f"{micro(mine)} ({result['default'].removeprefix(OURS)})",
            micro(times.get("torch")),
            ratio(times.get("torch")),
            f"{micro(peer[1])} ({peer[0]})" if peer else "-",
            ratio(peer[1] if peer else None),
            ratio(result["floor"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """A picture of all ratios to PyTorch (without it, to the fastest peer or jaxrnn's plain scan)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(_groups(record["results"], "pass"))
    names = list(dict.fromkeys(n for r in record["results"] for n in r["contenders"]))
    names = [n for n in names if any(n in medians(r) for r in record["results"])]
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
            base, times = _base(result), medians(result)
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
        "slower\nbold: what jaxrnn.unroll picks by itself; rows: cell, B, T, I, H"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_choices(record: dict[str, Any]) -> int:
    """Put the fastest own implementation of each size into CHOICES, and count this record's rows.

    By the product of its times over both passes and all sizes that share B and H, since `unroll` does
    not know which pass will follow; other platforms' rows, and sizes that this record does not have,
    stay as they are.
    """
    keys = ("platform", "cell", "dtype", "batch", "hidden")
    kept = json.loads(CHOICES.read_text(encoding="utf-8")) if CHOICES.exists() else []
    rows = {tuple(row[key] for key in keys): row for row in kept}
    found = [r | {"batch": r["size"][0], "hidden": r["size"][3]} for r in record["results"]]
    found = [r | {"platform": record["platform"]} for r in found]
    count = 0
    for values, group in _groups(found, *keys):
        name = _fastest(group)
        if name:
            row = dict(zip(keys, values, strict=True)) | {"implementation": name}
            rows[values] = row
            count += 1
    lines = [json.dumps(rows[values]) for values in sorted(rows)]
    CHOICES.write_text("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n", encoding="utf-8")
    return count


def _fastest(group: list[dict[str, Any]]) -> str | None:
    every = [medians(result) for result in group]
    names = [name for name in every[0] if name.startswith(OURS) and all(name in t for t in every)]
    means = {name.removeprefix(OURS): _mean([times[name] for times in every]) for name in names}
    if not means:
        return None
    name = min(means, key=lambda each: means[each])
    alike = (usual for usual in USUAL if means.get(usual, math.inf) <= TIE * means[name])
    return next(alike, name)


def _over(result: dict[str, Any]) -> float | None:
    """The default choice's time over that of the best of jaxrnn's own."""
    mine, own = medians(result).get(result["default"]), best(result, own=True)
    return mine / own[1] if mine and own else None


def _ratio(result: dict[str, Any], name: str) -> float | None:
    times = medians(result)
    both = name in times and result["default"] in times
    return times[result["default"]] / times[name] if both else None


def _base(result: dict[str, Any]) -> str | None:
    times, peer = medians(result), best(result, own=False)
    if "torch" in times:
        return "torch"
    return peer[0] if peer else next((n for n in times if n == OURS + "scan"), None)


def _peers(group: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for result in group for name in medians(result))
    return [name for name in names if not name.startswith(OURS)]


def _left_out(record: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Where a contender is missing and why: the cells it does not have, the results that failed."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for result in record["results"]:
        for name, why in result["unserved"].items():
            places.setdefault((name, why), {})[result["cell"]] = None
        for name, contender in result["contenders"].items():
            if "left_out" in contender:
                places.setdefault((name, contender["left_out"]), {})[_title(result)] = None
    return {reason: list(titles) for reason, titles in places.items()}


def _groups(results: Any, *keys: str) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Results with the same values of some keys, in the order in which they first come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return iter(groups.items())


def _title(result: dict[str, Any], what: bool = True) -> str:
    size = ", ".join(map(str, result["size"]))
    dtype = "" if result["dtype"] == "float32" and not what else f", {result['dtype']}"
    return f"{result['cell']}, {size}{dtype}" + (f", {result['pass']}" if what else "")


def _where(record: dict[str, Any]) -> str:
    if record["platform"] != "cpu":
        return record["device"]
    return f"{record['cores']} CPU core" + "s" * (record["cores"] > 1)


def _mean(ratios: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, ratios)))
