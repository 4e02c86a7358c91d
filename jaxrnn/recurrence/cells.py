"""The recurrent cells of the lecture as pure functions: rnn, lstm, gru.

A cell is made once, holds no state and compares by value, so it can be a static argument of `jit`:

    cell = lstm(512, peephole=True)
    params = cell.init(key, input_size)          # a NamedTuple of arrays
    state = cell.initial_state(batch)            # a NamedTuple of arrays, zeros (the lecture's b_h^0)
    gx = cell.project(params, xs)                # all that does not depend on the past, any leading axes
    state, y = cell.step(params, state, gx[t])   # the recurrence itself
    cell.activations(params, state, gx[t])       # all that this step computes, gates too, by name

Everything that runs a cell over time (`jaxrnn.unroll`, its hand-written backward pass, the kernels)
takes `gx` and differs only in how it runs `step`.

Numbers: parameters may be float32, bfloat16, float16 or float64. Matrix products take their operands in
the parameters' dtype and accumulate in float32 or wider; the state, the gates and `gx` stay in that
wider dtype (`wide`). `y` is the new hidden state.

The equations of the lecture have no biases. Each cell here adds one bias vector to the input
projection, zero at the start (but for the LSTM's forget gate), and `gru(reset="after")` one more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    SupportsIndex,
    runtime_checkable,
)

import jax
import jax.numpy as jnp

from jaxrnn.errors import finite_number, one_of, truth, whole_number
from jaxrnn.recurrence.initializers import orthogonal
from jaxrnn.recurrence.parameters import check_params
from jaxrnn.shapes import Array, Float, Key

Activation = Literal["tanh", "relu", "sigmoid"]
Reset = Literal["before", "after"]
RecurrentInit = Literal["orthogonal", "glorot"]

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


@runtime_checkable
class Cell(Protocol):
    """What `unroll` needs of a cell. Bring your own: any hashable object with these members."""

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden state and of the output."""

    def init(self, key: Key, input_size: int, dtype: Any = jnp.float32) -> Any:
        """Parameters, a NamedTuple with at least `w_x` [D, G] and `w_h` [H, G]."""

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """The state before the first step: a NamedTuple of zeros, each [B, H]."""

    def project(self, params: Any, xs: Float[Array, "... D"]) -> Float[Array, "... G"]:
        """The part of the gates' inputs that does not depend on the past."""

    def step(self, params: Any, state: Any, gx: Float[Array, "B G"]) -> tuple[Any, Array]:
        """One step of time: the new state and the output y [B, H]."""


