"""The three commands: every peer computes the same, wrong results are left out, files are complete.

No test depends on a time.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from benchmarks import cell_throughput, contenders, measure, tables, training_throughput
from benchmarks.peers import Contender
from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels import Implementation
from tests.support.oracle import TOLERANCES, assert_close, differences, reference

pytestmark = [pytest.mark.once, pytest.mark.long]


ROOT = Path(__file__).parents[2]

# The package of each peer, and the cells that it has.
SERVED = {
    "torch": ("torch", {"rnn", "lstm", "gru-after"}),
    "flax nnx": ("flax", {"rnn", "lstm", "gru-after"}),
    "flax linen": ("flax", {"rnn", "lstm", "gru-after"}),
    "haiku": ("haiku", {"lstm", "gru-before"}),
    "keras": ("keras", {"rnn", "lstm", "gru-before", "gru-after"}),
}
INSTALLED = {name for name, (package, _) in SERVED.items() if importlib.util.find_spec(package)}
OWN = {f"jaxrnn {name}" for name in get_args(Implementation)}
REPEATS = 2


def run(script: str, *flags: str, output: Path) -> dict[str, Any]:
    """Run a benchmark as users do, in a separate process, and return the record that it writes."""
    env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *script.split(), "--quick", *flags]
    command += ["--repeats", str(REPEATS), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


# --- results are right before they are timed ----------------------------------------------------


@pytest.mark.peers
def test_every_peer_computes_the_same_and_is_timed(tmp_path: Path) -> None:
    """Outputs and all gradients in float32 agree with the float64 reference."""
    cells = ["rnn", "lstm", "gru-before", "gru-after"]
    output = tmp_path / "cells.json"
    record = run(
        "benchmarks/cell_throughput.py", "--cells", *cells, "--size", "3,4,5,6", output=output
    )
    assert (tmp_path / "cells.png").stat().st_size > 0
    assert set(record["missing"]) == {"flashrnn", *SERVED} - INSTALLED
    assert [(r["cell"], r["pass"]) for r in record["results"]] == [
        (cell, what) for cell in cells for what in ("forward", "forward+backward")
    ]
    for result in record["results"]:
        there = {name for name in INSTALLED if result["cell"] in SERVED[name][1]}
        timed, unserved = set(result["contenders"]), set(result["unserved"])
        assert timed | unserved == OWN | INSTALLED and not timed & unserved
        assert timed - OWN == there and timed >= {"jaxrnn scan", "jaxrnn xla"}
        assert unserved >= {"jaxrnn tpu", "jaxrnn hopper", "jaxrnn cudnn"}
        for name, contender in result["contenders"].items():
            assert contender["error"] < TOLERANCES["float32"], (name, contender)
            assert len(contender["seconds"]) == REPEATS and min(contender["seconds"]) > 0
            assert contender["calls"] >= 1 and contender["first_call"] > 0
        assert result["floor"] > 0 and result["default"] in OWN
    assert record["platform"] == "cpu" and record["cores"] >= 1
    assert record["versions"]["jax"] and record["date"] and "commit" in record
    assert record["floor"]["flops_per_second"]["float32"]["rate"] > 0
    assert record["floor"]["bytes_per_second"]["rate"] > 0


@pytest.mark.peers
def test_every_training_program_comes_to_the_same_losses(tmp_path: Path) -> None:
    """Through several steps of Adam, so that gradients, clipping and the state carried count."""
    record = run("benchmarks/training_throughput.py", output=tmp_path / "training.json")
    (result,) = record["results"]
    timed = result["contenders"]
    assert set(timed) >= {"jaxrnn", *INSTALLED.intersection(training_throughput.PEERS)}
    assert result["characters"] == result["steps"] * 50 * 50
    for name, contender in timed.items():
        dtype = "bfloat16" if name.endswith("bfloat16") else "float32"
        tolerance = training_throughput.TOLERANCES[dtype]
        np.testing.assert_allclose(contender["losses"], timed["jaxrnn"]["losses"], tolerance)
        assert len(contender["seconds"]) == REPEATS and "left_out" not in contender
    losses = timed["jaxrnn"]["losses"]
    assert len(losses) == result["steps"] == len(set(losses))  # it does learn


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_and_time_of_a_large_text_are_measured(tmp_path: Path) -> None:
    record = run("-m benchmarks.endurance.large_text", output=tmp_path / "input.json")
    for what in record["prepare"], record["train"]["streams"]:
        assert list(what) == ["small", "big"]
        for taken in what.values():
            assert taken["VmHWM"] > taken["RssAnon"] > 0 and taken["RssFile"] > 0
    sizes = {name: taken["bytes"] for name, taken in record["prepare"].items()}
    assert sizes == {"small": 1_000_000, "big": record["bytes"]} and record["bytes"] == 4_000_000
    assert len(record["train"]["streams"]["big"]["step_seconds"]) >= 2
    alone = record["windows"]["streams"]
    assert len(alone["warm"]) == len(alone["cold"]) > 0 and min(alone["warm"]) > 0
    assert record["pass"]["steps"] == alone["per_epoch"]


@pytest.mark.parametrize("name", CELLS)
def test_the_reference_is_numpy(name: str) -> None:
    cell = CELLS[name](3)
    given = contenders.draw(cell, (2, 3, 2, 3), "float32")
    params, xs, state, cotangent = (
        type(part)(*(None if a is None else a.astype(np.float64) for a in part))
        if isinstance(part, tuple)
        else part.astype(np.float64)
        for part in given[:4]
    )
    ys, gradients = contenders.reference(cell, given)
    assert_close(ys, reference(cell, params, xs, state)[1], TOLERANCES["float64"])

    def loss(inputs: Any) -> float:
        return float((reference(cell, *inputs)[1] * cotangent).sum())

    want = differences(loss, (params, xs, state))
    assert_close(gradients, want, TOLERANCES["differences"])


def test_wrong_results_are_reported_and_not_timed() -> None:
    truth = np.ones(3), {"w": np.array([1.0, -4.0])}

    def contender(ys: Any, gradients: Any) -> Contender:
        return Contender(lambda: ys, lambda: gradients, np.asarray, lambda g: g)

    def fails() -> Any:
        raise MemoryError("too big")

    entered = {
        "right": contender(truth[0], truth[1]),
        "off": contender(truth[0] * [1, 1, 1.01], {"w": np.array([1.0, -3.9])}),
        "not a number": contender(truth[0] * np.nan, {"w": np.array([np.nan, -4.0])}),
        "fails": contender(truth[0], truth[1])._replace(forward=fails, backward=fails),
    }
    for what, error in ("forward", 1e-2), ("forward+backward", 0.1 / 4):
        record = cell_throughput.measured(entered, truth, 1e-3, 1, what)
        assert "seconds" in record["right"] and "left_out" not in record["right"]
        for name in ("off", "not a number", "fails"):
            assert "seconds" not in record[name] and record[name]["left_out"]
        assert record["off"]["error"] == pytest.approx(error)
        assert record["fails"]["left_out"] == "MemoryError: too big"


def test_an_array_that_a_peer_lacks_is_skipped_but_a_wrong_shape_is_not() -> None:
    want = {"b": np.ones(2), "b_h": np.ones(2)}
    assert measure.error({"b": np.array([1, 1.5]), "b_h": None}, want) == 0.5
    with pytest.raises(ValueError, match=r"shape \(3,\) where the reference has \(2,\)"):
        measure.error({"b": np.ones(3), "b_h": None}, want)


# --- turns, counts, files -----------------------------------------------------------------------


def test_every_contender_runs_in_every_round_and_begins_one() -> None:
    ran: list[str] = []
    names = "a", "b", "c"
    runs = {name: lambda name=name: ran.append(name) for name in names}
    times = measure.in_turns(runs, 3, pause=0)
    order = [name for n, name in enumerate(ran) if n == 0 or ran[n - 1] != name]
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # to count the calls, then the rounds
    assert {name: len(each["seconds"]) for name, each in times.items()} == dict.fromkeys(names, 3)


def test_work_is_counted_as_stated() -> None:
    """B, T, I, H = 2, 3, 4, 5: 24 + 30 numbers in and out, 9 x 20 weights of the lstm's gates."""
    cell, size = CELLS["lstm"](5), (2, 3, 4, 5)
    flops, moved = 2 * 2 * 3 * 9 * 20, 24 + 30 + 180
    assert cell_throughput.work(cell, size, "float32", "forward") == (flops, 4 * moved)
    both = cell_throughput.work(cell, size, "bfloat16", "forward+backward")
    assert both == (3 * flops, 3 * 2 * moved)


