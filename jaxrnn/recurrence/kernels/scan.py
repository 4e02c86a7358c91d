"""`jax.lax.scan` over `cell.step`: any cell, any derivative, and the reference for the other kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.inputs import Dense, Inputs, Lookup, Masks, choose_rows


def run(
    cell: Cell,
    params: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    record: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """Run a cell step by step. `record` names activations that are returned beside the outputs."""
    projected = gx.project() if isinstance(gx, Lookup | Dense) else gx

    def body(state: Any, slices: Any) -> tuple[Any, Any]:
        gx_t, (reset, active) = slices
        if reset is not None:
            state = choose_rows(reset, jax.tree.map(jnp.zeros_like, state), state)
        after, y = cell.step(params, state, gx_t)
        out: Any = y
        if record is not None:
            now = cell.activations(params, state, gx_t)  # type: ignore[attr-defined]
            out = y, {name: now[name] for name in record}
        if active is not None:
            after = choose_rows(active, after, state)
            out = choose_rows(active, out, jax.tree.map(jnp.zeros_like, out))
        return after, out

    return lax.scan(body, state, (projected, masks), reverse=reverse)
