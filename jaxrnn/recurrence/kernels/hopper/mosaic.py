"""Helpers around Pallas Mosaic GPU that work with every supported version of JAX."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir.dialects import nvvm

from jaxrnn.recurrence.kernels.hopper.tiles import swizzle
from jaxrnn.recurrence.problem import vary_like
from jaxrnn.shapes import Array

# A reference to memory of the GPU, a part of one, or a barrier. JAX has no public type for them.
Ref = Any
# A number that is known when the kernel is traced, or one that the kernel computes.
Scalar = int | Array
Like = jax.ShapeDtypeStruct


def call_kernel(
    name: str,
    body: Callable[[Any, Any, dict[str, Ref]], None],
    operands: Any,
    results: Any,
    *,
    grid: dict[str, int],
    approximate: bool,
    interpret: Any,
    synchronized: bool = True,
    **options: Any,
) -> Any:
    """Launch a kernel and return its results.

    Args:
      name: name of the kernel.
      body: called in every warpgroup with references to the operands and to the results, in the same
        pytrees, and with the scratch memory by name.
      operands: a pytree of arrays.
      results: a pytree of `jax.ShapeDtypeStruct`.
      grid: number of CTAs along each axis of the grid.
      approximate: whether tanh and exp may be the GPU's approximations.
      interpret: a `plgpu.InterpretGPUParams` that ignores `inline_mgpu`, or None or False for a GPU.
      synchronized: whether the warps of a warpgroup wait for each other around every access to memory.
      **options: other options of `plgpu.kernel`.
    """
    arguments, operand_tree = jax.tree.flatten(operands)
    types, result_tree = jax.tree.flatten(results)

    def kernel_body(*refs: Ref, **scratch: Ref) -> None:
        operand_refs = jax.tree.unflatten(operand_tree, refs[: len(arguments)])
        result_refs = jax.tree.unflatten(result_tree, refs[len(arguments) :])
        body(operand_refs, result_refs, scratch)

    kernel_body.__name__ = name
    kernel = plgpu.kernel(
        kernel_body,
        out_type=tuple(types),
        compiler_params=plgpu.CompilerParams(
            approx_math=approximate, unsafe_no_auto_barriers=not synchronized
        ),
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        interpret=interpret or None,
        **options,
    )
    # With a batch of calls the grid would be larger than the device, and its CTAs would wait forever.
    one_at_a_time = jax.custom_batching.sequential_vmap(kernel)
    return jax.tree.unflatten(result_tree, vary_like(one_at_a_time(*arguments), arguments))


def smem(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return the type of an array in shared memory, tiled and swizzled as wgmma and TMA want it."""
    bytes_of_row = swizzle(shape[-1], dtype)
    tiling = plgpu.TilingTransform((8, bytes_of_row // jnp.dtype(dtype).itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(bytes_of_row)))


def load(ref: Ref, **options: Any) -> Array:
    """Return `plgpu.load(ref)`, which in JAX 0.10 also requires an index."""
    index = inspect.signature(plgpu.load).parameters.get("idx")
    required = index is not None and index.default is inspect.Parameter.empty
    return plgpu.load(ref, *([()] if required else []), **options)


@plgpu.inline_mgpu()
def fence(_: Any) -> None:
    """Make other CTAs' writes to global memory visible to the async proxy (TMA)."""
    nvvm.fence_proxy(nvvm.ProxyKind.async_global)


def transposed(ref: Ref) -> Ref:
    """Return the transpose of a reference to a matrix."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    # In JAX 0.10 it is a function.
    return plgpu.transpose_ref(ref, (1, 0))
