"""`benchmarks/scaling`: facts from compiled programs, the model of their time, and the tables.

The compiled text here is written by hand; `test_scaling_compile.py` compiles the real step. No test
depends on a time.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest

from benchmarks.ahead_of_time import compiler, traffic
from benchmarks.ahead_of_time.traffic import Collective
from benchmarks.scaling import __main__ as command
from benchmarks.scaling import cases, measured, model
from benchmarks.scaling import report as scaling_report
from benchmarks.scaling.training import ROWS
from benchmarks.scaling.worker import Worker

pytestmark = pytest.mark.once

# --- read from the compiled text ----------------------------------------------------------------

TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%slice_of (p0: f32[100,8,16], p1: s32[]) -> f32[8,16] {
  %p0 = f32[100,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0} bitcast(%cut)
}

%write_in (q0: f32[100,8,16], q1: f32[1,8,16], q2: s32[]) -> f32[100,8,16] {
  %q0 = f32[100,8,16]{2,1,0} parameter(0)
  %q1 = f32[1,8,16]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[100,8,16]{2,1,0} dynamic-update-slice(%q0, %q1, %q2, %none, %none)
}

%all-reduce-scatter.1 (r0: bf16[8,64]) -> bf16[8,16] {
  %r0 = bf16[8,64]{1,0} parameter(0)
  %sum = bf16[8,64]{1,0} all-reduce(%r0), replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %own = bf16[8,16]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={8,16}
}

%begin (b0: bf16[8,16]) -> (bf16[8,16], bf16[8,64]) {
  %b0 = bf16[8,16]{1,0} parameter(0)
  %ag.1 = bf16[8,64]{1,0} all-gather(%b0), replica_groups={{0,1,2,3}}, dimensions={1}, chain_id="0"
  ROOT %go = (bf16[8,16], bf16[8,64]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%go_on (c0: bf16[8,16], c1: bf16[8,64]) -> bf16[8,64] {
  %c0 = bf16[8,16]{1,0} parameter(0)
  %c1 = bf16[8,64]{1,0} parameter(1)
  %ag.2 = bf16[8,64]{1,0} all-gather(%c0), replica_groups={{0,1,2,3}}, dimensions={1}, chain_id="0"
  ROOT %end = bf16[8,64]{1,0} custom-call(%c0, %c1, %ag.2), custom_call_target="AsyncCollectiveDone"
}

%elsewhere (e0: f32[8,16], e1: token[]) -> f32[8,16] {
  %e0 = f32[8,16]{1,0} parameter(0)
  %e1 = token[] parameter(1)
  ROOT %over = f32[8,16]{1,0} all-reduce(%e0), replica_groups={{0,1}}, to_apply=%add
}

%body (t: (s32[], f32[100,8,16], f32[8,16])) -> (s32[], f32[100,8,16], f32[8,16]) {
  %t = (s32[], f32[100,8,16]{2,1,0}, f32[8,16]{1,0:S(1)}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %all = f32[100,8,16]{2,1,0} get-tuple-element(%t), index=1
  %now = f32[8,16]{1,0:S(1)} fusion(%all, %i), kind=kLoop, calls=%slice_of
  %whole = f32[8,64]{1,0:S(1)} all-gather(%now), replica_groups=[4,4]<=[16], dimensions={1}
  %row = f32[1,8,16]{2,1,0:S(1)} bitcast(%now)
  %kept = f32[100,8,16]{2,1,0} fusion(%all, %row, %i), kind=kLoop, calls=%write_in
  ROOT %next = (s32[], f32[100,8,16]{2,1,0}, f32[8,16]{1,0:S(1)}) tuple(%i, %kept, %now)
}

%condition (u: (s32[], f32[100,8,16], f32[8,16])) -> pred[] {
  %u = (s32[], f32[100,8,16]{2,1,0}, f32[8,16]{1,0:S(1)}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %most = s32[] constant(100)
  ROOT %less = pred[] compare(%j, %most), direction=LT
}

ENTRY %main (m0: f32[100,8,16], m1: bf16[8,64], m2: bf16[8,16]) -> bf16[8,64] {
  %m0 = f32[100,8,16]{2,1,0} parameter(0)
  %m1 = bf16[8,64]{1,0} parameter(1)
  %m2 = bf16[8,16]{1,0} parameter(2)
  %n = s32[] constant(0)
  %h = f32[8,16]{1,0:S(1)} broadcast(%n), dimensions={}
  %start = (s32[], f32[100,8,16]{2,1,0}, f32[8,16]{1,0:S(1)}) tuple(%n, %m0, %h)
  %loop = (s32[], f32[100,8,16], f32[8,16]{1,0:S(1)}) while(%start), condition=%condition, body=%body
  %fetch = (bf16[8,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]) copy-start(%m1)
  %there = bf16[8,64]{1,0:S(1)} copy-done(%fetch)
  %part = bf16[8,16]{1,0} fusion(%m1), kind=kCustom, calls=%all-reduce-scatter.1
  %s = f32[8,16]{1,0} all-reduce-start(%h), replica_groups=[4,4]<=[4,4]T(1,0), to_apply=%add
  %d = f32[8,16]{1,0} all-reduce-done(%s)
  %w = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %c = ((f32[8,16]{1,0}, token[]), f32[8,16]{1,0}) call-start(%d, %w), to_apply=%elsewhere
  %v = f32[8,16]{1,0} call-done(%c)
  %a = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%m2), kind=kCustom, calls=%begin
  %a0 = bf16[8,16]{1,0} get-tuple-element(%a), index=0
  %a1 = bf16[8,64]{1,0} get-tuple-element(%a), index=1
  ROOT %g = bf16[8,64]{1,0} fusion(%a0, %a1), kind=kCustom, calls=%go_on
}
"""


