"""One step of each cell and its derivative, in whichever memory layout the loop runs.

The arithmetic is that of `recurrence.equations`. Here it meets the matrix products of a `Layout`. For
each kind of cell, of one step

    forward(setting, before, gx) -> after, gates
    backward(setting, w_t, step, d_after) -> d_before, d_gx                  w_t = w_h^T

and, of all steps at once,

    gradients(setting, hidden, steps, d_gx) -> d_weights

where `gates` is a tuple of the activated gates, with all the backward pass needs and no more, and
`hidden` is the state before each step as [T, B, H]. The arrays of `steps` have the axes of d_gx in
their order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.cells import is_builtin
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.xla.layouts import Layout
from jaxrnn.shapes import Array

Gates = tuple[Array, ...]


class Setting(NamedTuple):
    """The memory layout, the cell and its recurrent parameters, which all steps share."""

    layout: Layout
    cell: Any
    weights: Any


class Trajectory(NamedTuple):
    """One step, or all: the state before it, the state after it, and its gates."""

    before: Any
    after: Any
    gates: Gates


class Rules(Protocol):
    """The functions of one kind of cell.

    joint: whether all gates come from one product of state and input.
    """

    joint: bool

    @staticmethod
    def forward(setting: Setting, before: Any, gx: Array) -> tuple[Any, Gates]:
        """Return the state after a step, and its gates."""

    @staticmethod
    def backward(setting: Setting, w_t: Array, step: Trajectory, d_after: Any) -> tuple[Any, Array]:
        """Return the derivatives with respect to the state before a step and to gx."""

    @staticmethod
    def gradients(setting: Setting, hidden: Array, steps: Trajectory, d_gx: Array) -> Any:
        """Return the derivative with respect to the recurrent parameters."""


class RNNRules:
    """The plain RNN."""

    joint = True

    @staticmethod
    def forward(setting: Setting, before: Any, gx: Array) -> tuple[Any, Gates]:
        """See `Rules`."""
        layout, cell, weights = setting
        a = gx + layout.times(before.hidden, weights.w_h)
        return before._replace(hidden=equations.rnn(a, cell.activation)), ()

    @staticmethod
    def backward(setting: Setting, w_t: Array, step: Trajectory, d_after: Any) -> tuple[Any, Array]:
        """See `Rules`."""
        activation = setting.cell.activation
        d_gx = equations.rnn_backward(step.after.hidden, d_after.hidden, activation)
        return step.before._replace(hidden=setting.layout.times(d_gx, w_t)), d_gx

    @staticmethod
    def gradients(setting: Setting, hidden: Array, steps: Trajectory, d_gx: Array) -> Any:
        """See `Rules`."""
        return setting.weights._replace(w_h=setting.layout.outer(hidden, d_gx))


class LSTMRules:
    """The LSTM, with or without peepholes."""

    joint = True

    @staticmethod
    def forward(setting: Setting, before: Any, gx: Array) -> tuple[Any, Gates]:
        """See `Rules`."""
        layout, _, weights = setting
        a = jnp.split(gx + layout.times(before.hidden, weights.w_h), 4, axis=layout.axis)
        now = equations.lstm(a, before.cell, _peepholes(setting))
        return before._replace(hidden=now.hidden, cell=now.cell), now.gates

    @staticmethod
    def backward(setting: Setting, w_t: Array, step: Trajectory, d_after: Any) -> tuple[Any, Array]:
        """See `Rules`."""
        layout = setting.layout
        cells = step.before.cell, step.after.cell
        d_gates, d_cell = equations.lstm_backward(
            step.gates, *cells, d_after.hidden, d_after.cell, _peepholes(setting)
        )
        d_gx = layout.join(list(d_gates))
        return step.before._replace(hidden=layout.times(d_gx, w_t), cell=d_cell), d_gx

    @staticmethod
    def gradients(setting: Setting, hidden: Array, steps: Trajectory, d_gx: Array) -> Any:
        """See `Rules`."""
        layout, _, weights = setting
        d_w_c = None
        if weights.w_c is not None:
            before, after = steps.before.cell, steps.after.cell
            d_ai, d_af, _, d_ao = jnp.split(d_gx.astype(after.dtype), 4, axis=layout.axis)
            seen = (before, d_ai), (before, d_af), (after, d_ao)
            d_w_c = jnp.stack([layout.total(c * d) for c, d in seen])
        return weights._replace(w_h=layout.outer(hidden, d_gx), w_c=d_w_c)


def _peepholes(setting: Setting) -> equations.Peepholes:
    if setting.weights.w_c is None:
        return None
    p_i, p_f, p_o = map(setting.layout.vector, setting.weights.w_c)
    return p_i, p_f, p_o


class GRUBeforeRules:
    """The GRU that resets before the candidate's recurrent product."""

    joint = False

    @staticmethod
    def forward(setting: Setting, before: Any, gx: Array) -> tuple[Any, Gates]:
        """See `Rules`."""
        layout, cell, weights = setting
        h = before.hidden
        gx_zr, gx_n = _split_candidate(layout, gx, cell.hidden_size)
        w_zr, w_n = _split_candidate(layout, weights.w_h, cell.hidden_size)
        zr = equations.gru_gate(gx_zr + layout.times(h, w_zr))
        z, r = jnp.split(zr, 2, axis=layout.axis)
        n = equations.gru_candidate_before(gx_n, layout.times(r * h, w_n))
        return before._replace(hidden=equations.gru_hidden(z, n, h)), (z, r, n)

    @staticmethod
    def backward(setting: Setting, w_t: Array, step: Trajectory, d_after: Any) -> tuple[Any, Array]:
        """See `Rules`."""
        layout, cell, _ = setting
        z, r, n = step.gates
        h = step.before.hidden
        d_az, d_an, d_h = equations.gru_hidden_backward(z, n, h, d_after.hidden)
        # The gates of w_t lie along its other axis.
        axis, size = -1 - layout.axis, cell.hidden_size
        d_rh = layout.times(d_an, lax.slice_in_dim(w_t, 2 * size, 3 * size, axis=axis))
        d_ar, d_h_by_reset = equations.gru_reset_backward_before(h, r, d_rh)
        w_zr = lax.slice_in_dim(w_t, 0, 2 * size, axis=axis)
        d_h = d_h + d_h_by_reset + layout.times(layout.join([d_az, d_ar]), w_zr)
        return step.before._replace(hidden=d_h), layout.join([d_az, d_ar, d_an])

    @staticmethod
    def gradients(setting: Setting, hidden: Array, steps: Trajectory, d_gx: Array) -> Any:
        """See `Rules`."""
        layout, cell, weights = setting
        d_zr, d_n = _split_candidate(layout, d_gx, cell.hidden_size)
        d_w_n = layout.outer(layout.rows(steps.gates[1]) * hidden, d_n)
        d_w_h = jnp.concatenate([layout.outer(hidden, d_zr), d_w_n], axis=1)
        return weights._replace(w_h=d_w_h)


