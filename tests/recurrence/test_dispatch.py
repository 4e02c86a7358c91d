"""Which implementation is chosen and why: by name, by measurement, by support; what each one refuses."""

import dataclasses
import subprocess
import sys
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import pytest

from jaxrnn import explain, gru, lstm, mingru, unroll
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.dispatch import abstract_problem, choose, measured
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.problem import Lookup, Problem
from tests.support.fakes import fake
from tests.support.oracle import unchecked
from tests.support.problems import CELLS, HIDDEN, IMPLEMENTATIONS, USUAL, Leaky, problem

SHAPE = (5, 2, 3)
STEPS = 100
ALL = get_args(Implementation)
TABLE = [
    {"platform": "cpu", "cell": "lstm", "dtype": "float32", "batch": b, "hidden": h}
    | {"implementation": name}
    for b, h, name in [(1, 128, "scan"), (64, 128, "columns"), (64, 1024, "xla"), (9, 4, "cudnn")]
]


def problem_of(cell: Any, batch: int, dtype: str = "float32") -> Problem:
    return abstract_problem(cell, (STEPS, batch, 3), dtype)


# --- by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CELLS)
def test_by_name(name: str, implementation: Any) -> None:
    choice = explain(CELLS[name], SHAPE, implementation=implementation)
    assert choice == (implementation, "asked for by name")
    assert str(choice) == f"{implementation}: asked for by name"


@pytest.mark.parametrize(
    ("cell", "dtype", "implementation", "message"),
    [
        (lstm(4), "float32", "tpu", "'tpu' .*: it runs on a TPU and this is a CPU"),
        (lstm(4), "float32", "hopper", "'hopper' .*: it runs on a GPU and this is a CPU"),
        (lstm(4), "float32", "cudnn", "'cudnn' .*: it runs on a GPU and this is a CPU"),
        (
            Leaky(4),
            "float32",
            "associative",
            r"'associative' .*: the state of Leaky\(hidden_size=4\) is not linear in its past",
        ),
        (
            Leaky(4),
            "float32",
            "columns",
            r"'columns' .*equations of rnn, lstm and gru, not those of Leaky\(hidden_size=4\)",
        ),
        (lstm(4), "float32", "cuda", f"must be one of {', '.join(ALL)} or None, not 'cuda'"),
        (lstm(4), "float8_e5m2", None, "must be float32, bfloat16, float16, float64, not float8"),
        (lstm(4), "float8_e5m2", "scan", "must be float32, .*, float64, not float8_e5m2"),
    ],
)
def test_what_is_unsupported_is_refused_with_the_reason(
    cell: Any, dtype: str, implementation: Any, message: str
) -> None:
    """`explain` and `unroll` give the same reason, whether or not the inputs are projected."""
    with unchecked(), pytest.raises(ValueError, match=message):
        explain(cell, SHAPE, dtype, implementation)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), SHAPE[2], dtype))
    xs = jax.ShapeDtypeStruct(SHAPE, dtype)
    gx = jax.ShapeDtypeStruct((*SHAPE[:2], params.w_h.shape[1]), jnp.float32)
    for function, inputs in ((unroll, xs), (unroll_projected, gx)):
        run = partial(function, cell, implementation=implementation)
        with unchecked(), pytest.raises(ValueError, match=message):
            jax.eval_shape(run, params, inputs)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, -1, 3), "B of shape must be at least 0, not -1"),
        ((5, 2.0, 3), "B of shape must be a whole number, not 2.0"),
        ((5, 2), r"\[T, B, D\], not \(5, 2\)"),
    ],
)
def test_explain_says_what_does_not_fit(shape: tuple[int, ...], message: str) -> None:
    # Of a tuple, the check of annotations looks at one element, chosen at random.
    with unchecked(), pytest.raises(ValueError, match=message):
        explain(lstm(4), shape)


# --- by what was measured -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "hidden", "want", "why"),
    [
        (1, 128, "scan", "the fastest measured on cpu, at B = 1, H = 128"),
        (2, 256, "scan", "the fastest measured on cpu, at B = 1, H = 128"),  # two octaves away
        (30, 128, "columns", "the fastest measured on cpu, at B = 64, H = 128"),
        (64, 363, "xla", "the fastest measured on cpu, at B = 64, H = 1024"),  # just the nearer one
        (64, 361, "columns", "the fastest measured on cpu, at B = 64, H = 128"),
        (
            9,
            4,
            USUAL,
            "cudnn cannot run this: it runs on a GPU and this is a CPU; the usual choice",
        ),
    ],
)
def test_the_nearest_measured_size_decides(batch: int, hidden: int, want: str, why: str) -> None:
    """Near as ratios go, and no farther than a factor of four; what cannot serve is passed over."""
    choice = choose(problem_of(lstm(hidden), batch), table=TABLE)
    assert choice.implementation == want
    assert choice.why.startswith(why)


