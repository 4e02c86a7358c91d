"""Every derivative through every implementation: forward mode, second derivatives, and both under vmap.

They are compared with those of "scan", whose first derivatives other tests compare with finite
differences of the equations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import unroll
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import (
    BATCH,
    CELLS,
    EVERY,
    FEATURES,
    LENGTHS,
    RESETS,
    STEPS,
    Leaky,
    problem,
)

# A second derivative is a sum of more terms than a first one.
SECOND = 10 * TOLERANCES["float32"]

Loss = Callable[[Any], Any]


def hvp(loss: Loss, params: Any, along: Any) -> Any:
    """Return the Hessian times a vector, forward mode over reverse mode."""
    return jax.jvp(jax.grad(loss), (params,), (along,))[1]


def reverse_over_reverse(loss: Loss, params: Any, along: Any) -> Any:
    def slope(params: Any) -> Any:
        products = jax.tree.map(lambda g, v: (g * v).sum(), jax.grad(loss)(params), along)
        return sum(jax.tree.leaves(products))

    return jax.grad(slope)(params)


def reverse_over_forward(loss: Loss, params: Any, along: Any) -> Any:
    return jax.grad(lambda params: jax.jvp(loss, (params,), (along,))[1])(params)


def hessian(loss: Loss, params: Any, along: Any) -> Any:
    """Return the Hessian of the input weights, 12 to 48 numbers."""
    return jax.hessian(lambda w_x: loss(params._replace(w_x=w_x)))(params.w_x)


def jacfwd(loss: Loss, params: Any, along: Any) -> Any:
    return jax.jacfwd(lambda w_x: loss(params._replace(w_x=w_x)))(params.w_x)


def both(params: Any) -> Any:
    return jax.tree.map(lambda a: jnp.stack([a, a / 2]), params)


FIRST = {
    "jvp": lambda loss, params, along: jax.jvp(loss, (params,), (along,))[1],
    "linearize": lambda loss, params, along: jax.linearize(loss, params)[1](along),
    "jacfwd": jacfwd,
    "grad of vmap": lambda loss, params, along: jax.grad(
        lambda stacked: jax.vmap(loss)(stacked).sum()
    )(both(params)),
    "vmap of grad": lambda loss, params, along: jax.vmap(jax.grad(loss))(both(params)),
    "vmap of jvp": lambda loss, params, along: jax.vmap(
        lambda params: jax.jvp(loss, (params,), (along,))[1]
    )(both(params)),
    "grad of checkpoint": lambda loss, params, along: jax.grad(jax.checkpoint(loss))(params),
}
SECONDS = {
    "hvp": hvp,
    "hessian": hessian,
    "reverse over reverse": reverse_over_reverse,
    "reverse over forward": reverse_over_forward,
    "vmap of hvp": lambda loss, params, along: jax.vmap(lambda p: hvp(loss, p, along))(
        both(params)
    ),
}


def losses(cell: Any, *implementations: Any) -> list[Loss]:
    given = problem(cell, STEPS, BATCH, FEATURES).cast("float32")

    def loss(implementation: Any, params: Any) -> Any:
        final, ys = unroll(
            cell,
            params,
            given.xs,
            given.state,
            resets=RESETS,
            lengths=LENGTHS,
            implementation=implementation,
        )
        return (ys**2).sum() + sum((s**3).sum() for s in jax.tree.leaves(final))

    return [lambda params, i=i: loss(i, params) for i in implementations]


def check(what: str, cell: Any, implementation: Any) -> None:
    derivative = FIRST.get(what) or SECONDS[what]
    params, along = (
        problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32").params for seed in (0, 1)
    )
    got, want = (derivative(loss, params, along) for loss in losses(cell, implementation, "scan"))
    assert_close(got, want, TOLERANCES["float32"] if what in FIRST else SECOND)


OTHERS = [name for name in EVERY if name != "scan"]


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", OTHERS)
@pytest.mark.parametrize("what", [*FIRST, *SECONDS])
def test_derivatives(what: str, implementation: Any) -> None:
    check(what, CELLS["gru-after"], implementation)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "rnn-relu"])
@pytest.mark.parametrize("what", ["jvp", "hvp", "reverse over reverse"])
def test_derivatives_of_the_other_cells(what: str, name: str) -> None:
    check(what, CELLS[name], OTHERS[-1])


@pytest.mark.slow
@pytest.mark.parametrize("what", [*FIRST, *SECONDS])
def test_derivatives_of_a_cell_of_ones_own(what: str) -> None:
    """The generic backward pass of "xla"."""
    check(what, Leaky(4), "xla")


def test_the_default_has_forward_mode() -> None:
    """The slope along a direction is the gradient times the direction."""
    cell = CELLS["lstm"]
    params, along = (
        problem(cell, STEPS, BATCH, FEATURES, seed).cast("float32").params for seed in (0, 1)
    )
    (loss,) = losses(cell, None)
    slope = jax.jit(lambda params: jax.jvp(loss, (params,), (along,))[1])(params)
    gradient = jax.jit(jax.grad(loss))(params)
    want = sum(
        np.vdot(g, v)
        for g, v in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True)
    )
    assert_close(slope, want, SECOND)
