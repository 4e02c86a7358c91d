"""What the Hopper kernels ask of Pallas Mosaic GPU, on every JAX that is supported."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm, nvvm

from jaxrnn.recurrence.inputs import vary_like
from jaxrnn.recurrence.kernels.hopper.tiles import swizzle
from jaxrnn.shapes import Array

Like = jax.ShapeDtypeStruct


def launch(
    body: Any,
    given: dict[str, Any],
    made: dict[str, Like],
    grid: dict[str, int],
    cluster: dict[str, int],
    interpret: Any,
    **options: Any,
) -> dict[str, Array]:
    """What a kernel makes, by name.

    grid: of clusters, along each axis; cluster: of CTAs. options: of `plgpu.kernel`.
    """
    if math.prod(cluster.values()) > 1:
        options |= {"cluster": tuple(cluster.values()), "cluster_names": tuple(cluster)}
    options |= {"grid": tuple(grid.values()), "grid_names": tuple(grid)}
    options |= {"interpret": interpret or None}
    approximate = given["weights"].dtype.itemsize < 4
    params = plgpu.CompilerParams(approx_math=approximate)
    kernel = plgpu.kernel(body, out_type=tuple(made.values()), compiler_params=params, **options)
    # with a batch of calls the grid would grow past the device, and its CTAs wait for ever
    one_at_a_time = jax.custom_batching.sequential_vmap(kernel)
    results = vary_like(one_at_a_time(*given.values()), given)
    return dict(zip(made, results, strict=True))


def smem(shape: tuple[int, ...], dtype: Any) -> Any:
    width, itemsize = swizzle(shape[-1], dtype), jnp.dtype(dtype).itemsize
    tiling = plgpu.TilingTransform((8, width // itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(width)))


def load(ref: Any, **options: Any) -> Array:
    """`plgpu.load`, which wants an index as well in JAX 0.10."""
    index = inspect.signature(plgpu.load).parameters.get("idx")
    wanted = index is not None and index.default is inspect.Parameter.empty
    return plgpu.load(ref, *([()] if wanted else []), **options)


@plgpu.inline_mgpu()
def fence(_: Any) -> None:
    """What threads have seen of the others' memory, TMA is to see as well."""
    nvvm.fence_proxy(nvvm.ProxyKind.async_global)


# Of the fence around a cluster's barrier; the stress test tries others.
SCOPE = "cluster"


@plgpu.inline_mgpu()
def cluster_fence(_: Any) -> None:
    """Order memory operations before this and after it as the whole cluster sees them.

    Mosaic's barrier of a cluster orders them for the own CTA alone (mbarrier.arrive without a scope).
    What is published in the card's memory needs the cluster's: without the fence one of 128 tilings gave
    another result at a second call, by 7e-4 of the largest output. That was not seen again in 9,000
    calls, so it is not proven that the fence is what was missing.
    """
    if SCOPE:
        instruction = f"fence.acq_rel.{SCOPE};"
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)


def turned(ref: Any) -> Any:
    """The transpose of a reference; a function of its own in JAX 0.10."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
