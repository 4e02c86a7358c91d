"""Which implementation runs the layers: what `explain` reports, and all layers in one kernel call."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import explain, gru, layers, lstm
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.kernels.cudnn import stack
from tests.support import cudnn as host
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import USUAL

STEPS, BATCH, INPUTS, HIDDEN = 20, 3, 5, 4
SHAPE = (STEPS, BATCH, INPUTS)
KEY = jax.random.key(0)


def test_each_pseudo_layer_has_a_choice() -> None:
    net = layers.stacked(lstm(HIDDEN), INPUTS, layers=2, bidirectional=True)
    choices = explain(net, SHAPE)
    assert choices == net.explain(SHAPE) and len(choices) == 4
    for number, choice in enumerate(choices):
        width = INPUTS if number < 2 else 2 * HIDDEN
        cell, shape = lstm(HIDDEN), (STEPS, BATCH, width)
        assert choice == explain(cell, shape, reverse=number % 2 == 1)
        assert choice.implementation == USUAL


@pytest.mark.parametrize(
    ("options", "resets", "note"),
    [
        ({"zoneout": 0.1}, False, "zoneout changes the step"),
        ({"learned_state": True}, True, "resets to a learned state change the step"),
        ({"learned_state": True}, False, None),
        ({"dropout": 0.1, "weight_dropout": 0.1, "residual": True}, True, None),
    ],
    ids=str,
)
def test_the_reason_names_what_changes_the_step(options: Any, resets: bool, note: Any) -> None:
    net = layers.stacked(gru(HIDDEN), INPUTS, **options)
    for training in (False, True):
        (choice,) = net.explain(SHAPE, resets=resets, training=training)
        assert choice.implementation in ((USUAL,) if note is None else ("scan", "xla"))
        assert note is None or choice.why.startswith(f"{note}; ")
    if note:
        with pytest.raises(ValueError, match="implementation 'columns' cannot run this"):
            net.explain(SHAPE, implementation="columns", resets=resets)


def test_blocks_are_named_and_batch_first_shapes_understood() -> None:
    net = layers.stacked(gru(HIDDEN), INPUTS, blocks=2, batch_first=True)
    (choice,) = net.explain((BATCH, STEPS, INPUTS), implementation="scan")
    assert str(choice) == "scan: 2 blocks of 2 units; asked for by name"
    (choice,) = net.explain((BATCH, 1, INPUTS))
    assert "single step" in choice.why


def test_a_shape_of_another_width() -> None:
    net = layers.stacked(gru(HIDDEN), INPUTS)
    with pytest.raises(ValueError, match=r"D = inputs = 5, not of shape \(20, 3, 4\)"):
        net.explain((STEPS, BATCH, 4))


# --- all layers in one call ---------------------------------------------------------------------


class Called(Exception):
    """The kernel for several layers was called."""


@pytest.mark.parametrize(
    ("options", "arguments", "together"),
    [
        ({"learned_state": True}, {}, True),
        ({"weight_dropout": 0.1, "variational": True}, {"key": KEY}, True),
        ({"dropout": 0.1}, {}, True),
        ({"dropout": 0.1}, {"key": KEY}, False),
        ({"residual": True}, {}, False),
        ({"zoneout": 0.1}, {}, False),
        ({"blocks": 2}, {}, False),
        ({}, {"lengths": [STEPS] * BATCH}, False),
        ({}, {"resets": np.zeros((STEPS, BATCH), bool)}, False),
        ({}, {"save_every": 4}, False),
    ],
    ids=str,
)
def test_layers_run_in_one_call_where_nothing_is_between_them(
    options: Any, arguments: Any, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise Called

    kernel = SimpleNamespace(run=run)
    monkeypatch.setattr(dispatch, "layers_at_once", lambda *_: kernel)
    net = layers.stacked(lstm(HIDDEN), INPUTS, layers=2, **options)
    params = jax.eval_shape(lambda: net.init(KEY))
    xs = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    apply = partial(jax.eval_shape, lambda p, xs: net.apply(p, xs, **arguments))
    if together:
        with pytest.raises(Called):
            apply(params, xs)
    else:
        apply(params, xs)
    if not arguments.keys() - {"key"}:
        choices = net.explain(SHAPE, training="key" in arguments)
        assert all(("all layers in one call" in c.why) == together for c in choices)


def test_a_kernel_without_both_directions_does_not_run_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "layers_at_once", lambda *_: SimpleNamespace(run=None))
    net = layers.stacked(lstm(HIDDEN), INPUTS, layers=2, bidirectional=True)
    jax.eval_shape(lambda: net.apply(net.init(KEY), jnp.ones(SHAPE)))
    assert "one call" not in str(net.explain(SHAPE))


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_cudnn_runs_all_layers_at_once(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare values and gradients with those of scan, layer by layer."""
    kernel = SimpleNamespace(
        run=partial(stack.run, platform="cpu"),
        run_pseudo_layers=partial(stack.run_pseudo_layers, platform="cpu"),
    )
    net = layers.stacked(lstm(HIDDEN), INPUTS, layers=2, bidirectional=both, learned_state=True)
    params, xs = net.init(KEY), jax.random.normal(KEY, SHAPE)
    params = jax.tree.map(lambda p: p + 0.1, params)

    def loss(params: Any, xs: Any) -> Any:
        got = net.apply(params, xs, implementation="scan")
        return sum((leaf**3).sum() for leaf in jax.tree.leaves(got)), got

    results = []
    with host.use_stand_in():
        for module in (None, kernel):
            monkeypatch.setattr(dispatch, "layers_at_once", lambda *_, m=module: m)
            run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            calls = run.lower(params, xs).as_text().count("@jaxrnn_cudnn_forward")
            assert calls == (0 if module is None else 1)
            results.append(run(params, xs))
    assert_close(results[1], results[0], 3 * TOLERANCES["float32"])