class RNNParams(NamedTuple):
    w_x: Float[Array, "D H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, "H"]


class RNNState(NamedTuple):
    hidden: Float[Array, "B H"]


class LSTMParams(NamedTuple):
    w_x: Float[Array, "D 4*H"]
    w_h: Float[Array, "H 4*H"]
    b: Float[Array, 4 * H]
    w_c: Float[Array, "3 H"] | None = None  # peepholes of the gates i, f, o, in this order


class LSTMState(NamedTuple):
    hidden: Float[Array, "B H"]
    cell: Float[Array, "B H"]


class GRUParams(NamedTuple):
    w_x: Float[Array, "D 3*H"]
    w_h: Float[Array, "H 3*H"]
    b: Float[Array, 3 * H]
    b_h: Float[Array, "H"] | None = None  # the candidate's recurrent bias, only for reset="after"


class GRUState(NamedTuple):
    hidden: Float[Array, "B H"]


@dataclasses.dataclass(frozen=True)
class _Gated:
    """What the three cells share: widths, initial weights, the input projection."""

    GATES: ClassVar[tuple[str, ...]]  # the order of the gates' columns in w_x, w_h, b and gx

    hidden_size: int

    def __post_init__(self) -> None:
        # Numpy's numbers become Python's, so that equal cells are equal in every way.
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            object.__setattr__(self, field.name, _OPTIONS[field.name](field.name, given))

    def project(self, params: Any, xs: Float[Array, "... D"]) -> Float[Array, "... G"]:
        """gx = x W_x + b for any leading axes, in the wide dtype (all gates, order `GATES`)."""
        check_params(self, params, own=is_own(self))
        return add(product(xs, params.w_x), params.b)

    def _weights(self, key: Key, input_size: SupportsIndex, dtype: Any) -> tuple[Array, Array]:
        """w_x [D, G] Glorot-uniform and w_h [H, G], each gate's block drawn by itself."""
        input_size = whole_number("input_size", input_size, 1)
        recurrent: str = getattr(self, "recurrent_init", "orthogonal")
        glorot = jax.nn.initializers.glorot_uniform()
        initial = {"orthogonal": orthogonal, "glorot": glorot}[recurrent]
        keys = jax.random.split(key, (2, len(self.GATES)))
        w_x = [glorot(k, (input_size, self.hidden_size), wide(dtype)) for k in keys[0]]
        w_h = [initial(k, (self.hidden_size, self.hidden_size), wide(dtype)) for k in keys[1]]
        return (
            jnp.concatenate(w_x, axis=1).astype(dtype),
            jnp.concatenate(w_h, axis=1).astype(dtype),
        )


@dataclasses.dataclass(frozen=True)
class RNN(_Gated):
    """The plain recurrent network (lecture row 1).

        a^t = x^t W_x + b + h^{t-1} W_h
        h^t = activation(a^t),    h^0 = 0

    Args:
      hidden_size: width H of the hidden state.
      activation: "tanh" (today's habit), "relu" or "sigmoid" (the lecture's).
      recurrent_init: "orthogonal" or "glorot", for w_h.

    Raises:
      ValueError: for a width that is no positive whole number, or an option that is not listed.
    """

    GATES = ("h",)

    activation: Activation = "tanh"
    recurrent_init: RecurrentInit = "orthogonal"

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> RNNParams:
        w_x, w_h = self._weights(key, input_size, dtype)
        return RNNParams(w_x, w_h, jnp.zeros(self.hidden_size, dtype))

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> RNNState:
        return RNNState(jnp.zeros((batch, self.hidden_size), dtype))

    def activations(
        self, params: RNNParams, state: RNNState, gx: Float[Array, "B H"]
    ) -> dict[str, Float[Array, "B H"]]:
        """What a step computes: "hidden"."""
        check_params(self, params, own=is_own(self), projected=True)
        hidden = ACTIVATIONS[self.activation](gx + product(state.hidden, params.w_h))
        return {"hidden": hidden}

    def step(
        self, params: RNNParams, state: RNNState, gx: Float[Array, "B H"]
    ) -> tuple[RNNState, Float[Array, "B H"]]:
        hidden = self.activations(params, state, gx)["hidden"]
        return RNNState(hidden), hidden


@dataclasses.dataclass(frozen=True)
class LSTM(_Gated):
    """Long short-term memory, with or without peepholes (lecture rows 5 and 6).

        i^t = sigmoid(x^t W_xi + h^{t-1} W_hi + p_i * c^{t-1} + b_i)      input gate
        f^t = sigmoid(x^t W_xf + h^{t-1} W_hf + p_f * c^{t-1} + b_f)      forget gate
        g^t = tanh   (x^t W_xg + h^{t-1} W_hg + b_g)                      block input
        c^t = f^t * c^{t-1} + i^t * g^t                                   cell
        o^t = sigmoid(x^t W_xo + h^{t-1} W_ho + p_o * c^t + b_o)          output gate
        h^t = o^t * tanh(c^t)

    The peepholes p are diagonal and the output gate sees the *new* cell (Gers & Schmidhuber 2000);
    without peepholes the three p terms are absent.

    Args:
      hidden_size: width H of the hidden state.
      peephole: whether the gates see the cell.
      forget_bias: b_f at the start; 1 keeps the memory open (Jozefowicz et al. 2015).
      recurrent_init: "orthogonal" or "glorot", for w_h.

    Raises:
      ValueError: for a width that is no positive whole number, or an option that is not listed.
    """

    GATES = ("i", "f", "g", "o")

    peephole: bool = False
    forget_bias: float = 1.0
    recurrent_init: RecurrentInit = "orthogonal"

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> LSTMParams:
        w_x, w_h = self._weights(key, input_size, dtype)
        b = jnp.repeat(jnp.array([0, self.forget_bias, 0, 0], dtype), self.hidden_size)
        return LSTMParams(
            w_x, w_h, b, jnp.zeros((3, self.hidden_size), dtype) if self.peephole else None
        )

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> LSTMState:
        shape = (batch, self.hidden_size)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def activations(
        self, params: LSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """What a step computes: the gates "i", "f", "o", the block input "g", "cell", "hidden"."""
        check_params(self, params, own=is_own(self), projected=True)
        a_i, a_f, a_g, a_o = split(gx + product(state.hidden, params.w_h), 4)
        if params.w_c is not None:
            p_i, p_f, p_o = vectors(params.w_c, state.cell.ndim)
            a_i, a_f = a_i + p_i * state.cell, a_f + p_f * state.cell
        i, f, g = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jnp.tanh(a_g)
        cell = f * state.cell + i * g
        if params.w_c is not None:
            a_o = a_o + p_o * cell
        o = jax.nn.sigmoid(a_o)
        hidden = o * jnp.tanh(cell)
        return {"i": i, "f": f, "g": g, "o": o, "cell": cell, "hidden": hidden}

    def step(
        self, params: LSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> tuple[LSTMState, Float[Array, "B H"]]:
        now = self.activations(params, state, gx)
        return LSTMState(now["hidden"], now["cell"]), now["hidden"]


@dataclasses.dataclass(frozen=True)
class GRU(_Gated):
    """Gated recurrent unit, in the lecture's form and in cuDNN's (lecture row 7).

        z^t = sigmoid(x^t W_xz + h^{t-1} W_hz + b_z)                      update gate
        r^t = sigmoid(x^t W_xr + h^{t-1} W_hr + b_r)                      reset gate
        n^t = tanh(x^t W_xn + (r^t * h^{t-1}) W_hn + b_n)                 reset="before" the product
        n^t = tanh(x^t W_xn + r^t * (h^{t-1} W_hn + b_h) + b_n)           reset="after" it
        h^t = (1 - z^t) * n^t + z^t * h^{t-1}

    Before is the lecture's (Cho et al. 2014); after is what cuDNN, PyTorch and Keras' default compute.

    Args:
      hidden_size: width H of the hidden state.
      reset: "before" or "after" the candidate's recurrent product.
      recurrent_init: "orthogonal" or "glorot", for w_h.

    Raises:
      ValueError: for a width that is no positive whole number, or an option that is not listed.
    """

    GATES = ("z", "r", "n")

    reset: Reset = "before"
    recurrent_init: RecurrentInit = "orthogonal"

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> GRUParams:
        w_x, w_h = self._weights(key, input_size, dtype)
        b_h = jnp.zeros(self.hidden_size, dtype) if self.reset == "after" else None
        return GRUParams(w_x, w_h, jnp.zeros(3 * self.hidden_size, dtype), b_h)

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> GRUState:
        return GRUState(jnp.zeros((batch, self.hidden_size), dtype))

    def activations(
        self, params: GRUParams, state: GRUState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """What a step computes: the gates "z" and "r", the candidate "n", "hidden"."""
        check_params(self, params, own=is_own(self), projected=True)
        h, size = state.hidden, self.hidden_size
        if params.b_h is not None:  # reset == "after"
            product_zr, product_n = jnp.split(product(h, params.w_h), [2 * size], axis=-1)
        else:
            product_zr = product(h, params.w_h[:, : 2 * size])
        z, r = split(jax.nn.sigmoid(gx[..., : 2 * size] + product_zr), 2)
        if params.b_h is not None:
            recurrent = r * add(product_n, params.b_h)
        else:
            recurrent = product(r * h, params.w_h[:, 2 * size :])
        n = jnp.tanh(gx[..., 2 * size :] + recurrent)
        return {"z": z, "r": r, "n": n, "hidden": (1 - z) * n + z * h}

    def step(
        self, params: GRUParams, state: GRUState, gx: Float[Array, "B G"]
    ) -> tuple[GRUState, Float[Array, "B H"]]:
        hidden = self.activations(params, state, gx)["hidden"]
        return GRUState(hidden), hidden


rnn, lstm, gru = RNN, LSTM, GRU  # made by a call, as in `jaxrnn.lstm(512)`


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "hidden_size": partial(whole_number, least=1),
    "activation": one_of(Activation),
    "peephole": truth,
    "forget_bias": finite_number,
    "reset": one_of(Reset),
    "recurrent_init": one_of(RecurrentInit),
}


def is_own(cell: Any) -> bool:
    """Return whether this is an instance of RNN, LSTM or GRU, and not of a subclass."""
    return type(cell) in (RNN, LSTM, GRU)


def cell_name(cell: Cell) -> str:
    """A cell's name in the table of choices, as in "lstm", "lstm-peephole" or "gru-before"."""
    variant = "peephole" if getattr(cell, "peephole", False) else getattr(cell, "reset", None)
    return "-".join([type(cell).__name__.lower(), *([variant] if variant else [])])


def wide(dtype: Any) -> Any:
    """The dtype of states and accumulations beside parameters of `dtype`: float32 or wider."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def product(x: Float[Array, "... K"], w: Float[Array, "K N"]) -> Float[Array, "... N"]:
    """x @ w with the operands in w's dtype and the sum in the wide dtype."""
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=wide(w.dtype))


def add(x: Float[Array, "... N"], b: Float[Array, "N"]) -> Float[Array, "... N"]:
    """x + b with the vector b in x's dtype."""
    return x + jnp.expand_dims(b.astype(x.dtype), tuple(range(x.ndim - 1)))


def split(gates: Float[Array, "... G"], count: int) -> list[Array]:
    """The gates side by side in the last axis, one by one."""
    return jnp.split(gates, count, axis=-1)


def vectors(w: Float[Array, "K H"], axes: int) -> list[Array]:
    """Return the rows of w in the wide dtype, each broadcastable to a state with `axes` axes."""
    parts = jnp.split(w.astype(wide(w.dtype)), w.shape[0])
    return [part.reshape((1,) * (axes - 1) + part.shape[1:]) for part in parts]
