"""Wrong options and wrong arguments: one ValueError that names what was given and what fits."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import gru, lstm
from jaxrnn.layers import StackedParams, stacked
from jaxrnn.recurrence import variants
from tests.support.oracle import unchecked
from tests.support.problems import Leaky

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
KEY = jax.random.key(0)
XS = jnp.ones((STEPS, BATCH, INPUTS))


class Count(Leaky):
    """A cell that counts its steps."""

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        return jnp.zeros((batch, self.hidden_size), dtype), jnp.zeros((batch, 1), jnp.int32)


class Own(Leaky):
    """Not a dataclass of its own fields, and with a state that is wider than the output."""

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        return (jnp.zeros((batch, 2 * self.hidden_size), dtype),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstm"}, "cell must be a jaxrnn.Cell, such as jaxrnn.lstm(512), not 'lstm'"),
        ({"inputs": 0}, "inputs must be at least 1, not 0"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"layers": 1.5}, "layers must be a whole number, not 1.5"),
        ({"bidirectional": 1}, "bidirectional must be True or False, not 1"),
        ({"variational": "yes"}, "variational must be True or False, not 'yes'"),
        ({"residual": None}, "residual must be True or False, not None"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
        ({"dropout": float("nan")}, "dropout must be a finite number, not nan"),
        ({"weight_dropout": 2}, "weight_dropout must be at least 0 and below 1, not 2"),
        ({"weight_dropout": True}, "weight_dropout must be a finite number, not True"),
        ({"zoneout": 1.0}, "zoneout must be at least 0 and below 1, not 1.0"),
        ({"zoneout": "0.1"}, "zoneout must be a finite number, not '0.1'"),
        ({"zoneout": (0.1, 0.2, 0.3)}, "one for each of the 2 arrays of the state of LSTM("),
        ({"zoneout": 0.1, "cell": Own(HIDDEN)}, "of width 4, not 8 as in Own("),
        (
            {"zoneout": 0.1, "cell": Count(HIDDEN)},
            "arrays [B, H] of floats, not int32 of shape (1, 1)",
        ),
        ({"blocks": 3}, "blocks 3 must divide the hidden size 4"),
        ({"blocks": 0}, "blocks must be at least 1, not 0"),
        ({"blocks": 2, "cell": Own(HIDDEN)}, "the width of every array of its state, not Own("),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=re.escape(message)):
        stacked(**{"cell": lstm(HIDDEN), "inputs": INPUTS} | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xs": XS[0]}, "xs must be [T, B, D] with D = inputs = 3, not of shape (2, 3)"),
        ({"xs": XS[..., :2]}, "D = inputs = 3, not of shape (5, 2, 2)"),
        ({"xs": XS.astype(jnp.bfloat16)}, "xs is bfloat16, params float32"),
        (
            {"state": ()},
            "state must be a tuple of 2, each GRUState(hidden='float32[2, 4]'), not ()",
        ),
        ({"state": gru(HIDDEN).initial_state(BATCH)}, "state must be a tuple of 2"),
        ({"state": (gru(HIDDEN).initial_state(3),) * 2}, "hidden='float32[3, 4]'"),
        ({"params": gru(HIDDEN).init(KEY, INPUTS)}, "StackedParams of 2 layers in 1 direction"),
        ({"params": stacked(gru(HIDDEN), INPUTS).init(KEY)}, "2 in all, not of 1"),
        (
            {"params": stacked(gru(HIDDEN), INPUTS, layers=2, learned_state=True).init(KEY)},
            "params.initial must be None, as learned_state is False, not tuple",
        ),
        ({"xs": "abc"}, "xs must be an array [T, B, D], not str"),
        ({"xs": None}, "xs must be"),
        (
            {"params": StackedParams((gru(HIDDEN).init(KEY, INPUTS), None))},
            "params.cells must be parameters of GRU(",
        ),
        ({"params": stacked(gru(5), INPUTS, layers=2).init(KEY)}, "float32 of shape (3, 12)"),
        ({"resets": np.zeros((BATCH, STEPS), bool)}, "of shape [T, B] = (5, 2), not bool"),
        ({"lengths": [STEPS + 1, 0]}, "lengths must lie in 0..5 (T), not in 0..6"),
        ({"implementation": "fast"}, "implementation must be one of"),
        ({"save_every": 0}, "save_every must be at least 1, not 0"),
    ],
    ids=[str(number) for number in range(17)],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    net = stacked(gru(HIDDEN), INPUTS, layers=2)
    given = {"params": jax.tree.map(jnp.ones_like, net.init(KEY)), "xs": XS} | arguments
    with unchecked(), pytest.raises(ValueError, match=re.escape(message)):
        net.apply(**given)


def test_batch_first_inputs_are_named_so() -> None:
    net = stacked(gru(HIDDEN), INPUTS, batch_first=True)
    with unchecked(), pytest.raises(ValueError, match=r"xs must be \[B, T, D\] with D"):
        net.apply(net.init(KEY), XS[..., :1])


def test_batch_first_resets_are_named_so_and_may_be_a_list() -> None:
    net = stacked(gru(HIDDEN), INPUTS, batch_first=True)
    params, xs = net.init(KEY), XS.swapaxes(0, 1)
    with unchecked(), pytest.raises(ValueError, match=r"of shape \[B, T\] = \(2, 5\), not bool"):
        net.apply(params, xs, resets=np.zeros((STEPS, BATCH), bool))
    with unchecked():
        net.apply(params, xs.tolist(), resets=[[False] * STEPS] * BATCH)


@pytest.mark.parametrize("shape", [(), (1,), (BATCH, HIDDEN), (HIDDEN + 1,)], ids=str)
def test_learned_states_have_the_shape_of_a_row(shape: tuple[int, ...]) -> None:
    net = stacked(gru(HIDDEN), INPUTS, learned_state=True)
    params = net.init(KEY)
    wrong = params._replace(initial=jax.tree.map(lambda _: jnp.zeros(shape), params.initial))
    with unchecked(), pytest.raises(ValueError, match=r"params.initial must be .*float32\[4\]"):
        net.apply(wrong, XS)


@pytest.mark.parametrize("blocks", [1, 4])
def test_parameters_of_other_blocks_are_named_so(blocks: int) -> None:
    other = stacked(gru(HIDDEN), INPUTS, blocks=blocks).init(KEY)
    net = stacked(gru(HIDDEN), INPUTS, blocks=2)
    with (
        unchecked(),
        pytest.raises(ValueError, match="begin with an axis of blocks = 2, not be of"),
    ):
        net.apply(other, XS)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-5, 2, 3), "T of shape must be at least 0, not -5"),
        ((5.0, 2, 3), "T of shape must be a whole number, not 5.0"),
        (5, "shape must be that of xs, [T, B, D], not 5"),
    ],
    ids=str,
)
def test_explain_takes_the_shape_of_a_sequence(shape: Any, message: str) -> None:
    net = stacked(gru(HIDDEN), INPUTS)
    with unchecked(), pytest.raises(ValueError, match=re.escape(message)):
        net.explain(shape)
    with pytest.raises(ValueError, match="reverse is for a cell"):
        jaxrnn.explain(net, XS.shape, reverse=True)


def test_a_step_needs_one_direction_and_one_step() -> None:
    net = stacked(gru(HIDDEN), INPUTS, bidirectional=True)
    with pytest.raises(ValueError, match="in one direction, and these are bidirectional"):
        net.step(net.init(KEY), None, XS[0])
    net = stacked(gru(HIDDEN), INPUTS)
    with unchecked(), pytest.raises(ValueError, match=r"x must be \[B, D\] with D = inputs = 3"):
        net.step(net.init(KEY), None, XS)


@pytest.mark.parametrize("key", [None, KEY], ids=["inference", "training"])
def test_weight_dropout_needs_recurrent_weights(key: Any) -> None:
    net = stacked(variants.indrnn(HIDDEN), INPUTS, weight_dropout=0.1)
    with pytest.raises(ValueError, match="recurrent weights w_h, and IndRNNParams has none"):
        net.apply(net.init(KEY), XS, key=key)


def test_learned_states_must_be_there() -> None:
    net = stacked(gru(HIDDEN), INPUTS, learned_state=True)
    message = "params.initial must be learned states, as learned_state is True, not NoneType"
    with pytest.raises(ValueError, match=message):
        net.apply(net.init(KEY)._replace(initial=None), XS)
