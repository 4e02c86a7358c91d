"""Random problems for every cell, and one jitted call that returns the library's values and gradients."""  # noqa: E501

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gru, lstm, rnn, unroll
from jaxrnn.recurrence.cells import RNNState
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Masks
from tests.support.oracle import differences, reference

STEPS, BATCH, FEATURES = 5, 3, 3
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
LENGTHS = np.array([STEPS, 0, 3], np.int32)  # whole, nothing, and a reset inside the padding
MASKS = {
    "plain": {},
    "resets": {"resets": RESETS},
    "lengths": {"lengths": LENGTHS},
    "both": {"resets": RESETS, "lengths": LENGTHS},
}
STEPS, BATCH, FEATURES = 5, 3, 3
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
LENGTHS = np.array([STEPS, 0, 3], np.int32)  # whole, nothing, and a reset inside the padding
MASKS = {
    "plain": {},
    "resets": {"resets": RESETS},
    "lengths": {"lengths": LENGTHS},
    "both": {"resets": RESETS, "lengths": LENGTHS},
}
HIDDEN = 4
CELLS = {
    "rnn-tanh": rnn(HIDDEN),
    "rnn-relu": rnn(HIDDEN, activation="relu"),
    "rnn-sigmoid": rnn(HIDDEN, activation="sigmoid"),
    "lstm": lstm(HIDDEN),
    "lstm-peephole": lstm(HIDDEN, peephole=True),
    "gru-before": gru(HIDDEN, reset="before"),
    "gru-after": gru(HIDDEN, reset="after"),
}
IMPLEMENTATIONS = ("scan", "xla", "columns")  # a CPU's for every dtype; the first is the reference
# The default on a CPU in float32.
USUAL = "native" if LIBRARY.unavailable_reason is None else "xla"


class Problem(NamedTuple):
    """Random float64 arrays: what goes into `unroll`, and the weights that make its results a loss.

    loss = sum(final state * weights[0]) + sum(ys * weights[1])
    """

    params: Any
    xs: np.ndarray
    state: Any
    weights: tuple[Any, np.ndarray]

    def cast(self, dtype: str) -> "Problem":
        """Return JAX arrays: params and xs in `dtype`, the state and the weights in the wider dtype."""
        narrow = partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
        broad = partial(jax.tree.map, lambda a: jnp.asarray(a, wide(dtype)))
        return Problem(narrow(self.params), narrow(self.xs), broad(self.state), broad(self.weights))

    def exact(self) -> "Problem":
        """The arrays' own values, rounded as they are, in numpy float64."""
        return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), self)

    @property
    def inputs(self) -> tuple[Any, Any, Any]:
        return self.params, self.xs, self.state


def problem(cell: Any, steps: int = 5, batch: int = 2, features: int = 3, seed: int = 0) -> Problem:
    """No entry is zero: biases, peepholes and the initial state count too."""
    rng = np.random.default_rng(seed)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: cell.init(key, features))
    state = jax.eval_shape(lambda: cell.initial_state(batch))

    def draw(tree: Any, scale: float) -> Any:
        return jax.tree.map(lambda a: scale * rng.standard_normal(a.shape), tree)

    xs, ys = (np.empty((steps, batch, width)) for width in (features, cell.hidden_size))
    return Problem(draw(params, 0.6), draw(xs, 1), draw(state, 0.6), draw((state, ys), 1))


@partial(jax.jit, static_argnames=("cell", "reverse", "implementation", "save_every"))
def library(
    cell: Any,
    given: Problem,
    resets: Any = None,
    lengths: Any = None,
    *,
    reverse: bool = False,
    implementation: Any = None,
    save_every: int = 1,
) -> tuple[Any, Any]:
    """(final state, ys) of `unroll`, and the loss's gradients for params, xs and initial state."""

    def loss(params: Any, xs: Any, state: Any) -> Any:
        results = unroll(
            cell,
            params,
            xs,
            state,
            resets=resets,
            lengths=lengths,
            reverse=reverse,
            implementation=implementation,
            save_every=save_every,
        )
        products = jax.tree.map(lambda w, r: (w * r.astype(w.dtype)).sum(), given.weights, results)
        return sum(jax.tree.leaves(products)), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def expected(cell: Any, given: Problem, **masks: Any) -> tuple[Any, Any]:
    """Return what `library` should return, from the equations and their finite differences alone."""

    def loss(inputs: Any) -> float:
        results = reference(cell, *inputs, **masks)
        return sum(
            float((w * r).sum())
            for w, r in zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
        )

    return reference(cell, *given.inputs, **masks), differences(loss, given.inputs)


def as_masks(steps: int, resets: Any = None, lengths: Any = None) -> Masks:
    """Return the masks that `unroll` makes of resets and lengths: no reset in the padding."""
    active = None if lengths is None else np.arange(steps)[:, None] < lengths
    if resets is not None and active is not None:
        resets = resets & active
    return jax.tree.map(jnp.asarray, Masks(resets, active))


def with_orthogonal(cell: Any, given: Problem) -> Problem:
    """The same with w_h as a cell begins; drawn at random, a wide one has far too large a norm."""
    w_h = np.asarray(cell.init(jax.random.key(0), FEATURES).w_h)
    return given._replace(params=given.params._replace(w_h=w_h))


class LeakyParams(NamedTuple):
    w_x: Any
    w_h: Any


@dataclasses.dataclass(frozen=True)
class Leaky:
    """h^t = (h^{t-1} + tanh(x^t W_x + h^{t-1} W_h)) / 2."""

    hidden_size: int

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> LeakyParams:
        w_x, w_h = (input_size, self.hidden_size), (self.hidden_size, self.hidden_size)
        return LeakyParams(jax.random.normal(key, w_x, dtype), jax.random.normal(key, w_h, dtype))

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> RNNState:
        return RNNState(jnp.zeros((batch, self.hidden_size), dtype))

    def project(self, params: LeakyParams, xs: Any) -> Any:
        return xs @ params.w_x

    def step(self, params: LeakyParams, state: RNNState, gx: Any) -> tuple[RNNState, Any]:
        hidden = (state.hidden + jnp.tanh(gx + state.hidden @ params.w_h)) / 2
        return RNNState(hidden), hidden


FEW = ("rnn-tanh", "lstm-peephole", "gru-before", "gru-after")  # the others are special cases
TWO = ("lstm-peephole", "gru-after")  # for what does not depend on the cell
few_cells = pytest.mark.parametrize("name", FEW)
two_cells = pytest.mark.parametrize("name", TWO)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
EVERY = tuple(dict.fromkeys([*IMPLEMENTATIONS, USUAL]))  # of float32
every_implementation = pytest.mark.parametrize("implementation", EVERY)


def on_device(masks: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.asarray(mask) for name, mask in masks.items()}


def in_float32(name: str, **sizes: int) -> tuple[Any, Problem]:
    sizes = {"steps": STEPS, "batch": BATCH, "features": FEATURES} | sizes
    return CELLS[name], problem(CELLS[name], **sizes).cast("float32")
