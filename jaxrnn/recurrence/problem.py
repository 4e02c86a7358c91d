"""A recurrence to run: the one argument that every implementation takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.linalg import add, product, wide
from jaxrnn.shapes import Array, Bool, Float, Int, Integer


class Lookup(NamedTuple):
    """Projected inputs that are rows of a table, such as those of tokens.

    Attributes:
      table: [V, G], `cell.project` of each of the V tokens.
      tokens: [T, B], the row of the table that goes in at each step of each row of the batch.
    """

    table: Float[Array, "V G"]
    tokens: Integer[Array, "T B"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [T, B, G] of the projected inputs."""
        return (*self.tokens.shape, self.table.shape[-1])

    @property
    def dtype(self) -> Any:
        """The dtype of the projected inputs."""
        return self.table.dtype

    def project(self) -> Float[Array, "... G"]:
        """Return the projected inputs, [T, B, G], or [B, G] of one step's tokens [B]."""
        return self.table[self.tokens]

    def clipped(self) -> Lookup:
        """Return the same with int32 tokens, those out of range replaced by the nearest in range.

        JAX's indexing, a product with one-hot rows and C++ each treat a token out of range differently,
        so every implementation gets tokens in range.
        """
        return self._replace(tokens=clipped(self.tokens, self.table.shape[0] - 1))


class Dense(NamedTuple):
    """Inputs before their projection xs W_x + b, which the implementation computes.

    Attributes:
      xs: [T, B, D].
      w_x: [D, G].
      b: [G].
    """

    xs: Float[Array, "T B D"]
    w_x: Float[Array, "D G"]
    b: Float[Array, "G"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [T, B, G] of the projected inputs."""
        return (*self.xs.shape[:-1], self.w_x.shape[-1])

    @property
    def dtype(self) -> Any:
        """The dtype of the projected inputs."""
        return wide(self.w_x.dtype)

    def project(self) -> Float[Array, "T B G"]:
        """Return the projected inputs."""
        return add(product(self.xs, self.w_x), self.b)


Inputs = Array | Lookup | Dense


def projected(inputs: Inputs) -> Float[Array, "T B G"]:
    """Return the projected inputs, whichever form they come in."""
    return inputs.project() if isinstance(inputs, Lookup | Dense) else inputs


class Masks(NamedTuple):
    """The rows that start again or do not move at a step; None where there is no such row.

    Attributes:
      reset: [T, B], true where the state that enters step t of row b is replaced by zeros.
      active: [T, B], false in the padding, where a row keeps its state and its output is zero.
    """

    reset: Bool[Array, "T B"] | None = None
    active: Bool[Array, "T B"] | None = None


class Problem(NamedTuple):
    """A recurrence to run.

    The arrays may be `jax.ShapeDtypeStruct`s where only `unsupported_reason` is asked.

    Attributes:
      cell: the cell.
      params: its parameters. Only the recurrent ones are used, since `inputs` holds the others.
      inputs: the projected inputs [T, B, G], or a `Lookup` or `Dense` from which to compute them.
      state: the state before the first step that is run, each array [B, H].
      masks: see `Masks`.
      reverse: whether to run from the last step to the first.
      batch_first: whether the inputs are views of arrays [B, T, ...], as the outputs will be. It changes
        no result: an implementation may read and write in that order.
    """

    cell: Any
    params: Any
    inputs: Inputs
    state: Any
    masks: Masks = Masks()
    reverse: bool = False
    batch_first: bool = False

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return self.inputs.shape[0]

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return self.inputs.shape[1]

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters, that of w_h where the cell has one."""
        return dtype_of(self.params)

    @property
    def recurrent_params(self) -> Any:
        """The parameters without those of the input projection, w_x and b."""
        return self.params._replace(w_x=None, b=None)

    def no_steps(self) -> tuple[Any, Array]:
        """Return the result for T = 0 or B = 0: the state as it is, and outputs [T, B, H]."""
        shape = (self.steps, self.batch, self.cell.hidden_size)
        return self.state, jnp.zeros(shape, self.inputs.dtype)


def dtype_of(params: Any) -> Any:
    """Return the dtype of a cell's parameters: that of w_h, or of the first array if there is no w_h."""
    w_h = getattr(params, "w_h", None)
    return jnp.dtype((jax.tree.leaves(params)[0] if w_h is None else w_h).dtype)


class Residuals(NamedTuple):
    """The arrays that a forward pass saves at every step for the backward pass.

    Attributes:
      previous_hidden: [T, B, H], the hidden state that entered the step.
      gates: the activated gates in the order of `cell.GATES`, the output of a plain RNN: side by side in
        [T, B, G], one after the other in [gates, T, B, H], or a tuple of arrays [T, B, H].
      previous_cell: [T, B, H], the cell that entered the step; only of an LSTM.
      q: [T, B, H], h W_hn + b_h; only of a GRU that resets after the product.
      reset_hidden: [T, B, H], r * h; of a GRU that resets before the product, where it was kept.
    """

    previous_hidden: Any
    gates: Any
    previous_cell: Any = None
    q: Any = None
    reset_hidden: Any = None


def clipped(numbers: Integer[Array, "..."], most: int) -> Int[Array, "..."]:
    """Return integers as int32, those outside of 0 to `most` replaced by the nearest in that range."""
    # `most` may not fit the integers' own dtype, as 300 does not fit uint8.
    if numbers.dtype.itemsize < 4:
        numbers = numbers.astype(jnp.int32)
    return jnp.clip(numbers, 0, most).astype(jnp.int32)


def choose_rows(rows: Bool[Array, "B"], yes: Any, no: Any) -> Any:
    """Return a state whose rows come from `yes` where `rows` is true and from `no` elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(rows, tuple(range(1, b.ndim))), a, b)

    return jax.tree.map(choose, yes, no)


def check_output(cell: Any, y: Any, gx: Float[Array, "B G"]) -> None:
    """Raise ValueError if the output of a step is not [B, H]."""
    want = gx.shape[0], cell.hidden_size
    if jnp.shape(y) != want:
        raise ValueError(
            f"the output of a step of {cell} must be [B, hidden_size] = {want}, not {jnp.shape(y)}"
        )


def vary(tree: Any) -> Any:
    """Return the arrays, all varying over the `shard_map` axes that any of them varies over.

    A kernel's arrays must vary alike. JAX then sums the gradient of an array that was the same on all
    devices.
    """
    return _vary_over(_axes(tree), tree)


def vary_like(tree: Any, others: Any) -> Any:
    """Return a kernel's results, varying over the axes of `others`, which JAX cannot infer."""
    return _vary_over(_axes(others), tree)


def _axes(tree: Any) -> frozenset[Any]:
    axes = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)]
    return frozenset().union(*axes)


def _vary_over(axes: frozenset[Any], tree: Any) -> Any:
    def cast(x: Array) -> Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
