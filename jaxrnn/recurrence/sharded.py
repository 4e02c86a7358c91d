"""The recurrence over a mesh of devices: rows over one axis, the units of every layer over the other.

Over `data` each device runs its own rows with whatever implementation is fastest there, and the
gradients are summed once per training step. Over `model` each device holds its units' part of every
gate: the columns of w_h, w_x and b that make them, and the units' states. A step of time then needs
the whole hidden state, [B, H], from all of them (`kernels.xla.layouts.Units`). XLA divides everything
outside of the recurrence on its own, from where the arrays lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn.devices.mesh import DATA, MODEL, SPECS
from jaxrnn.recurrence.api import unroll_projected as unroll_here
from jaxrnn.recurrence.kernels import Implementation, xla
from jaxrnn.recurrence.kernels.xla.layouts import Units
from jaxrnn.recurrence.kernels.xla.rules import RULES, Setting
from jaxrnn.recurrence.problem import Dense, Lookup, Masks, Problem
from jaxrnn.shapes import Array, Bool, Float


def unroll_projected(
    mesh: Mesh,
    cell: Any,
    params: Any,
    gx: Lookup | Dense,
    state: Any,
    implementation: Implementation | None = None,
    resets: Bool[Array, "T B"] | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """Run `unroll_projected` on a mesh: rows over `data`, units over `model`.

    Args:
      mesh: from `devices.mesh.make`.
      cell: an RNN, LSTM or GRU; B and H are multiples of the mesh's sizes.
      params: as for `recurrence.api.unroll_projected`, wherever the arrays lie; so are `gx` and `state`.
      gx: a `Lookup` or `Dense`.
      state: the state before the first step, each array [B, H].
      implementation: as for `unroll_projected`; over several devices of `model` "scan" or "xla".
      resets: as for `unroll_projected`.

    Returns:
      (state, ys): the final state, and the outputs [T, B, H], divided over the mesh.

    Raises:
      ValueError: for another implementation over several devices of `model`.
    """
    parts, gates = mesh.shape[MODEL], len(cell.GATES)
    if parts > 1 and implementation not in (None, "scan", "xla"):
        raise ValueError(
            f"implementation {implementation!r} keeps all units on one device; over several, as in "
            f"mesh model={parts}, there are 'scan' and 'xla'"
        )

    def split_gates(a: Array | None) -> Array | None:
        """Return [..., G] as [..., gates, H], of which each device takes its units."""
        return None if a is None else a.reshape(*a.shape[:-1], gates, cell.hidden_size)

    def join_gates(a: Array | None) -> Array | None:
        return None if a is None else a.reshape(*a.shape[:-2], -1)

    def run_here(params: Any, gx: Any, state: Any, resets: Any) -> Any:
        params = _on_gates(join_gates, params)
        gx = _on_gates(join_gates, gx)
        if parts == 1:
            return unroll_here(
                cell, params, gx, state, resets=resets, implementation=implementation
            )
        part = dataclasses.replace(cell, hidden_size=cell.hidden_size // parts)
        gx = gx.project()
        if implementation == "scan":
            own: Any = _Part(part)
            return unroll_here(own, params, gx, state, resets=resets, implementation="scan")
        return xla.run(Problem(part, params, gx, state, Masks(resets)), layout=Units)

    rows = P(None, DATA)
    units = P(DATA, MODEL)
    columns = P(None, None, MODEL)
    biases = P(None, MODEL)
    specs = SPECS | {"w_x": columns, "w_h": columns, "b": biases}
    given = params._asdict()
    weights = params._replace(
        **{name: None if value is None else specs[name] for name, value in given.items()}
    )
    inputs = Lookup(columns, rows) if isinstance(gx, Lookup) else Dense(rows, columns, biases)  # type: ignore[arg-type]
    states = jax.tree.map(lambda _: units, state)
    return jax.shard_map(
        run_here,
        mesh=mesh,
        in_specs=(weights, inputs, states, None if resets is None else rows),
        out_specs=(states, P(None, DATA, MODEL)),
    )(_on_gates(split_gates, params), _on_gates(split_gates, gx), state, resets)


def _on_gates(change: Callable[[Array | None], Array | None], tree: Any) -> Any:
    """Return a tree with the arrays changed that have gates along their last axis."""
    names = [n for n in ("w_x", "w_h", "b", "table") if hasattr(tree, n)]
    return tree._replace(**{n: change(getattr(tree, n)) for n in names})


class _Part(NamedTuple):
    """A device's part of a cell: a `Cell` of its own units, which sees the units of all devices.

    cell: the cell with the width of the part.
    """

    cell: Any

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    def initial_state(self, batch: int, dtype: Any) -> Any:
        return self.cell.initial_state(batch, dtype)

    def step(self, params: Any, state: Any, gx: Array) -> tuple[Any, Array]:
        setting = Setting(Units, self.cell, params)
        after, _ = RULES[self.cell.kind].forward(setting, state, gx)
        return after, after.hidden
