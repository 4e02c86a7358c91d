"""Derivatives by every implementation: all are timed, compared with plain JAX, and reported.

No test depends on a time.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import derivatives, measure, tables
from benchmarks.contenders import measured
from benchmarks.derivatives import CELLS_OF
from benchmarks.peers import numpy
from tests.support.oracle import TOLERANCES

SIZE = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("what", "cell", "names"),
    [
        ("tangents", "lstm", {"scan", "xla"}),
        ("gradients", "mgu", {"scan", "xla"}),
        ("gradients", "mingru", {"scan", "xla", "associative"}),
    ],
)
def test_the_implementations_of_a_cell_agree(what: str, cell: str, names: set[str]) -> None:
    made = derivatives.contenders(CELLS_OF[what][cell](SIZE[3]), SIZE, what)
    assert names <= made.keys()
    want = numpy(made["scan"].forward())
    for contender in made.values():
        assert measure.error(numpy(contender.forward()), want) < TOLERANCES["float32"]


def test_another_result_is_reported_and_not_timed() -> None:
    made = derivatives.contenders(CELLS_OF["gradients"]["mgu"](SIZE[3]), SIZE, "gradients")
    other = derivatives.contenders(CELLS_OF["gradients"]["mingru"](SIZE[3]), SIZE, "gradients")
    found = numpy(made["scan"].forward())
    wrong = made | {"xla": made["xla"]._replace(forward=other["xla"].forward)}
    timed = measured(wrong, (found, found), 1e-4, 1, "forward")
    record = {"results": [{"what": "gradients", "cell": "mgu", "contenders": timed}]}
    (reported,) = derivatives.wrong(record)
    assert reported.startswith("xla at gradients of mgu (")
    assert "seconds" not in timed["xla"] and timed["scan"]["seconds"]


def test_the_report_gives_ratios_to_scan() -> None:
    def result(size: int, scan: float, xla: float | None) -> dict[str, Any]:
        times = {"scan": {"seconds": [scan]}} | ({"xla": {"seconds": [xla]}} if xla else {})
        return {"what": "tangents", "cell": "rnn", "size": [1, 2, 3, size], "contenders": times}

    record = {"results": [result(4, 1.0, 0.5), result(5, 1.0, 2.0), result(6, 1.0, None)]}
    assert derivatives.ratios(record, "tangents", "xla") == [0.5, 2.0]
    assert derivatives.summary(record) == [
        "tangents: xla takes 1.00 times as long as scan (geometric mean of 2 problems; 0.50 to 2.00)"
    ]
    assert derivatives.table(record, "tangents").row_count == 3


@pytest.mark.process
@pytest.mark.long
def test_the_command_writes_every_time(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    output = tmp_path / "derivatives.json"
    monkeypatch.setattr("sys.argv", ["derivatives", "--repeats", "1", "--output", str(output)])
    monkeypatch.setattr(derivatives, "SIZES", [SIZE, SIZE])
    derivatives.main()
    record = json.loads(output.read_text())
    assert [(r["what"], r["cell"]) for r in record["results"]] == [
        (what, cell) for what, cells in CELLS_OF.items() for cell in cells
    ]
    for result in record["results"]:
        assert tables.medians(result["contenders"]).keys() == result["contenders"].keys()
    assert "gradients: associative takes" in capsys.readouterr().out
