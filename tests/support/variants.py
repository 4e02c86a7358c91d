"""The equations of the cells of `recurrence.variants` in plain numpy float64, and problems for them.

Each step takes and returns whole rows [B, ...]. What it returns by name begins with the state.
"""

from typing import Any

import jax
import numpy as np

from jaxrnn.recurrence.cells import lstm
from jaxrnn.recurrence.variants import (
    coupled_lstm,
    indrnn,
    layer_norm_gru,
    layer_norm_lstm,
    mgu,
    mingru,
    minlstm,
    mogrifier_lstm,
    projected_lstm,
)
from jaxrnn.recurrence.variants.coupled_gates import CoupledLSTM
from jaxrnn.recurrence.variants.independent import IndRNN
from jaxrnn.recurrence.variants.layer_norm import LayerNormGRU, LayerNormLSTM
from jaxrnn.recurrence.variants.linear import MinGRU, MinLSTM
from jaxrnn.recurrence.variants.minimal_gated import MGU
from jaxrnn.recurrence.variants.mogrifier import MogrifierLSTM
from jaxrnn.recurrence.variants.projection import ProjectedLSTM
from tests.support.oracle import differences, gates, lstm_step, relu, sigmoid
from tests.support.problems import HIDDEN, Problem

VARIANTS = {
    "mgu": mgu(HIDDEN),
    "mgu-linen": mgu(HIDDEN, form="linen"),
    "coupled-lstm": coupled_lstm(HIDDEN),
    "indrnn": indrnn(HIDDEN),
    "indrnn-tanh": indrnn(HIDDEN, activation="tanh"),
    "mingru": mingru(HIDDEN),
    "mingru-positive": mingru(HIDDEN, candidate="positive"),
    "minlstm": minlstm(HIDDEN),
    "minlstm-positive": minlstm(HIDDEN, candidate="positive"),
    "layer-norm-lstm": layer_norm_lstm(HIDDEN),
    "layer-norm-gru": layer_norm_gru(HIDDEN),
    "mogrifier-lstm": mogrifier_lstm(HIDDEN, rank=2),
    "mogrifier-lstm-whole": mogrifier_lstm(HIDDEN, rounds=2, rank=0),
    "projected-lstm": projected_lstm(HIDDEN, 7),
}
# One of each cell, for the fast tests.
FAST = [name for name in VARIANTS if not name.endswith(("linen", "tanh", "positive", "whole"))]
LINEAR = [name for name in VARIANTS if name.startswith("min")]
# The implementations that run every cell, and those that run the cells with `coefficients` only.
IMPLEMENTATIONS = ["scan", "xla"]
LINEAR_IMPLEMENTATIONS = ["associative"]
CASES = [(name, implementation) for name in VARIANTS for implementation in IMPLEMENTATIONS]
CASES += [(name, implementation) for name in LINEAR for implementation in LINEAR_IMPLEMENTATIONS]


def mgu_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    (w, u, b), (h,) = gates("fn", p), state
    f = sigmoid(x @ w["f"] + h @ u["f"] + b["f"])
    if cell.form == "paper":
        n = np.tanh(x @ w["n"] + (f * h) @ u["n"] + b["n"])
        return {"hidden": h + f * (n - h), "f": f, "n": n}
    n = np.tanh(x @ w["n"] + f * (h @ u["n"] + p.b_h) + b["n"])
    return {"hidden": n + f * (h - n), "f": f, "n": n}


def coupled_lstm_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    (w, u, b), (h, c) = gates("fgo", p), state
    f = sigmoid(x @ w["f"] + h @ u["f"] + b["f"])
    g = np.tanh(x @ w["g"] + h @ u["g"] + b["g"])
    o = sigmoid(x @ w["o"] + h @ u["o"] + b["o"])
    c = g + f * (c - g)
    return {"hidden": o * np.tanh(c), "cell": c, "f": f, "g": g, "o": o}


def indrnn_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    activation = {"tanh": np.tanh, "relu": relu, "sigmoid": sigmoid}[cell.activation]
    return {"hidden": activation(x @ p.w_x + state[0] @ np.diag(p.u) + p.b)}


def candidate(cell: Any, a: np.ndarray) -> np.ndarray:
    return a if cell.candidate == "linear" else np.where(a < 0, sigmoid(a), a + 0.5)


def mingru_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    a_z, a_n = np.split(x @ p.w_x + p.b, 2, axis=-1)
    z, n = sigmoid(a_z), candidate(cell, a_n)
    return {"hidden": (1 - z) * state[0] + z * n, "z": z, "n": n}


