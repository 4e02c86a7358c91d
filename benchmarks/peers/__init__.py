"""Recurrent layers of other libraries, given the same weights and the same work.

Each module has

    NAME                    of the library, as tables show it
    check()                 raises `Missing` if the library cannot run here
    contender(cell, given)  raises `Unserved` if the library has no such cell

and both exceptions say why. Some modules also have `trainer(task, dtype)`, a whole training program for
`training_throughput.py`: each call trains for the task's steps, continues where the previous call ended,
and returns the losses [K]. `LAYER_MODULES` have `layers(stack)`, a contender of `layer_throughput.py`.
Weights are converted by `jaxrnn.interop`, except for the layouts that are described in the modules here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.devices import accelerator

MODULES = ("pytorch", "flax_nnx", "flax_linen", "dm_haiku", "keras_jax", "flash_rnn")
LAYER_MODULES = ("flax_nnx", "flax_linen", "dm_haiku", "equinox_cells", "pytorch")


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


class Stack(NamedTuple):
    """Layers on top of each other, as a problem of float32 arrays; the initial state is zero.

    With N parameter sets, all arrays have one more axis at the front, [N].

    cell: the cell of every layer and direction.
    params: for each layer the parameters of its directions, in jaxrnn's layout: forward, and backward if
      the layers are bidirectional.
    xs: [T, B, D].
    cotangent: [T, B, H], or [T, B, 2H] for bidirectional layers; zero in the padding. The loss is
      sum(ys * cotangent).
    resets: [T, B] bool, or None; true where a row starts again from the zero state.
    lengths: [B] int32, or None; later steps are padding, and their outputs do not count.
    """

    cell: Any
    params: list[list[Any]]
    xs: Any
    cotangent: Any
    resets: Any = None
    lengths: Any = None

    @property
    def sets(self) -> int | None:
        """Number of parameter sets, or None where the arrays have no axis for them."""
        return self.xs.shape[0] if self.xs.ndim == 4 else None

    def converted(self, convert: Callable[..., Any], *trees: Any) -> Any:
        """Return `convert(*trees)`, called for each parameter set where there are several."""
        if not self.sets:
            return convert(*trees)
        made = [convert(*jax.tree.map(lambda a, n=n: a[n], trees)) for n in range(self.sets)]
        return jax.tree.map(lambda *a: np.stack(a), *made)

    @property
    def active(self) -> np.ndarray:
        """True at real steps, false in the padding: [T, B, 1], or ones [1, 1, 1] without lengths."""
        if self.lengths is None:
            return np.ones((1, 1, 1), bool)
        return (np.arange(self.xs.shape[-3])[:, None] < np.asarray(self.lengths))[..., None]


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
    gradients(backward()): (d_params, d_xs, d_state), or (d_params, d_xs) for a `Stack`.
    truth: outputs and gradients that are right, where they are not those of the other contenders.
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    outputs: Callable[[Any], np.ndarray]
    gradients: Callable[[Any], Any]
    truth: tuple[Any, Any] | None = None


def load(modules: Iterable[str] = MODULES) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the peers that run here, and the reasons why the others do not, by name."""
    available, missing = {}, {}
    for module in modules:
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
    apply: Callable[..., Any], params: Any, xs: Any, state: Any, cotangent: Any, *masks: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return `Contender.forward` and `.backward` of a JAX program `apply(params, xs, state, *masks)`.

    Each is one compiled program. Its arguments lie on the device and are not constants of the program.
    """
    arguments = jax.device_put((params, xs, state), accelerator.device())
    cotangent, masks = jax.device_put((cotangent, masks), accelerator.device())

    def loss(params: Any, xs: Any, state: Any, cotangent: Any, *masks: Any) -> Any:
        return jnp.sum(apply(params, xs, state, *masks) * cotangent, dtype=jnp.float32)

    forward = partial(jax.jit(apply), *arguments, *masks)
    both = jax.value_and_grad(loss, (0, 1, 2))
    backward = partial(jax.jit(gradients_alone(both)), *arguments, cotangent, *masks)
    return lambda: jax.block_until_ready(forward()), lambda: jax.block_until_ready(backward())


def gradients_alone(both: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[None, Any]]:
    """Return a function that returns (None, the gradients), from one that returns a loss with them.

    In training the backward pass begins after the loss. Here XLA would compute the loss beside the
    backward pass, on threads that the backward pass then waits for. It leaves out what is not returned.
    """
    return lambda *given: (None, both(*given)[1])


def jitted_layers(
    given: Stack,
    params: Any,
    apply: Callable[[Any, Any, Any, Any], Any],
    gradients: Callable[[Any], list[list[Any]]],
) -> Contender:
    """Return a JAX program as a contender; it runs under `vmap` over the parameter sets.

    Args:
      given: the problem.
      params: its parameters, as the library has them.
      apply: `apply(params, xs, resets, lengths)` returns ys, whatever it likes in the padding.
      gradients: converts the gradients of `params` to the form of `given.params`.
    """
    each = jax.vmap(apply) if given.sets else apply

    def run(params: Any, xs: Any, state: None, resets: Any, lengths: Any) -> Any:
        return each(params, xs, resets, lengths)

    params = cast(params, "float32")
    masks = given.resets, given.lengths
    forward, backward = jitted(run, params, given.xs, None, given.cotangent, *masks)

    def outputs(ys: Any) -> np.ndarray:
        return np.where(given.active, numpy(ys), 0)

    def read(result: Any) -> Any:
        d_params, d_xs, _ = result[1]
        return gradients(d_params), numpy(d_xs)

    return Contender(forward, backward, outputs, read)


def scan_layers(
    layers: Sequence[Sequence[Any]],
    run: Callable[[Any, Any, Any], Any],
    xs: Any,
    resets: Any,
    lengths: Any,
) -> Any:
    """Return the outputs of layers that a library only runs forward, with one direction or two.

    Args:
      layers: the directions of each layer, in whatever form `run` takes them.
      run: `run(direction, xs, resets)` returns the outputs over time.
      xs: [T, B, D].
      resets: as in `Stack`; None for bidirectional layers.
      lengths: as in `Stack`.
    """
    for forward, *backward in layers:
        ys = [run(forward, xs, resets)]
        for direction in backward:
            ys.append(_reversed_rows(run(direction, _reversed_rows(xs, lengths), None), lengths))
        xs = jnp.concatenate(ys, axis=-1)
    return xs


def _reversed_rows(xs: Any, lengths: Any) -> Any:
    """Return the real steps of each row in reverse order, and its padding behind them."""
    steps = len(xs)
    at = (lengths[None] - 1 - jnp.arange(steps, dtype=jnp.int32)[:, None]) % steps
    return jnp.take_along_axis(xs, at[..., None], axis=0)


def cast(tree: Any, dtype: str) -> Any:
    """Return the arrays of a problem as JAX arrays of a dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def numpy(tree: Any) -> Any:
    """Return results as numpy arrays in float64."""
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), tree)
