"""The cell of one's own in the README of the variants, executed."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.recurrence import variants
from tests.support.oracle import TOLERANCES, assert_close, differences
from tests.support.problems import BATCH, FEATURES, HIDDEN, STEPS, library, problem
from tests.support.variants import IMPLEMENTATIONS

README = Path(variants.__file__).with_name("README.md")


@cache
def example() -> dict[str, Any]:
    """Return the names that the README's code defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), README, "exec"), names)
    return names


def reference(params: Any, xs: np.ndarray, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the last state and the outputs of the leaky integrator, in numpy."""
    (h,), ys = state, []
    for x in xs:
        h = h + 0.1 * (np.tanh(x @ params.w_x + h @ params.w_h) - h)
        ys.append(h)
    return h, np.stack(ys)


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_values_and_gradients_of_the_readmes_cell(implementation: Any) -> None:
    cell = example()["Leaky"](HIDDEN)
    given = problem(cell, STEPS, BATCH, FEATURES)
    with jax.enable_x64(True):
        got, gradients = library(cell, given.cast("float64"), implementation=implementation)

    def loss(inputs: Any) -> float:
        (w_state,), w_ys = given.weights
        h, ys = reference(*inputs)
        return float((w_state * h).sum() + (w_ys * ys).sum())

    assert_close(got, reference(*given.inputs), TOLERANCES["float64"])
    assert_close(gradients, differences(loss, given.inputs), TOLERANCES["differences"])


def test_results_that_the_readme_shows() -> None:
    names = example()
    assert names["ys"].shape == (100, 8, 64) and names["ahead"].shape == (10, 8, 3)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (names["params"], names["xs"]))
    h, ys = reference(*exact, (np.zeros((8, 64)),))
    assert_close((names["state"], names["ys"]), (h, ys), TOLERANCES["float32"])


def test_the_readmes_cell_in_bfloat16_and_in_a_network() -> None:
    cell = example()["Leaky"](HIDDEN)
    given = problem(cell, STEPS, BATCH, FEATURES).cast("bfloat16")
    _, ys = jaxrnn.unroll(cell, *given.inputs)
    _, want = reference(*given.exact().inputs)
    assert ys.dtype == jnp.bfloat16
    assert_close(ys, want, TOLERANCES["bfloat16"])

    net = jaxrnn.network(cell, FEATURES, 2)
    params = net.init(jax.random.key(0))
    xs = given.xs.astype(jnp.float32)
    _, outputs = net.apply(params, xs)
    _, hidden = reference(
        jax.tree.map(np.asarray, params.cell), np.asarray(xs), (np.zeros((BATCH, HIDDEN)),)
    )
    want = hidden @ np.asarray(params.w_out) + np.asarray(params.b_out)
    assert_close(outputs, want, TOLERANCES["float32"])


def test_the_readmes_table_names_every_cell() -> None:
    rows = re.findall(r"^\| `(\w+)\((.*?)\)`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == variants.__all__
    for name, given in rows:
        options = {option.strip(" =") for option in given.split(",")}
        assert options == set(inspect.signature(getattr(variants, name)).parameters)
