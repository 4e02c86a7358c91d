"""How the Hopper kernels are cut for the usual sizes, by the search or as measured.

    python benchmarks/hopper_tiles.py            # shows the table
    python benchmarks/hopper_tiles.py --write    # searches again, writes kernels/hopper_tiles.json
    python benchmarks/hopper_tiles.py --layers   # what layers at once would gain, shows the table

The microseconds beside a cut are its step's by the model in `jaxrnn.kernels.hopper_model`: a way to
compare cuts, not times of a card. Rows that were measured on a card stay as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import measure
from rich.table import Table

import jaxrnn
from jaxrnn.cells import cell_name
from jaxrnn.kernels import hopper_model, hopper_residency, hopper_search, hopper_stack

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
FILE = Path(hopper_search.__file__).with_name("hopper_tiles.json")


def searched() -> list[dict[str, Any]]:
    """A row for every usual size."""
    rows = []
    room = hopper_residency.ROOM
    for name, dtype, hidden, batch in itertools.product(CELLS, DTYPES, HIDDEN, BATCHES):
        cell = dataclasses.replace(CELLS[name], hidden=hidden)
        tiles = hopper_search.search(cell, batch, jnp.dtype(dtype), room)
        assert tiles is not None
        directions = {way: getattr(tiles, way)._asdict() for way in ("forward", "backward")}
        row = {"multiprocessors": room[0], "cell": name, "dtype": dtype}
        row |= {"hidden": hidden, "batch": batch, "measured": False}
        rows.append(row | {"tiles": tiles._asdict() | directions})
    return rows


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("multiprocessors", "cell", "dtype", "hidden", "batch"))


def shown(rows: list[dict[str, Any]]) -> Table:
    made = Table(title="Cuts; microseconds a step are the model's")
    columns = ("cell", "dtype", "H", "B", "parts", "cluster", "rows", "blocks", "turns")
    for heading in (*columns, "forward", "back"):
        made.add_column(heading)
    for row in rows:
        tiles = hopper_search.read(row["tiles"])
        cell = dataclasses.replace(CELLS[row["cell"]], hidden=row["hidden"])
        times = hopper_model.microseconds(cell, tiles, row["dtype"])
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
        cells = (dataclasses.replace(CELLS[name], hidden=hidden) for hidden in STACK_HIDDEN)
        found = (hopper_stack.gain(cell, layers, 1024, batch, "bfloat16") for cell in cells)
        ratios = (f"{ratio:.2f}" if ratio else "does not fit" for ratio in found)
        made.add_row(name, str(layers), str(batch), *ratios)
    return made


def main() -> None:
    parser = measure.Parser(description="how the Hopper kernels are cut")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--layers", action="store_true", help="what layers at once would gain")
    flags = parser.parse_args()
    if flags.layers:
        measure.screen().print(gains())
        return
    rows = hopper_search.table()
    if flags.write:
        kept = {key(row): row for row in rows if row["measured"]}
        rows = [kept.get(key(row), row) for row in searched()]
        FILE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    measure.screen().print(shown(rows))


if __name__ == "__main__":
    main()
