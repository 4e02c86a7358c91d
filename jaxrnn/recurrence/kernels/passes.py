"""Combine a hand-written forward and backward pass into one function with every derivative.

The first derivative in reverse mode is the backward pass. All others, in forward mode or of higher
order, are those of an equivalent function in plain JAX.

JAX derives reverse mode from forward mode: it transposes the function that maps tangents of the inputs
to tangents of the results. Here this linear function is a primitive of its own. Where JAX evaluates it,
it computes the tangents of the plain function; where JAX transposes it, it runs the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn.recurrence.problem import vary_like


class Passes(NamedTuple):
    """The functions that an implementation provides.

    Attributes:
      forward: called with (static, keep, constants, *given); returns the results and, with `keep`, the
        residuals for the backward pass, else None.
      backward: called with (static, constants, given, residuals, cotangents of the results); returns a
        tuple of the gradients with respect to `given`, with None for integers.
      plain: called with (static, constants, *given); returns the results, computed in plain JAX.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    plain: Callable[..., Any]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def run(passes: Passes, static: Any, constants: Any, *given: Any) -> Any:
    """Return the results of the forward pass, arrays of floats.

    Args:
      passes: the passes of the implementation.
      static: a hashable value, such as the cell, which all passes receive.
      constants: a pytree of arrays that are not differentiated, such as masks.
      given: the pytrees of arrays that are differentiated, except for integers among them.
    """
    return passes.forward(static, False, constants, *given)[0]


@run.defjvp
def _differentiated(
    passes: Passes, static: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    results, residuals = _run_and_keep(passes, static, *primals)
    return results, _tangents(passes, static, primals, residuals, results, tangents[1:])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run_and_keep(passes: Passes, static: Any, constants: Any, *given: Any) -> tuple[Any, Any]:
    """Return the results and the residuals."""
    return passes.forward(static, True, constants, *given)


@_run_and_keep.defjvp
def _differentiated_again(
    passes: Passes, static: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    results, residuals = _run_and_keep(passes, static, *primals)
    found = _tangents(passes, static, primals, residuals, results, tangents[1:])
    # `_gradients` differentiates with respect to `given`, and so the residuals count as constants.
    return (results, residuals), (found, jax.tree.map(_zero_tangent, residuals))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(
    passes: Passes, static: Any, constants: Any, given: Any, residuals: Any, cotangents: Any
) -> list[Any]:
    """Return the gradients with respect to the floats of `given`."""
    found = passes.backward(static, constants, given, residuals, cotangents)
    return [d for d in jax.tree.leaves(found) if _is_float(d)]


@_gradients.defjvp
def _gradients_differentiated(
    passes: Passes, static: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    constants, given, _, cotangents = primals

    def gradients(given: Any, cotangents: Any) -> list[Any]:
        floats, join = _split(given)
        function = lambda *floats: passes.plain(static, constants, *join(floats))  # noqa: E731
        return list(jax.vjp(function, *floats)[1](cotangents))

    arguments = (given, cotangents), (tangents[1], tangents[3])
    return _gradients(passes, static, *primals), jax.jvp(gradients, *arguments)[1]


def _split(given: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Return the floats of a pytree, and a function that puts others in their place."""
    leaves, tree = jax.tree.flatten(given)

    def join(floats: Sequence[Any]) -> Any:
        others = iter(floats)
        return jax.tree.unflatten(
            tree, [next(others) if _is_float(leaf) else leaf for leaf in leaves]
        )

    return [leaf for leaf in leaves if _is_float(leaf)], join


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _zero_tangent(x: Any) -> Any:
    if _is_float(x):
        return vary_like(jnp.zeros_like(x), x)
    return np.zeros(x.shape, jax.dtypes.float0)


# --- the linear function of the tangents ----------------------------------------------------------


def _tangents(
    passes: Passes, static: Any, primals: Any, residuals: Any, results: Any, tangents: Any
) -> Any:
    """Return the tangents of the results, as a function that JAX can transpose."""
    known, tree = jax.tree.flatten((primals, residuals))

    def forward(known: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        (constants, *given), _ = jax.tree.unflatten(tree, known)
        floats, join = _split(given)
        function = lambda *floats: passes.plain(static, constants, *join(floats))  # noqa: E731
        return jax.tree.leaves(jax.jvp(function, tuple(floats), tuple(tangents))[1])

    def backward(known: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        (constants, *given), residuals = jax.tree.unflatten(tree, known)
        d_results = jax.tree.unflatten(jax.tree.structure(results), cotangents)
        return _gradients(passes, static, constants, tuple(given), residuals, d_results)

    floats = [t for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0]
    shapes = tuple(jax.typeof(x) for x in jax.tree.leaves(results))
    found = _linear.bind(
        *known, *floats, count=len(known), forward=forward, backward=backward, shapes=shapes
    )
    return jax.tree.unflatten(jax.tree.structure(results), found)


def _evaluated(*arguments: Any, count: int, forward: Any, **_: Any) -> list[Any]:
    return forward(arguments[:count], arguments[count:])


def _transposed(
    cotangents: Sequence[Any], *arguments: Any, count: int, backward: Any, **_: Any
) -> list[Any]:
    full = [ad.instantiate_zeros(ct) for ct in cotangents]
    found = backward(arguments[:count], full)
    wanted = map(ad.is_undefined_primal, arguments[count:])
    return [None] * count + [d if want else None for d, want in zip(found, wanted, strict=True)]


def _tangents_differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    full = tuple(ad.instantiate_zeros(t) for t in tangents)
    found = jax.jvp(partial(_evaluated, **params), tuple(primals), full)[1]
    return _linear.bind(*primals, **params), found


def _mapped(
    arguments: Sequence[Any],
    axes: Sequence[int | None],
    *,
    count: int,
    forward: Any,
    backward: Any,
    shapes: Any,
) -> tuple[Any, list[int]]:
    size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    # The tangents all get the mapped axis, as the gradients have it.
    tangents = [
        jnp.broadcast_to(t, (size, *t.shape)) if axis is None else jnp.moveaxis(t, axis, 0)
        for t, axis in zip(arguments[count:], axes[count:], strict=True)
    ]
    known, known_axes = arguments[:count], tuple(axes[:count])

    def mapped(function: Any) -> Any:
        return lambda known, others: jax.vmap(function, (known_axes, 0))(
            tuple(known), tuple(others)
        )

    forward, backward = mapped(forward), mapped(backward)
    shapes = tuple(jax.make_jaxpr(forward)(known, tangents).out_avals)
    found = _linear.bind(
        *known, *tangents, count=count, forward=forward, backward=backward, shapes=shapes
    )
    return found, [0] * len(found)


_linear = Primitive("tangents_of_passes")
_linear.multiple_results = True
_linear.def_impl(_evaluated)
_linear.def_abstract_eval(lambda *_, shapes, **__: shapes)
ad.primitive_jvps[_linear] = _tangents_differentiated
ad.primitive_transposes[_linear] = _transposed
batching.primitive_batchers[_linear] = _mapped
mlir.register_lowering(_linear, mlir.lower_fun(_evaluated, multiple_results=True))
