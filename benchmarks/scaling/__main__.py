"""Predict the scaling of training over TPUs that are not present, and measure it on this machine.

    python -m benchmarks.scaling            # all slices, then measures here: an hour on two cores
    python -m benchmarks.scaling --quick    # a v5e with 1 and 4 chips: minutes; writes no file
    python -m benchmarks.scaling --from FILE --markdown    # the tables of a measured file

Predicted (`cases.py`, `model.py`): the time of a training step on every slice of TPUs, from its
compiled program; once with the same rows on each chip, whatever the number of chips, and once with the
same rows on all chips together. None of it ran on a TPU.

Measured (`measured.py`): the same step on 1 and 2 devices of this CPU, one core each, in turns, and as a
control two processes of one device that do not communicate; on a machine with several accelerators, on
1, 2, 4 ... of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import measure
from benchmarks.ahead_of_time import compiler
from benchmarks.scaling import model, report
from benchmarks.scaling.cases import Case, cases, predicted
from benchmarks.scaling.measured import measured
from benchmarks.scaling.training import LAYERS, STEPS

# Hidden size of the model that is measured.
MEASURED = 256
OUTPUT = measure.RESULTS / "scaling.json"


def main() -> None:
    """Run the command."""
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _run(flags, console)
    if flags.markdown:
        print(report.markdown(record))
    else:
        report.show(record, console)


def _run(flags: Any, console: Console) -> dict[str, Any]:
    # The devices of this machine are used by other processes.
    jax.config.update("jax_platforms", "cpu")
    output = flags.output or (None if flags.quick else OUTPUT)
    record: dict[str, Any] = {"benchmark": "scaling"} | measure.surroundings(["libtpu", "flax"])
    record |= {
        "layers": LAYERS,
        "steps": STEPS,
        "chips": {},
        "predicted": [],
        "measured": [],
        "left_out": [],
    }
    record["hop"], record["collective"] = model.HOP, model.COLLECTIVE
    record["chips"] = {name: c._asdict() | {"clock": c.clock} for name, c in model.CHIPS.items()}
    if not flags.quick:
        record["measured"] = measured(MEASURED, flags.repeats, console.print)
    known: dict[Any, float | None] = {}
    for case in cases(flags.quick):
        same = [
            row
            for row in record["predicted"]
            if case == Case(**{name: row[name] for name in Case._fields})._replace(fixed=case.fixed)
        ]
        console.print(f"{case.chip} {case.shape}, H = {case.hidden}, {case.rows} rows ...")
        try:
            row = same[0] | {"fixed": case.fixed} if same else predicted(case, known)
        except Exception as failure:
            # The compiler failed, or its text has an unknown form.
            record["left_out"].append(case._asdict() | {"why": measure.one_line(failure)})
            console.print(f"left out: {measure.one_line(failure)}", markup=False)
            continue
        record["predicted"].append(row)
        if output:
            measure.write(record, output)
    if output:
        console.print(f"written to {output}")
    return record


def _flags() -> Any:
    parser = measure.Parser(description="Predict and measure how training scales over devices.")
    add = parser.add_argument
    add(
        "--quick", action="store_true", help="a v5e with 1 and 4 chips; measures and writes nothing"
    )
    add("--repeats", type=measure.positive, default=7, help="turns of each contender (7)")
    add("--output", type=Path, metavar="FILE", help=f"JSON file to write ({OUTPUT.name})")
    add(
        "--from", dest="source", type=Path, metavar="FILE", help="report this file; compile nothing"
    )
    add("--markdown", action="store_true", help="print the tables as Markdown")
    flags = parser.parse_args()
    if not flags.source and (reason := compiler.missing()):
        parser.error(reason)
    return flags


if __name__ == "__main__":
    main()
