"""How fast are jaxrnn's drop-in layers on this machine, compared with the layers that they replace?

    python benchmarks/cell_throughput.py --layers                # every row
    python benchmarks/cell_throughput.py --layers --quick        # tiny sizes
    python benchmarks/cell_throughput.py --layers --from FILE --markdown    # the table of a file

A row is a problem that users of recurrent layers have: an agent with resets, alone and as several
parameter sets under `vmap`; speech with lengths; a long series. Every contender gets the same weights,
inputs and cotangent. First its outputs, and the gradients of sum(ys * cotangent) for all weights and xs,
are compared with jaxrnn's plain scan in float64. A contender with wrong results is reported and not
timed. The others are timed in one process and in turns (`measure.in_turns`).

Each drop-in of flax's layers is compared with flax's own API of that name, and all other libraries with
`jaxrnn.layers`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Run as a script: import from the repository and not from this folder.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxrnn
from benchmarks import measure, peers, tables
from benchmarks.contenders import OURS, measured
from benchmarks.peers import Contender, Stack, flax_linen, flax_nnx
from benchmarks.problems import PASSES, TOLERANCES
from jaxrnn.devices import accelerator
from jaxrnn.interop import linen, nnx
from jaxrnn.layers import StackedParams, stacked
from jaxrnn.recurrence.cells import GRU

Maker = Callable[[Stack], Contender]


class Row(NamedTuple):
    """Cell, sizes and options of the layers of a row.

    Attributes:
      cell: "gru" (reset after the product) or "lstm".
      hidden: hidden size of each direction.
      inputs: width of the inputs.
      steps: T.
      batch: B.
      layers: number of layers.
      both: whether they are bidirectional.
      sets: number of parameter sets, each with inputs of its own; 0 for one without an axis for it.
      resets: probability of a reset at a step; 0 for no resets.
      lengths: whether rows have lengths, from T/2 to T.
    """

    cell: str
    hidden: int
    inputs: int
    steps: int
    batch: int
    layers: int = 1
    both: bool = False
    sets: int = 0
    resets: float = 0
    lengths: bool = False

    def __str__(self) -> str:
        """Return a description such as "GRU 128, T 128, B 64, resets"."""
        width = f"{self.layers} x {self.hidden}" if self.layers > 1 else str(self.hidden)
        parts = ["bidirectional " * self.both + f"{self.cell.upper()} {width}"]
        parts += [f"T {self.steps}", f"B {self.batch}"]
        parts += ["resets"] * bool(self.resets) + ["lengths"] * self.lengths
        parts += [f"{self.sets} sets"] * bool(self.sets)
        return ", ".join(parts)


_AGENT = Row("gru", 128, 128, 128, 4, resets=1 / 64)
ROWS = {
    f"rl-{batch}{'-vmap' if sets else ''}": _AGENT._replace(batch=batch, sets=sets)
    for batch in (4, 64, 1024)
    for sets in (0, 8)
}
ROWS["speech"] = Row("lstm", 512, 80, 200, 16, layers=3, both=True, lengths=True)
ROWS["series"] = Row("lstm", 64, 8, 1000, 16)
_SMALL = {"hidden": 6, "inputs": 5, "steps": 9, "batch": 3}
QUICK_ROWS = {
    "rl-4": ROWS["rl-4"]._replace(**_SMALL, resets=1 / 4),
    "rl-4-vmap": ROWS["rl-4-vmap"]._replace(**_SMALL, resets=1 / 4, sets=2),
    "speech": ROWS["speech"]._replace(**_SMALL, layers=2),
    "series": ROWS["series"]._replace(**_SMALL),
}

# The drop-in that each library's time is divided by; of those not named here, the last of DROP_INS.
DROP_INS = (OURS + "nnx", OURS + "linen", OURS + "layers")
REPLACED = {flax_nnx.NAME: DROP_INS[0], flax_linen.NAME: DROP_INS[1]}
PEERS = (*REPLACED, "haiku", "equinox", "torch")
OTHER_GRU = "its GRU resets before the product, another function with as many operations"
PACKAGES = ("flax", "dm-haiku", "equinox", "torch")


def draw(row: Row) -> Stack:
    """Return a random problem of a row. A GRU's b_h is zero, since flax nnx has none."""
    rng = np.random.default_rng(0)
    cell: Any = (
        jaxrnn.lstm(row.hidden) if row.cell == "lstm" else jaxrnn.gru(row.hidden, reset="after")
    )
    sets = (row.sets,) if row.sets else ()

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((*sets, *shape), np.float32)

    def params(inputs: int, number: int) -> Any:
        keys = jax.random.split(jax.random.key(number), row.sets or 1)
        made = jax.device_get(jax.vmap(lambda key: cell.init(key, inputs))(keys))
        made = jax.tree.map(lambda a: a.reshape(*sets, *a.shape[1:]), made)
        return made._replace(b=made.b + 0.1 * normal(made.b.shape[-1]))

    directions = 1 + row.both
    widths = [row.inputs] + [row.hidden * directions] * (row.layers - 1)
    weights = [
        [params(width, directions * layer + n) for n in range(directions)]
        for layer, width in enumerate(widths)
    ]
    xs = normal(row.steps, row.batch, row.inputs)
    cotangent = normal(row.steps, row.batch, row.hidden * directions)
    resets = rng.random((*sets, row.steps, row.batch)) < row.resets if row.resets else None
    lengths = None
    if row.lengths:
        lengths = rng.integers(row.steps // 2, row.steps, row.batch, np.int32, endpoint=True)
    given = Stack(cell, weights, xs, cotangent, resets, lengths)
    given = given._replace(cotangent=np.where(given.active, cotangent, 0))
    # All contenders of JAX share these arrays.
    return given._replace(**jax.device_put(_data(given), accelerator.device()))


def _data(given: Stack) -> dict[str, Any]:
    return {name: getattr(given, name) for name in ("xs", "cotangent", "resets", "lengths")}


def reference(given: Stack) -> tuple[np.ndarray, Any]:
    """Return outputs, and gradients of the parameters and xs, of the plain scan in float64 on a CPU.

    They are rounded to float32, which takes half of the memory. Sets run one after the other.
    """

    def loss(params: Any, xs: Any, cotangent: Any, resets: Any) -> Any:
        for directions in params:
            how = {"resets": resets, "lengths": given.lengths, "implementation": "scan"}
            ys = [
                jaxrnn.unroll(given.cell, p, xs, reverse=bool(n), **how)[1]
                for n, p in enumerate(directions)
            ]
            xs = jnp.concatenate(ys, axis=-1)
        return jnp.sum(xs * cotangent), xs

    def one(arrays: Any) -> Any:
        wide = jax.tree.map(lambda a: a if a.dtype == bool else np.asarray(a, np.float64), arrays)
        (_, ys), gradients = run(*wide)
        return jax.tree.map(lambda a: np.asarray(a, np.float32), (ys, gradients))

    arrays = jax.device_get((given.params, given.xs, given.cotangent, given.resets))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        if not given.sets:
            return one(arrays)
        each = [one(jax.tree.map(lambda a, n=n: a[n], arrays)) for n in range(given.sets)]
    return jax.tree.map(lambda *a: np.stack(a), *each)


def reset_before(given: Stack) -> Stack:
    """Return the problem with GRUs that reset before the product."""
    cell = jaxrnn.gru(given.cell.hidden_size, reset="before")
    params = [[p._replace(b_h=None) for p in directions] for directions in given.params]
    return given._replace(cell=cell, params=params)


def layers(given: Stack) -> Contender:
    """Return `jaxrnn.layers.stacked` as a contender."""
    directions = len(given.params[0])
    inputs, bidirectional = given.xs.shape[-1], directions == 2
    net = stacked(given.cell, inputs, layers=len(given.params), bidirectional=bidirectional)

    def apply(params: Any, xs: Any, resets: Any, lengths: Any) -> Any:
        return net.apply(params, xs, resets=resets, lengths=lengths)[1]

    def gradients(found: Any) -> Any:
        cells = peers.numpy(found).cells
        return [list(cells[n : n + directions]) for n in range(0, len(cells), directions)]

    params = StackedParams(tuple(itertools.chain(*given.params)))
    return peers.jitted_layers(given, params, apply, gradients)


def makers(available: dict[str, Any]) -> dict[str, Maker]:
    """Return functions that make a contender, by name: the drop-ins, then these peers."""
    made: dict[str, Maker] = {
        DROP_INS[0]: partial(flax_nnx.layers, ours=nnx),
        DROP_INS[1]: partial(flax_linen.layers, ours=linen),
        DROP_INS[2]: layers,
    }
    for name, peer in available.items():
        before = getattr(peer, "GRU_RESET", "after") == "before"
        made[name] = partial(_reset_before, peer.layers) if before else peer.layers
    return made


def _reset_before(make: Maker, given: Stack) -> Contender:
    """Make a contender whose GRUs reset before the product, with right results of its own."""
    if not isinstance(given.cell, GRU):
        return make(given)
    cell = jaxrnn.gru(given.cell.hidden_size, reset="before")
    params = [[p._replace(b_h=None) for p in directions] for directions in given.params]
    given = given._replace(cell=cell, params=params)
    return make(given)._replace(truth=reference(given))


def field(given: Stack, made: dict[str, Maker]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that can run this problem, and why the others cannot, by name."""
    entered: dict[str, Contender] = {}
    unserved: dict[str, str] = {}
    for name, make in made.items():
        try:
            entered[name] = make(given)
        except Exception as failure:
            # The failure of a contender is reported and does not end the benchmark.
            unserved[name] = measure.one_line(failure)
    return entered, unserved


def main() -> None:
    """Run the command."""
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _measure(flags, console)
    headings, rows = ["row", "pass", *DROP_INS, *PEERS], [_cells(r) for r in record["results"]]
    if flags.markdown:
        print(tables.markdown_table(headings, rows))
    else:
        title = "milliseconds of the drop-ins; time of the other libraries, relative to the drop-in"
        console.print(tables.table(title, headings, rows, left=2))
        console.print(summary(record), markup=False, soft_wrap=True)
    if flags.output and not flags.source:
        console.print(f"results in {flags.output}")
    if failed := wrong(record):
        sys.exit("error: wrong results, or none: " + "; ".join(failed))


def _measure(flags: Any, console: Console) -> dict[str, Any]:
    """Measure everything that was asked for. The file is rewritten after every row."""
    available, missing = peers.load(peers.LAYER_MODULES)
    record: dict[str, Any] = {"benchmark": "layer_throughput"} | measure.surroundings(PACKAGES)
    tolerance = TOLERANCES[jax.default_backend(), "float32"]
    record |= {"pause": measure.PAUSE, "missing": missing, "tolerance": tolerance, "results": []}
    rows = QUICK_ROWS if flags.quick else ROWS
    for name in flags.rows or rows:
        row = rows[name]
        console.print(f"{name}: {row} ...", markup=False)
        given = draw(row)
        truth = reference(given)
        entered, unserved = field(given, makers(available))
        notes = {name: OTHER_GRU for name, contender in entered.items() if contender.truth}
        for what in flags.passes or PASSES:
            timed = measured(entered, truth, tolerance, flags.repeats, what)
            record["results"].append(
                {"row": name, "title": str(row), **row._asdict(), "pass": what}
                | {"contenders": timed, "unserved": unserved, "notes": notes}
            )
        if flags.output:
            measure.write(record, flags.output)
    return record


def ratios(record: dict[str, Any], peer: str, what: str) -> dict[str, float]:
    """Return a peer's time divided by its drop-in's, by the row, for the rows where both were timed."""
    found = {}
    for result in record["results"]:
        ratio = _ratio(result, peer)
        if result["pass"] == what and ratio:
            found[result["title"]] = ratio
    return found


def _ratio(result: dict[str, Any], peer: str) -> float | None:
    times, ours = tables.medians(result["contenders"]), REPLACED.get(peer, DROP_INS[-1])
    return times[peer] / times[ours] if peer in times and ours in times else None


def _cells(result: dict[str, Any]) -> list[str]:
    times = tables.medians(result["contenders"])
    ours = [f"{times[name] * 1e3:,.2f}" if name in times else "-" for name in DROP_INS]
    others = [_ratio(result, peer) for peer in PEERS]
    return [result["title"], result["pass"], *ours, *(f"{r:.2f}" if r else "-" for r in others)]


def summary(record: dict[str, Any]) -> str:
    """Return what was left out, the geometric means over the rows, and the rows slower than flax."""
    lines = [f"without {name}: {why}" for name, why in record["missing"].items()]
    said = (
        (name, why, result["row"])
        for result in record["results"]
        for kind in ("unserved", "notes")
        for name, why in result[kind].items()
    )
    places: dict[tuple[str, str], dict[str, None]] = {}
    for name, why, row in said:
        places.setdefault((name, why), {})[row] = None
    lines += [f"{name} at {', '.join(rows)}: {why}" for (name, why), rows in places.items()]
    for what in dict.fromkeys(result["pass"] for result in record["results"]):
        for peer in PEERS:
            if found := ratios(record, peer, what):
                mean, values = statistics.geometric_mean(found.values()), found.values()
                lines.append(
                    f"{what}: {peer} takes {mean:.2f} times as long as "
                    f"{REPLACED.get(peer, DROP_INS[-1])} (geometric mean of {len(values)} rows; "
                    f"{min(values):.2f} to {max(values):.2f})"
                )
    slower = [
        f"{title}, {what} ({1 / ratio:.2f} times {peer})"
        for what in PASSES
        for peer in REPLACED
        for title, ratio in ratios(record, peer, what).items()
        if ratio < 1
    ]
    lines.append("slower than flax: " + ("; ".join(slower) or "no row"))
    return "\n".join(lines)


def wrong(record: dict[str, Any]) -> list[str]:
    """Return the places where a contender failed the check or a drop-in cannot run, and why."""
    found = []
    for result in record["results"]:
        reasons = {name: why for name, why in result["unserved"].items() if name in DROP_INS}
        for name, contender in result["contenders"].items():
            if "left_out" in contender:
                reasons[name] = contender["left_out"]
        where = f"{result['row']}, {result['pass']}"
        found += [f"{name} at {where} ({why})" for name, why in reasons.items()]
    return found


def _flags() -> Any:
    parser = measure.Parser(description="Time drop-in layers: jaxrnn beside other libraries.")
    add = parser.add_argument
    # cell_throughput.py passes its flag on.
    add("--layers", action="store_true", help="accepted, and without effect")
    add("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"rows: {', '.join(ROWS)}")
    add("--passes", nargs="+", choices=PASSES, help="passes to time (both)")
    add("--repeats", type=measure.positive, help="turns of each contender (7; with --quick 3)")
    add("--quick", action="store_true", help="four tiny sizes; writes no file")
    add("--output", type=Path, metavar="FILE", help="JSON file to write")
    add("--from", dest="source", type=Path, metavar="FILE", help="report this file; time nothing")
    add("--markdown", action="store_true", help="print the table as Markdown")
    flags = parser.parse_args()
    flags.repeats = flags.repeats or (3 if flags.quick else 7)
    if flags.quick and (unknown := set(flags.rows or ()) - set(QUICK_ROWS)):
        parser.error(f"--quick has no row {', '.join(unknown)}, only {', '.join(QUICK_ROWS)}")
    if not flags.quick:
        flags.output = flags.output or measure.RESULTS / f"layer_throughput-{measure.place()}.json"
    return flags


if __name__ == "__main__":
    main()
