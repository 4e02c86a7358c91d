"""Drop-in layers beside other libraries: all compute the same, and the report says what was measured.

No test depends on a time.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import cell_throughput, contenders, layer_throughput, measure, peers
from benchmarks.layer_throughput import DROP_INS, QUICK_ROWS, ROWS
from benchmarks.peers import Contender
from tests.support.oracle import TOLERANCES

ROOT = Path(__file__).parents[2]
FLAX = {"flax nnx": "flax_nnx", "flax linen": "flax_linen"}
# The package of each of the other libraries, and its module in `benchmarks.peers`.
OTHERS = {
    "haiku": ("haiku", "dm_haiku"),
    "equinox": ("equinox", "equinox_cells"),
    "torch": ("torch", "pytorch"),
}
INSTALLED = [name for name, (package, _) in OTHERS.items() if importlib.util.find_spec(package)]


def check(row: str, name: str, module: str = "") -> None:
    """Compare the outputs and gradients of a drop-in, or of a peer's module, with the reference."""
    available, _ = peers.load([module] if module else [])
    made = layer_throughput.makers(available)
    given = layer_throughput.draw(QUICK_ROWS[row])
    # Other libraries promote ranks.
    with jax.numpy_rank_promotion("allow"):
        contender = made[name](given)
        ys, gradients = contender.truth or layer_throughput.reference(given)
        found = contender.gradients(contender.backward())
        assert measure.error(contender.outputs(contender.forward()), ys) < TOLERANCES["float32"]
        assert measure.error(found, gradients) < TOLERANCES["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DROP_INS)
@pytest.mark.parametrize("row", QUICK_ROWS)
def test_drop_ins_compute_the_reference(row: str, name: str) -> None:
    check(row, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAX)
@pytest.mark.parametrize("row", QUICK_ROWS)
def test_flax_computes_the_reference(row: str, name: str) -> None:
    check(row, name, FLAX[name])


@pytest.mark.peers
@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("row", QUICK_ROWS)
def test_the_other_libraries_compute_the_reference(row: str, name: str) -> None:
    check(row, name, OTHERS[name][1])


def test_layers_compute_the_reference() -> None:
    check("rl-4", DROP_INS[-1])


@pytest.mark.process
@pytest.mark.long
def test_the_command_times_every_contender(tmp_path: Path) -> None:
    """The command runs as users run it, in a separate process."""
    output = tmp_path / "layers.json"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/cell_throughput.py", "--layers", "--quick"]
    command += ["--repeats", "2", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "geometric mean of 4 rows" in done.stdout and "slower than flax: " in done.stdout
    record = json.loads(output.read_text())
    there = {*DROP_INS, *FLAX, *INSTALLED}
    assert set(record["missing"]) == set(OTHERS) - there
    assert [result["row"] for result in record["results"][::2]] == list(QUICK_ROWS)
    assert record["versions"]["flax"] and record["date"]
    for result in record["results"]:
        assert set(result["contenders"]) == there and not result["unserved"]
        for contender in result["contenders"].values():
            assert contender["error"] < TOLERANCES["float32"]
            assert len(contender["seconds"]) == 2 and min(contender["seconds"]) > 0


def test_a_contender_may_have_results_of_its_own() -> None:
    ones = np.ones(2)
    own = Contender(lambda: 2 * ones, lambda: 3 * ones, np.asarray, np.asarray)
    entered = {"own": own._replace(truth=(2 * ones, 3 * ones)), "wrong": own}
    for what in "forward", "forward+backward":
        found = contenders.measured(entered, (ones, ones), 1e-3, 1, what)
        assert "seconds" in found["own"] and "left_out" in found["wrong"]


def test_padding_does_not_count() -> None:
    given = layer_throughput.draw(QUICK_ROWS["speech"])
    lengths = np.asarray(given.lengths)
    assert lengths.min() < len(given.xs)
    for row, length in enumerate(lengths):
        assert given.active[:length, row].all() and not given.active[length:, row].any()
        assert np.all(given.cotangent[:length, row] != 0)
        assert not np.any(given.cotangent[length:, row])


# --- report -------------------------------------------------------------------------------------


def record_of(**seconds: list[float]) -> dict[str, Any]:
    """Return a record of as many rows as each contender has seconds."""
    count = len(next(iter(seconds.values())))
    results = [
        {
            "row": f"row-{n}",
            "title": f"GRU {n}",
            "pass": "forward+backward",
            "contenders": {
                name.replace("_", " "): {"seconds": [each[n]]} for name, each in seconds.items()
            },
            "unserved": {"torch": "too old"},
            "notes": {},
        }
        for n in range(count)
    ]
    return {"missing": {"equinox": "not installed"}, "results": results}


def test_each_api_of_flax_is_compared_with_its_own_drop_in() -> None:
    record = record_of(
        jaxrnn_nnx=[1, 1],
        jaxrnn_linen=[2, 2],
        jaxrnn_layers=[4, 4],
        flax_nnx=[2, 8],
        flax_linen=[1, 4],
        haiku=[8, 8],
    )
    said = layer_throughput.summary(record).splitlines()
    assert said[:2] == ["without equinox: not installed", "torch at row-0, row-1: too old"]
    many = "(geometric mean of 2 rows; "
    start = "forward+backward: "
    assert said[2:] == [
        f"{start}flax nnx takes 4.00 times as long as jaxrnn nnx {many}2.00 to 8.00)",
        f"{start}flax linen takes 1.00 times as long as jaxrnn linen {many}0.50 to 2.00)",
        f"{start}haiku takes 2.00 times as long as jaxrnn layers {many}2.00 to 2.00)",
        "slower than flax: GRU 0, forward+backward (2.00 times flax linen)",
    ]


def test_files_are_reported_as_markdown_and_wrong_results_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(jaxrnn_nnx=[0.001], flax_nnx=[0.002])
    result = record["results"][0]
    result["contenders"]["haiku"] = {"left_out": "off by 1"}
    result["unserved"]["jaxrnn linen"] = "a bug"
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(record))
    flags = ["--layers", "--from", str(path), "--markdown"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit) as exit:
        cell_throughput.main()
    assert exit.value.code == (
        "error: wrong results, or none: jaxrnn linen at row-0, forward+backward (a bug); "
        "haiku at row-0, forward+backward (off by 1)"
    )
    rows = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in rows[2].split("|")[1:-1]]
    assert cells == ["GRU 0", "forward+backward", "1.00", "-", "-", "2.00", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "x"], "argument --rows: invalid choice: 'x'"),
        (["--quick", "--rows", "rl-64"], "--quick has no row rl-64, only rl-4, rl-4-vmap, "),
        (["--repeats", "0"], "argument --repeats: must be a whole number of at least 1, not '0'"),
        (["--cells", "lstm"], "unrecognized arguments: --cells lstm"),
        (["--from", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--layers", *flags])
    with pytest.raises(SystemExit) as exit:
        cell_throughput.main()
    said = capsys.readouterr().err or f"{exit.value.code}\n"
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_rows_are_those_of_the_table() -> None:
    assert [str(row) for row in ROWS.values()] == [
        "GRU 128, T 128, B 4, resets",
        "GRU 128, T 128, B 4, resets, 8 sets",
        "GRU 128, T 128, B 64, resets",
        "GRU 128, T 128, B 64, resets, 8 sets",
        "GRU 128, T 128, B 1024, resets",
        "GRU 128, T 128, B 1024, resets, 8 sets",
        "bidirectional LSTM 3 x 512, T 200, B 16, lengths",
        "LSTM 64, T 1000, B 16",
    ]
