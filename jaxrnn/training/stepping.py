"""One training step, and many steps in one device call.

The state of a run is (parameters, optimizer state, recurrent carry, PRNG key, step, rate), and the
average of the parameters if there is one. The dropout of step n follows from the key and n.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import mesh, modes
from jaxrnn.recurrence.dispatch import Implementation
from jaxrnn.shapes import Array, Bool, Int, Key, Scalar
from jaxrnn.training import feed, freezing
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.optimizers import average_weight


@flax.struct.dataclass
class TrainState:
    """All that a run remembers.

    params: the model, float32.
    opt_state: the state of optax's optimizer.
    carry: the recurrent state after each row's last character, one per layer.
    key: PRNG key of the dropout, raw as uint32; step n folds n into it.
    step: the number of steps taken, int32.
    rate: factor on the learning rate, halved by each recovery from a loss that was not finite.
    average: the average of the parameters over the steps, or None.
    """

    # The leaves have no array types: transformations put other objects in their place.
    params: charlm.Params
    opt_state: Any
    carry: charlm.Carry
    key: Any
    step: Any
    rate: Any
    average: charlm.Params | None = None

    @property
    def model(self) -> charlm.Params:
        """The model that is evaluated, sampled and loaded: the average, if there is one."""
        return self.params if self.average is None else self.average


class Metrics(NamedTuple):
    """The metrics of one step, or arrays of those of many.

    loss: mean loss in nats per character.
    grad_norm: global norm of the gradient before clipping, without frozen parameters.
    """

    loss: Scalar
    grad_norm: Scalar


@modes.fixed()
def create(
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    vocabulary: Vocabulary,
    counts: Int[Array, "V"] | None = None,
    params: charlm.Params | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
      config: the settings.
      optimizer: the optimizer from `make_optimizer`.
      vocabulary: the vocabulary of the text.
      counts: how often each token occurs, for an `output_bias` of frequencies. None begins with zeros.
      params: the model to start from, with the configuration and the vocabulary of the run. It is
        copied. None makes initial weights.
    """
    if params is not None:
        first = jax.tree.map(jnp.copy, params)
    else:
        first = charlm.init(config.model, vocabulary, config.seed)
        if counts is not None and config.output_bias == "frequencies":
            first = first.replace(b_out=charlm.log_frequencies(counts))  # type: ignore[attr-defined]
    return TrainState(
        params=first,
        opt_state=optimizer.init(first),
        carry=charlm.initial_carry(config.model, config.batch),
        key=dropout_key_of(config),
        step=jnp.int32(0),
        rate=jnp.float32(1),
        average=None if config.average == "none" else jax.tree.map(jnp.copy, first),
    )


