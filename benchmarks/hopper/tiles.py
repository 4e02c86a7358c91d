"""Tilings of the Hopper kernels at the usual sizes, found by the search or measured.

    python -m benchmarks.hopper.tiles                   # show the tilings of both kernels
    python -m benchmarks.hopper.tiles --write           # search again and write the library's table
    python -m benchmarks.hopper.tiles --fit FILE ...    # fit the model's coefficients to measurements
    python -m benchmarks.hopper.tiles --measured FILE   # write the fastest measured tilings to the table

FILE was written by `benchmarks.hopper.ladder` on a GPU. The microseconds beside a tiling are measured,
or else those of a step by the model in `kernels.hopper.cost_model`, which serves to compare tilings.
`--write` keeps the measured rows.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks import measure
from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels.hopper import cost_model, one_cta, search
from jaxrnn.recurrence.kernels.hopper.tiles import DIRECTIONS, MULTIPROCESSORS, footprint

DTYPES = ("bfloat16", "float32")
HIDDEN = (256, 512, 768, 1024)
BATCHES = (16, 64, 128, 256)
# The largest difference of results in bfloat16 from those of "xla", in units of the largest entry.
RIGHT = 0.02
# Sizes of the kernel for small widths.
SMALL_CELLS, SMALL_HIDDEN, SMALL_BATCHES = (
    ("gru-after", "gru-before", "lstm", "rnn"),
    (64, 128),
    (4, 64, 256, 1024, 4096),
)
FILE = Path(search.__file__).with_name("tiles.json")


def searched() -> list[dict[str, Any]]:
    """Return a row for every usual size, by the search."""
    rows = []
    for name, dtype, hidden, batch in itertools.product(CELLS, DTYPES, HIDDEN, BATCHES):
        cell = CELLS[name](hidden)
        tiles = search.search(cell, batch, jnp.dtype(dtype), MULTIPROCESSORS)
        assert tiles is not None
        directions = {way: getattr(tiles, way)._asdict() for way in ("forward", "backward")}
        row = {"multiprocessors": MULTIPROCESSORS, "cell": name, "dtype": dtype}
        row |= {"hidden": hidden, "batch": batch, "measured": False}
        rows.append(row | {"tiles": tiles._asdict() | directions})
    return rows


class Fit(NamedTuple):
    """Coefficients, and the root mean square of the relative error of a step's time."""

    numbers: cost_model.Features
    error: float


def fitted(measured: list[dict[str, Any]]) -> dict[str, Fit]:
    """Return by direction the `cost_model.MICROSECONDS` with the least relative error."""
    made = {}
    for direction in cost_model.MICROSECONDS:
        wanted, found = [], []
        for row in measured:
            cell = CELLS[row["cell"]](row["hidden"])
            tiles = search.read_tiling(row["tiles"])
            memory = getattr(tiles, direction)
            work = cost_model.features(cell, tiles, direction, memory, "bfloat16")
            found.append([tiles.turns * count for count in work])
            wanted.append(row["microseconds"][direction])
        counts, times = np.array(found), np.array(wanted)
        used = np.flatnonzero(counts.any(axis=0))
        # Leave out features until no coefficient is negative.
        while True:
            scaled = counts[:, used] / times[:, None]
            each, *_ = np.linalg.lstsq(scaled, np.ones(len(times)), rcond=None)
            if (each >= 0).all():
                break
            used = used[each >= 0]
        coefficients = np.zeros(counts.shape[1])
        coefficients[used] = each
        error = np.sqrt(np.mean((scaled @ each - 1) ** 2))
        numbers = cost_model.Features(*(round(float(c), 3) for c in coefficients))
        made[direction] = Fit(numbers, float(error))
    return made


