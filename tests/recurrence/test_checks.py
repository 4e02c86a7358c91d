"""Arguments of `unroll` and `unroll_projected` that do not fit are refused with a message."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gradient_flow, gru, lstm, mogrifier_lstm, network, record, unroll
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.cells import RNNState
from jaxrnn.recurrence.networks import NetworkParams
from jaxrnn.recurrence.problem import Dense, Lookup
from tests.support.oracle import assert_close, unchecked
from tests.support.problems import (
    EVERY,
    in_float32,
)

# --- errors -------------------------------------------------------------------------------------

CELL = lstm(4)
PARAMS = jax.eval_shape(lambda: CELL.init(jax.random.key(0), 3))  # all errors are found in shapes


def zeros(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def state_of(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return type(CELL.initial_state(1))(zeros(shape, dtype), zeros(shape, dtype))


def refused(function: Any, message: str, arguments: dict[str, Any]) -> None:
    """A call with arrays of these shapes and dtypes raises a ValueError whose message matches."""
    arrays = {k: v for k, v in arguments.items() if k not in ("save_every", "lengths")}
    rest = {k: v for k, v in arguments.items() if k not in arrays}
    with unchecked(), pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda arrays: function(CELL, **arrays, **rest), arrays | {"params": PARAMS})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xs": zeros((2, 3))}, r"xs must be \[T, B, D\] with D = 3 .*not of shape \(2, 3\)"),
        ({"xs": zeros((5, 2, 7))}, r"D = 3 .*\(3, 16\), not of shape \(5, 2, 7\)"),
        ({"xs": zeros((5, 2, 3), "bfloat16")}, "xs is bfloat16, params.w_x is float32"),
        ({"state": (zeros((2, 4)), zeros((2, 4)))}, "state must be LSTMState with .*, not tuple"),
        ({"state": RNNState(zeros((2, 4)))}, "state must be LSTMState with .*, not RNNState"),
        ({"state": state_of((2, 4))._replace(cell=None)}, "with arrays .*, not with .*, NoneType"),
        ({"state": state_of((3, 4))}, r"\(2, 4\) float32, not \(3, 4\) float32"),
        ({"state": state_of((2, 5))}, r"\(2, 4\) float32, not \(2, 5\) float32"),
        ({"state": state_of((4,))}, r"\(2, 4\) float32, not \(4,\) float32"),
        ({"state": state_of((2, 4), "bfloat16")}, r"\(2, 4\) float32, not \(2, 4\) bfloat16"),
        ({"resets": zeros((2, 5), "bool")}, r"bool .*\[T, B\] = \(5, 2\), not bool .*\(2, 5\)"),
        ({"resets": zeros((5,), "bool")}, r"bool .*\[T, B\] = \(5, 2\), not bool .*\(5,\)"),
        ({"resets": zeros((5, 2), "int32")}, r"bool .*\(5, 2\), not int32 of shape \(5, 2\)"),
        ({"lengths": np.zeros(3, np.int32)}, r"\[B\] = \(2,\), not int32 of shape \(3,\)"),
        ({"lengths": np.zeros((2, 1), np.int32)}, r"\[B\] = \(2,\), not int32 .*\(2, 1\)"),
        ({"lengths": np.zeros(2, np.float32)}, r"whole numbers .*not float32 of shape \(2,\)"),
        ({"lengths": np.array([-1, 4])}, r"lengths must lie in 0\.\.5 \(T\), not in -1\.\.4"),
        ({"lengths": np.array([1, 6])}, r"lengths must lie in 0\.\.5 \(T\), not in 1\.\.6"),
        ({"xs": zeros((5, 2, 3), "float16")}, "xs is float16, params.w_x is float32"),
        ({"save_every": 0}, "save_every must be at least 1, not 0"),
        ({"save_every": np.int64(-2)}, "save_every must be at least 1, not -2"),
        ({"save_every": 2.0}, r"save_every must be a whole number, not 2\.0"),
        ({"save_every": True}, "save_every must be a whole number, not True"),
    ],
)
def test_unroll_says_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    refused(unroll, message, {"xs": zeros((5, 2, 3))} | arguments)


@pytest.mark.parametrize(
    ("gx", "message"),
    [
        (zeros((2, 16)), r"\[T, B, 16\] float32 .*not \(2, 16\) float32"),
        (zeros((5, 2, 12)), r"\[T, B, 16\] float32 .*\(4, 16\).*not \(5, 2, 12\) float32"),
        (zeros((5, 2, 16), "bfloat16"), r"\[T, B, 16\] float32 .*not \(5, 2, 16\) bfloat16"),
        (Lookup(zeros((9, 12)), zeros((5, 2), "int32")), r"\[T, B, 16\] .*not \(5, 2, 12\)"),
        (Lookup(zeros((9, 16)), zeros((5, 2))), r"tokens .* \[T, B\], not float32 .*\(5, 2\)"),
        (Lookup(zeros((9, 16)), zeros((5,), "int32")), r"tokens .* not int32 of shape \(5,\)"),
        (Lookup(zeros((0, 16)), zeros((5, 2), "int32")), r"a row or more, not \(0, 16\)"),
        (Dense(zeros((5, 2, 4)), PARAMS.w_x, PARAMS.b), r"not of \(5, 2, 4\) .*, \(3, 16\) .*"),
        (Dense(zeros((5, 2, 3)), PARAMS.w_x, zeros((4,))), r"b \[16\] .* and \(4,\) float32"),
        (Dense(zeros((5, 2, 3)), PARAMS.w_x, zeros((16,), "bfloat16")), r"\(16,\) bfloat16"),
    ],
)
def test_unroll_projected_says_what_does_not_fit(gx: Any, message: str) -> None:
    refused(unroll_projected, message, {"gx": gx})


def test_a_cell_that_keeps_its_inputs_takes_their_width() -> None:
    cell = mogrifier_lstm(4)
    params = cell.init(jax.random.key(0), 3)
    for width in (1, 16):
        message = rf"\[T, B, 3\] float32 as params\.w_x .*not \(5, 2, {width}\)"
        with pytest.raises(ValueError, match=message):
            unroll_projected(cell, params, jnp.zeros((5, 2, width)))


def made(cell: Any, **changed: Any) -> Any:
    """The shapes of a cell's parameters, some of them changed."""
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))._replace(**changed)


