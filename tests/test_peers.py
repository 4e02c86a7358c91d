"""jaxrnn against PyTorch and Keras, run live in float64: values and gradients.

`golden/make.py` runs the peers. It also wrote the results that `recurrence/test_cells.py` checks without
them. Neither peer has peepholes.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxrnn.interop.torch import from_torch, gradients_from_torch
from jaxrnn.layers import stacked
from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.kernels.cudnn import stack
from tests.golden import make
from tests.support import cudnn as host
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import CELLS, IMPLEMENTATIONS, library, problem

missing = [name for name in ("keras", "torch") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        bool(missing), reason=f"no {' and no '.join(missing)}: pip install jaxrnn[peers]"
    ),
]


@pytest.mark.parametrize("name", make.CASES)
def test_values_and_gradients_are_the_peers(name: str) -> None:
    """With all weights, biases, inputs and initial states random and the same on both sides."""
    case = make.CASES[name]
    given = problem(case.cell, steps=7, batch=3, features=5, seed=1)
    want = make.answer(case, given)
    with jax.enable_x64(True):
        for implementation in IMPLEMENTATIONS:
            got = library(case.cell, given.cast("float64"), implementation=implementation)
            assert_close(got, want, TOLERANCES[case.peer])


@pytest.mark.parametrize("name", make.CASES)
def test_golden_files_are_what_the_peers_compute_today(name: str) -> None:
    case, (given, stored) = make.CASES[name], make.load(name)
    assert_close(make.answer(case, given), stored, TOLERANCES[case.peer])


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("name", ["rnn-tanh", "rnn-relu", "lstm", "gru-after"])
def test_layers_by_cudnn_agree_with_pytorch(name: str, both: bool) -> None:
    """Compare two layers of a PyTorch module on a CPU with the cuDNN kernel and its stand-in."""
    import torch

    cell, steps, batch, features, layers = CELLS[name], 5, 3, 4, 2
    kind = {RNN: torch.nn.RNN, LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}[type(cell)]
    options = {"nonlinearity": cell.activation} if isinstance(cell, RNN) else {}
    torch.manual_seed(0)
    module = kind(features, cell.hidden_size, layers, bidirectional=both, **options).double()
    arrays = 2 if isinstance(cell, LSTM) else 1
    shape = (layers * (2 if both else 1), batch, cell.hidden_size)
    xs = torch.randn(steps, batch, features, dtype=torch.float64, requires_grad=True)
    first = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(arrays)]
    ys, last = module(xs, tuple(first) if arrays == 2 else first[0])
    final = list(last) if arrays == 2 else [last]
    sum((result**3).sum() for result in (ys, *final)).backward()

    net = stacked(cell, features, layers=layers, bidirectional=both)
    params = list(from_torch(net, module.state_dict()).cells)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    slopes = list(gradients_from_torch(net, gradients).cells)
    with jax.enable_x64(True), host.use_stand_in():
        state = type(cell.initial_state(1))
        rows = zip(*(a.detach().numpy() for a in first), strict=True)
        states = [state(*map(jnp.asarray, s)) for s in rows]

        def loss(params: Any, xs: Any, states: Any) -> Any:
            finals, ys = stack.run_pseudo_layers(
                cell, params, xs, states, both_directions=both, platform="cpu"
            )
            return sum((leaf**3).sum() for leaf in jax.tree.leaves((finals, ys))), (finals, ys)

        run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        given = jax.tree.map(jnp.asarray, (params, xs.detach().numpy(), tuple(states)))
        (_, (finals, outputs)), (d_params, d_xs, d_states) = run(*given)
    assert_close(outputs, ys.detach().numpy(), TOLERANCES["torch"])
    for n, (got, d_got) in enumerate(zip(finals, d_states, strict=True)):
        assert_close(got, tuple(s[n].detach().numpy() for s in final), TOLERANCES["torch"])
        assert_close(d_got, tuple(s.grad[n].numpy() for s in first), TOLERANCES["torch"])
    assert_close(d_xs, xs.grad.numpy(), TOLERANCES["torch"])
    assert_close(d_params, slopes, TOLERANCES["torch"])
