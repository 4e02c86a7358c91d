"""The recurrence over a mesh of devices: rows over one axis, the units of every layer over the other.

Over `data` each device runs its own rows with whatever implementation is fastest there, and the
gradients are summed once per training step. Over `model` each device holds its units' part of every
gate: the columns of w_h, w_x and b that make them, and the units' states. A step of time then needs
the whole hidden state, [B, H], from all of them (`kernels.xla.layouts.Units`). XLA divides everything
outside of the recurrence on its own, from where the arrays lie.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn.devices.mesh import DATA, MODEL, SPECS
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.api import unroll_projected as unroll_here
from jaxrnn.recurrence.dispatch import Implementation
from jaxrnn.recurrence.inputs import Dense, Lookup, Masks
from jaxrnn.recurrence.kernels.xla.layouts import Units
from jaxrnn.recurrence.kernels.xla.rules import RULES
from jaxrnn.shapes import Array, Float


def unroll_projected(
    mesh: Mesh,
    cell: Any,
    params: Any,
    gx: Lookup | Dense,
    state: Any,
    implementation: Implementation | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """`unroll.unroll_projected` on a mesh: rows over `data`, units over `model`.

    Args:
      mesh: from `make`.
      cell: an `rnn`, `lstm` or `gru`; B and H are multiples of the mesh's sizes.
      params, gx, state: as there, wherever they lie.
      implementation: as there; over several devices of `model` "scan" or "xla".

    Raises:
      ValueError: for another implementation over several devices of `model`.
    """
    parts, gates = mesh.shape[MODEL], len(cell.GATES)
    if parts > 1 and implementation not in (None, "scan", "xla"):
        raise ValueError(
            f"implementation {implementation!r} keeps all units on one device; over several, as in "
            f"--mesh model={parts}, there are 'scan' and 'xla'"
        )

    def apart(a: Array | None) -> Array | None:
        """[..., G] → [..., gates, H], of which each device takes its units."""
        return None if a is None else a.reshape(*a.shape[:-1], gates, cell.hidden_size)

    def together(a: Array | None) -> Array | None:
        return None if a is None else a.reshape(*a.shape[:-2], -1)

    def local(params: Any, gx: Any, state: Any) -> Any:
        params = _on_gates(together, params)
        gx = _on_gates(together, gx)
        if parts == 1:
            return unroll_here(cell, params, gx, state, implementation=implementation)
        part: Any = _Part(dataclasses.replace(cell, hidden_size=cell.hidden_size // parts))
        gx = gx.project()
        if implementation == "scan":
            return unroll_here(part, params, gx, state, implementation="scan")
        run = dispatch.kernel("xla").run
        return run(part.cell, params, gx, state, Masks(None, None), False, layout=Units)

    units, columns, biases = P(DATA, MODEL), P(None, None, MODEL), P(None, MODEL)
    weights = params._replace(
        w_h=columns,
        **{
            name: None if value is None else {"w_x": columns, "b": biases}.get(name, SPECS[name])
            for name, value in params._asdict().items()
            if name != "w_h"
        },
    )
    inputs = (
        Lookup(columns, P(None, DATA))  # type: ignore[arg-type]
        if isinstance(gx, Lookup)
        else Dense(P(None, DATA), columns, biases)  # type: ignore[arg-type]
    )
    states = jax.tree.map(lambda _: units, state)
    given = (_on_gates(apart, params), _on_gates(apart, gx), state)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(weights, inputs, states),
        out_specs=(states, P(None, DATA, MODEL)),
    )(*given)


def _on_gates(change: Any, tree: Any) -> Any:
    """The arrays with gates along their last axis changed, the others as they are."""
    names = [n for n in ("w_x", "w_h", "b", "table") if hasattr(tree, n)]
    return tree._replace(**{n: change(getattr(tree, n)) for n in names})


class _Part(NamedTuple):
    """A device's part of a cell: a `Cell` of its own units, that sees those of all devices."""

    cell: Any  # as wide as the part

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    def initial_state(self, batch: int, dtype: Any) -> Any:
        return self.cell.initial_state(batch, dtype)

    def step(self, params: Any, state: Any, gx: Array) -> tuple[Any, Array]:
        after, _ = RULES[type(self.cell)].forward(Units, self.cell, params, state, gx)
        return after, after.hidden