class GRUAfterRules:
    """The GRU that resets after the candidate's recurrent product; its fourth gate is q."""

    joint = False

    @staticmethod
    def forward(setting: Setting, before: Any, gx: Array) -> tuple[Any, Gates]:
        """See `Rules`."""
        layout, cell, weights = setting
        h = before.hidden
        gx_zr, gx_n = _split_candidate(layout, gx, cell.hidden_size)
        product_zr, product_n = _split_candidate(
            layout, layout.times(h, weights.w_h), cell.hidden_size
        )
        z, r = jnp.split(equations.gru_gate(gx_zr + product_zr), 2, axis=layout.axis)
        q = product_n + layout.vector(weights.b_h)
        n = equations.gru_candidate_after(gx_n, r, q)
        return before._replace(hidden=equations.gru_hidden(z, n, h)), (z, r, n, q)

    @staticmethod
    def backward(setting: Setting, w_t: Array, step: Trajectory, d_after: Any) -> tuple[Any, Array]:
        """See `Rules`."""
        layout = setting.layout
        z, r, n, q = step.gates
        d_az, d_an, d_h = equations.gru_hidden_backward(z, n, step.before.hidden, d_after.hidden)
        d_ar, d_q = equations.gru_reset_backward_after(q, r, d_an)
        d_h = d_h + layout.times(layout.join([d_az, d_ar, d_q]), w_t)
        return step.before._replace(hidden=d_h), layout.join([d_az, d_ar, d_an])

    @staticmethod
    def gradients(setting: Setting, hidden: Array, steps: Trajectory, d_gx: Array) -> Any:
        """See `Rules`."""
        layout, cell, weights = setting
        r = steps.gates[1]
        d_zr, d_n = _split_candidate(layout, d_gx, cell.hidden_size)
        d_q = d_n.astype(r.dtype) * r
        d_w_n = layout.outer(hidden, d_q.astype(d_gx.dtype))
        d_w_h = jnp.concatenate([layout.outer(hidden, d_zr), d_w_n], axis=1)
        return weights._replace(w_h=d_w_h, b_h=layout.total(d_q))


def _split_candidate(layout: Layout, x: Array, size: int) -> tuple[Array, Array]:
    """Return the gates z and r of x, side by side, and its candidate n."""
    zr = lax.slice_in_dim(x, 0, 2 * size, axis=layout.axis)
    return zr, lax.slice_in_dim(x, 2 * size, 3 * size, axis=layout.axis)


RULES: dict[CellKind, type[Rules]] = {
    CellKind.RNN: RNNRules,
    CellKind.LSTM: LSTMRules,
    CellKind.GRU_BEFORE: GRUBeforeRules,
    CellKind.GRU_AFTER: GRUAfterRules,
}


def unsupported_cell(cell: Any) -> str | None:
    """Return why no kernel with these equations runs a cell, or None for an RNN, LSTM or GRU."""
    if is_builtin(cell):
        return None
    return f"it has the equations of rnn, lstm and gru, not those of {cell!r}; use 'xla'"