def parsed() -> tuple[dict[str, Any], list[Any]]:
    entry, computations = compiler.parse(TEXT)
    return computations, computations[entry]


def test_collectives_count_where_they_begin_and_know_their_loop() -> None:
    assert traffic.collectives(*parsed(), devices=16) == Counter(
        {
            Collective("all-gather", 4 * 8 * 64, (0, 1, 2, 3), 100): 1,
            Collective("reduce-scatter", 2 * 8 * 64, (0, 1, 2, 3), 1): 1,
            Collective("all-reduce", 4 * 8 * 16, (0, 4, 8, 12), 1): 1,
            Collective("all-reduce", 4 * 8 * 16, (0, 1), 1): 1,  # that another core runs
            Collective("all-gather", 2 * 8 * 64, (0, 1, 2, 3), 1): 1,
        }
    )


def test_bytes_of_hbm_are_slices_in_a_loop_and_nothing_on_the_core() -> None:
    computations, operations = parsed()
    moved = {o.name: traffic.hbm_bytes(computations, [o]) for o in operations}
    row, whole = 4 * 8 * 16, 2 * 8 * 64
    assert moved["loop"] == 100 * 2 * row  # one read, one written in place
    assert (moved["fetch"], moved["there"]) == (whole, 0)
    assert moved["s"] == row and moved["d"] == 0  # from the core to HBM
    assert moved["c"] == 2 * row and moved["v"] == 0
    assert moved["part"] == whole + whole // 4
    assert moved["a"] == whole // 4 + whole and moved["g"] == 0
    assert traffic.hbm_bytes(computations, operations) == sum(moved.values())


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'c'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", (0, 1)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)
def test_groups_in_every_notation_of_xla(text: str, group: tuple[int, ...]) -> None:
    assert traffic._group(text, 4) == group
    with pytest.raises(ValueError, match="unknown notation"):
        traffic._group("replica_groups=@here", 4)


# --- the model ----------------------------------------------------------------------------------


def square(side: int, of: int) -> model.Span:
    """A square of v5e chips in a square slice."""
    places = [(x, y, 0) for x in range(side) for y in range(side)]
    return model.span(model.CHIPS["v5e"], places, (of, of))


def test_clocks_are_those_that_the_peak_rates_imply() -> None:
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in model.CHIPS.items()}
    assert clocks == {"v5e": 1.50, "v5p": 1.75, "tpu7x": 2.20}