def result_of(cell: str, what: str = "forward+backward", **seconds: float) -> dict[str, Any]:
    return {
        "cell": cell,
        "size": [8, 4, 2, 16],
        "dtype": "float32",
        "pass": what,
        "flops": 1000,
        "bytes": 1000,
        "floor": 1e-3,
        "default": "jaxrnn xla",
        "contenders": {name.replace("_", " "): {"seconds": [s]} for name, s in seconds.items()},
        "unserved": {},
    }


def record_of(*results: dict[str, Any]) -> dict[str, Any]:
    rate = {"rate": 1e9, "by": "XLA"}
    floor = {"flops_per_second": {"float32": rate}, "bytes_per_second": rate}
    return {"platform": "cpu", "cores": 2, "missing": {}, "floor": floor, "results": list(results)}


def test_choices_are_the_fastest_and_other_platforms_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "choices.json"
    monkeypatch.setattr(tables, "CHOICES", path)
    tpu = {"platform": "tpu", "cell": "lstm", "dtype": "bfloat16", "batch": 1, "hidden": 2}
    old = {"platform": "cpu", "cell": "lstm", "dtype": "float32", "batch": 8, "hidden": 16}
    rows = [row | {"implementation": "tpu"} for row in (tpu, old)]
    path.write_text(json.dumps(rows))
    record = record_of(
        result_of("lstm", jaxrnn_scan=1.0, jaxrnn_xla=1.015, torch=0.5),  # a tie
        result_of("rnn", jaxrnn_xla=1.0, jaxrnn_native=1.04),  # a tie, where the usual one wins
        result_of("gru-before", jaxrnn_scan=1.1, jaxrnn_xla=1.0),
        result_of("gru-before", "forward", jaxrnn_scan=1.0, jaxrnn_xla=1.5),  # both passes count
    )
    assert tables.write_choices(record) == 3
    chosen = {(r["platform"], r["cell"]): r["implementation"] for r in json.loads(path.read_text())}
    assert chosen == {
        ("tpu", "lstm"): "tpu",
        ("cpu", "lstm"): "xla",
        ("cpu", "rnn"): "native",
        ("cpu", "gru-before"): "scan",
    }


