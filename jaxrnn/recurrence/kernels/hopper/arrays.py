"""What the persistent Hopper kernel works on, and what it does with it."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxrnn.recurrence.kernels.hopper.mosaic import Like
from jaxrnn.shapes import Array

Tile = Array  # [64, units of a part] float32, in registers as a wgmma leaves it


class Arrays(NamedTuple):
    """What a kernel is given and makes, by name; [T, B, n * H] is n gates side by side.

    weights: [parts, N, K]: of each part the columns of its units, gate after gate, each K long.
    initial: [B, H] float32 each, the running state before the first step.
    inputs: [T, B, n * H] each, read step by step.
    vectors: [n, H] float32, beside the gates; None for none.
    marks: [2, T, blocks, 64] float32: whether a row moves in this step; whether its running state is
      dropped after it. None where all rows always move and keep it.
    exchanged: [T, B, n * H] each in the weights' dtype, published to all parts; also an output.
    outputs: [T, B, n * H] float32 each.
    over: outputs that take the place of an input in shared memory, by the input's name.
    """

    weights: Array
    initial: dict[str, Array]
    inputs: dict[str, Array]
    vectors: Array | None
    marks: Array | None
    exchanged: dict[str, Like]
    outputs: dict[str, Like]
    over: dict[str, str]

    @property
    def given(self) -> dict[str, Array]:
        """The kernel's arguments."""
        beside = {"weights": self.weights, "vectors": self.vectors, "marks": self.marks}
        states = {f"initial_{name}": x for name, x in self.initial.items()}
        return {k: x for k, x in (beside | states | self.inputs).items() if x is not None}

    @property
    def made(self) -> dict[str, Like]:
        """Its results; the running state after the last step by the names of the initial one."""
        final = {name: Like(x.shape, x.dtype) for name, x in self.initial.items()}
        return {**self.exchanged, **self.outputs, **final}


class Steps(NamedTuple):
    """What a kernel does.

    name: of the kernel.
    begin: as `step`, before the first; None for nothing.
    step: of (block, state), gives the running state after the step, a dict of tiles.
    products: how often a step publishes and multiplies.
    published: gates published at once, at most.
    """

    name: str
    begin: Any
    step: Any
    products: int
    published: int


def gate_count(x: Any, arrays: Arrays) -> int:
    """How many arrays of width H stand side by side in x."""
    return x.shape[-1] // next(iter(arrays.initial.values())).shape[-1]
