"""A cell over time: checks its arguments, picks the implementation, runs it.

`"scan"` is the plain reference: `jax.lax.scan` over `cell.step`, no custom derivative, so `jvp`,
`hessian` and `jax.checkpoint` work through it. The others (`recurrence.kernels`) compute the same with a
backward pass written by hand; `recurrence.dispatch` knows which can run what and which is fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.errors import whole_number
from jaxrnn.recurrence import dispatch
from jaxrnn.recurrence.cells import Cell, is_own
from jaxrnn.recurrence.checks import (
    as_array,
    check_inputs,
    check_lengths,
    check_parameters,
    check_projected,
    check_record,
    check_resets,
    check_state,
)
from jaxrnn.recurrence.dispatch import Call, Implementation
from jaxrnn.recurrence.inputs import Dense, Inputs, Lookup, Masks, choose_rows, vary
from jaxrnn.recurrence.kernels import scan
from jaxrnn.recurrence.kernels.reverse_mode import reverse_mode_only
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.recurrence.remat import in_stretches
from jaxrnn.shapes import Array, Bool, Float, Given, Int, Integer


def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Given, "T B D"],
    state: Any = None,
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: SupportsIndex = 1,
    record: Sequence[str] | None = None,
) -> Any:
    """Run a cell over a sequence: `y_1 ... y_T` of the lecture's recurrences.

    Args:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      params: the cell's parameters, `cell.init(key, D)`. Their dtype is the dtype of the matrix
        products: float32, bfloat16, float16 or float64.
      xs: inputs [T, B, D], time first, in the parameters' dtype. An array of numpy is converted as
        `jnp.asarray` does, float64 to float32.
      state: the state before the first step, each array [B, H], float32 (float64 beside float64
        parameters); None for zeros.
      resets: [T, B] bool. True replaces the state that enters step t of row b by zeros, in the order in
        which steps are run: forward, t is the first step of a new episode or document; in reverse, the
        state dropped is that of step t + 1, so t is the last step of an episode. From marks of first
        steps, `reverse` takes `jnp.roll(first, -1, axis=0)`.
      lengths: [B] whole numbers from 0 to T, of any integer dtype. Steps at and after a row's length are
        padding: its state stays as it is, its outputs there are zeros, and what xs holds there, NaN
        too, changes no value and no gradient.
      reverse: run each row from its last real step to its first; outputs stay at their own times.
      implementation: "scan", "xla", "columns" and "native" (CPU), "pallas" (TPU, Hopper GPU), "cudnn"
        (GPU), or None for the fastest that serves this call; `jaxrnn.explain` says which and why.
      save_every: k, how often the state is kept for the backward pass. 1 keeps every step's states
        and gates, S + G/H arrays [T, B, H] (six for an LSTM, four for a GRU). k > 1 keeps every k-th
        state, S arrays [T/k, B, H] (two for an LSTM, one for a GRU), and computes the k steps between
        again on the way back, k steps' states and gates at a time: about one more forward pass.
        Inputs and outputs are kept in both cases. Least memory at k near the square root of T.
      record: what to give back of the inside of every step, by the names of `cell.activations`: for
        an LSTM of "i", "f", "g", "o", "cell", "hidden"; for a GRU of "z", "r", "n", "hidden". It is
        for looking, and differentiable: "scan" runs it.

    Returns:
      (state, ys): the state after the last step run, and the outputs [T, B, H] in xs' dtype; with
      `record` (state, ys, recorded), a dict of arrays [T, B, H] in the state's dtype, zeros in the
      padding like the outputs.

    Raises:
      ValueError: for parameters that are not those of the cell, for a shape or dtype that does not fit
        (it names both), for an implementation that is unknown or cannot run this call (it says why),
        and for a name the cell cannot record.
    """
    params, xs = jax.tree.map(as_array, params), jnp.asarray(xs)
    check_parameters(cell, params)
    check_inputs(params, xs)
    if is_own(cell):  # an implementation may project step by step
        inputs: Inputs = Dense(xs, params.w_x, params.b)
    else:
        lengths = check_lengths(lengths, xs)
        inputs = cell.project(params, _zeros_in_padding(xs, _active(lengths, xs)))
    state, ys, *recorded = unroll_projected(
        cell, params, inputs, state, resets, lengths, reverse, implementation, save_every, record
    )
    return state, ys.astype(xs.dtype), *recorded


def unroll_projected(
    cell: Cell,
    params: Any,
    gx: Float[Given, "T B G"] | Lookup | Dense,
    state: Any = None,
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: SupportsIndex = 1,
    record: Sequence[str] | None = None,
) -> Any:
    """`unroll` for inputs that are projected already: gx [T, B, G] = `cell.project(params, xs)`.

    Inputs that are one of V tokens need no projection at every step: project the V once and give
    `Lookup(table, tokens)` for gx; tokens below 0 are the first row of the table, those beyond it the
    last. `Dense(xs, w_x, b)` leaves the projection to the implementation, as `unroll` does. Other
    arguments, errors and results are those of `unroll`, but the outputs stay in gx' dtype, and where the
    inputs are projected w_x and b may be None.
    """
    params, gx, state = jax.tree.map(as_array, (params, gx, state))
    check_parameters(cell, params, projected=not isinstance(gx, Dense))
    inputs = check_projected(params, gx)
    save_every = whole_number("save_every", save_every, 1)
    if record is not None and implementation not in (None, "scan"):
        raise ValueError(f'record needs implementation "scan" or None, not {implementation!r}')
    call = Call(
        cell,
        min(inputs.shape[0], save_every) if save_every > 1 else inputs.shape[0],
        inputs.shape[1],
        params.w_h.dtype,
        projected=not isinstance(inputs, Dense),
        resets=resets is not None,
        reverse=reverse,
    )
    chosen, _ = dispatch.choose(call, implementation if record is None else "scan")
    if state is None:
        state = cell.initial_state(inputs.shape[1], inputs.dtype)
    check_state(cell, state, inputs)
    check_record(cell, params, state, inputs, record)
    names = None if record is None else tuple(record)
    how = How(cell, chosen, dispatch.platform(), reverse, save_every, names)
    given = Arguments(
        params, inputs, state, check_resets(resets, inputs), check_lengths(lengths, inputs)
    )
    state, out = (_compiled if by_value(cell) else _placed)(how, given)
    return (state, out) if record is None else (state, *out)


class How(NamedTuple):
    """The static part of a call: all that tracing may depend on.

    platform: of the device at hand, by which kernels differ.
    """

    cell: Cell
    implementation: Implementation
    platform: str
    reverse: bool
    save_every: int
    record: tuple[str, ...] | None


class Arguments(NamedTuple):
    """The arrays of a call, checked."""

    params: Any
    inputs: Inputs
    state: Any
    resets: Bool[Array, "T B"] | None
    lengths: Int[Array, "B"] | None


def _placed(how: How, given: Arguments) -> tuple[Any, Any]:
    """Run `_over_time`; on a mesh with explicit axes, each device runs the rows that it holds.

    There the types say where arrays lie, and every operation would have to say where its result does:
    the zeros that a state begins with, and a custom call's results, could not.
    """
    inputs = rows = given.inputs
    if isinstance(inputs, Lookup | Dense):
        rows = inputs.tokens if isinstance(inputs, Lookup) else inputs.xs
    sharding = jax.typeof(rows).sharding
    mesh = sharding.mesh
    explicit = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    if not explicit:
        return _over_time(how, given)
    over, whole = P(sharding.spec[1]), P()
    by_step = P(None, *over)
    specs: Any = by_step
    if isinstance(inputs, Lookup):
        specs = Lookup(whole, by_step)  # type: ignore[arg-type]
    elif isinstance(inputs, Dense):
        specs = Dense(by_step, whole, whole)  # type: ignore[arg-type]
    in_specs = Arguments(whole, specs, over, by_step, over)  # type: ignore[arg-type]
    broadcast = jax.tree.broadcast(in_specs, given, is_leaf=lambda leaf: leaf is None)
    given = jax.tree.map(
        lambda spec, x: jax.sharding.reshard(x, NamedSharding(mesh, spec)), broadcast, given
    )
    run = jax.shard_map(
        partial(_over_time, how),
        mesh=mesh,
        in_specs=(in_specs,),
        out_specs=(over, by_step),
        axis_names=explicit,
    )
    return run(given)


def _over_time(how: How, given: Arguments) -> tuple[Any, Any]:
    """Return the final state and the outputs."""
    params, inputs, state, resets, lengths = given
    active = _active(lengths, inputs)
    if resets is not None and active is not None:
        resets = resets & active  # in the padding the state stays as it is, whatever happens there
    params, inputs, state, masks = vary((params, inputs, state, Masks(resets, active)))
    first, inputs = _without_effect(how.reverse, inputs, state, masks, lengths)
    if how.implementation == "scan" or 0 in inputs.shape[:2]:
        run = partial(scan.run, record=how.record)
    else:
        run = dispatch.kernel(how.implementation).run
        over_it = how.implementation in ("xla", "columns")  # their backward passes are plain JAX
        marked = reverse_mode_only(how.implementation, over_it, (params, inputs, first))
        params, inputs, first = marked
    if how.save_every > 1:
        run = partial(in_stretches, run, how.save_every)
    final, out = run(how.cell, params, inputs, first, masks, how.reverse)
    if lengths is not None:
        final = choose_rows(lengths > 0, final, state)
    return final, out


# Cells that compare by value are static arguments: a second call of the same shapes compiles nothing.
_compiled = jax.jit(_placed, static_argnums=0)


def _without_effect(
    reverse: bool, inputs: Inputs, state: Any, masks: Masks, lengths: Array | None
) -> tuple[Any, Inputs]:
    """Return the first state and the inputs, with zeros where they must have no effect.

    Masks alone do not do that for gradients: 0 times what is masked is NaN where that is.
    """
    if not inputs.shape[0]:
        return state, inputs
    unused = None  # rows whose first state no step sees
    if masks.reset is not None:
        unused = masks.reset[-1 if reverse else 0]
        if reverse and lengths is not None:
            last = jnp.maximum(lengths - 1, 0)
            unused = jnp.take_along_axis(masks.reset, last[None], axis=0)[0]
    if lengths is not None:
        unused = lengths == 0 if unused is None else unused | (lengths == 0)
    if unused is not None:
        state = choose_rows(unused, jax.tree.map(jnp.zeros_like, state), state)
    if masks.active is None:
        return state, inputs
    if isinstance(inputs, Dense):
        return state, inputs._replace(xs=_zeros_in_padding(inputs.xs, masks.active))
    if isinstance(inputs, Lookup):
        return state, _zeros_where_unread(inputs, masks.active)
    return state, _zeros_in_padding(inputs, masks.active)


def _zeros_where_unread(lookup: Lookup, active: Bool[Array, "T B"]) -> Lookup:
    """Return the table with zeros in the rows that no token outside the padding refers to."""
    read = jnp.zeros_like(lookup.table, bool, shape=lookup.table.shape[:1])
    read = read.at[lookup.tokens].max(active)
    return lookup._replace(table=jnp.where(read[:, None], lookup.table, 0))


def _active(lengths: Int[Array, "B"] | None, inputs: Any) -> Bool[Array, "T B"] | None:
    """Return whether step t of row b is a real step and not padding."""
    if lengths is None:
        return None
    return jnp.arange(inputs.shape[0], dtype=jnp.int32)[:, None] < lengths[None, :]


def _zeros_in_padding(x: Float[Array, "T B K"], active: Bool[Array, "T B"] | None) -> Array:
    return x if active is None else jnp.where(active[..., None], x, 0)
