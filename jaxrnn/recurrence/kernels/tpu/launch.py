"""The arguments and the launch of a TPU kernel, with resident or streamed weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.recurrence.kernels.tpu.steps import Step
from jaxrnn.recurrence.kernels.tpu.tiles import MIB, Tiles, cost, vmem_mib
from jaxrnn.shapes import Array

MATRICES = ("w_h", "w_t")


class Arrays(NamedTuple):
    """The arrays of a kernel, by the names in `kernels.tpu.steps`.

    The masks are one array, "masks" [T, B, 2], float32.

    Attributes:
      by_step: inputs [T, B, N]; gates also as the streamed kernel returns them.
      initial: inputs [B, H], with which the running state begins. Outputs of the same names get the
        state after the last step.
      weights: w_h [H, G] or w_t [G, H], and "vectors" [n, H] if there are any.
      outputs: [T, B, N] is written step by step, [B, H] stays in VMEM to the end.
      scratch: [B, N], arrays of one step that stay in VMEM.
      aliases: for each input that an output may overwrite, the output's name.
    """

    by_step: dict[str, Any]
    initial: dict[str, Array]
    weights: dict[str, Array]
    outputs: dict[str, jax.ShapeDtypeStruct]
    scratch: dict[str, jax.ShapeDtypeStruct]
    aliases: dict[str, str]

    @property
    def matrix(self) -> Array:
        """The array w_h or w_t."""
        return next(w for name, w in self.weights.items() if name in MATRICES)

    @property
    def in_and_out(self) -> list[Any]:
        """All inputs and outputs."""
        return jax.tree.leaves((self.by_step, self.initial, self.weights, self.outputs))

    @property
    def steps_and_rows(self) -> tuple[int, int]:
        """The number of time steps T and of rows B."""
        steps, batch, _ = next(x.shape for x in self.outputs.values() if len(x.shape) == 3)
        return steps, batch


class Kernel(NamedTuple):
    """A kernel to launch.

    Attributes:
      name: its name in profiles and in the compiler's text.
      cell: the cell, of the padded width.
      step: what one step computes.
      tiles: how the work is divided.
      reverse: whether to run from the last step to the first.
      interpret: how to run without a TPU, for tests: True, or a `pltpu.InterpretParams`; False on a TPU.
      arrays: the arrays.
    """

    name: str
    cell: Any
    step: Step
    tiles: Tiles
    reverse: bool
    interpret: Any
    arrays: Arrays


class Operand(NamedTuple):
    """An input or output of `pallas_call`, and the block of it that each turn of the grid sees."""

    array: Any
    spec: pl.BlockSpec


Key = TypeVar("Key", bound=Hashable)


def pallas_call(
    kernel: Kernel,
    body: Callable[[dict[Key, Any]], None],
    grid: tuple[int, ...],
    inputs: dict[Key, Operand],
    outputs: dict[Key, Operand],
    scratch: dict[Key, jax.ShapeDtypeStruct],
    aliases: dict[Key, Key],
) -> dict[Key, Array]:
    """Launch a kernel and return its outputs by their keys.

    Args:
      kernel: the kernel.
      body: called in every turn of the grid with the references to all operands and scratch by their
        keys.
      grid: its first axis counts blocks of rows, which may run on different cores. The turns along the
        other axes run in order.
      inputs: the inputs.
      outputs: the outputs.
      scratch: arrays of which there are tiles.rows rows in VMEM.
      aliases: for each input that an output may overwrite, the output's key.
    """
    arrays = kernel.arrays
    keys = (*inputs, *outputs, *scratch)
    varying = jax.typeof(arrays.matrix).manual_axis_type
    in_order: Literal["arbitrary"] = "arbitrary"

    def call_by_key(*refs: Any) -> None:
        body(dict(zip(keys, refs, strict=True)))

    results = pl.pallas_call(
        call_by_key,
        grid=grid,
        in_specs=[operand.spec for operand in inputs.values()],
        out_specs=[operand.spec for operand in outputs.values()],
        out_shape=[
            jax.ShapeDtypeStruct(x.array.shape, x.array.dtype, manual_axis_type=varying)
            for x in outputs.values()
        ],
        scratch_shapes=[
            pltpu.VMEM((kernel.tiles.rows, x.shape[-1]), x.dtype) for x in scratch.values()
        ],
        input_output_aliases={
            list(inputs).index(i): list(outputs).index(o) for i, o in aliases.items()
        },
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", *(in_order for _ in grid[1:])),
            vmem_limit_bytes=vmem_mib() * MIB,
        ),
        cost_estimate=cost(
            kernel.cell,
            kernel.tiles,
            *arrays.steps_and_rows,
            arrays.matrix.dtype,
            arrays.in_and_out,
        ),
        interpret=kernel.interpret,
        name=kernel.name,
    )(*(operand.array for operand in inputs.values()))
    return dict(zip(outputs, results, strict=True))
