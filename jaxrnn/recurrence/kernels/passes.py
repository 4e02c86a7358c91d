"""Combine a hand-written forward and backward pass into one differentiable function.

The first derivative, in reverse mode, is the backward pass. Second derivatives are computed from an
equivalent function in plain JAX, which recomputes the first derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax


class Passes(NamedTuple):
    """The functions that an implementation provides.

    Attributes:
      forward: called with (static, keep, constants, *given); returns the results and, with `keep`, the
        residuals for the backward pass, else None.
      backward: called with (static, constants, given, residuals, cotangents of the results); returns a
        tuple of the gradients with respect to `given`.
      plain: called with (static, constants, *given); returns the results, computed in plain JAX.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    plain: Callable[..., Any]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(passes: Passes, static: Any, constants: Any, *given: Any) -> Any:
    """Return the results of the forward pass.

    Args:
      passes: the passes of the implementation.
      static: a hashable value, such as the cell, which all passes receive.
      constants: a pytree of arrays that are not differentiated, such as masks.
      given: the pytrees of arrays that are differentiated.
    """
    return passes.forward(static, False, constants, *given)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_and_keep(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    """Return the results and the residuals. Second derivatives differentiate this function."""
    return passes.forward(static, True, constants, *given)


def _forward(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    results, residuals = _run_and_keep(passes, static, constants, *given)
    return results, (constants, given, residuals)


def _backward(passes: Passes, static: Any, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    return None, *_gradients(passes, static, *saved, cotangents)


def _keep_forward(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    results, residuals = _run_and_keep(passes, static, constants, *given)
    return (results, residuals), (constants, given, residuals)


def _keep_backward(passes: Passes, static: Any, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """Ignore the cotangents of the residuals: `_gradients` differentiates with respect to `given`."""
    return None, *_gradients(passes, static, *saved, cotangents[0])


run.defvjp(_forward, _backward)
_run_and_keep.defvjp(_keep_forward, _keep_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    passes: Passes, static: Any, constants: Any, given: Any, residuals: Any, cotangents: Any
) -> tuple[Any, ...]:
    return passes.backward(static, constants, given, residuals, cotangents)


def _gradients_forward(
    passes: Passes, static: Any, constants: Any, given: Any, residuals: Any, cotangents: Any
) -> tuple[Any, Any]:
    found = _gradients(passes, static, constants, given, residuals, cotangents)
    return found, (constants, given, cotangents)


def _gradients_backward(
    passes: Passes, static: Any, saved: Any, d_gradients: Any
) -> tuple[Any, ...]:
    """Differentiate the gradients by JAX, with the residuals as a function of `given`."""
    constants, given, cotangents = saved

    def gradients(given: Any, cotangents: Any) -> Any:
        return jax.vjp(partial(passes.plain, static, constants), *given)[1](cotangents)

    d_given, d_cotangents = jax.vjp(gradients, given, cotangents)[1](d_gradients)
    return None, d_given, None, d_cotangents


_gradients.defvjp(_gradients_forward, _gradients_backward)