def test_an_all_reduce_takes_both_axes_and_rings_where_there_are_any() -> None:
    """An all-reduce of 8 MB sends 2 (n - 1) / n of it from each chip, over links of 50 GB/s each."""
    chip, sum_ = model.CHIPS["v5e"], Collective("all-reduce", 8_000_000, (0, 1), 1)
    links, delay = model.exchange(chip, sum_, square(2, of=2))
    assert links == pytest.approx(12e6 / (2 * 50e9))
    assert delay == pytest.approx(model.COLLECTIVE + 4 * model.HOP)
    links, delay = model.exchange(chip, sum_, square(16, of=16))
    assert links == pytest.approx(2 * 255 / 256 * 8e6 / (4 * 50e9))  # both ways at once
    assert delay == pytest.approx(model.COLLECTIVE + 32 * model.HOP)
    assert square(4, of=16).rings == (False, False)  # a part of an axis is not a ring


def test_other_collectives_and_loops() -> None:
    chip, span = model.CHIPS["v5e"], model.Span((4, 1), (False, False))
    bytes_ = {
        kind: model.sent(Collective(kind, 4000, (0, 1, 2, 3), 1), span) for kind in traffic.KINDS
    }
    assert bytes_ == {
        "all-reduce": 6000,
        "all-gather": 3000,
        "reduce-scatter": 3000,
        "all-to-all": 4000,  # what goes further than to the neighbour counts on every link
        "collective-permute": 4000,
    }
    once, often = (
        model.exchange(chip, Collective("all-gather", 4000, (0, 1, 2, 3), turns), span)
        for turns in (1, 100)
    )
    assert often == pytest.approx([100 * part for part in once])


def test_two_cores_of_a_chip_share_its_links() -> None:
    chip = model.CHIPS["tpu7x"]
    places = [(x, 0, 0) for x in range(2)]
    sum_ = Collective("all-reduce", 8_000_000, (0, 1), 1)
    together = model.exchange(chip, sum_, model.span(chip, places, (2, 1, 1), cores=2))
    separate = model.exchange(chip, sum_, model.span(chip, places, (2, 1, 1), cores=1))
    assert separate[0] == pytest.approx(2 * together[0])
    inside, _ = model.exchange(chip, sum_, model.span(chip, places[:1], (2, 1, 1), cores=2))
    assert inside == 0


def test_a_step_is_its_stretches_and_its_limit_the_longest() -> None:
    chip = model.CHIPS["v5e"]
    work = model.Work(
        recurrent_flops=0, recurrent_bytes=0, recurrent_cycles=chip.clock, flops=197e12, bytes=3e12
    )
    terms = model.predict(chip, work, [(0.5, 0.1), (0.5, 0.1)])
    assert terms == pytest.approx((1, 1, 3e12 / 819e9, 1, 0.2))
    assert terms.step == pytest.approx(1 + 3e12 / 819e9 + 1 + 0.2)
    assert terms.floor == pytest.approx(3e12 / 819e9) and terms.limit == "HBM"
    assert model.predict(chip, work._replace(bytes=0), []).limit == "recurrence"
    slower = work._replace(recurrent_flops=3 * 197e12)
    assert model.predict(chip, slower, []).recurrence == pytest.approx(3)
    half = model.predict(model.CHIPS["tpu7x"], work, [])  # a device is half of a chip
    assert half.compute == pytest.approx(2 * 197e12 / 2307e12)


# --- tables -------------------------------------------------------------------------------------


def row(chips: int, rows: int, step: float, fixed: str = "chip", **other: Any) -> dict[str, Any]:
    made = {"chip": "v5e", "shape": "", "hidden": 512, "parts": 1, "mesh": {"data": chips}}
    made |= {"flops": 1e9, "hbm_bytes": 1e6, "memory": 1e6, "sent_bytes": 2e6, "limit": "HBM"}
    made |= {"collectives": [{"count": 2, "turns": 100}, {"count": 1, "turns": 1}]}
    made |= {"terms": {"recurrence": 2e-4, "compute": 1e-4, "memory": 3e-4, "links": 0, "delay": 0}}
    device = {"recurrent_flops": 0, "recurrent_bytes": 0, "recurrent_cycles": 1, "flops": 0}
    made["of_a_device"] = device | {
        "bytes": 0,
        "estimated_cycles_of_the_rest": 197e12 / 131072 / 1e3,
    }
    return (
        made | {"chips": chips, "rows": rows, "step": step, "floor": step, "fixed": fixed} | other
    )


