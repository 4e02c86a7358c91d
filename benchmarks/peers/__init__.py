"""Recurrent layers of other libraries, given the same weights and the same work.

Each module has

    NAME                    of the library, as tables show it
    check()                 raises `Missing` if the library cannot run here
    contender(cell, given)  raises `Unserved` if the library has no such cell

and both exceptions say why. Some modules also have `trainer(task, dtype)`, a whole training program for
`training_throughput.py`: each call trains for the task's steps, continues where the previous call ended,
and returns the losses [K]. Weights are converted by `jaxrnn.interop`, except for Haiku's and
FlashRNN's layouts, which are described in their modules here.
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
    """The peer cannot run here; the message says what is missing."""


class Unserved(Exception):
    """The peer runs here but lacks the cell; the message says what is missing."""


class Given(NamedTuple):
    """A problem as numpy float32 arrays, already rounded to `dtype`.

    params: parameters of the cell, in jaxrnn's layout.
    xs: [T, B, I].
    state: the state before the first step.
    cotangent: [T, B, H]; the loss is sum(ys * cotangent).
    dtype: dtype of the parameters and inputs, "float32" or "bfloat16".
    """

    params: Any
    xs: np.ndarray
    state: Any
    cotangent: np.ndarray
    dtype: str


class Task(NamedTuple):
    """Training steps to run.

    config: jaxrnn's `TrainingConfig`; the model is an LSTM.
    params: parameters of jaxrnn's char-RNN before the first step, as numpy arrays.
    tokens: [K, T + 1, B] int32, the characters of K steps. Each call of a trainer starts from the zero
      state, and so does each step if `config.shuffle` says that batches do not follow each other.
    """

    config: Any
    params: Any
    tokens: np.ndarray


class Contender(NamedTuple):
    """The two calls that are timed, and the conversion of their results to jaxrnn's layout.

    forward(): returns the outputs when they are computed.
    backward(): returns (loss, gradients) for all weights, xs and the initial state; it includes the
      forward pass.
    outputs(forward()): ys [T, B, H].
    gradients(backward()): (d_params, d_xs, d_state).
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    outputs: Callable[[Any], np.ndarray]
    gradients: Callable[[Any], Any]


def load() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the peers that run here, and the reasons why the others do not, by name."""
    available, missing = {}, {}
    for module in MODULES:
        peer = importlib.import_module(f"benchmarks.peers.{module}")
        try:
            peer.check()
            available[peer.NAME] = peer
        except Missing as why:
            missing[peer.NAME] = str(why)
    return available, missing


def require(module: str, package: str) -> ModuleType:
    """Import a module, or raise Missing with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{error}: pip install {package}") from None


def jitted(
    apply: Callable[[Any, Any, Any], Any], params: Any, xs: Any, state: Any, cotangent: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return `Contender.forward` and `.backward` of a JAX program `apply(params, xs, state) -> ys`.

    Each is one compiled program. Its arguments lie on the device and are not constants of the program.
    """
    arguments = jax.device_put((params, xs, state), accelerator.device())
    cotangent = jax.device_put(cotangent, accelerator.device())

    def loss(params: Any, xs: Any, state: Any, cotangent: Any) -> Any:
        return jnp.sum(apply(params, xs, state) * cotangent, dtype=jnp.float32)

    forward = partial(jax.jit(apply), *arguments)
    backward = partial(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), *arguments, cotangent)
    return lambda: jax.block_until_ready(forward()), lambda: jax.block_until_ready(backward())


def cast(tree: Any, dtype: str) -> Any:
    """Return the arrays of a problem as JAX arrays of a dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def numpy(tree: Any) -> Any:
    """Return results as numpy arrays in float64."""
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), tree)