@pytest.mark.parametrize(
    ("cell", "batch", "dtype", "want"),
    [
        (lstm(512), 8, "float32", USUAL),
        (lstm(128, peephole=True), 1, "float32", USUAL),
        (lstm(128), 1, "bfloat16", USUAL),
    ],
)
def test_what_was_measured_of_others_does_not_count(
    cell: Any, batch: int, dtype: str, want: str
) -> None:
    choice = choose(problem_of(cell, batch, dtype), table=TABLE)
    assert choice.implementation == want
    assert choice.why.endswith("the usual choice on cpu, nothing near was measured")


@pytest.mark.parametrize(
    ("steps", "save_every", "want"),
    [
        (1, 1, "scan"),
        (2, 1, "xla"),
        (7, 1, "xla"),
        (8, 1, USUAL),
        (100, 4, "xla"),
        (100, 1000, USUAL),
    ],
)
def test_short_sequences_run_by_what_costs_least_to_begin(
    steps: int, save_every: int, want: str
) -> None:
    """Those of `save_every` steps count, since each stretch of them is a call of its own."""
    if save_every == 1:
        assert explain(lstm(HIDDEN), (steps, 2, 3)).implementation == want
    given = jax.eval_shape(lambda: lstm(HIDDEN).init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((steps, 2, 3), jnp.float32)

    def program(implementation: Any) -> str:
        run = partial(unroll, lstm(HIDDEN), implementation=implementation, save_every=save_every)
        return str(jax.make_jaxpr(run)(given, xs))

    assert program(None) == program(want)


def test_a_batch_without_rows_runs_by_scan() -> None:
    assert explain(lstm(HIDDEN), (5, 0, 3)) == ("scan", "the batch has no rows")


@pytest.mark.parametrize(("platform", "leaky"), [("cpu", "scan"), ("gpu", "xla"), ("tpu", "xla")])
def test_the_usual_choice_for_other_cells(
    platform: str, leaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that are linear in their state run in parallel over time on every platform."""
    monkeypatch.setattr(accelerator, "device", lambda: fake(platform))
    long = (STEPS, *SHAPE[1:])
    choice = explain(Leaky(HIDDEN), long)
    assert choice.implementation == leaky
    assert f"the usual choice on {platform} for a Leaky" in choice.why
    assert explain(mingru(HIDDEN), long).implementation == "associative"
    assert explain(mingru(HIDDEN), (1, *SHAPE[1:])).implementation == "scan"


def test_the_table_of_the_package_is_followed() -> None:
    """Every row is of a cell that exists and picks what it says, where that runs here."""
    names = {dispatch.cell_name(cell): cell for cell in CELLS.values()}
    assert set(names) == {"rnn", "lstm", "lstm-peephole", "gru-before", "gru-after"}
    for row in measured():
        cell = dataclasses.replace(names[row["cell"]], hidden_size=row["hidden"])
        assert row["implementation"] in ALL
        assert row["dtype"] in dispatch.DTYPES
        if row["platform"] == "cpu" and (row["implementation"] != "native" or USUAL == "native"):
            given = problem_of(cell, row["batch"], row["dtype"])
            assert choose(given).implementation == row["implementation"]


# --- that it is so ------------------------------------------------------------------------------


def traced(cell: Any, implementation: Any) -> str:
    given = problem(cell).cast("float32")
    run = partial(unroll, cell, implementation=implementation)
    return str(jax.make_jaxpr(run)(*given.inputs))


@pytest.mark.parametrize("cell", [lstm(HIDDEN), gru(HIDDEN)])
def test_unroll_runs_what_explain_says(cell: Any) -> None:
    """The traced program is that of the choice, and each implementation has a different program."""
    programs = {name: traced(cell, name) for name in {*IMPLEMENTATIONS, USUAL}}
    assert len(set(programs.values())) == len(programs)
    assert traced(cell, None) == programs[explain(cell, (5, 2, 3)).implementation]
    assert "custom_jvp" not in programs["scan"]
    assert "custom_jvp" in programs["xla"] and "custom_jvp" in programs["columns"]


def test_projected_inputs_and_resets_reach_the_choice() -> None:
    """Projected inputs and resets are part of the problem; every kernel on a CPU supports them."""
    given = problem(lstm(HIDDEN)).cast("float32")
    lookup = Lookup(jnp.ones((3, 4 * HIDDEN)), jnp.zeros((5, 2), jnp.int32))
    with pytest.raises(ValueError, match="it runs on a GPU"):
        unroll_projected(lstm(HIDDEN), given.params, lookup, implementation="cudnn")
    shape = (STEPS, *SHAPE[1:])
    assert explain(lstm(HIDDEN), shape, resets=True, reverse=True).implementation == USUAL


@pytest.mark.process
def test_kernels_are_imported_when_they_are_picked() -> None:
    """Pallas takes a second to import, which no one on a CPU should wait for."""
    program = """
import sys, jaxrnn
jaxrnn.explain(jaxrnn.lstm(4), (5, 2, 3))
late = ["jaxrnn.recurrence.kernels." + name for name in ("tpu", "hopper")]
print([name for name in late if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
