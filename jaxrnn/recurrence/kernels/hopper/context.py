"""One warpgroup of a Hopper kernel in the current step: what both kernels do in the same way.

`block.Block` and `one_cta.Warpgroup` differ in how tiles lie in memory, in how they publish and in how
they multiply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.launch import Arrays, Refs, State, StepFunctions, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Ref, Scalar
from jaxrnn.shapes import Array


class Context(ABC):
    """A warpgroup's rows and units in the current step, with the operations that `steps` calls.

    Attributes:
      t: time of the current step.
      next_t: time of the step that is run after it.
      has_next: whether there is one after it.
    """

    def __init__(
        self,
        steps: StepFunctions,
        arrays: Arrays,
        refs: Refs,
        depth: int,
        reverse: bool,
        first_unit: Scalar,
    ) -> None:
        """Load the vectors.

        Args:
          steps: what is computed.
          arrays: the shapes of the operands and the results.
          refs: all memory.
          depth: number of steps that have places for their inputs.
          reverse: whether to run from the last step to the first.
          first_unit: the first of the warpgroup's units.
        """
        self._steps = steps
        self._arrays = arrays
        self._refs = refs
        self._depth = depth
        self._reverse = reverse
        self._first_unit = first_unit
        self._warpgroup = lax.axis_index("warpgroup")
        self._total = arrays.steps
        count = 0 if arrays.vectors is None else len(arrays.vectors)
        self._vectors = [
            self._for_every_row(refs.vectors_gmem.at[k, self._columns(0)]) for k in range(count)
        ]

    # --- what the kernels do in different ways ----------------------------------------------------

    # The warpgroup's rows, in the batch.
    _rows: Any
    # Number of the warpgroup's units.
    _units: int
    # Number of steps whose inputs are fetched before the first one.
    _ahead: int

    @abstractmethod
    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return what all have published, times the columns of some gates of the own units.

        Args:
          sources: (array, gate) pairs, whose products are summed. The k-th is multiplied with the H rows
            of the weights' K that begin at (start + k) * H.
          gates: the gates whose columns are multiplied.
          start: see `sources`.
        """

    @abstractmethod
    def publish(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        """Publish the own units, for all to read at the next `product`.

        Args:
          tiles: the tiles, by array and gate.
          t: the time that they are of.
        """

    @abstractmethod
    def finish(self, outputs: dict[str, tuple[Tile, ...]], hidden: Tile | None) -> None:
        """End the step.

        Args:
          outputs: what is stored, by array and gate.
          hidden: the hidden state after the step, which is published as that before the next one; None
            where the next step does not multiply it.
        """

    @abstractmethod
    def _read(self, place: Ref) -> Tile:
        """Return a tile from shared memory."""

    @abstractmethod
    def _write(self, place: Ref, tile: Tile) -> None:
        """Write a tile to shared memory, in the dtype of its place."""

    @abstractmethod
    def _own_rows(self, place: Ref) -> Ref:
        """Return the rows of a tile's place in shared memory that are rows of the batch."""

    @abstractmethod
    def _for_every_row(self, vector: Ref) -> Tile:
        """Return a vector of the own units, the same in every row."""

    @abstractmethod
    def _masks(self) -> tuple[Tile, Tile]:
        """Return which rows are reset after this step, and which are active in it."""

    # --- all steps --------------------------------------------------------------------------------

    def run_rows(self) -> None:
        """Run all steps of the rows, from the initial state to the final one."""
        for s in range(min(self._ahead, self._total)):
            self._fetch_inputs(s)
        state = self._load_initial_state()
        if self._steps.begin is not None:
            self._enter(-1)
            state = self._steps.begin(self, state)

        def step(s: Array, state: State) -> State:
            self._enter(s)
            return self._steps.step(self, state)

        self._store_final_state(lax.fori_loop(0, self._total, step, state))

    def _load_initial_state(self) -> State:
        barrier = self._refs.initial_barrier.at[self._warpgroup]
        places = self._state_places()
        for name, place in places.items():
            source = self._refs.initial_gmem[name].at[self._rows, self._columns(0)]
            plgpu.copy_gmem_to_smem(source, self._own_rows(place), barrier)
        plgpu.barrier_wait(barrier)
        return {name: self._read(place) for name, place in places.items()}

    def _store_final_state(self, state: State) -> None:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        places = self._state_places()
        for name, place in places.items():
            self._write(place, state[name])
        plgpu.commit_smem()
        for name, place in places.items():
            target = self._refs.final_gmem[name].at[self._rows, self._columns(0)]
            plgpu.copy_smem_to_gmem(self._own_rows(place), target)
        plgpu.wait_smem_to_gmem(0)

    def _state_places(self) -> dict[str, Ref]:
        state = self._refs.state_smem.at[self._warpgroup]
        return {name: state.at[k] for k, name in enumerate(self._arrays.initial)}

    def _enter(self, s: Scalar) -> None:
        """Begin step s of those that are run; -1 is before the first."""
        self._s = s
        self.t = self._time(s)
        self.next_t = self._time(s + 1)
        self.has_next = s + 1 < self._total
        self._inputs_arrived = False
        self._reset = self._active = None
        if self._arrays.masks is not None and not isinstance(s, int):
            self._reset, self._active = self._masks()

    def _time(self, s: Scalar) -> Scalar:
        return self._total - 1 - s if self._reverse else s

    # --- inputs -----------------------------------------------------------------------------------

    def load_input(self, name: str) -> tuple[Tile, ...]:
        """Return the gates of an input of this step, in float32."""
        self._wait_for_inputs()
        places = self._refs.inputs_smem[name].at[self._warpgroup, self._slot(self._s)]
        count = self._arrays.gates(self._arrays.inputs[name])
        return tuple(self._read(places.at[k]).astype(jnp.float32) for k in range(count))

    def vector(self, k: int) -> Tile:
        """Return the k-th vector, the same in every row."""
        return self._vectors[k]

    def where_active(self, x: Tile, otherwise: Tile) -> Tile:
        """Return x in the rows that are active in this step, and `otherwise` in the others."""
        return x if self._active is None else jnp.where(self._active, x, otherwise)

    def zero_where_reset(self, x: Tile) -> Tile:
        """Return x with zeros in the rows whose state is reset after this step."""
        return x if self._reset is None else jnp.where(self._reset, jnp.zeros_like(x), x)

    def _wait_for_inputs(self) -> None:
        """Wait for the inputs of this step, the first time that they are asked for."""
        if not self._inputs_arrived:
            self._inputs_arrived = True
            slot = self._slot(self._s)
            plgpu.barrier_wait(self._refs.inputs_barrier.at[self._warpgroup, slot])

    def _fetch_inputs(self, s: Scalar) -> None:
        """Start to fetch the inputs of step s."""
        slot, t = self._slot(s), self._time(s)
        barrier = self._refs.inputs_barrier.at[self._warpgroup, slot]
        for name, x in self._arrays.inputs.items():
            places = self._refs.inputs_smem[name].at[self._warpgroup, slot]
            for k in range(self._arrays.gates(x)):
                source = self._refs.inputs_gmem[name].at[t, self._rows, self._columns(k)]
                plgpu.copy_gmem_to_smem(source, self._own_rows(places.at[k]), barrier)

    def _slot(self, s: Scalar) -> Scalar:
        return 0 if self._depth == 1 else lax.rem(s, self._depth)

    def _columns(self, gate: int) -> Any:
        """Return the columns of the own units, of a gate."""
        return pl.ds(gate * self._arrays.hidden_size + self._first_unit, self._units)
