"""Calls of the cuDNN kernel that several test files use. They run on the host by default."""

from functools import partial
from typing import Any

import jax

from jaxrnn.recurrence import problem as recurrence
from jaxrnn.recurrence.kernels import cudnn
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig
from jaxrnn.recurrence.problem import Dense, Masks
from tests.support.problems import Problem

# The cells that cuDNN supports, by their names in `problems.CELLS`.
NAMES = ("rnn-tanh", "rnn-relu", "lstm", "gru-after")
NO_MASKS = Masks()


@partial(jax.jit, static_argnames=("cell", "reverse", "platform"))
def on_host(
    cell: Any, given: Problem, masks: Masks = NO_MASKS, *, reverse: bool, platform: Any = "cpu"
) -> tuple[Any, Any]:
    """Return the same as `problems.library`, computed by the cuDNN kernel."""

    def loss(params: Any, xs: Any, state: Any) -> Any:
        inputs = Dense(xs, params.w_x, params.b)
        whole = recurrence.Problem(cell, params, inputs, state, masks, reverse)
        results = cudnn.run(whole, platform=platform)
        pairs = zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
        return sum((w * r).sum() for w, r in pairs), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


def loss_of(cell: Any, platform: Any) -> Any:
    """Return a loss function that uses the cuDNN kernel.

    With platform "cpu" it calls the stand-in. With "cuda", a program for a CPU computes the same by XLA.
    """

    def loss(params: Any, xs: Any, state: Any) -> Any:
        inputs = Dense(xs, params.w_x, params.b)
        whole = recurrence.Problem(cell, params, inputs, state)
        final, ys = cudnn.run(whole, platform=platform)
        return (ys**3).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

    return loss


def make_config(
    cell: Any, layers: int = 1, both: bool = False, dtype: str = "float32", platform: Any = "cpu"
) -> CallConfig:
    """Return the configuration of a call, on the host by default."""
    return CallConfig(cell, layers, both, dtype, True, platform)


def lowered(cell: Any, given: Problem) -> str:
    """Return the text of the program of `on_host`."""
    return on_host.lower(cell, given, reverse=False).as_text()
