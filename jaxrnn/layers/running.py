"""Run a stack of layers: over a sequence, over a sequence with a record, and over one step.

`Stacked` and the char-RNN call these functions. They take inputs [T, B, D], or a `Lookup` for inputs
that are tokens, and check only what `unroll` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.devices.mesh import Mesh
from jaxrnn.layers.architecture import Architecture, StackedParams
from jaxrnn.layers.dropping import dropout, with_weights_dropped, zoneout_masks
from jaxrnn.layers.wrapped import Wrapped, WrappedParams, beside, recurrent_params
from jaxrnn.recurrence import api, dispatch, sharded
from jaxrnn.recurrence.cells import is_builtin
from jaxrnn.recurrence.checks import check_inputs, check_lengths, check_parameters, check_resets
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.padding import active_steps, zeros_in_padding
from jaxrnn.recurrence.problem import Dense, Lookup, Masks, dtype_of
from jaxrnn.shapes import Array, Bool, Float, Int, Key

# The state of every pseudo-layer, in the order of `StackedParams.cells`.
States = tuple[Any, ...]


class Projected(NamedTuple):
    """Inputs of one step of the first layer that are projected already."""

    gx: Float[Array, "B G"]


class How(NamedTuple):
    """The arguments of `run` that are the same for every pseudo-layer.

    resets holds only the resets outside of the padding. devices is None for one device.
    """

    resets: Bool[Array, "T B"] | None
    lengths: Int[Array, "B"] | None
    implementation: Implementation | None
    save_every: Any
    devices: Mesh | None


def run(
    net: Architecture,
    params: StackedParams,
    inputs: Array | Lookup,
    states: States,
    *,
    key: Key | None = None,
    resets: Any = None,
    lengths: Any = None,
    implementation: Implementation | None = None,
    save_every: Any = 1,
    devices: Mesh | None = None,
) -> tuple[States, Float[Array, "T B H"]]:
    """Run all layers over a sequence.

    Args:
      net: the architecture.
      params: its parameters.
      inputs: [T, B, D]; or a `Lookup` of the first layer's projected inputs, for layers in one direction
        without residual, zoneout, blocks and resets to a learned state.
      states: the state of each pseudo-layer before its first step, each array [B, H].
      key: PRNG key of everything that is dropped; None drops nothing.
      resets: as for `jaxrnn.unroll`, marks of the first steps of episodes, whatever the direction.
      lengths: as for `jaxrnn.unroll`.
      implementation: as for `jaxrnn.unroll`.
      save_every: as for `jaxrnn.unroll`.
      devices: the mesh over which rows and hidden units of an RNN, LSTM or GRU are divided, without
        lengths, zoneout and blocks; None for one device.

    Returns:
      (states, ys): the state of each pseudo-layer after its last step, and the outputs of the last layer
      in the dtype of the parameters.
    """
    params = with_weights_dropped(net, params, key)
    several_devices = devices if devices is not None and devices.size > 1 else None
    if not is_builtin(net.cell):
        # XLA divides the steps of other cells, from where the arrays lie.
        several_devices = None
    one_by_one = drops_between(net, key) or several_devices is not None
    if not one_by_one and resets is None and lengths is None:
        together = _run_together(net, params, inputs, states, implementation, save_every)
        if together is not None:
            return together
    resets, lengths = check_resets(resets, inputs), check_lengths(lengths, inputs)
    if lengths is not None:
        inputs, resets = _without_padding(net, inputs, resets, lengths)
    how = How(resets, lengths, implementation, save_every, several_devices)

    def one(number: int, layer: Any, state: Any, inputs: Any) -> tuple[Any, Array]:
        initial = None if params.initial is None else params.initial[number]
        return _run_pseudo_layer(net, number, layer, initial, state, inputs, key, how)

    return _through_layers(net, params, states, inputs, one, key)


def record(
    net: Architecture,
    params: StackedParams,
    inputs: Array | Lookup,
    states: States,
    names: Sequence[str],
    *,
    resets: Bool[Array, "T B"] | None = None,
) -> tuple[States, Float[Array, "T B H"], list[dict[str, Float[Array, "T B H"]]]]:
    """Run all layers as `run` does and record the inside of every step, as `jaxrnn.record` does.

    Args:
      net: the architecture, in one direction, without zoneout and blocks.
      params: as for `run`.
      inputs: as for `run`.
      states: as for `run`.
      names: names of the cell's activations.
      resets: as for `run`.

    Returns:
      (states, ys, recorded): as from `run`, and for each layer an array [T, B, H] for each name.
    """

    def one(_: int, layer: Any, state: Any, inputs: Any) -> tuple[Any, Array]:
        recorder = api.record_projected if isinstance(inputs, Lookup) else api.record
        state, ys, inside = recorder(net.cell, layer, inputs, state, names=names, resets=resets)
        return (state, inside), ys

    results, ys = _through_layers(net, params, states, inputs, one, None)
    return tuple(state for state, _ in results), ys, [inside for _, inside in results]


def step(
    net: Architecture,
    params: StackedParams,
    states: States,
    inputs: Array | Projected,
    *,
    repeated: bool = False,
) -> tuple[States, Float[Array, "B H"]]:
    """Run all layers over one step, as `run` does without a key.

    Args:
      net: the architecture, in one direction.
      params: as for `run`.
      states: as for `run`.
      inputs: [B, D], or `Projected`; the latter without residual and blocks.
      repeated: whether this is the body of a loop that does not change the parameters. What is made of
        them alone, such as packed weights, is then made once.

    Returns:
      (states, y): the states after the step, and the outputs [B, H] of the last layer.
    """
    cell = net.block
    name = None
    if repeated and not net.rates:
        batch = jax.tree.leaves(states)[0].shape[0]
        name = dispatch.of_repeated_steps(cell, params.cells[0], batch)

    def one(_: int, layer: Any, state: Any, inputs: Any) -> tuple[Any, Array]:
        def here(layer: Any, state: Any) -> tuple[Any, Array]:
            if name:
                given: Any = (
                    inputs.gx[None]
                    if isinstance(inputs, Projected)
                    else Dense(inputs[None].astype(layer.w_x.dtype), layer.w_x, layer.b)
                )
                state, ys = api.unroll_projected(cell, layer, given, state, implementation=name)
                return state, ys[0]
            gx = inputs.gx if isinstance(inputs, Projected) else cell.project(layer, inputs)
            if net.rates:
                return Wrapped(cell, net.rates).step(WrappedParams(layer), state, gx)
            return cell.step(layer, state, gx)

        return _by_blocks(net, here, layer, state)

    return _through_layers(net, params, states, inputs, one, None)


def is_backward(net: Architecture, number: int) -> bool:
    """Return whether a pseudo-layer, counted from 0, runs from the last step to the first."""
    return net.bidirectional and number % 2 == 1


def wraps(net: Architecture, resets: bool) -> bool:
    """Return whether the cell runs inside of a `Wrapped` cell."""
    return bool(net.rates) or (net.learned_state and resets)


def runs_together(
    net: Architecture,
    cells: Sequence[Any],
    inputs: Lookup | Dense,
    implementation: Implementation | None,
) -> Callable[..., Any] | None:
    """Return the function that runs all layers in one call of a kernel, or None where there is none.

    The call must be without resets, lengths, and dropout between the layers (`drops_between`).

    Args:
      net: the architecture.
      cells: the parameters of each pseudo-layer.
      inputs: the inputs of the first layer.
      implementation: as for `run`.
    """
    if not _is_plain(net):
        return None
    module = dispatch.layers_at_once(net.cell, cells, inputs, implementation)
    if module is None or not net.bidirectional:
        return None if module is None else module.run
    return getattr(module, "run_pseudo_layers", None)


def drops_between(net: Architecture, key: Any) -> bool:
    """Return whether outputs of layers are dropped."""
    return key is not None and net.dropout > 0 and (net.drop_last or net.layers > 1)


def _is_plain(net: Architecture) -> bool:
    """Return whether nothing but dropout is done to the cells and between them."""
    return is_builtin(net.cell) and net.blocks == 1 and not net.rates and not net.residual


def _run_together(
    net: Architecture,
    params: StackedParams,
    inputs: Any,
    states: States,
    implementation: Implementation | None,
    save_every: Any,
) -> tuple[States, Array] | None:
    """Run all layers in one call of a kernel, or return None where that is impossible or slower."""
    if not _is_plain(net) or save_every != 1:
        return None
    first = params.cells[0]
    if not isinstance(inputs, Lookup):
        check_inputs(first, inputs)
        inputs = Dense(inputs, first.w_x, first.b)
    together = runs_together(net, params.cells, inputs, implementation)
    if together is None:
        return None
    for layer in params.cells:
        check_parameters(net.cell, layer)
    if net.bidirectional:
        found = together(net.cell, params.cells, inputs.xs, states, both_directions=True)
    else:
        found = together(net.cell, params.cells, inputs, states, Masks(), False)
    states, ys = found
    return states, ys.astype(dtype_of(first))


def _without_padding(
    net: Architecture, inputs: Any, resets: Array | None, lengths: Int[Array, "B"]
) -> tuple[Any, Array | None]:
    """Return the inputs, zero in the padding where `unroll` does not see to it, and the other resets."""
    active = active_steps(lengths, inputs.shape[0])
    if net.residual or wraps(net, resets is not None):
        inputs = zeros_in_padding(inputs, active)
    return inputs, None if resets is None else resets & active


def _run_pseudo_layer(
    net: Architecture,
    number: int,
    layer: Any,
    initial: Any,
    state: Any,
    inputs: Any,
    key: Key | None,
    how: How,
) -> tuple[Any, Array]:
    """Run one direction of one layer; return its final state and its outputs.

    Args:
      net: as for `run`.
      number: which pseudo-layer this is.
      layer: its parameters.
      initial: its learned state, or None.
      state: its state before its first step.
      inputs: those of the layer.
      key: as for `run`.
      how: the arguments that are the same for every pseudo-layer.
    """
    cell, resets = net.block, how.resets
    reverse = is_backward(net, number)
    if reverse and resets is not None:
        # In reverse an episode begins at its last step, which is one before the first step of the next.
        resets = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    keywords: dict[str, Any] = dict(
        lengths=how.lengths,
        reverse=reverse,
        implementation=how.implementation,
        save_every=how.save_every,
    )

    def plain(layer: Any, state: Any) -> tuple[Any, Array]:
        if how.devices is not None:
            given = inputs if isinstance(inputs, Lookup) else Dense(inputs, layer.w_x, layer.b)
            return sharded.unroll_projected(
                how.devices, cell, layer, given, state, how.implementation, resets
            )
        unroll = api.unroll_projected if isinstance(inputs, Lookup) else api.unroll
        return unroll(
            cell,
            layer,
            inputs,
            state,
            resets=resets,
            # `Stacked.apply` has swapped the axes of the inputs, and swaps those of the outputs back.
            batch_first_memory=net.batch_first,
            **keywords,
        )

    if not wraps(net, resets is not None):
        return _by_blocks(net, plain, layer, state)

    learned = net.learned_state and resets is not None
    masks: tuple[Array, ...] = ()
    if net.rates and key is not None:
        # The keys after those of the dropped weights.
        mask_key = jax.random.fold_in(key, net.layers + net.pseudo_layers + number)
        masks = zoneout_masks(net.rates, state, inputs.shape[0], mask_key)
    wrapper = Wrapped(cell, net.rates, bool(masks), learned)

    def wrapped(layer: Any, state: Any, masks: tuple[Array, ...], initial: Any) -> Any:
        check_parameters(cell, layer)
        check_inputs(layer, inputs)
        gx = beside(cell.project(layer, inputs), masks, resets if learned else None)
        inner = WrappedParams(recurrent_params(cell, layer), initial)
        return api.unroll_projected(
            wrapper, inner, gx, state, resets=None if learned else resets, **keywords
        )

    return _by_blocks(net, wrapped, layer, state, masks, initial if learned else None)


def _through_layers(
    net: Architecture,
    params: StackedParams,
    states: States,
    inputs: Any,
    one: Callable[[int, Any, Any, Any], tuple[Any, Array]],
    key: Key | None,
) -> tuple[tuple[Any, ...], Array]:
    """Return each pseudo-layer's result, and the outputs of the last layer in the params' dtype.

    `one(number, params, state, inputs) -> (result, ys)` runs a pseudo-layer.
    """
    given = list(zip(params.cells, states, strict=True))
    results = []
    for layer in range(net.layers):
        outputs = []
        for direction in range(net.directions):
            number = layer * net.directions + direction
            own, state = given[number]
            result, ys = one(number, own, state, inputs)
            results.append(result)
            outputs.append(ys.astype(dtype_of(own)))
        ys = _side_by_side(outputs, net.batch_first) if net.bidirectional else outputs[0]
        if key is not None and net.dropout and (net.drop_last or layer < net.layers - 1):
            mask_key = jax.random.fold_in(key, layer)
            ys = dropout(ys, net.dropout, mask_key, variational=net.variational)
        residual = net.residual and net.input_width(layer) == net.width
        inputs = inputs + ys if residual else ys
    return tuple(results), inputs


def _side_by_side(outputs: Sequence[Array], batch_first: bool) -> Float[Array, "T B N"]:
    """Return the outputs [T, B, H] of both directions as one array."""
    if not batch_first:
        return jnp.concatenate(outputs, axis=-1)
    # In memory they are [B, T, H]: joined in this order, they are not transposed.
    swapped = [jnp.swapaxes(ys, 0, 1) for ys in outputs]
    return jnp.swapaxes(jnp.concatenate(swapped, axis=-1), 0, 1)


def _by_blocks(
    net: Architecture, function: Callable[..., tuple[Any, Array]], layer: Any, *arrays: Any
) -> tuple[Any, Array]:
    """Return function(layer, *arrays) -> (state, ys), for several blocks of each block's part.

    The hidden units are the last axis of all arrays and results; blocks are the first axis of `layer`.
    """
    if net.blocks == 1:
        return function(layer, *arrays)

    def split(a: Array) -> Array:
        return jnp.stack(jnp.split(a, net.blocks, axis=-1))

    def join(a: Array) -> Array:
        return jnp.concatenate(list(a), axis=-1)

    return jax.tree.map(join, jax.vmap(function)(layer, *jax.tree.map(split, arrays)))
