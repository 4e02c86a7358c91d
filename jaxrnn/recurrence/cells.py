"""The recurrent cells of the lecture as pure functions: rnn, lstm, gru.

A cell is made once, holds no state and compares by value, so it can be a static argument of `jit`:

    cell = lstm(512, peephole=True)
    params = cell.init(key, input_size)          # a NamedTuple of arrays
    state = cell.initial_state(batch)            # a NamedTuple of arrays, zeros (the lecture's b_h^0)
    gx = cell.project(params, xs)                # all that does not depend on the past, any leading axes
    state, y = cell.step(params, state, gx[t])   # the recurrence itself
    cell.activations(params, state, gx[t])       # all that this step computes, gates too, by name

Everything that runs a cell over time (`jaxrnn.unroll`, its hand-written backward pass, the kernels)
takes `gx` and differs only in how it runs `step`. The arithmetic is in `recurrence.equations`, and
`recurrence.linalg` says which dtypes products and sums have. `y` is the new hidden state.

The equations of the lecture have no biases. Each cell here adds one bias vector to the input
projection, zero at the start (except for the LSTM's forget gate), and `gru(reset="after")` a second one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol, SupportsIndex, runtime_checkable

import jax
import jax.numpy as jnp

from jaxrnn.errors import finite_number, one_of, truth, whole_number
from jaxrnn.literals import Activation, RecurrentInit, Reset
from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.initializers import orthogonal
from jaxrnn.recurrence.linalg import add, product, split_gates, vectors, wide
from jaxrnn.recurrence.parameters import (
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    RNNParams,
    RNNState,
    check_params,
)
from jaxrnn.shapes import Array, Float, Key


@runtime_checkable
class Cell(Protocol):
    """A recurrent cell, as `unroll` needs it.

    Any hashable object with these members can be used in place of the cells of this library. It holds no
    arrays: what is learned is in the parameters. Each row of the batch must be computed independently of
    the others. In the padding of a row, inputs are zeros, for which the derivatives must be finite.

    A cell whose state is one array and linear in its past may also have `coefficients`, which
    `kernels.associative` describes.
    """

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden state and of the output."""

    def init(self, key: Key, input_size: int, dtype: Any = jnp.float32) -> Any:
        """Return initial parameters: a NamedTuple with at least `w_x` [D, ...]."""

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """Return the state before the first step: a NamedTuple of zeros, each [B, ...]."""

    def project(self, params: Any, xs: Float[Array, "... D"]) -> Float[Array, "... G"]:
        """Return the part of the gates' inputs that does not depend on the past."""

    def step(self, params: Any, state: Any, gx: Float[Array, "B G"]) -> tuple[Any, Array]:
        """Return the state after one step of time, and the output y [B, H]."""


@dataclasses.dataclass(frozen=True)
class _BuiltinCell:
    """The members that the three cells share: widths, initial weights, the input projection."""

    # The order of the gates' columns in w_x, w_h, b and gx.
    GATES: ClassVar[tuple[str, ...]]

    hidden_size: int

    def __post_init__(self) -> None:
        # Numpy's numbers become Python's, so that equal cells are equal in every way.
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            object.__setattr__(self, field.name, _OPTIONS[field.name](field.name, given))

    def project(self, params: Any, xs: Float[Array, "... D"]) -> Float[Array, "... G"]:
        """Return gx = x W_x + b for any leading axes, in the wide dtype, all gates in order `GATES`.

        Raises:
          ValueError: for parameters of another cell.
        """
        check_params(self, params, builtin=is_builtin(self))
        return add(product(xs, params.w_x), params.b)

    def _weights(self, key: Key, input_size: SupportsIndex, dtype: Any) -> tuple[Array, Array]:
        """Return w_x [D, G], Glorot-uniform, and w_h [H, G], each gate's block drawn on its own."""
        input_size = whole_number("input_size", input_size, 1)
        glorot = jax.nn.initializers.glorot_uniform()
        recurrent: str = getattr(self, "recurrent_init", "orthogonal")
        initial = {"orthogonal": orthogonal, "glorot": glorot}[recurrent]
        keys = jax.random.split(key, (2, len(self.GATES)))
        size = self.hidden_size
        w_x = [glorot(k, (input_size, size), wide(dtype)) for k in keys[0]]
        w_h = [initial(k, (size, size), wide(dtype)) for k in keys[1]]
        return (
            jnp.concatenate(w_x, axis=1).astype(dtype),
            jnp.concatenate(w_h, axis=1).astype(dtype),
        )


