"""Stacked layers against PyTorch's modules of several layers, run live in float64."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gru, lstm, rnn
from jaxrnn.interop.torch import from_torch, gradients_from_torch
from jaxrnn.layers import stacked
from tests.support.oracle import TOLERANCES, assert_close

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not importlib.util.find_spec("torch"), reason="no torch: pip install jaxrnn[peers]"
    ),
]

STEPS, BATCH, INPUTS, HIDDEN, LAYERS = 6, 3, 5, 4, 2
LENGTHS = [STEPS, 1, 4]
CELLS = {"RNN": rnn(HIDDEN), "LSTM": lstm(HIDDEN), "GRU": gru(HIDDEN, reset="after")}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients(name: str, both: bool, batch_first: bool, lengths: Any) -> None:
    """With all weights, inputs and initial states random and the same on both sides."""
    import torch
    from torch.nn.utils import rnn as packing

    cell = CELLS[name]
    net = stacked(cell, INPUTS, layers=LAYERS, bidirectional=both, batch_first=batch_first)
    torch.manual_seed(0)
    module = getattr(torch.nn, name)(
        INPUTS, HIDDEN, LAYERS, bidirectional=both, batch_first=batch_first
    ).double()
    shape = (BATCH, STEPS, INPUTS) if batch_first else (STEPS, BATCH, INPUTS)
    xs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    arrays = 2 if name == "LSTM" else 1
    size = net.pseudo_layers, BATCH, HIDDEN
    states = [torch.randn(size, dtype=torch.float64, requires_grad=True) for _ in range(arrays)]
    first = tuple(states) if name == "LSTM" else states[0]
    if lengths is None:
        ys, final = module(xs, first)
    else:
        packed = packing.pack_padded_sequence(xs, lengths, batch_first, enforce_sorted=False)
        packed_ys, final = module(packed, first)
        ys, _ = packing.pad_packed_sequence(packed_ys, batch_first)
    finals = final if name == "LSTM" else (final,)
    ((ys**3).sum() + sum((s**2).sum() for s in finals)).backward()

    weights = from_torch(net, module.state_dict())
    slopes = {name: p.grad for name, p in module.named_parameters()}
    d_weights = gradients_from_torch(net, slopes)
    kind = type(cell.initial_state(1))

    def as_states(tensors: Any) -> tuple[Any, ...]:
        return tuple(kind(*(np.asarray(t[n]) for t in tensors)) for n in range(len(tensors[0])))

    with jax.enable_x64(True):

        @jax.jit
        def run(weights: Any, xs: Any, state: Any) -> Any:
            def loss(weights: Any, xs: Any, state: Any) -> Any:
                final, ys = net.apply(weights, xs, state, lengths=lengths)
                return (ys**3).sum() + sum((s**2).sum() for s in jax.tree.leaves(final)), (
                    final,
                    ys,
                )

            return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(weights, xs, state)

        given = weights, xs.detach().numpy(), as_states([s.detach().numpy() for s in states])
        (_, got), gradients = run(*jax.tree.map(jnp.asarray, given))
    want = as_states([s.detach().numpy() for s in finals]), ys.detach().numpy()
    assert_close(got, want, TOLERANCES["torch"])
    wanted = d_weights, xs.grad.numpy(), as_states([s.grad.numpy() for s in states])
    assert_close(gradients, wanted, 10 * TOLERANCES["torch"])
