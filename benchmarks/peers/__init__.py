"""Other libraries' recurrent layers, given the same weights and the same work.

Each module has a NAME and `contender(cell, given)`, which raises `Missing` where its library is not
installed and `Unserved` where the library has no such cell; both say why. Some also have
`trainer(task, dtype)`, a whole training program for `training_throughput.py`: each call takes the
task's steps, on from where the one before it ended, and gives the losses [K].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices import accelerator

MODULES = ("pytorch", "flax_nnx", "flax_linen", "dm_haiku", "keras_jax", "flash_rnn")


class Missing(Exception):
    """The peer cannot run here: what is missing."""


class Unserved(Exception):
    """The peer runs here but does not have this: what it lacks."""


class Given(NamedTuple):
    """One problem: numpy float32 arrays, rounded to `dtype` already.

    params: the cell's, in jaxrnn's layout.
    xs: [T, B, I].
    state: the state before the first step.
    cotangent: [T, B, H]; the loss is sum(ys * cotangent).
    dtype: of the parameters and inputs, "float32" or "bfloat16".
    """

    params: Any
    xs: np.ndarray
    state: Any
    cotangent: np.ndarray
    dtype: str


class Task(NamedTuple):
    """Training steps to take.

    config: jaxrnn's settings; the model is an LSTM.
    params: jaxrnn's char-RNN before the first step, as numpy arrays.
    tokens: [K, T + 1, B] int32, the characters of K steps. Each call of a trainer begins at the zero
      state, and so does each step where `config.shuffle` says that batches do not follow each other.
    """

    config: Any
    params: Any
    tokens: np.ndarray


class Contender(NamedTuple):
    """What is timed, and how its results read in jaxrnn's layout.

    forward(): the outputs, when they are there.
    backward(): (loss, gradients) for all weights, xs and the initial state; forward pass included.
    outputs(forward()): ys [T, B, H].
    gradients(backward()): (d_params, d_xs, d_state).
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    outputs: Callable[[Any], np.ndarray]
    gradients: Callable[[Any], Any]


def load() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """The peers that run here, and why the others do not, by name."""
    there, missing = {}, {}
    for module in MODULES:
        peer = importlib.import_module(f"peers.{module}")
        try:
            peer.check()
            there[peer.NAME] = peer
        except Missing as why:
            missing[peer.NAME] = str(why)
    return there, missing


def require(module: str, package: str) -> ModuleType:
    """The imported module. Raises Missing with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{error}: pip install {package}") from None


def jitted(
    apply: Callable[[Any, Any, Any], Any], params: Any, xs: Any, state: Any, cotangent: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """`Contender.forward` and `.backward` of a JAX program `apply(params, xs, state) -> ys`.

    Each is one compiled program; its arguments are on the device and are not constants to it.
    """
    arguments = jax.device_put((params, xs, state), accelerator.device())
    cotangent = jax.device_put(cotangent, accelerator.device())

    def loss(params: Any, xs: Any, state: Any, cotangent: Any) -> Any:
        return jnp.sum(apply(params, xs, state) * cotangent, dtype=jnp.float32)

    forward = partial(jax.jit(apply), *arguments)
    backward = partial(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), *arguments, cotangent)
    return lambda: jax.block_until_ready(forward()), lambda: jax.block_until_ready(backward())


def cast(tree: Any, dtype: str) -> Any:
    """Arrays of a problem as a JAX program takes them."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def numpy(tree: Any) -> Any:
    """Results in float64."""
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), tree)


def swap_z_r(w: np.ndarray) -> np.ndarray:
    """A GRU's gates in the last axis from z r n to r z n, or back."""
    z, r, n = np.split(w, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1)