@dataclasses.dataclass(frozen=True)
class RNN(_BuiltinCell):
    """The plain recurrent network (lecture row 1), made by `jaxrnn.rnn`.

        a^t = x^t W_x + b + h^{t-1} W_h
        h^t = activation(a^t),    h^0 = 0

    Attributes:
      hidden_size: width H of the hidden state.
      activation: "tanh" (usual today), "relu" or "sigmoid" (the lecture's).
      recurrent_init: "orthogonal" or "glorot", the distribution of the initial w_h.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("h",)

    activation: Activation = "tanh"
    recurrent_init: RecurrentInit = "orthogonal"

    @property
    def kind(self) -> CellKind:
        """The equations of this cell."""
        return CellKind.RNN

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> RNNParams:
        """Return initial parameters for inputs of width D = `input_size`: random weights, b zero."""
        w_x, w_h = self._weights(key, input_size, dtype)
        return RNNParams(w_x, w_h, jnp.zeros(self.hidden_size, dtype))

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> RNNState:
        """Return zeros [B, H]."""
        return RNNState(jnp.zeros((batch, self.hidden_size), dtype))

    def activations(
        self, params: RNNParams, state: RNNState, gx: Float[Array, "B H"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the new hidden state as "hidden"."""
        check_params(self, params, builtin=is_builtin(self), projected=True)
        a = gx + product(state.hidden, params.w_h)
        return {"hidden": equations.rnn(a, self.activation)}

    def step(
        self, params: RNNParams, state: RNNState, gx: Float[Array, "B H"]
    ) -> tuple[RNNState, Float[Array, "B H"]]:
        """Return the state after one step, and the output, which is its hidden state."""
        hidden = self.activations(params, state, gx)["hidden"]
        return RNNState(hidden), hidden


@dataclasses.dataclass(frozen=True)
class LSTM(_BuiltinCell):
    """Long short-term memory (lecture rows 5 and 6), made by `jaxrnn.lstm`.

        i^t = sigmoid(x^t W_xi + h^{t-1} W_hi + p_i * c^{t-1} + b_i)      input gate
        f^t = sigmoid(x^t W_xf + h^{t-1} W_hf + p_f * c^{t-1} + b_f)      forget gate
        g^t = tanh   (x^t W_xg + h^{t-1} W_hg + b_g)                      block input
        c^t = f^t * c^{t-1} + i^t * g^t                                   cell
        o^t = sigmoid(x^t W_xo + h^{t-1} W_ho + p_o * c^t + b_o)          output gate
        h^t = o^t * tanh(c^t)

    The peepholes p are diagonal and the output gate sees the *new* cell (Gers & Schmidhuber 2000);
    without peepholes the three p terms are absent.

    Attributes:
      hidden_size: width H of the hidden state and of the cell.
      peephole: whether the gates see the cell.
      forget_bias: initial b_f; 1 keeps the memory open (Jozefowicz et al. 2015).
      recurrent_init: "orthogonal" or "glorot", the distribution of the initial w_h.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("i", "f", "g", "o")

    peephole: bool = False
    forget_bias: float = 1.0
    recurrent_init: RecurrentInit = "orthogonal"

    @property
    def kind(self) -> CellKind:
        """The equations of this cell."""
        return CellKind.LSTM

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> LSTMParams:
        """Return initial parameters for inputs of width D = `input_size`; the peepholes are zero."""
        w_x, w_h = self._weights(key, input_size, dtype)
        b = jnp.repeat(jnp.array([0, self.forget_bias, 0, 0], dtype), self.hidden_size)
        w_c = jnp.zeros((3, self.hidden_size), dtype) if self.peephole else None
        return LSTMParams(w_x, w_h, b, w_c)

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> LSTMState:
        """Return zeros, each [B, H]."""
        shape = (batch, self.hidden_size)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def activations(
        self, params: LSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "i", "f", "o", the block input "g", and the new "cell" and "hidden"."""
        check_params(self, params, builtin=is_builtin(self), projected=True)
        a = split_gates(gx + product(state.hidden, params.w_h), 4)
        peepholes = None
        if params.w_c is not None:
            p_i, p_f, p_o = vectors(params.w_c, state.cell.ndim)
            peepholes = p_i, p_f, p_o
        now = equations.lstm(a, state.cell, peepholes)
        gates = dict(zip(self.GATES, now.gates, strict=True))
        return gates | {"cell": now.cell, "hidden": now.hidden}

    def step(
        self, params: LSTMParams, state: LSTMState, gx: Float[Array, "B G"]
    ) -> tuple[LSTMState, Float[Array, "B H"]]:
        """Return the state after one step, and the output, which is its hidden state."""
        now = self.activations(params, state, gx)
        return LSTMState(now["hidden"], now["cell"]), now["hidden"]