def dropout_key_of(config: TrainingConfig) -> Array:
    """Return the raw PRNG key of a run's dropout, which follows from the seed."""
    return jax.random.key_data(jax.random.fold_in(jax.random.key(config.seed), 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def begin(
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    vocabulary: Vocabulary,
    devices: mesh.Mesh,
    counts: Int[Array, "V"] | None = None,
    params: charlm.Params | None = None,
) -> TrainState:
    """Return the state before the first step, made on the mesh: no device holds another's part."""
    return mesh.constrain(devices, create(config, optimizer, vocabulary, counts, params))


def train_step(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    tokens: Int[Array, "T1 B"],
    reset: Bool[Array, ""],
    accumulate: int = 1,
    *,
    label_smoothing: float = 0.0,
    freeze: tuple[str, ...] = (),
    implementation: Implementation | None = None,
    devices: mesh.Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update, and the metrics of the step. The average stays as it is.

    Args:
      optimizer: the optimizer from `make_optimizer`.
      state: the state before the step.
      tokens: [T + 1, B], the characters and their successors.
      reset: start from the zero state instead of the carry.
      accumulate: number of parts of the batch, which are computed one after another.
      label_smoothing: as in `charlm.loss`.
      freeze: names of frozen parameters, those of the optimizer. Their gradient is not computed.
      implementation: what runs the recurrence; None takes the fastest that is known here.
      devices: the mesh that rows and units are divided over; None for one device.
    """
    params = state.params
    carry = jax.tree.map(lambda s: jnp.where(reset, 0, s), state.carry)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=modes.KEYS), state.step)

    def loss_of(params: charlm.Params, *batch: Any, dropout_key: Key) -> Any:
        return charlm.loss(
            freezing.stop_gradients(params, freeze),
            *batch,
            dropout_key=dropout_key,
            label_smoothing=label_smoothing,
            implementation=implementation,
            devices=devices,
        )

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def part(total: Any, slices: Any) -> tuple[Any, charlm.Carry]:
        index, tokens, carry = slices
        dropout_key = jax.random.fold_in(key, index)
        (loss, carry), gradient = value_and_grad(params, tokens, carry, dropout_key=dropout_key)
        return jax.tree.map(lambda t, p: t + p / accumulate, total, (loss, gradient)), carry

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    if accumulate == 1:
        (loss, gradient), carry = part(zero, (jnp.int32(0), tokens, carry))
    else:
        split = functools.partial(_split_rows, parts=accumulate)
        index = jnp.arange(accumulate, dtype=jnp.int32)
        slices = (
            index,
            split(tokens, axis=1),
            jax.tree.map(functools.partial(split, axis=0), carry),
        )
        (loss, gradient), carries = lax.scan(part, zero, slices)
        carry = jax.tree.map(lambda c: c.swapaxes(0, 1).reshape(-1, *c.shape[2:]), carries)

    # optax adds integers to floats, which the caller's program may forbid.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    updates = jax.tree.map(lambda u: u * state.rate, updates)
    after = state.replace(  # type: ignore[attr-defined]
        params=optax.apply_updates(params, updates),
        opt_state=opt_state,
        carry=carry,
        step=state.step + 1,
    )
    return after, Metrics(loss, optax.tree.norm(gradient))


def _split_rows(x: Array, axis: int, parts: int) -> Array:
    """Return x [..., B, ...] as [parts, ..., B / parts, ...].

    Neighbouring rows go to different parts, so that each of several devices has some rows of every part.
    """
    x = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)


def averaged(config: TrainingConfig, state: TrainState) -> TrainState:
    """Return the state with its newest parameters in the average, if it has one."""
    if state.average is None:
        return state
    weight = average_weight(config, state.step)
    average = jax.tree.map(lambda a, p: a + weight * (p - a), state.average, state.params)
    return state.replace(average=average)  # type: ignore[attr-defined]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def run_steps(
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    devices: mesh.Mesh,
    state: TrainState,
    tokens: Array | None,
    windows: Array,
    resets: Bool[Array, "K"],
    count: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Run the first `count` of K steps in one device call.

    The number of steps is an argument of the compiled program: a run that was stopped in the middle of
    its K steps and resumed there goes through the same program. The state lies on the mesh as
    `mesh.shardings` says, and stays there.

    Args:
      config: the settings, with the length of the run if the parameters are averaged.
      optimizer: the optimizer from `make_optimizer`.
      devices: the mesh that rows and units are divided over.
      state: the state before the first step; its memory is reused.
      tokens: `DeviceCorpus.tokens`.
      windows: [K, ...], `DeviceCorpus.windows` or `lookup` of the K steps.
      resets: [K], whether a step starts from the zero state.
      count: the number of steps to run.

    Returns:
      The state after the steps, and arrays [K] of their metrics, zero from `count` on.
    """
    nothing = jnp.zeros(resets.shape[0], jnp.float32)

    def body(i: Array, loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = loop
        batch = feed.gather(tokens, windows[i], config.seq_len)
        state, now = train_step(
            optimizer,
            state,
            batch,
            resets[i],
            config.accumulate,
            label_smoothing=config.label_smoothing,
            freeze=config.freeze,
            implementation=config.implementation,
            devices=devices,
        )
        state = averaged(config, state)
        metrics = jax.tree.map(lambda all, one: all.at[i].set(one), metrics, now)
        return mesh.constrain(devices, (state, metrics))

    begun = state, Metrics(nothing, nothing)
    return mesh.constrain(devices, lax.fori_loop(0, count, body, begun))
