"""The optimizer of a training, its learning rate, and averages of the weights.

    gradient → clipping by its global norm → Adam or Muon → weight decay → times the learning rate

Frozen parameters are excluded from all of this: from the global norm, so that freezing some does not
shorten the steps of the others, and from weight decay. The optimizer keeps no moments of them.

Adam: Kingma and Ba 2015, arXiv 1412.6980. Decoupled weight decay: Loshchilov and Hutter 2019, arXiv
1711.05101. Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Averages: Polyak and
Juditsky 1992; Merity et al. 2018, arXiv 1708.02182.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxrnn.shapes import Array, Float, Int
from jaxrnn.training import freezing
from jaxrnn.training.config import TrainingConfig

# The root mean square of Muon's updates for a learning rate of 1, about that of Adam's updates (Liu et
# al. 2025, arXiv 2502.16982).
MUON_UPDATE = 0.2
# For weights reshaped to [N, gates, H]: Muon orthogonalizes the matrix [N, H] of each gate separately.
_GATES = MuonDimensionNumbers(reduction_axis=0, output_axis=2)


# Cached, because equal settings must give the same object, or each would compile its own step.
@functools.cache
def make_optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a training, with gradient clipping (lecture row 14).

    Args:
      config: the settings.
      steps: length of the run, at whose end the learning rate is 0 unless it is constant.
    """
    optimizer = _for_trained(config, steps)
    if not config.freeze:
        return optimizer

    def labels(params: Any) -> Any:
        mask = freezing.frozen(params, config.freeze)
        return jax.tree.map(lambda fixed: "frozen" if fixed else "trained", mask)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _for_trained(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of the parameters that are not frozen."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = _with_rate(config, optax.scale_by_adam(config.beta1, config.beta2), steps)
    if config.optimizer == "adam":
        return optax.chain(clip, adam)
    muon = _with_rate(config, muon_by_gate(config.model.hidden_size), steps, muon=True)
    return optax.chain(clip, optax.partition({"adam": adam, "muon": muon}, _labels))


def _with_rate(
    config: TrainingConfig, scaling: optax.GradientTransformation, steps: int, muon: bool = False
) -> optax.GradientTransformation:
    """Return a scaling of updates, followed by weight decay and the learning rate."""
    peak = config.muon_learning_rate if muon else config.learning_rate
    decayed = _with_decay(scaling, config.weight_decay)
    return optax.chain(decayed, optax.scale_by_learning_rate(learning_rate(config, peak, steps)))


def _with_decay(
    scaling: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """Return a scaling of updates that adds a fraction of the parameters to them.

    `optax.add_decayed_weights` would give the state another structure, and so a run could not be resumed
    with another weight decay.
    """

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = scaling.update(updates, state, params)
        return jax.tree.map(lambda u, p: u + decay * p, updates, params), state

    return optax.GradientTransformation(scaling.init, update) if decay else scaling


def learning_rate(config: TrainingConfig, peak: float, steps: int) -> optax.Schedule:
    """Return the learning rate of each step: warm-up to the peak, then the schedule.

    Args:
      config: the settings.
      peak: the highest learning rate.
      steps: length of the run.
    """
    warmup = min(config.warmup, steps - 1)
    first = 0.0 if warmup else peak
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(first, peak, warmup, steps)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(first, peak, warmup)
    rise = optax.linear_schedule(first, peak, warmup)
    fall = optax.linear_schedule(peak, 0.0, steps - warmup)
    return optax.join_schedules([rise, fall], [warmup])


# --- Muon ---


def muon_by_gate(hidden_size: int) -> optax.GradientTransformation:
    """Return Muon's scaling of updates, for the weight matrices of recurrent layers.

    The momentum of a matrix [N, K H], whose K gates are matrices [N, H] side by side, is orthogonalized
    gate by gate. The root mean square of the result is about `MUON_UPDATE`, whatever its shape.

    Args:
      hidden_size: H. A matrix whose width is no multiple of H counts as one gate.
    """
    muon = scale_by_muon(weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: _GATES, tree))

    def split(matrix: Float[Array, "N M"]) -> Float[Array, "N K _"]:
        rows, columns = matrix.shape
        gates = 1 if columns % hidden_size else columns // hidden_size
        return matrix.reshape(rows, gates, columns // gates)

    def join(gates: Float[Array, "N K _"]) -> Float[Array, "N M"]:
        return gates.reshape(gates.shape[0], -1)

    def scaled(gates: Float[Array, "N K _"]) -> Float[Array, "N K _"]:
        rows, _, columns = gates.shape
        return MUON_UPDATE * math.sqrt(max(rows, columns)) * gates

    # Between the steps the momentum has the shape of its matrix, and so is divided over devices like it.
    def init(params: Any) -> Any:
        return _with_momentum(join, muon.init(jax.tree.map(split, params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        state = _with_momentum(split, state)
        updates, state = muon.update(jax.tree.map(split, updates), state)
        updates = jax.tree.map(lambda gates: join(scaled(gates)), updates)
        return updates, _with_momentum(join, state)

    return optax.GradientTransformation(init, update)


def _with_momentum(change: Any, state: Any) -> Any:
    return state._replace(mu=jax.tree.map(change, state.mu))


def _labels(params: Any) -> Any:
    """Return the optimizer of each leaf: Muon for the matrices of the layers, Adam for all others.

    The stacked matrices of a Mogrifier LSTM have three axes, so Adam updates them.
    """

    def label(path: jax.tree_util.KeyPath, leaf: Any) -> str:
        in_layers = any(getattr(key, "name", None) == "layers" for key in path)
        return "muon" if in_layers and leaf.ndim == 2 else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


# --- averages of the weights ---


def average_weight(config: TrainingConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Return the weight of the newest parameters in the average, after `step` steps.

    The average is `average + weight * (newest - average)`. The tail is a plain mean; before it begins,
    the average is the newest parameters. An exponential moving average begins as a plain mean, until
    that has as many members as the decay rate stands for.

    Args:
      config: the settings, with an average and the length of the run.
      step: the number of steps taken, at least 1.
    """
    before = 0
    if config.average == "tail":
        assert config.steps is not None
        before = config.steps - max(1, round(config.average_tail * config.steps))
    share = 1 / jnp.maximum(step - before, 1).astype(jnp.float32)
    if config.average == "tail":
        return share
    return jnp.maximum(share, jnp.float32(1 - config.average_decay))