def fastest(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for every problem the fastest tiling, each direction with its best memory layout."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in measured:
        problem = tuple(row[name] for name in ("cell", "hidden", "batch"))
        cut = {k: v for k, v in row["tiles"].items() if k not in cost_model.MICROSECONDS}
        place = (*problem, *cut.values())
        now = best.setdefault(place, {"tiles": dict(cut), "microseconds": {}})
        for direction, time in row["microseconds"].items():
            if time < now["microseconds"].get(direction, np.inf):
                now["microseconds"][direction] = time
                now["tiles"][direction] = row["tiles"][direction]
    rows = {}
    for place, found in sorted(
        best.items(), key=lambda pair: -sum(pair[1]["microseconds"].values())
    ):
        row = {"multiprocessors": MULTIPROCESSORS, "cell": place[0], "dtype": "bfloat16"}
        row |= {"hidden": place[1], "batch": place[2], "measured": True}
        found["microseconds"] = {k: round(v, 2) for k, v in found["microseconds"].items()}
        rows[place[:3]] = row | found
    return list(rows.values())


def right(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of tilings whose results are right, and equal at every call."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "microseconds" in row and _can_still_run(row)]
    return [row for row in rows if row["moved"] == 0 and max(row["errors"].values()) < RIGHT]


def _can_still_run(row: dict[str, Any]) -> bool:
    """Return whether the kernel for large widths can run a tiling, and remove fields of older kernels.

    Those could also run in clusters ("cluster"), and fetch weights again in every step ("resident").
    """
    tiles = row["tiles"]
    if "parts" not in tiles:
        # The kernel for small widths measured it. The library computes its tilings and has no table.
        return False
    cell = CELLS[row["cell"]](row["hidden"])
    for direction in DIRECTIONS:
        memory = tiles[direction]
        total = footprint(cell, direction, tiles["parts"], "bfloat16").total
        if memory.pop("resident", total) * memory["chunk"] < total:
            return False
    return tiles.pop("cluster", 1) == 1


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("multiprocessors", "cell", "dtype", "hidden", "batch"))


def shown(rows: list[dict[str, Any]]) -> Table:
    """Return the table of tilings."""
    made = Table(title="Tilings; microseconds per step are measured, or else by the model")
    columns = ("cell", "dtype", "H", "B", "parts", "rows", "blocks", "turns")
    for heading in (*columns, "forward", "back"):
        made.add_column(heading)
    for row in rows:
        tiles = search.read_tiling(row["tiles"])
        cell = CELLS[row["cell"]](row["hidden"])
        times = row.get("microseconds") or cost_model.microseconds(cell, tiles, row["dtype"])
        numbers = (row["hidden"], row["batch"], tiles.parts, tiles.rows)
        made.add_row(
            row["cell"] + (" measured" if row["measured"] else ""),
            row["dtype"],
            *map(str, (*numbers, tiles.blocks, tiles.turns)),
            *(f"{time:.2f}" for time in times.values()),
        )
    return made


def shown_small() -> Table:
    """Return the table of the kernel for small widths, beside the times of the other one."""
    made = Table(title="Small widths, bfloat16; microseconds per step by the model")
    if not one_cta.AVAILABLE:
        made.caption = (
            "This JAX has no kernel for small widths; 0.11.2 has. Both times are of the other one."
        )
    columns = ("cell", "H", "B", "rows", "CTAs", "forward", "back")
    for heading in (*columns, "other kernel: forward", "back"):
        made.add_column(heading)
    for name, hidden, batch in itertools.product(SMALL_CELLS, SMALL_HIDDEN, SMALL_BATCHES):
        cell, dtype = CELLS[name](hidden), jnp.dtype("bfloat16")
        alone = search.tiling_for(cell, batch, dtype)
        other = search.search(cell, batch, dtype, MULTIPROCESSORS)
        assert other is not None
        times = [
            f"{time:.2f}"
            for tiles in (alone, other)
            for time in cost_model.microseconds(cell, tiles, dtype).values()
        ]
        made.add_row(name, *map(str, (hidden, batch, alone.rows, alone.blocks)), *times)
    return made


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Show or update the tilings of the Hopper kernels.")
    add = parser.add_argument
    add("--write", action="store_true", help=f"search again and write {FILE.name}")
    add("--fit", type=Path, nargs="+", metavar="FILE", help="fit the model's coefficients to them")
    add("--measured", type=Path, metavar="FILE", help=f"write its fastest tilings to {FILE.name}")
    flags = parser.parse_args()
    if flags.fit:
        measured = [row for path in flags.fit for row in right(path)]
        for direction, (numbers, error) in fitted(measured).items():
            print(f"{direction}: {numbers}, relative error {error:.3f}, {len(measured)} measured")
        return
    rows = search.table()
    if flags.write:
        kept = {_key(row): row for row in rows if row["measured"]}
        rows = list(({_key(row): row for row in searched()} | kept).values())
    if flags.measured:
        found = {_key(row): row for row in fastest(right(flags.measured))}
        rows = list(({_key(row): row for row in rows} | found).values())
    if flags.write or flags.measured:
        FILE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    measure.screen().print(shown(rows), shown_small())


if __name__ == "__main__":
    main()
