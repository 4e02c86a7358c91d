"""A cell over time in plain XLA, with a backward pass written by hand.

Automatic differentiation of a scan saves every intermediate and adds up dW_h inside the reverse loop,
once per step. Here the forward scan keeps the activated gates and the states and nothing else, the
reverse scan runs only the recurrent chain

    dgx^t    = d(gates' inputs)                     [B, G], elementwise
    dh^{t-1} = dgx^t W_h^T + elementwise terms      [B, H], the one matrix product per step

and dW_h (with the peepholes' and b_h's gradients) is one large product over all T * B rows after it.
The gradients of w_x, b and the inputs follow from dgx, outside, through `cell.project`.

dgx leaves the loop in the weights' dtype, in which every product after it takes it anyway. Where the
inputs are tokens (`Lookup`) each step reads its rows of the table, nothing of size [T, B, G] is built
on the way forward, and the table's gradient is the sum of dgx over equal tokens, as one product.

The rules below are the derivatives of the equations in the docstrings of `jaxrnn.cells`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells import ACTIVATIONS, GRU, LSTM, RNN, add, product, rows, split, wide
from jaxrnn.shapes import Array, Bool, Float, Int


class Lookup(NamedTuple):
    """Projected inputs that are rows of a table, as those of tokens are.

    table: `cell.project` of every token.
    tokens: which row goes in, at each step of each row.
    """

    table: Float[Array, "V G"]
    tokens: Int[Array, "T B"]

    @property
    def shape(self) -> tuple[int, ...]:
        """[T, B, G], of the projected inputs."""
        return (*self.tokens.shape, self.table.shape[-1])

    @property
    def dtype(self) -> Any:
        return self.table.dtype

    def project(self) -> Float[Array, "T B G"]:
        """The projected inputs themselves."""
        return self.table[self.tokens]


class Masks(NamedTuple):
    """Where a row starts afresh and where it stands still; None where no row ever does."""

    reset: Bool[Array, "T B"] | None
    active: Bool[Array, "T B"] | None


def supports(cell: Any) -> bool:
    """Whether there is a hand-written backward pass for this cell."""
    return type(cell) in _RULES


def run(
    cell: Any,
    params: Any,
    gx: Float[Array, "T B G"] | Lookup,
    state: Any,
    masks: Masks,
    reverse: bool,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H], in the wide dtype, differentiable by hand.

    Args:
      cell: an `rnn`, `lstm` or `gru`.
      params: the cell's parameters; only the recurrent ones are used here.
      gx: the projected inputs, `cell.project(params, xs)`, or where to look them up.
      state: the state before the first step taken.
      masks: see `Masks`; a row that stands still puts out zeros.
      reverse: run from the last step to the first.
    """
    weights = params._replace(w_x=None, b=None)
    return _run(cell, reverse, weights, gx, state, masks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    cell: Any, reverse: bool, weights: Any, gx: Array | Lookup, state: Any, masks: Masks
) -> tuple[Any, Array]:
    final, (_, states, _) = _forward_scan(cell, reverse, weights, gx, state, masks)
    return final, _outputs(states, masks)


