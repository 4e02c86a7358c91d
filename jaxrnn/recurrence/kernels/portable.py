"""A kernel for one platform, with plain JAX in its place wherever the kernel cannot run.

A program may be lowered for another platform than that of the device at hand, as `jax.export` and
`lower(lowering_platforms=...)` do, or be written to a file for a process that has not loaded the kernel.
Therefore lowering decides which of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir


def on_cpu(kernel: Callable[..., Any], plain: Callable[..., Any], *arguments: Any) -> Any:
    """Return kernel(*arguments) in programs that this process runs on a CPU, else plain(*arguments).

    Both return arrays of the same shapes and dtypes. Neither is differentiated.
    """
    leaves, tree = jax.tree.flatten(arguments)
    shape: Any = None

    def traced(function: Callable[..., Any]) -> ClosedJaxpr:
        def flat(*leaves: Any) -> Any:
            nonlocal shape
            results, shape = jax.tree.flatten(function(*jax.tree.unflatten(tree, leaves)))
            return results

        return jax.make_jaxpr(flat)(*leaves)

    results = _primitive.bind(*leaves, kernel=traced(kernel), plain=traced(plain))
    return jax.tree.unflatten(shape, results)


def _mapped(arguments: Any, axes: Any, **versions: ClosedJaxpr) -> tuple[Any, list[int]]:
    mapped = {
        name: jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), axes))(*arguments)
        for name, jaxpr in versions.items()
    }
    results = _primitive.bind(*arguments, **mapped)
    return results, [0] * len(results)


def _lowered_for_cpu(ctx: Any, *arguments: Any, kernel: ClosedJaxpr, plain: ClosedJaxpr) -> Any:
    module = ctx.module_context
    elsewhere = module.lowering_parameters.for_export or len(module.platforms) > 1
    chosen = plain if elsewhere else kernel
    return mlir.lower_fun(jaxpr_as_fun(chosen), multiple_results=True)(ctx, *arguments)


def _lowered(ctx: Any, *arguments: Any, kernel: ClosedJaxpr, plain: ClosedJaxpr) -> Any:
    return mlir.lower_fun(jaxpr_as_fun(plain), multiple_results=True)(ctx, *arguments)


_primitive = Primitive("on_cpu")
_primitive.multiple_results = True
_primitive.def_impl(lambda *leaves, kernel, plain: jaxpr_as_fun(kernel)(*leaves))
_primitive.def_abstract_eval(lambda *_, kernel, plain: kernel.out_avals)
batching.primitive_batchers[_primitive] = _mapped
mlir.register_lowering(_primitive, _lowered)
mlir.register_lowering(_primitive, _lowered_for_cpu, platform="cpu")
