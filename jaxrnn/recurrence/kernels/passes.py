"""A forward and a backward pass written by hand as one differentiable function.

Its first derivative in reverse mode is the backward pass. A second derivative is that of the same
function in plain JAX, which computes the first one again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax


class Passes(NamedTuple):
    """The passes of an implementation, functions of a static value and of pytrees of arrays.

    Attributes:
      forward: called with (static, keep, constants, *given); returns the results and, with `keep`, what
        the backward pass needs, else None.
      backward: called with (static, constants, given, kept, cotangents of the results); returns the
        derivatives with respect to `given`, a tuple.
      plain: called with (static, constants, *given); returns the results by plain JAX.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    plain: Callable[..., Any]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(passes: Passes, static: Any, constants: Any, *given: Any) -> Any:
    """Return the results of the forward pass.

    Args:
      passes: the passes.
      static: a hashable value that all passes take.
      constants: arrays that have no derivative, such as masks.
      given: the other arrays.
    """
    return passes.forward(static, False, constants, *given)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_and_keep(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    """Return the results and what is kept. It has a derivative for second derivatives."""
    return passes.forward(static, True, constants, *given)


def _forward(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    results, kept = _run_and_keep(passes, static, constants, *given)
    return results, (constants, given, kept)


def _backward(passes: Passes, static: Any, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    return None, *_gradients(passes, static, *saved, cotangents)


def _keep_forward(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    results, kept = _run_and_keep(passes, static, constants, *given)
    return (results, kept), (constants, given, kept)


def _keep_backward(passes: Passes, static: Any, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """Ignore the cotangent of what is kept: `_gradients` takes all derivatives by way of `given`."""
    return None, *_gradients(passes, static, *saved, cotangents[0])


run.defvjp(_forward, _backward)
_run_and_keep.defvjp(_keep_forward, _keep_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    passes: Passes, static: Any, constants: Any, given: Any, kept: Any, cotangents: Any
) -> tuple[Any, ...]:
    return passes.backward(static, constants, given, kept, cotangents)


def _gradients_forward(
    passes: Passes, static: Any, constants: Any, given: Any, kept: Any, cotangents: Any
) -> tuple[Any, Any]:
    found = _gradients(passes, static, constants, given, kept, cotangents)
    return found, (constants, given, cotangents)


def _gradients_backward(
    passes: Passes, static: Any, saved: Any, d_gradients: Any
) -> tuple[Any, ...]:
    """Differentiate by JAX. What is kept is a function of `given`, and counts as part of it."""
    constants, given, cotangents = saved

    def gradients(given: Any, cotangents: Any) -> Any:
        return jax.vjp(partial(passes.plain, static, constants), *given)[1](cotangents)

    d_given, d_cotangents = jax.vjp(gradients, given, cotangents)[1](d_gradients)
    return None, d_given, None, d_cotangents


_gradients.defvjp(_gradients_forward, _gradients_backward)
