"""cuDNN's LSTM: everything around the call against numpy, with JAX's plain reference of the call in its
place; on an NVIDIA GPU the call itself."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gru, lstm, rnn, unroll
from jaxrnn.recurrence import problem as recurrence
from jaxrnn.recurrence.dispatch import abstract_problem
from jaxrnn.recurrence.kernels import cudnn
from jaxrnn.recurrence.problem import Dense, Masks
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import Problem, expected, library, problem

CELL = lstm(4)
STEPS, BATCH = 5, 3
LENGTHS = {"whole": None, "lengths": np.array([STEPS, 0, 3], np.int32)}
GRADIENTS = 3 * TOLERANCES["float32"]  # they come through twice the roundings

on_nvidia = pytest.mark.skipif(
    not any(device.platform == "gpu" for device in jax.devices()), reason="cuDNN needs a GPU"
)


@partial(jax.jit, static_argnames="interpret")
def around_cudnn(given: Problem, lengths: Any = None, interpret: bool = True) -> tuple[Any, Any]:
    """Return (final state, ys) and the gradients of the loss, as `library` does."""
    active = None if lengths is None else jnp.arange(given.xs.shape[0])[:, None] < lengths[None]

    def loss(params: Any, xs: Any, state: Any) -> Any:
        inputs = Dense(xs, params.w_x, params.b)
        whole = recurrence.Problem(CELL, params, inputs, state, Masks(None, active))
        results = cudnn.run(whole, interpret=interpret)
        pairs = zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
        return sum((w * r).sum() for w, r in pairs), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_and_gradients(lengths: str) -> None:
    """Compare the outputs, and the gradients of weights, inputs and initial state."""
    given = problem(CELL, STEPS, BATCH).cast("float32")
    got = around_cudnn(given, LENGTHS[lengths])
    want = expected(CELL, given.exact(), lengths=LENGTHS[lengths])
    assert_close(got[0], want[0], TOLERANCES["float32"])
    assert_close(got[1], want[1], GRADIENTS)


def test_padding_is_inert() -> None:
    """Exactly: whatever it holds, outputs and gradients there are zero and the others the same."""
    given = problem(CELL, STEPS, BATCH).cast("float32")
    lengths = LENGTHS["lengths"]
    padding = np.arange(STEPS)[:, None] >= lengths
    other = given._replace(xs=jnp.where(jnp.asarray(padding)[..., None], 1e6, given.xs))
    got = around_cudnn(given, lengths)
    assert_close(around_cudnn(other, lengths), got, 0)
    (_, ys), (_, d_xs, _) = got
    assert not np.asarray(ys)[padding].any() and not np.asarray(d_xs)[padding].any()


def test_no_step_changes_no_state() -> None:
    given = problem(CELL, 0, BATCH).cast("float32")
    inputs = Dense(given.xs, given.params.w_x, given.params.b)
    final, ys = cudnn.run(recurrence.Problem(CELL, given.params, inputs, given.state))
    assert_close(final, given.state, 0)
    assert ys.shape == (0, BATCH, 4)


@pytest.mark.parametrize(
    ("cell", "dtype", "limits", "message"),
    [
        (gru(4), "float32", {}, "LSTM alone, not GRU"),
        (rnn(4), "float32", {}, "LSTM alone, not RNN"),
        (lstm(4, peephole=True), "float32", {}, "no peepholes"),
        (CELL, "bfloat16", {}, "float32 alone, not bfloat16"),
        (CELL, "float64", {}, "float32 alone, not float64"),
        (CELL, "float32", {"projected": True}, "cannot take projected"),
        (CELL, "float32", {"resets": True}, "resets"),
        (CELL, "float32", {"reverse": True}, "reverse"),
    ],
)
def test_unsupported_problems(cell: Any, dtype: str, limits: dict[str, bool], message: str) -> None:
    projected = limits.pop("projected", False)
    given = abstract_problem(cell, (STEPS, 2, 3), dtype, **limits)
    if projected:
        inputs: Any = jax.ShapeDtypeStruct(given.inputs.shape, jnp.float32)
        given = given._replace(inputs=inputs)
    assert message in str(cudnn.unsupported_reason(given))
    assert cudnn.unsupported_reason(abstract_problem(CELL, (STEPS, 2, 3), "float32")) is None


def test_run_refuses_unsupported_problems() -> None:
    """Rather than ignore the resets, the direction or the projection."""
    params, xs, state = problem(CELL, STEPS, BATCH).cast("float32").inputs
    inputs, none = Dense(xs, params.w_x, params.b), Masks()
    resets = Masks(jnp.ones((STEPS, BATCH), bool))
    for given, masks, reverse, message in [
        (inputs, resets, False, "resets"),
        (inputs, none, True, "reverse"),
        (inputs.project(), none, False, "projected"),
    ]:
        with pytest.raises(ValueError, match=message):
            unsupported = recurrence.Problem(CELL, params, given, state, masks, reverse)
            cudnn.run(unsupported, interpret=True)


@on_nvidia
@pytest.mark.parametrize("lengths", LENGTHS)
def test_on_a_gpu(lengths: str) -> None:
    """The real call, through `unroll`, without TF32; and that it is the real call."""
    given = problem(CELL, STEPS, BATCH).cast("float32")
    run = partial(library, CELL, lengths=LENGTHS[lengths], implementation="cudnn")
    with jax.default_matmul_precision("highest"):
        got = run(given)
    want = expected(CELL, given.exact(), lengths=LENGTHS[lengths])
    assert_close(got[0], want[0], TOLERANCES["float32"])
    assert_close(got[1], want[1], GRADIENTS)
    program = jax.jit(partial(unroll, CELL, implementation="cudnn")).lower(*given.inputs)
    assert "cudnn_rnn" in program.as_text()