def record() -> dict[str, Any]:
    chips = {"v5e": {"capacity": 16e9}}
    predicted = [row(1, 64, 1e-3), row(4, 256, 1.25e-3), row(4, 256, 1.25e-3, hidden=1024)]
    predicted += [row(1, 256, 4e-3, "total", memory=17e9), row(4, 256, 1.25e-3, "total")]
    seconds = {"1 device": [1.0, 2.0, 1.0], "2 processes": [1.0, 2.5, 1.25]}
    seconds["2 devices"] = [1.25, 2.5, 9.0]
    here = [{"device": "cpu", "rows": 64, "seconds": seconds}]
    return {"layers": 2, "chips": chips, "predicted": predicted, "measured": here}


def test_efficiency_is_the_rate_of_a_chip_by_that_of_one_alone() -> None:
    rows = record()["predicted"]
    shares = [scaling_report.efficiency(rows, each) for each in rows]
    assert shares == [1, pytest.approx(0.8), None, 1, pytest.approx(0.8)]


def test_predicted_and_measured_stand_apart() -> None:
    said = scaling_report.markdown(record())
    first, second, *others, last = said.split("\n\n")
    assert first.startswith(
        "2 x 512 units, 64 rows per chip (predicted: nothing of this ran on a TPU)"
    )
    assert [line.split(" | ")[-6:] for line in second.splitlines()[2:]] == [
        ["201", "1.00", "100%", "HBM", "1.00", "1.20 |"],
        ["201", "1.25", "80%", "HBM", "1.25", "1.20 |"],
    ]
    assert "HBM, memory full" in said and said.count("nothing of this ran") == 3
    assert others[-1] == "Measured:"
    assert last.splitlines()[2:] == [
        "| cpu | 1 device | 64 | 1.00 | 100% | - |",
        "| cpu | 2 processes | 128 | 1.25 | 80% | 1.00 |",
        "| cpu | 2 devices | 128 | 1.25 | 80% | 1.25 |",
    ]


def test_the_limit_says_what_of_the_recurrence_it_is() -> None:
    work = {"recurrent_flops": 0, "recurrent_bytes": 819, "recurrent_cycles": 1}
    made = row(1, 64, 1e-3, limit="recurrence", of_a_device=work | {"flops": 0, "bytes": 0})
    assert scaling_report.limit(made) == "recurrence (HBM)"


def test_the_slices_go_from_one_chip_on_with_the_same_rows_on_each_or_in_all() -> None:
    made = cases.cases(quick=False)
    assert {c.chips for c in made if c.chip == "v5e"} == {1, 4, 8, 16, 64, 256}
    assert {c.chip for c in made} == set(model.CHIPS)
    for case in made:
        each = case.rows == ROWS * case.chips
        assert each if case.fixed == "chip" else case.rows == cases.TOTAL
    for chip in model.CHIPS:
        assert next(c for c in made if c.chip == chip).chips == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "argument --repeats: must be a whole number of at least 1, not '0'"),
        (["--from", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", *flags])
    with pytest.raises(SystemExit) as exit:
        command.main()
    said = capsys.readouterr().err or f"{exit.value.code}\n"
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


@pytest.mark.slow
def test_workers_train_on_as_many_devices_as_they_are_told_and_in_turns() -> None:
    cores = sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else []
    worker = Worker([1, 2], hidden=8, rows=2, cores=cores or [0])
    assert len(worker.kinds) == 2
    runs = {"1 device": [(worker, 1)], "2 devices": [(worker, 2)]}
    done = measured.in_turns(runs, hidden=8, repeats=2)
    assert {who: len(each) for who, each in done["seconds"].items()} == dict.fromkeys(runs, 2)
    assert worker.process.poll() == 0