def test_choices_of_a_gpu_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another GPU stay, and one of the same GPU is replaced."""
    path = tmp_path / "choices.json"
    monkeypatch.setattr(tables, "CHOICES", path)
    size = {"cell": "lstm", "dtype": "float32", "batch": 8, "hidden": 16}
    rows = [{"platform": "gpu", "device": d, **size, "implementation": "xla"} for d in ("A", "B")]
    path.write_text(json.dumps(rows))
    record = record_of(result_of("lstm", jaxrnn_cudnn=1.0, jaxrnn_xla=2.0))
    assert tables.write_choices(record | {"platform": "gpu", "device": "B"}) == 1
    chosen = {row["device"]: row["implementation"] for row in json.loads(path.read_text())}
    assert chosen == {"A": "xla", "B": "cudnn"}


def test_the_summary_and_the_markdown_say_the_ratios() -> None:
    record = record_of(
        result_of("lstm", jaxrnn_scan=0.004, jaxrnn_xla=0.008, torch=0.016, keras=0.01),
        result_of("rnn", jaxrnn_xla=0.008, torch=0.004),
    )
    said = tables.summary(record)
    assert (
        "at most 2.00 times as long as jaxrnn's fastest implementation (lstm, 8, 4, 2, 16" in said
    )
    assert "jaxrnn takes 1.00 of torch's time (geometric mean of 2; 0.50 to 2.00)" in said
    cells = [cell.strip() for cell in tables.markdown(record).splitlines()[2].split("|")[5:-1]]
    assert cells == ["2,000.0 (xla)", "4,000.0", "0.50", "2,500.0 (keras)", "0.80", "8.00"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "1,2,3"], "argument --size: must be B,T,I,H, not '1,2,3'"),
        (["--size", "0,2,3,4"], "argument --size: must be a whole number of at least 1, not '0'"),
        (["--repeats", "-1"], "argument --repeats: must be a whole number of at least 1, not '-1'"),
        (["--cells", "lstn"], "argument --cells: invalid choice: 'lstn'"),
        (["--from", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
@pytest.mark.parametrize("benchmark", [cell_throughput, training_throughput])
def test_bad_input_is_one_line(
    benchmark: Any, flags: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    if benchmark is training_throughput and flags[0] in ("--size", "--cells"):
        flags, message = ["--settings", "x"], "argument --settings: invalid choice: 'x'"
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit) as exit:
        benchmark.main()
    said = capsys.readouterr().err or f"{exit.value.code}\n"
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
    assert exit.value.code not in (0, None)


def test_the_settings_are_the_lectures() -> None:
    """The presets have the settings of the programs that the lecture links to."""
    found = {}
    for name, config in training_throughput.SETTINGS.items():
        model = config.model
        shape = (
            model.cell,
            model.layers,
            model.hidden_size,
            model.embedding_size,
            config.batch,
            config.seq_len,
        )
        found[name] = (*shape, config.learning_rate, config.clip_norm, config.shuffle)
        assert dataclasses.asdict(model)["dtype"] == "auto"
    assert found == {
        "lecture": ("lstm", 1, 1024, 256, 64, 100, 1e-3, 0.0, True),
        "lecture, older": ("lstm", 2, 128, 128, 50, 50, 2e-3, 5.0, False),
    }
