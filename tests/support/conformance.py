"""The tests that every implementation of the recurrence inherits.

The tests of an implementation inherit it and name the implementation:

    class TestScan(SecondDerivative, Conformance):
        implementation = "scan"

A kernel that runs here in interpret mode alone overrides `run`. Values are compared with the equations
in numpy float64, and gradients with finite differences of them: neither uses the library or JAX.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import unroll
from tests.support.oracle import TOLERANCES, assert_close, differences
from tests.support.problems import (
    BATCH,
    CELLS,
    FEATURES,
    MASKS,
    STEPS,
    TWO,
    Problem,
    both_ways,
    expected,
    library,
    on_device,
    problem,
)

# Two cells run under every mask, the others with resets and lengths at once.
PRODUCT = [(name, mask) for name in CELLS for mask in MASKS if name in TWO or mask == "both"]


class Conformance:
    """Tests of values, gradients, masks, directions, dtypes, vmap, and sizes of zero and one."""

    # The name for `jaxrnn.unroll(..., implementation=...)`.
    implementation: ClassVar[str]
    # The widest dtype that the implementation computes in, "float64" or "float32".
    exact: ClassVar[str] = "float64"
    # Narrower dtypes of the parameters and inputs.
    narrow: ClassVar[Sequence[str]] = ("bfloat16", "float16")

    def run(
        self, cell: Any, given: Problem, *, reverse: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        """Return ((final state, ys), gradients of the problem's loss), as `problems.library` does.

        Args:
          cell: the cell.
          given: the problem, as JAX arrays.
          reverse: whether to run from the last step to the first.
          masks: `resets` [T, B] and `lengths` [B], as for `jaxrnn.unroll`.
        """
        return library(
            cell, given, **on_device(masks), reverse=reverse, implementation=self.implementation
        )

    def check(self, cell: Any, dtype: str, given: Problem, **how: Any) -> None:
        """Compare values and gradients with the equations, on the numbers as rounded to the dtype."""
        with jax.enable_x64(dtype == "float64"):
            cast = given.cast(dtype)
            results, gradients = self.run(cell, cast, **how)
        want_results, want_gradients = expected(cell, cast.exact(), **how)
        assert_close(results, want_results, TOLERANCES[dtype])
        assert_close(gradients, want_gradients, max(TOLERANCES[dtype], TOLERANCES["differences"]))

    @pytest.mark.first_case
    @both_ways
    @pytest.mark.parametrize(("name", "mask"), PRODUCT)
    def test_values_and_gradients(self, name: str, mask: str, reverse: bool) -> None:
        cell = CELLS[name]
        given = problem(cell, STEPS, BATCH, FEATURES)
        self.check(cell, self.exact, given, reverse=reverse, **MASKS[mask])

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_narrow_dtypes(self, dtype: str) -> None:
        if dtype not in self.narrow:
            pytest.skip(f"{self.implementation} does not compute in {dtype}")
        cell = CELLS["lstm-peephole"]
        self.check(cell, dtype, problem(cell, STEPS, BATCH, FEATURES), **MASKS["both"])

    @pytest.mark.slow
    def test_vmap_is_a_loop(self) -> None:
        """Map over inputs and states with the same parameters."""
        cell = CELLS["gru-after"]
        one, other = (
            problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32") for seed in (1, 2)
        )
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, other._replace(params=one.params))
        got = jax.vmap(partial(self.run, cell))(both)
        for n in range(2):
            want = self.run(cell, jax.tree.map(lambda a, n=n: a[n], both))
            assert_close(jax.tree.map(lambda a, n=n: a[n], got), want, TOLERANCES["float32"])

    @pytest.mark.slow
    @pytest.mark.parametrize(("steps", "batch"), [(0, BATCH), (1, BATCH), (STEPS, 1)])
    def test_sizes_of_zero_and_one(self, steps: int, batch: int) -> None:
        """No step returns the initial state; one step and one row are like others."""
        cell = CELLS["lstm"]
        self.check(cell, self.exact, problem(cell, steps, batch, FEATURES))


class SecondDerivative:
    """The test of implementations whose gradient can be differentiated again."""

    implementation: ClassVar[str]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", TWO)
    def test_second_derivative(self, name: str) -> None:
        """Compare rows of the Hessian in the bias with finite differences of the gradient."""
        cell = CELLS[name]
        with jax.enable_x64(True):
            given = problem(cell, steps=3).cast("float64")

            def loss(b: Any) -> Any:
                params = given.params._replace(b=b)
                how: Any = {"implementation": self.implementation}
                _, ys = unroll(cell, params, given.xs, given.state, **how)
                return (ys * given.weights[1]).sum()

            got = jax.jit(jax.jacrev(jax.jacrev(loss)))(given.params.b)
            gradient = jax.jit(jax.grad(loss))
            b = np.asarray(given.params.b)
            want = [
                differences(lambda b, at=at: float(gradient(jnp.asarray(b))[at]), b)
                for at in range(0, b.size, 3)
            ]
        assert_close(got[::3], np.stack(want), TOLERANCES["differences"])
