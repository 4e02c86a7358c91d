"""How the Hopper kernels are cut for the usual sizes, by the search or as measured.

    python benchmarks/hopper_tiles.py            # shows the table
    python benchmarks/hopper_tiles.py --write    # searches again, writes kernels/hopper_tiles.json
    python benchmarks/hopper_tiles.py --layers   # what layers at once would gain, shows the table
    python benchmarks/hopper_tiles.py --fit FILE         # the model's coefficients from measurements
    python benchmarks/hopper_tiles.py --measured FILE    # the fastest tilings measured, into the JSON

FILE is what `benchmarks/hopper/ladder.py` wrote on a card. The microseconds beside a tiling are those
measured, otherwise its step's by the model in `kernels.hopper.cost_model`: a way to compare tilings.
`--write` leaves the rows that were measured as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from benchmarks import measure
import numpy as np
from rich.table import Table

import jaxrnn
from jaxrnn.recurrence.cells import cell_name
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper import search as hopper_search
from jaxrnn.recurrence.kernels.hopper import stack as hopper_stack

CELLS = {
    cell_name(cell): cell
    for cell in (
        jaxrnn.rnn(1),
        jaxrnn.lstm(1),
        jaxrnn.lstm(1, peephole=True),
        jaxrnn.gru(1, reset="before"),
        jaxrnn.gru(1, reset="after"),
    )
}
DTYPES = ("bfloat16", "float32")
HIDDEN = (256, 512, 768, 1024, 2048)
STACK_HIDDEN = (128, 256, 512, 768)
BATCHES = (16, 64, 128, 256)
# Of the largest entry: how far results in bfloat16 may be from those of "xla".
RIGHT = 0.02
FILE = Path(hopper_search.__file__).with_name("hopper_tiles.json")


def searched() -> list[dict[str, Any]]:
    """A row for every usual size."""
    rows = []
    room = hopper_residency.ROOM
    for name, dtype, hidden, batch in itertools.product(CELLS, DTYPES, HIDDEN, BATCHES):
        cell = dataclasses.replace(CELLS[name], hidden_size=hidden)
        tiles = hopper_search.search(cell, batch, jnp.dtype(dtype), room)
        assert tiles is not None
        directions = {way: getattr(tiles, way)._asdict() for way in ("forward", "backward")}
        row = {"multiprocessors": room[0], "cell": name, "dtype": dtype}
        row |= {"hidden": hidden, "batch": batch, "measured": False}
        rows.append(row | {"tiles": tiles._asdict() | directions})
    return rows


def fitted(measured: list[dict[str, Any]]) -> None:
    """Print the coefficients of `hopper_model.MICROSECONDS` with the least relative error."""
    for direction in hopper_model.MICROSECONDS:
        wanted, found = [], []
        for row in measured:
            cell = dataclasses.replace(CELLS[row["cell"]], hidden_size=row["hidden"])
            tiles = hopper_search.read(row["tiles"])
            memory = getattr(tiles, direction)
            work = hopper_model.features(cell, tiles, direction, memory, "bfloat16")
            found.append([tiles.turns * count for count in work])
            wanted.append(row["microseconds"][direction])
        counts, times = np.array(found), np.array(wanted)
        used = np.flatnonzero(counts.any(axis=0))
        while True:  # without those that would take less than no time
            scaled = counts[:, used] / times[:, None]
            each, *_ = np.linalg.lstsq(scaled, np.ones(len(times)), rcond=None)
            if (each >= 0).all():
                break
            used = used[each >= 0]
        coefficients = np.zeros(counts.shape[1])
        coefficients[used] = each
        error = np.sqrt(np.mean((scaled @ each - 1) ** 2))
        numbers = hopper_model.Features(*(round(float(c), 3) for c in coefficients))
        print(f"{direction}: {numbers}, relative error {error:.3f}, {len(times)} measured")


def fastest(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every problem: the fastest tiling, each direction with the memory that suited it."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in measured:
        problem = tuple(row[name] for name in ("cell", "hidden", "batch"))
        cut = {k: v for k, v in row["tiles"].items() if k not in hopper_model.MICROSECONDS}
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
        row = {"multiprocessors": hopper_residency.ROOM[0], "cell": place[0], "dtype": "bfloat16"}
        row |= {"hidden": place[1], "batch": place[2], "measured": True}
        found["microseconds"] = {k: round(v, 2) for k, v in found["microseconds"].items()}
        rows[place[:3]] = row | found
    return list(rows.values())


def right(path: Path) -> list[dict[str, Any]]:
    """What was measured of tilings that are right, the same at every call."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "microseconds" in row]
    return [row for row in rows if row["moved"] == 0 and max(row["errors"].values()) < RIGHT]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("multiprocessors", "cell", "dtype", "hidden", "batch"))


def shown(rows: list[dict[str, Any]]) -> Table:
    made = Table(title="Cuts; microseconds a step are the model's")
    columns = ("cell", "dtype", "H", "B", "parts", "cluster", "rows", "blocks", "turns")
    for heading in (*columns, "forward", "back"):
        made.add_column(heading)
    for row in rows:
        tiles = hopper_search.read(row["tiles"])
        cell = dataclasses.replace(CELLS[row["cell"]], hidden_size=row["hidden"])
        times = row.get("microseconds") or hopper_model.microseconds(cell, tiles, row["dtype"])
        numbers = (row["hidden"], row["batch"], tiles.parts, tiles.cluster, tiles.rows)
        made.add_row(
            row["cell"] + (" measured" if row["measured"] else ""),
            row["dtype"],
            *map(str, (*numbers, tiles.blocks, tiles.turns)),
            *(f"{time:.2f}" for time in times.values()),
        )
    return made


def gains() -> Table:
    """How many times as long layers one by one take, by the model; 1024 steps of bfloat16."""
    made = Table(title="Time of layers one by one over layers at once, by the model")
    for heading in ("cell", "layers", "B", *(f"H = {hidden}" for hidden in STACK_HIDDEN)):
        made.add_column(heading)
    names = ("lstm", "gru-after")
    for name, layers, batch in itertools.product(names, (2, 4), BATCHES[:3]):
        cells = (dataclasses.replace(CELLS[name], hidden_size=hidden) for hidden in STACK_HIDDEN)
        found = (hopper_stack.gain(cell, layers, 1024, batch, "bfloat16") for cell in cells)
        ratios = (f"{ratio:.2f}" if ratio else "does not fit" for ratio in found)
        made.add_row(name, str(layers), str(batch), *ratios)
    return made


def main() -> None:
    parser = measure.Parser(description="how the Hopper kernels are cut")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--layers", action="store_true", help="what layers at once would gain")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="show the model's coefficients")
    parser.add_argument("--measured", type=Path, metavar="FILE", help=f"take it into {FILE.name}")
    flags = parser.parse_args()
    if flags.fit:
        fitted(right(flags.fit))
        return
    if flags.layers:
        measure.screen().print(gains())
        return
    rows = hopper_search.table()
    if flags.write:
        kept = {key(row): row for row in rows if row["measured"]}
        rows = list(({key(row): row for row in searched()} | kept).values())
    if flags.measured:
        found = {key(row): row for row in fastest(right(flags.measured))}
        rows = list(({key(row): row for row in rows} | found).values())
    if flags.write or flags.measured:
        FILE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    measure.screen().print(shown(rows))


if __name__ == "__main__":
    main()
