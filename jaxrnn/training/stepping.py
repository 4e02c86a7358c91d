"""One step of training, and many steps in one device call.

The state of a run is (params, optimizer state, recurrent carry, PRNG key, step, rate); the dropout of
step n follows from the key and n.
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
from jaxrnn.shapes import Array, Bool, Int, Scalar
from jaxrnn.training import feed
from jaxrnn.training.config import TrainingConfig


@flax.struct.dataclass
class TrainState:
    """All that a run remembers.

    params: the model, float32.
    opt_state: optax's.
    carry: the recurrent state at the end of each row's last characters, one per layer.
    key: of the dropout, folded with the step; raw, as uint32.
    step: steps taken, int32.
    rate: factor on the learning rate, halved by each recovery from a loss that was not finite.
    """

    params: charlm.Params
    opt_state: Any
    carry: charlm.Carry
    key: Any
    step: Any
    rate: Any


class Metrics(NamedTuple):
    """Of one step: mean loss in nats per character, global norm of the gradient before clipping."""

    loss: Scalar
    grad_norm: Scalar


@functools.cache  # equal settings are one optimizer, and so one compiled step
def make_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Adam behind global-norm clipping (lecture row 14), warm-up and cosine or constant rate."""
    peak, warmup = config.learning_rate, min(config.warmup, steps - 1)
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps)
    else:
        rate = optax.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(rate, b2=config.beta2))


@modes.fixed()
def create(config: TrainingConfig, optimizer: Any, vocabulary: Vocabulary) -> TrainState:
    """The state before the first step."""
    params = charlm.init(config.model, vocabulary, config.seed)
    return TrainState(
        params,
        optimizer.init(params),
        charlm.initial_carry(config.model, config.batch),
        dropout_key_of(config),
        jnp.int32(0),
        jnp.float32(1),
    )


def dropout_key_of(config: TrainingConfig) -> Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.key(config.seed), 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def begin(
    config: TrainingConfig, optimizer: Any, vocabulary: Vocabulary, devices: mesh.Mesh
) -> TrainState:
    """`create`, made on the mesh: no device holds what is another's."""
    return mesh.constrain(devices, create(config, optimizer, vocabulary))


def train_step(
    optimizer: Any,
    state: TrainState,
    tokens: Int[Array, "T1 B"],
    fresh: Bool[Array, ""],
    accumulate: int = 1,
    **how: Any,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      optimizer: from `make_optimizer`.
      state: before the step.
      tokens: [T + 1, B], characters and their successors.
      fresh: start from the zero state instead of the carry.
      accumulate: parts of the batch, computed one after the other.
      how: as for `charlm.forward`: implementation, devices.
    """
    params = state.params
    carry = jax.tree.map(lambda s: jnp.where(fresh, 0, s), state.carry)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=modes.KEYS), state.step)
    value_and_grad = jax.value_and_grad(functools.partial(charlm.loss, **how), has_aux=True)

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

    # optax adds integers to floats, which a program may forbid
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
    """[..., B, ...] → [parts, ..., B / parts, ...]; rows side by side go to different parts, so that
    each of several devices has some of every part."""
    x = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def run_steps(
    config: TrainingConfig,
    optimizer: Any,
    devices: mesh.Mesh,
    state: TrainState,
    tokens: Array | None,
    windows: Array,
    fresh: Bool[Array, "K"],
    count: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """The first `count` of K steps in one call of the device.

    The loop's trip count is an argument: a run cut off in the middle and resumed there goes through
    the same program, whatever the number of steps to the next line of the log. The state lies on the
    mesh `devices` as `mesh.shardings` says, and stays there.
    """
    how = {"implementation": config.implementation, "devices": devices}
    nothing = jnp.zeros(fresh.shape[0], jnp.float32)

    def body(i: Array, loop: Any) -> Any:
        state, metrics = loop
        batch = feed.gather(tokens, windows[i], config.seq_len)
        state, now = train_step(optimizer, state, batch, fresh[i], config.accumulate, **how)
        metrics = jax.tree.map(lambda all, one: all.at[i].set(one), metrics, now)
        return mesh.constrain(devices, (state, metrics))

    begun = state, Metrics(nothing, nothing)
    return mesh.constrain(devices, lax.fori_loop(0, count, body, begun))
