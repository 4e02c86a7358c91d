"""A cell over time: check the arguments, choose the implementation, run it.

`"scan"` is the plain reference: `jax.lax.scan` over `cell.step`, with JAX's own derivatives. The other
implementations (`recurrence.kernels`) compute the same with a hand-written backward pass, and
derivatives in forward mode or of higher order in plain JAX; `recurrence.dispatch` knows which of them
supports what and which is fastest.
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
from jaxrnn.recurrence import dispatch, kernels
from jaxrnn.recurrence.cells import Cell, check_cell, is_builtin
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
from jaxrnn.recurrence.kernels import Implementation, scan
from jaxrnn.recurrence.padding import active_steps, without_effect, zeros_in_padding
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Masks, Problem, choose_rows, vary
from jaxrnn.recurrence.remat import in_stretches
from jaxrnn.shapes import Array, Bool, Float, Given, Int, Integer


def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Given, "T B D"],
    state: Any = None,
    *,
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: SupportsIndex = 1,
    batch_first_memory: bool = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """Run a cell over a sequence: `y_1 ... y_T` of the lecture's recurrences.

    Args:
      cell: made by `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, or any `jaxrnn.Cell`.
      params: the cell's parameters, `cell.init(key, D)`. Their dtype is the dtype of the matrix
        products: float32, bfloat16, float16 or float64.
      xs: inputs [T, B, D], time first, in the parameters' dtype. A numpy array is converted as
        `jnp.asarray` does, float64 to float32.
      state: the state before the first step, each array [B, H], float32 (float64 beside float64
        parameters); None for zeros.
      resets: [T, B] bool. True replaces the state that enters step t of row b by zeros, in the order in
        which steps are run: forward, t is the first step of a new episode or document; in reverse, the
        state dropped is that of step t + 1, so t is the last step of an episode. To use marks of first
        steps with `reverse`, pass `jnp.roll(first, -1, axis=0)`.
      lengths: [B] whole numbers from 0 to T, of any integer dtype. Steps at and after a row's length are
        padding: the row keeps its state there, its outputs are zeros, and what xs holds there, even NaN,
        changes no value and no gradient.
      reverse: run each row from its last real step to its first; outputs stay at their own times.
      implementation: "scan", "xla", "associative" (minGRU, minLSTM), "columns" and "native" (CPU),
        "tpu", "hopper" (H100, H200), "cudnn" (NVIDIA GPU), or None for the fastest that supports this
        call; `jaxrnn.explain` reports which and why.
      save_every: k; the state is kept at every k-th step for the backward pass. 1 keeps the states and
        gates of all steps, S + G/H arrays [T, B, H] (six for an LSTM, four for a GRU). k > 1 keeps
        every k-th state, S arrays [T/k, B, H] (two for an LSTM, one for a GRU), and the backward pass
        computes the k steps between again, k steps' states and gates at a time: about one more forward
        pass. Inputs and outputs are kept in both cases. Memory is least at k near the square root of T.
      batch_first_memory: whether xs is `jnp.swapaxes(a, 0, 1)` of an array a [B, T, D], and the outputs
        will be swapped back. It changes no result. With it and save_every=1, "native" reads and writes
        in the order [B, T, ...], and a jitted program holds no transposed copy of a or the outputs.

    Returns:
      (state, ys): the state after the last step that was run, and the outputs [T, B, H] in xs' dtype.

    Raises:
      ValueError: for parameters that are not those of the cell, for a shape or dtype that does not fit
        (it names both), and for an implementation that is unknown or cannot run this call (it says why).
    """
    params, xs = _checked(cell, params, xs)
    inputs, lengths = _project(cell, params, xs, lengths)
    state, ys = unroll_projected(
        cell,
        params,
        inputs,
        state,
        resets=resets,
        lengths=lengths,
        reverse=reverse,
        implementation=implementation,
        save_every=save_every,
        batch_first_memory=batch_first_memory,
    )
    return state, ys.astype(xs.dtype)


def record(
    cell: Cell,
    params: Any,
    xs: Float[Given, "T B D"],
    state: Any = None,
    *,
    names: Sequence[str],
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
) -> tuple[Any, Float[Array, "T B H"], dict[str, Float[Array, "T B _"]]]:
    """Run a cell over a sequence as `unroll` does, and record what happens inside of every step.

    It is for looking, and differentiable. The implementation is always "scan".

    Args:
      cell: as for `unroll`; it needs the method `activations`.
      params: as for `unroll`.
      xs: as for `unroll`.
      state: as for `unroll`.
      names: names of `cell.activations`: for an RNN "hidden"; for an LSTM "i", "f", "g", "o", "cell",
        "hidden"; for a GRU "z", "r", "n", "hidden".
      resets: as for `unroll`.
      lengths: as for `unroll`.
      reverse: as for `unroll`.

    Returns:
      (state, ys, recorded): as from `unroll`, and a dict from name to an array [T, B, H] in the state's
      dtype, zeros in the padding like the outputs.

    Raises:
      ValueError: as `unroll`, and for a name that the cell cannot record.
    """
    params, xs = _checked(cell, params, xs)
    inputs, lengths = _project(cell, params, xs, lengths)
    state, ys, recorded = record_projected(
        cell,
        params,
        inputs,
        state,
        names=names,
        resets=resets,
        lengths=lengths,
        reverse=reverse,
    )
    return state, ys.astype(xs.dtype), recorded


def _checked(cell: Cell, params: Any, xs: Any) -> tuple[Any, Array]:
    if not is_builtin(cell):
        check_cell(cell)
    params = jax.tree.map(as_array, params)
    xs = jnp.asarray(xs)
    check_parameters(cell, params)
    check_inputs(params, xs)
    return params, xs


def _project(cell: Cell, params: Any, xs: Array, lengths: Any) -> tuple[Inputs, Any]:
    """Return the inputs in the form `unroll_projected` takes, and the lengths."""
    if is_builtin(cell):
        # An implementation may project step by step.
        return Dense(xs, params.w_x, params.b), lengths
    lengths = check_lengths(lengths, xs)
    active = None if lengths is None else active_steps(lengths, xs.shape[0])
    return cell.project(params, zeros_in_padding(xs, active)), lengths


def unroll_projected(
    cell: Cell,
    params: Any,
    gx: Float[Given, "T B G"] | Lookup | Dense,
    state: Any = None,
    *,
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
    save_every: SupportsIndex = 1,
    batch_first_memory: bool = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """Run a cell over inputs that are projected already.

    Args:
      cell: as for `unroll`.
      params: as for `unroll`; w_x and b may be None, because the inputs are projected.
      gx: `cell.project(params, xs)` [T, B, G]; or `Lookup(table, tokens)` for inputs that are one of V
        tokens, with the table [V, G] of the projected tokens (a token below 0 is the first row of the
        table, one beyond the table the last); or `Dense(xs, w_x, b)`, which leaves the projection to the
        implementation, as `unroll` does.
      state: as for `unroll`.
      resets: as for `unroll`.
      lengths: as for `unroll`.
      reverse: as for `unroll`.
      implementation: as for `unroll`.
      save_every: as for `unroll`.
      batch_first_memory: as for `unroll`.

    Returns:
      (state, ys), as from `unroll`, but with the outputs in gx's dtype.

    Raises:
      ValueError: as `unroll`.
    """
    params, gx, state = jax.tree.map(as_array, (params, gx, state))
    check_parameters(cell, params, projected=not isinstance(gx, Dense))
    inputs = check_projected(cell, params, gx)
    save_every = whole_number("save_every", save_every, 1)
    # Only whether there are resets counts for the choice.
    problem = Problem(cell, params, inputs, state, Masks(resets), reverse)  # type: ignore[arg-type]
    at_once = min(problem.steps, save_every) if save_every > 1 else problem.steps
    chosen, _ = dispatch.choose(problem, implementation, steps=at_once)
    # Stretches of steps are cut out of arrays with time first.
    batch_first = bool(batch_first_memory) and save_every == 1
    static = Static(cell, chosen, dispatch.platform(), reverse, save_every, None, batch_first)
    return _run(static, _arguments(problem, resets, lengths))


def record_projected(
    cell: Cell,
    params: Any,
    gx: Float[Given, "T B G"] | Lookup | Dense,
    state: Any = None,
    *,
    names: Sequence[str],
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
) -> tuple[Any, Float[Array, "T B H"], dict[str, Float[Array, "T B _"]]]:
    """Run `record` for inputs that are projected already, in one of the forms of `unroll_projected`."""
    params, gx, state = jax.tree.map(as_array, (params, gx, state))
    check_parameters(cell, params, projected=not isinstance(gx, Dense))
    inputs = check_projected(cell, params, gx)
    problem = Problem(cell, params, inputs, state, reverse=reverse)
    arguments = _arguments(problem, resets, lengths)
    check_record(cell, params, arguments.state, inputs, names)
    static = Static(cell, "scan", dispatch.platform(), reverse, 1, tuple(names))
    state, (ys, recorded) = _run(static, arguments)
    return state, ys, recorded


class Static(NamedTuple):
    """The static part of a call: all that tracing may depend on.

    Attributes:
      cell: the cell.
      implementation: the one that was chosen.
      platform: that of the device at hand, by which kernels differ.
      reverse: as for `unroll`.
      save_every: as for `unroll`.
      record: names of activations to record; None to record none.
      batch_first: as for `Problem`.
    """

    cell: Cell
    implementation: Implementation
    platform: str
    reverse: bool
    save_every: int
    record: tuple[str, ...] | None
    batch_first: bool = False


class Arguments(NamedTuple):
    """The arrays of a call, checked."""

    params: Any
    inputs: Inputs
    state: Any
    resets: Bool[Array, "T B"] | None
    lengths: Int[Array, "B"] | None


def _arguments(problem: Problem, resets: Any, lengths: Any) -> Arguments:
    """Check the arrays of a call, and make the zero state where there is none."""
    cell, params, inputs, state, *_ = problem
    if state is None:
        state = cell.initial_state(problem.batch, inputs.dtype)
    check_state(cell, state, inputs)
    resets = check_resets(resets, inputs)
    return Arguments(params, inputs, state, resets, check_lengths(lengths, inputs))


def _run(static: Static, arguments: Arguments) -> tuple[Any, Any]:
    run = _compiled if by_value(static.cell) else _placed
    return run(static, arguments)


def _placed(static: Static, given: Arguments) -> tuple[Any, Any]:
    """Run `_over_time`; on a mesh with explicit axes, each device runs the rows that it holds.

    With explicit axes the types say where arrays lie, and every operation would have to say where its
    result lies. The zeros of an initial state and the results of a custom call cannot say that.
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
        return _over_time(static, given)
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
        partial(_over_time, static),
        mesh=mesh,
        in_specs=(in_specs,),
        out_specs=(over, by_step),
        axis_names=explicit,
    )
    return run(given)


def _over_time(static: Static, given: Arguments) -> tuple[Any, Any]:
    """Return the final state and the outputs."""
    params, inputs, state, resets, lengths = given
    active = None if lengths is None else active_steps(lengths, inputs.shape[0])
    if resets is not None and active is not None:
        # In the padding a row keeps its state, whatever happens there.
        resets = resets & active
    params, inputs, state, masks = vary((params, inputs, state, Masks(resets, active)))
    problem = Problem(static.cell, params, inputs, state, masks, static.reverse, static.batch_first)
    problem = without_effect(problem, lengths)
    # No kernel runs problems without steps or rows.
    empty = 0 in inputs.shape[:2]
    kernel = kernels.load("scan" if empty else static.implementation)
    run = kernel.run
    if static.record is not None:
        run = partial(scan.record, names=static.record)
    if static.save_every > 1:
        final, out = in_stretches(run, static.save_every, problem)
    else:
        final, out = run(problem)
    if lengths is not None:
        final = choose_rows(lengths > 0, final, state)
    return final, out


# Cells that compare by value are static arguments: a second call of the same shapes compiles nothing.
_compiled = jax.jit(_placed, static_argnums=0)
