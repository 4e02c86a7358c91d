"""Run a kernel on one platform, and plain JAX wherever the kernel cannot run.

A program may be lowered for a platform other than that of the current device, as by `jax.export` and
`lower(lowering_platforms=...)`, or be written to a file for a process that has not loaded the kernel.
Therefore lowering decides which of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

Platform = Literal["cpu", "cuda"]


def on_platform(
    platform: Platform, kernel: Callable[..., Any], plain: Callable[..., Any], *arguments: Any
) -> Any:
    """Return kernel(*arguments) in programs for the platform, and plain(*arguments) in all others.

    A program to be exported counts as one for another platform. Neither function is differentiated.

    Args:
      platform: "cpu" or "cuda".
      kernel: the function that calls the kernel.
      plain: a function in plain JAX that returns arrays of the same shapes and dtypes.
      arguments: the arguments of both functions.
    """
    leaves, tree = jax.tree.flatten(arguments)
    shape: Any = None

    def traced(function: Callable[..., Any]) -> ClosedJaxpr:
        def flat(*leaves: Any) -> Any:
            nonlocal shape
            results, shape = jax.tree.flatten(function(*jax.tree.unflatten(tree, leaves)))
            return results

        return jax.make_jaxpr(flat)(*leaves)

    results = _primitive.bind(
        *leaves, platform=platform, kernel=traced(kernel), plain=traced(plain)
    )
    return jax.tree.unflatten(shape, results)


def _mapped(
    arguments: Any, axes: Any, platform: Platform, **versions: ClosedJaxpr
) -> tuple[Any, list[int]]:
    mapped = {
        name: jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), axes))(*arguments)
        for name, jaxpr in versions.items()
    }
    results = _primitive.bind(*arguments, platform=platform, **mapped)
    return results, [0] * len(results)


def _lowered(here: str, ctx: Any, *arguments: Any, platform: str, **versions: ClosedJaxpr) -> Any:
    module = ctx.module_context
    elsewhere = module.lowering_parameters.for_export or len(module.platforms) > 1
    chosen = versions["kernel" if platform == here and not elsewhere else "plain"]
    return mlir.lower_fun(jaxpr_as_fun(chosen), multiple_results=True)(ctx, *arguments)


_primitive = Primitive("on_platform")
_primitive.multiple_results = True
_primitive.def_impl(lambda *leaves, kernel, **_: jaxpr_as_fun(kernel)(*leaves))
_primitive.def_abstract_eval(lambda *_, kernel, **__: kernel.out_avals)
batching.primitive_batchers[_primitive] = _mapped
mlir.register_lowering(_primitive, partial(_lowered, "another"))
for name in get_args(Platform):
    mlir.register_lowering(_primitive, partial(_lowered, name), platform=name)
