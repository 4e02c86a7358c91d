"""The lecture's equations in plain numpy float64, one row and one step at a time.

What the tests of the cells and of `unroll` share: this oracle, central finite differences of it (so
that its gradients owe nothing to the library or to JAX), the list of cells, the tolerances, random
problems, and one jitted call that gives the library's values and gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jaxtyping
import numpy as np

from jaxrnn.recurrence.cells import GRU, LSTM, RNN

TOLERANCES = {  # largest error of an array, in units of its largest entry
    "float64": 1e-13,
    "float32": 3e-6,
    "bfloat16": 4e-2,
    "float16": 5e-3,
    "differences": 3e-9,  # central differences in float64
    "torch": 1e-13,  # in float64
    "keras": 3e-6,  # its matrix product rounds float64 to float32
    "orthogonal": 1e-5,  # Q^T Q = I in float32
    "variance": 0.1,  # of a few thousand uniform numbers
}


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Two trees of arrays agree leaf by leaf, to `tolerance` times the leaf's largest entry."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g).astype(np.float64), np.asarray(w).astype(np.float64)
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max(initial=0))


@contextmanager
def unchecked() -> Iterator[None]:
    """Do not check annotations in this block, so that the library's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# --- the equations ------------------------------------------------------------------------------


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def gates(names: str, params: Any) -> list[dict[str, np.ndarray]]:
    """W_x, W_h and b cut into the gates' blocks, by name."""
    cut = [np.split(a, len(names), axis=-1) for a in (params.w_x, params.w_h, params.b)]
    return [dict(zip(names, blocks, strict=True)) for blocks in cut]


def rnn_step(cell: Any, params: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Lecture row 1."""
    activation = {"tanh": np.tanh, "relu": relu, "sigmoid": sigmoid}[cell.activation]
    return {"hidden": activation(x @ params.w_x + state[0] @ params.w_h + params.b)}


def lstm_step(cell: Any, params: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Lecture row 6; the output gate sees the new cell."""
    (w, u, b), (h, c) = gates("ifgo", params), state
    p_i, p_f, p_o = params.w_c if cell.peephole else np.zeros((3, cell.hidden_size))
    i = sigmoid(x @ w["i"] + h @ u["i"] + p_i * c + b["i"])
    f = sigmoid(x @ w["f"] + h @ u["f"] + p_f * c + b["f"])
    g = np.tanh(x @ w["g"] + h @ u["g"] + b["g"])
    c = f * c + i * g
    o = sigmoid(x @ w["o"] + h @ u["o"] + p_o * c + b["o"])
    return {"hidden": o * np.tanh(c), "cell": c, "i": i, "f": f, "g": g, "o": o}


def gru_step(cell: Any, params: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Lecture row 7 with the reset before the product, and cuDNN's with the reset after it."""
    (w, u, b), (s,) = gates("zrn", params), state
    z = sigmoid(x @ w["z"] + s @ u["z"] + b["z"])
    r = sigmoid(x @ w["r"] + s @ u["r"] + b["r"])
    if cell.reset == "before":
        n = np.tanh(x @ w["n"] + (s * r) @ u["n"] + b["n"])
    else:
        n = np.tanh(x @ w["n"] + r * (s @ u["n"] + params.b_h) + b["n"])
    return {"hidden": (1 - z) * n + z * s, "z": z, "r": r, "n": n}


STEPS = {RNN: rnn_step, LSTM: lstm_step, GRU: gru_step}  # the state is what comes first


def trace(
    cell: Any,
    params: Any,
    xs: np.ndarray,
    state: Any,
    resets: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Row by row and step by step: the final state, and by name all that was computed, [T, B, H]."""
    step = STEPS[type(cell)]
    total, batch, _ = xs.shape
    inside: dict[str, np.ndarray] = {}
    final = jax.tree.map(np.copy, state)
    for b in range(batch):
        now = tuple(s[b] for s in state)
        steps = range(total if lengths is None else lengths[b])
        for t in reversed(steps) if reverse else steps:
            if resets is not None and resets[t, b]:
                now = tuple(np.zeros_like(s) for s in now)
            computed = step(cell, params, now, xs[t, b])
            now = tuple(computed.values())[: len(now)]
            for name, values in computed.items():
                inside.setdefault(name, np.zeros((total, batch, cell.hidden_size)))[t, b] = values
        for rows, s in zip(final, now, strict=True):
            rows[b] = s
    return final, inside


def reference(
    cell: Any, params: Any, xs: np.ndarray, state: Any, **masks: Any
) -> tuple[Any, np.ndarray]:
    """Return the final state and ys [T, B, H], as `unroll` does."""
    final, inside = trace(cell, params, xs, state, **masks)
    return final, inside.get("hidden", np.zeros((*xs.shape[:2], cell.hidden_size)))


def differences(function: Callable[[Any], float], tree: Any, epsilon: float = 1e-5) -> Any:
    """The gradient of a number with respect to every entry of a tree, by central differences."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [leaf.copy() for leaf in leaves]
    result = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, result, strict=True):
        for at in np.ndindex(leaf.shape):
            here = leaf[at]
            leaf[at] = here + epsilon
            above = function(jax.tree.unflatten(structure, leaves))
            leaf[at] = here - epsilon
            below = function(jax.tree.unflatten(structure, leaves))
            leaf[at] = here
            slope[at] = (above - below) / (2 * epsilon)
    return jax.tree.unflatten(structure, result)