PEEPHOLE, BEFORE, AFTER = lstm(4, peephole=True), gru(4), gru(4, reset="after")
FOREIGN = [
    (AFTER, made(AFTER, b_h=None), r"params\.b_h must be float32 of shape \(4,\), .*not None"),
    (BEFORE, made(BEFORE, b_h=zeros((4,))), r"params\.b_h must be None, .*not float32 .*\(4,\)"),
    (CELL, made(PEEPHOLE), r"params\.w_c must be None, .*LSTM.*, not float32 of shape \(3, 4\)"),
    (PEEPHOLE, made(CELL), r"params\.w_c must be float32 of shape \(3, 4\), .*not None"),
    (PEEPHOLE, made(PEEPHOLE, w_c=zeros((1, 4))), r"w_c must be .*\(3, 4\).*not .*\(1, 4\)"),
    (CELL, made(lstm(8)), r"params\.w_x must be float32 of shape \(3, 16\), .*not .*\(3, 32\)"),
    (lstm(8), made(CELL), r"params\.w_x must be float32 of shape \(3, 32\), .*not .*\(3, 16\)"),
    (CELL, made(CELL, w_h=zeros((5, 16))), r"params\.w_h must be .*\(4, 16\).*not .*\(5, 16\)"),
    (CELL, made(CELL, b=zeros((4,))), r"params\.b must be .*\(16,\).*not float32 of shape \(4,\)"),
    (CELL, made(AFTER), r"params must be LSTMParams, .*not GRUParams"),
    (CELL, tuple(made(CELL)), "params must be LSTMParams, .*not tuple"),
    (CELL, made(CELL)._asdict(), "params must be LSTMParams, .*not dict"),
    (CELL, made(CELL, b=zeros((16,), "bfloat16")), r"params\.b must be float32 .*not bfloat16"),
    (
        PEEPHOLE,
        made(PEEPHOLE, w_c=zeros((3, 4), "bfloat16")),
        r"w_c must be float32 .*not bfloat16",
    ),
    (CELL, made(CELL, w_h=zeros((4, 16), "bfloat16")), r"w_x must be bfloat16 .*not float32"),
    (CELL, made(CELL, w_x=zeros((16,))), r"params\.w_x must be .*not float32 of shape \(16,\)"),
]