def minlstm_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    a_f, a_i, a_n = np.split(x @ p.w_x + p.b, 3, axis=-1)
    both = sigmoid(a_f) + sigmoid(a_i)
    f, i, n = sigmoid(a_f) / both, sigmoid(a_i) / both, candidate(cell, a_n)
    return {"hidden": f * state[0] + i * n, "f": f, "i": i, "n": n}


def norm(a: np.ndarray) -> np.ndarray:
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)


def layer_norm_lstm_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    h, c = state
    a = norm(x @ p.w_x) * p.gain_x + norm(h @ p.w_h) * p.gain_h + p.b
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=-1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * c + i * g
    hidden = o * np.tanh(norm(c) * p.gain_c + p.b_c)
    return {"hidden": hidden, "cell": c, "i": i, "f": f, "g": g, "o": o}


def layer_norm_gru_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    (h,) = state
    zr, last = np.s_[..., : 2 * cell.hidden_size], np.s_[..., 2 * cell.hidden_size :]
    a = norm(x @ p.w_x[zr]) * p.gain_x[zr] + norm(h @ p.w_h[zr]) * p.gain_h[zr] + p.b[zr]
    z, r = np.split(sigmoid(a), 2, axis=-1)
    q = norm(h @ p.w_h[last]) * p.gain_h[last] + p.b_h
    n = np.tanh(norm(x @ p.w_x[last]) * p.gain_x[last] + p.b[last] + r * q)
    return {"hidden": (1 - z) * n + z * h, "z": z, "r": r, "n": n}


def mogrifier_lstm_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    h, c = state
    factors = (p.q_left, p.q_right), (p.r_left, p.r_right)
    q, r = (left @ right if cell.rank else left for left, right in factors)
    for number in range(1, cell.rounds + 1):
        if number % 2:
            x = 2 * sigmoid(h @ q[number // 2]) * x
        else:
            h = 2 * sigmoid(x @ r[number // 2 - 1]) * h
    return lstm_step(lstm(cell.hidden_size), p, (h, c), x)


def projected_lstm_step(cell: Any, p: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    h, c = state
    a_i, a_f, a_g, a_o = np.split(x @ p.w_x + h @ p.w_h + p.b, 4, axis=-1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * c + i * g
    return {"hidden": (o * np.tanh(c)) @ p.w_r, "cell": c, "i": i, "f": f, "g": g, "o": o}


STEPS = {
    MGU: mgu_step,
    CoupledLSTM: coupled_lstm_step,
    IndRNN: indrnn_step,
    MinGRU: mingru_step,
    MinLSTM: minlstm_step,
    LayerNormLSTM: layer_norm_lstm_step,
    LayerNormGRU: layer_norm_gru_step,
    MogrifierLSTM: mogrifier_lstm_step,
    ProjectedLSTM: projected_lstm_step,
}


def trace(
    cell: Any,
    params: Any,
    xs: np.ndarray,
    state: Any,
    resets: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the final state, and by name all that was computed, [T, B, ...]."""
    step, (total, batch, _) = STEPS[type(cell)], xs.shape
    active = np.arange(total)[:, None] < (np.full(batch, total) if lengths is None else lengths)
    fresh = active & (False if resets is None else resets)
    inside: dict[str, np.ndarray] = {}
    for t in reversed(range(total)) if reverse else range(total):
        state = jax.tree.map(lambda s, t=t: np.where(fresh[t, :, None], 0, s), state)
        computed = step(cell, params, state, xs[t])
        for name, values in computed.items():
            inside.setdefault(name, np.zeros((total, *values.shape)))[t] = np.where(
                active[t, :, None], values, 0
            )
        state = type(state)(
            *(
                np.where(active[t, :, None], after, before)
                for after, before in zip(computed.values(), state, strict=False)
            )
        )
    return state, inside


def expected(cell: Any, given: Problem, **masks: Any) -> tuple[Any, Any]:
    """Return what `problems.library` should return, from the equations and their differences."""

    def results(inputs: Any) -> tuple[Any, np.ndarray]:
        final, inside = trace(cell, *inputs, **masks)
        return final, inside["hidden"]

    def loss(inputs: Any) -> float:
        pairs = zip(*map(jax.tree.leaves, (given.weights, results(inputs))), strict=True)
        return sum(float((w * r).sum()) for w, r in pairs)

    return results(given.inputs), differences(loss, given.inputs)