@dataclasses.dataclass(frozen=True)
class GRU(_BuiltinCell):
    """Gated recurrent unit, the lecture's and cuDNN's (lecture row 7), made by `jaxrnn.gru`.

        z^t = sigmoid(x^t W_xz + h^{t-1} W_hz + b_z)                      update gate
        r^t = sigmoid(x^t W_xr + h^{t-1} W_hr + b_r)                      reset gate
        n^t = tanh(x^t W_xn + (r^t * h^{t-1}) W_hn + b_n)                 reset="before" the product
        n^t = tanh(x^t W_xn + r^t * (h^{t-1} W_hn + b_h) + b_n)           reset="after" the product
        h^t = (1 - z^t) * n^t + z^t * h^{t-1}

    The lecture resets before the product (Cho et al. 2014); cuDNN, PyTorch and Keras by default reset
    after it.

    Attributes:
      hidden_size: width H of the hidden state.
      reset: "before" or "after" the candidate's recurrent product.
      recurrent_init: "orthogonal" or "glorot", the distribution of the initial w_h.

    Raises:
      ValueError: for a width that is not a positive whole number, or an unknown option.
    """

    GATES = ("z", "r", "n")

    reset: Reset = "before"
    recurrent_init: RecurrentInit = "orthogonal"

    @property
    def kind(self) -> CellKind:
        """The equations of this cell."""
        return CellKind.GRU_AFTER if self.reset == "after" else CellKind.GRU_BEFORE

    def init(self, key: Key, input_size: SupportsIndex, dtype: Any = jnp.float32) -> GRUParams:
        """Return initial parameters for inputs of width D = `input_size`; all biases are zero."""
        w_x, w_h = self._weights(key, input_size, dtype)
        b_h = jnp.zeros(self.hidden_size, dtype) if self.reset == "after" else None
        return GRUParams(w_x, w_h, jnp.zeros(3 * self.hidden_size, dtype), b_h)

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> GRUState:
        """Return zeros [B, H]."""
        return GRUState(jnp.zeros((batch, self.hidden_size), dtype))

    def activations(
        self, params: GRUParams, state: GRUState, gx: Float[Array, "B G"]
    ) -> dict[str, Float[Array, "B H"]]:
        """Return the gates "z" and "r", the candidate "n", and the new "hidden"."""
        check_params(self, params, builtin=is_builtin(self), projected=True)
        h = state.hidden
        size = self.hidden_size
        gx_zr, gx_n = jnp.split(gx, [2 * size], axis=-1)
        if params.b_h is not None:
            product_zr, product_n = jnp.split(product(h, params.w_h), [2 * size], axis=-1)
            z, r = split_gates(equations.gru_gate(gx_zr + product_zr), 2)
            n = equations.gru_candidate_after(gx_n, r, add(product_n, params.b_h))
        else:
            product_zr = product(h, params.w_h[:, : 2 * size])
            z, r = split_gates(equations.gru_gate(gx_zr + product_zr), 2)
            n = equations.gru_candidate_before(gx_n, product(r * h, params.w_h[:, 2 * size :]))
        return {"z": z, "r": r, "n": n, "hidden": equations.gru_hidden(z, n, h)}

    def step(
        self, params: GRUParams, state: GRUState, gx: Float[Array, "B G"]
    ) -> tuple[GRUState, Float[Array, "B H"]]:
        """Return the state after one step, and the output, which is its hidden state."""
        hidden = self.activations(params, state, gx)["hidden"]
        return GRUState(hidden), hidden


def rnn(
    hidden_size: SupportsIndex,
    *,
    activation: Activation = "tanh",
    recurrent_init: RecurrentInit = "orthogonal",
) -> RNN:
    """Return a plain recurrent cell of width `hidden_size`; `RNN` has its equations and options."""
    return RNN(hidden_size, activation, recurrent_init)  # type: ignore[arg-type]


def lstm(
    hidden_size: SupportsIndex,
    *,
    peephole: bool = False,
    forget_bias: float = 1.0,
    recurrent_init: RecurrentInit = "orthogonal",
) -> LSTM:
    """Return an LSTM cell of width `hidden_size`; `LSTM` has its equations and options."""
    return LSTM(hidden_size, peephole, forget_bias, recurrent_init)  # type: ignore[arg-type]


def gru(
    hidden_size: SupportsIndex,
    *,
    reset: Reset = "before",
    recurrent_init: RecurrentInit = "orthogonal",
) -> GRU:
    """Return a GRU cell of width `hidden_size`; `GRU` has its equations and options."""
    return GRU(hidden_size, reset, recurrent_init)  # type: ignore[arg-type]


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "hidden_size": partial(whole_number, least=1),
    "activation": one_of(Activation),
    "peephole": truth,
    "forget_bias": finite_number,
    "reset": one_of(Reset),
    "recurrent_init": one_of(RecurrentInit),
}


def is_builtin(cell: Any) -> bool:
    """Return whether a cell is an RNN, LSTM or GRU of this library, and not of a subclass."""
    return type(cell) in (RNN, LSTM, GRU)


def check_cell(cell: Any) -> None:
    """Raise ValueError for what is no cell."""
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a jaxrnn.Cell, such as jaxrnn.lstm(512), not {cell!r}")


def kind_of(cell: Any) -> CellKind | None:
    """Return which equations a cell has, or None for a cell that is not of this library."""
    return cell.kind if is_builtin(cell) else None


def cell_name(cell: Cell) -> str:
    """Return a cell's name in the table of choices, such as "lstm", "lstm-peephole" or "gru-before"."""
    kind = kind_of(cell)
    if kind is None:
        return type(cell).__name__.lower()
    return "lstm-peephole" if getattr(cell, "peephole", False) else kind.value
