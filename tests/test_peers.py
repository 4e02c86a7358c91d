"""jaxrnn against PyTorch and Keras, run live in float64: values and gradients.

`golden/make.py` runs the peers. It also wrote the results that `recurrence/test_cells.py` checks without
them. Neither peer has peepholes.
"""

import importlib.util

import jax
import pytest

from tests.golden import make
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import IMPLEMENTATIONS, library, problem

missing = [name for name in ("keras", "torch") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        bool(missing), reason=f"no {' and no '.join(missing)}: pip install jaxrnn[peers]"
    ),
]


@pytest.mark.parametrize("name", make.CASES)
def test_values_and_gradients_are_the_peers(name: str) -> None:
    """With all weights, biases, inputs and initial states random and the same on both sides."""
    case = make.CASES[name]
    given = problem(case.cell, steps=7, batch=3, features=5, seed=1)
    want = make.answer(case, given)
    with jax.enable_x64(True):
        for implementation in IMPLEMENTATIONS:
            got = library(case.cell, given.cast("float64"), implementation=implementation)
            assert_close(got, want, TOLERANCES[case.peer])


@pytest.mark.parametrize("name", make.CASES)
def test_golden_files_are_what_the_peers_compute_today(name: str) -> None:
    case, (given, stored) = make.CASES[name], make.load(name)
    assert_close(make.answer(case, given), stored, TOLERANCES[case.peer])