@pytest.mark.first_case
@pytest.mark.parametrize(("cell", "params", "message"), FOREIGN)
def test_parameters_of_another_cell_are_refused(cell: Any, params: Any, message: str) -> None:
    """Every implementation, and every function that runs a cell, raises the same message."""
    xs, gx = zeros((5, 2, 3)), zeros((5, 2, len(cell.GATES) * cell.hidden_size))
    one, net = jax.eval_shape(lambda: cell.initial_state(2)), network(cell, 3, 2)
    whole = NetworkParams(params, zeros((cell.hidden_size, 2)), zeros((2,)))
    calls = [
        *(
            (partial(run, cell, implementation=how), params, inputs)
            for how in (None, *EVERY)
            for run, inputs in ((unroll, xs), (unroll_projected, gx))
        ),
        (partial(record, cell, names=["hidden"]), params, xs),
        (partial(gradient_flow, cell), params, xs),
        (net.apply, whole, xs),
        (cell.step, params, one, zeros(gx.shape[1:])),
        (cell.activations, params, one, zeros(gx.shape[1:])),
        (cell.project, params, xs),
    ]
    for function, *arguments in calls:
        with unchecked(), pytest.raises(ValueError, match=message):
            jax.eval_shape(function, *arguments)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"w_x": [1.0]}, "not LSTMParams of another structure"),
        ({"b": 1.0}, r"params\.b must be float32 of shape \(16,\), .*not float"),
    ],
)
def test_parameters_that_are_no_arrays_are_refused(parts: dict[str, Any], message: str) -> None:
    params = CELL.init(jax.random.key(0), 3)._replace(**parts)
    with unchecked(), pytest.raises(ValueError, match=message):
        unroll(CELL, params, jnp.zeros((5, 2, 3)))


@pytest.mark.slow
def test_projected_inputs_need_no_weights_of_the_inputs() -> None:
    """w_x and b may be None there, and there alone."""
    cell, given = in_float32("lstm-peephole")
    bare = given.params._replace(w_x=None, b=None)
    gx = cell.project(given.params, given.xs)
    for how in EVERY:
        got, want = (
            unroll_projected(cell, params, gx, implementation=how)
            for params in (bare, given.params)
        )
        assert_close(got, want, 0)
    with unchecked(), pytest.raises(ValueError, match=r"params\.b must be .*not None"):
        unroll(cell, given.params._replace(b=None), given.xs)


@pytest.mark.parametrize("names", [("w_x", "w_h", "b"), ("w_h",), ("b",)])
def test_float8_is_refused(names: tuple[str, ...]) -> None:
    """float8 is refused in all parameters and in any one of them; the inputs have the dtype of w_x."""
    narrow = PARAMS._replace(
        **{name: zeros(getattr(PARAMS, name).shape, "float8_e5m2") for name in names}
    )
    xs = zeros((5, 2, 3), narrow.w_x.dtype.name)
    message = "must be float32, bfloat16, float16, float64, not float8_e5m2"
    with unchecked(), pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(unroll, CELL), narrow, xs)


@pytest.mark.first_case
@pytest.mark.parametrize("lengths", [[-1, 4], [1, 6]])
def test_lengths_out_of_range_are_found_outside_jit(lengths: list[int]) -> None:
    """Traced calls raise the same errors as plain calls."""
    params = CELL.init(jax.random.key(0), 3)
    low, high = lengths
    with pytest.raises(ValueError, match=rf"0\.\.5 \(T\), not in {low}\.\.{high}"):
        unroll(CELL, params, jnp.zeros((5, 2, 3)), lengths=jnp.array(lengths))