def _forward(
    cell: Any, reverse: bool, weights: Any, gx: Array | Lookup, state: Any, masks: Masks
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    final, (previous, states, gates) = _forward_scan(cell, reverse, weights, gx, state, masks)
    saved = (weights, gx if isinstance(gx, Lookup) else None, previous, states, gates, masks)
    return (final, _outputs(states, masks)), saved


def _backward(
    cell: Any, reverse: bool, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any, Masks]:
    weights, lookup, previous, states, gates, masks = saved
    d_final, d_ys = cotangents
    rule = _RULES[type(cell)]
    w_t = lax.optimization_barrier(weights.w_h.T)  # laid out once, or every step pays for it

    def body(d_state: Any, slices: Any) -> tuple[Any, Array]:
        before, after, activated, d_y, (reset, active) = slices
        d_y = d_y if active is None else jnp.where(active[:, None], d_y, 0)
        d_after = d_state._replace(hidden=d_state.hidden + d_y)
        d_before, d_gx = rule.backward(cell, weights, w_t, before, after, activated, d_after)
        if active is not None:
            d_before = _choose(active, d_before, d_state)
            d_gx = jnp.where(active[:, None], d_gx, 0)
        if reset is not None:
            d_before = _choose(reset, jax.tree.map(jnp.zeros_like, d_before), d_before)
        return d_before, _packed(d_gx.astype(weights.w_h.dtype))

    slices = (previous, states, gates, d_ys, masks)
    d_state, packed = lax.scan(body, d_final, slices, reverse=not reverse)
    d_gx = _unpacked(packed)
    d_weights = rule.weights(cell, weights, previous, states, gates, d_gx)
    if lookup is not None:
        d_table = _sum_equal(lookup, d_gx)
        return d_weights, Lookup(d_table, None), d_state, Masks(None, None)  # type: ignore[arg-type]
    return d_weights, d_gx.astype(d_ys.dtype), d_state, Masks(None, None)


_run.defvjp(_forward, _backward)


def _forward_scan(
    cell: Any, reverse: bool, weights: Any, gx: Array | Lookup, state: Any, masks: Masks
) -> tuple[Any, tuple[Any, Any, Any]]:
    """The final state, and for every step the state before it, the state after it, the gates."""
    forward = _RULES[type(cell)].forward

    def body(state: Any, slices: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        gx_t, (reset, active) = slices
        if isinstance(gx, Lookup):
            gx_t = gx.table[gx_t]
        if reset is not None:
            state = _choose(reset, jax.tree.map(jnp.zeros_like, state), state)
        after, gates = forward(cell, weights, state, gx_t)
        if active is not None:
            after = _choose(active, after, state)
        return after, (state, after, gates)

    inputs = gx.tokens if isinstance(gx, Lookup) else gx
    return lax.scan(body, state, (inputs, masks), reverse=reverse)


def _outputs(states: Any, masks: Masks) -> Array:
    if masks.active is None:
        return states.hidden
    return jnp.where(masks.active[..., None], states.hidden, 0)


def _choose(rows: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(rows[:, None], a, b), yes, no)


class _Rules(NamedTuple):
    """A cell's derivatives.

    forward(cell, weights, before, gx) -> after, gates
    backward(cell, weights, w_t, before, after, gates, d_after) -> d_before, d_gx, w_t = w_h^T
    weights(cell, weights, before, after, gates, d_gx) -> d_weights, over all steps at once
    """

    forward: Any
    backward: Any
    weights: Any


def _outer(x: Float[Array, "T B K"], y: Float[Array, "T B N"], like: Array) -> Float[Array, "K N"]:
    """Sum over t, b of x y^T with operands in the weights' dtype, accumulated wide."""
    x, y = x.astype(like.dtype), y.astype(like.dtype)
    total = lax.platform_dependent(x, y, cpu=_outer_cpu, default=_outer_anywhere)
    return total.astype(like.dtype)


def _outer_anywhere(x: Array, y: Array) -> Array:
    contract = (((0, 1), (0, 1)), ((), ()))
    return lax.dot_general(x, y, contract, preferred_element_type=wide(x.dtype))


def _outer_cpu(x: Array, y: Array) -> Array:
    """The same with x^T laid out first: XLA's fast CPU product of bfloat16 takes nothing transposed.

    In two steps, since one [T B, K] transpose strides through memory: first each step's [B, K] in
    cache, then rows of B numbers.
    """
    if x.dtype != jnp.bfloat16:
        return _outer_anywhere(x, y)
    steps, batch, width = x.shape
    x = lax.optimization_barrier(x.swapaxes(1, 2))
    x = lax.optimization_barrier(x.swapaxes(0, 1).reshape(width, steps * batch))
    return product(x, y.reshape(steps * batch, -1))


def _packed(x: Array) -> Array:
    """bfloat16 as its bits: XLA's CPU backend is slow to store bfloat16 in a loop."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _unpacked(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _sum_equal(lookup: Lookup, d_gx: Float[Array, "T B G"]) -> Float[Array, "V G"]:
    """The table's gradient: dgx summed over equal tokens."""
    tokens, rows = lookup.tokens.reshape(-1), d_gx.reshape(-1, d_gx.shape[-1])
    size, dtype = lookup.table.shape[0], lookup.table.dtype
    if size > ONE_HOT_LIMIT:
        return jnp.zeros_like(lookup.table).at[tokens].add(rows.astype(dtype))
    one_hot = jnp.arange(size, dtype=tokens.dtype)[:, None] == tokens[None, :]
    return product(one_hot.astype(rows.dtype), rows).astype(dtype)


ONE_HOT_LIMIT = 1024  # tokens; beyond it a scatter costs less than a product with one-hot rows


# --- plain RNN ----------------------------------------------------------------------------------

_SLOPES = {
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).astype(h.dtype),
    "sigmoid": lambda h: h * (1 - h),
}


def _rnn_forward(cell: RNN, weights: Any, before: Any, gx: Array) -> tuple[Any, None]:
    hidden = ACTIVATIONS[cell.activation](gx + product(before.hidden, weights.w_h))
    return before._replace(hidden=hidden), None


def _rnn_backward(
    cell: RNN, weights: Any, w_t: Array, before: Any, after: Any, gates: None, d_after: Any
) -> tuple[Any, Array]:
    d_gx = d_after.hidden * _SLOPES[cell.activation](after.hidden)
    return before._replace(hidden=product(d_gx, w_t)), d_gx


def _rnn_weights(cell: RNN, weights: Any, before: Any, after: Any, gates: None, d_gx: Array) -> Any:
    return weights._replace(w_h=_outer(before.hidden, d_gx, weights.w_h))


# --- LSTM ---------------------------------------------------------------------------------------


def _lstm_forward(cell: LSTM, weights: Any, before: Any, gx: Array) -> tuple[Any, Any]:
    a_i, a_f, a_g, a_o = split(gx + product(before.hidden, weights.w_h), 4)
    if weights.w_c is not None:
        p_i, p_f, p_o = rows(weights.w_c)
        a_i, a_f = a_i + p_i * before.cell, a_f + p_f * before.cell
    i, f, g = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jnp.tanh(a_g)
    c = f * before.cell + i * g
    o = jax.nn.sigmoid(a_o if weights.w_c is None else a_o + p_o * c)
    return before._replace(hidden=o * jnp.tanh(c), cell=c), (i, f, g, o)


def _lstm_backward(
    cell: LSTM, weights: Any, w_t: Array, before: Any, after: Any, gates: Any, d_after: Any
) -> tuple[Any, Array]:
    i, f, g, o = gates
    tanh_c = jnp.tanh(after.cell)
    d_ao = d_after.hidden * tanh_c * o * (1 - o)
    d_c = d_after.cell + d_after.hidden * o * (1 - tanh_c * tanh_c)
    if weights.w_c is not None:
        p_i, p_f, p_o = rows(weights.w_c)
        d_c = d_c + p_o * d_ao
    d_ai = d_c * g * i * (1 - i)
    d_af = d_c * before.cell * f * (1 - f)
    d_ag = d_c * i * (1 - g * g)
    d_gx = jnp.concatenate([d_ai, d_af, d_ag, d_ao], axis=-1)
    d_c = d_c * f
    if weights.w_c is not None:
        d_c = d_c + p_i * d_ai + p_f * d_af
    return before._replace(hidden=product(d_gx, w_t), cell=d_c), d_gx


def _lstm_weights(
    cell: LSTM, weights: Any, before: Any, after: Any, gates: Any, d_gx: Array
) -> Any:
    d_w_c = None
    if weights.w_c is not None:
        d_ai, d_af, _, d_ao = split(d_gx.astype(after.cell.dtype), 4)
        seen = (before.cell, d_ai), (before.cell, d_af), (after.cell, d_ao)
        d_w_c = jnp.stack([jnp.einsum("tbh,tbh->h", c, d) for c, d in seen])
        d_w_c = d_w_c.astype(weights.w_c.dtype)
    return weights._replace(w_h=_outer(before.hidden, d_gx, weights.w_h), w_c=d_w_c)


# --- GRU ----------------------------------------------------------------------------------------


def _gru_forward(cell: GRU, weights: Any, before: Any, gx: Array) -> tuple[Any, Any]:
    h, w_h, size = before.hidden, weights.w_h, cell.hidden
    if cell.reset == "after":
        recurrent = product(h, w_h)
        z, r = split(jax.nn.sigmoid(gx[:, : 2 * size] + recurrent[:, : 2 * size]), 2)
        q = add(recurrent[:, 2 * size :], weights.b_h)
        n = jnp.tanh(gx[:, 2 * size :] + r * q)
    else:
        z, r = split(jax.nn.sigmoid(gx[:, : 2 * size] + product(h, w_h[:, : 2 * size])), 2)
        q = None
        n = jnp.tanh(gx[:, 2 * size :] + product(r * h, w_h[:, 2 * size :]))
    return before._replace(hidden=(1 - z) * n + z * h), (z, r, n, q)


def _gru_backward(
    cell: GRU, weights: Any, w_t: Array, before: Any, after: Any, gates: Any, d_after: Any
) -> tuple[Any, Array]:
    (z, r, n, q), h, d_h = gates, before.hidden, d_after.hidden
    size = cell.hidden
    d_an = d_h * (1 - z) * (1 - n * n)
    d_az = d_h * (h - n) * z * (1 - z)
    if cell.reset == "after":
        d_ar = d_an * q * r * (1 - r)
        d_recurrent = jnp.concatenate([d_az, d_ar, d_an * r], axis=-1)
        d_before = d_h * z + product(d_recurrent, w_t)
    else:
        d_rh = product(d_an, w_t[2 * size :])
        d_ar = d_rh * h * r * (1 - r)
        d_azr = jnp.concatenate([d_az, d_ar], axis=-1)
        d_before = d_h * z + d_rh * r + product(d_azr, w_t[: 2 * size])
    return before._replace(hidden=d_before), jnp.concatenate([d_az, d_ar, d_an], axis=-1)


def _gru_weights(cell: GRU, weights: Any, before: Any, after: Any, gates: Any, d_gx: Array) -> Any:
    (_, r, _, _), h, size = gates, before.hidden, cell.hidden
    d_gx = d_gx.astype(h.dtype)
    d_zr, d_n = d_gx[..., : 2 * size], d_gx[..., 2 * size :]
    if cell.reset == "after":
        d_q = d_n * r
        d_b_h = d_q.sum((0, 1)).astype(weights.b_h.dtype)
        d_w_h = _outer(h, jnp.concatenate([d_zr, d_q], axis=-1), weights.w_h)
        return weights._replace(w_h=d_w_h, b_h=d_b_h)
    d_w_zr, d_w_n = _outer(h, d_zr, weights.w_h), _outer(r * h, d_n, weights.w_h)
    return weights._replace(w_h=jnp.concatenate([d_w_zr, d_w_n], axis=1))


_RULES = {
    RNN: _Rules(_rnn_forward, _rnn_backward, _rnn_weights),
    LSTM: _Rules(_lstm_forward, _lstm_backward, _lstm_weights),
    GRU: _Rules(_gru_forward, _gru_backward, _gru_weights),
}
