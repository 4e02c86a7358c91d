"""The cells of `recurrence.variants` against their equations in numpy, flax and PyTorch."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxrnn import lstm, network, record, unroll
from jaxrnn.recurrence.cells import is_builtin
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
from tests.support.oracle import TOLERANCES, assert_close, unchecked
from tests.support.problems import (
    BATCH,
    FEATURES,
    HIDDEN,
    MASKS,
    STEPS,
    both_ways,
    library,
    on_device,
    problem,
)
from tests.support.variants import CASES, FAST, LINEAR, VARIANTS, expected, trace

OPEN = 1e3  # a bias that holds a gate at exactly 1, and at 0 with the other sign
every_case = pytest.mark.parametrize(("name", "implementation"), CASES)
# Two cells run under every mask, the others with resets and lengths at once.
PRODUCT = [
    (name, implementation, mask)
    for name, implementation in CASES
    for mask in MASKS
    if name in ("layer-norm-lstm", "minlstm") or mask == "both"
]
every_cell = pytest.mark.parametrize("name", VARIANTS)


# --- values and gradients -----------------------------------------------------------------------


def check(
    name: str, implementation: str, dtype: str, *, reverse: bool = False, **masks: Any
) -> None:
    """Compare values and gradients with the equations, on the numbers as rounded to the dtype."""
    cell = VARIANTS[name]
    with jax.enable_x64(dtype == "float64"):
        given = problem(cell, STEPS, BATCH, FEATURES).cast(dtype)
        how: Any = {"reverse": reverse, "implementation": implementation}
        got, gradients = library(cell, given, **on_device(masks), **how)
    want, want_gradients = expected(cell, given.exact(), reverse=reverse, **masks)
    assert_close(got, want, TOLERANCES[dtype])
    assert_close(gradients, want_gradients, max(TOLERANCES[dtype], TOLERANCES["differences"]))
    dtypes = [jax.tree.map(lambda a: a.dtype, tree) for tree in (gradients, given.inputs)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("name", FAST)
def test_values_and_gradients_are_those_of_the_equations(name: str) -> None:
    check(name, "scan", "float64", **MASKS["both"])


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize(("name", "implementation", "mask"), PRODUCT)
def test_values_and_gradients_with_masks_in_both_directions(
    name: str, implementation: str, mask: str, reverse: bool
) -> None:
    check(name, implementation, "float64", reverse=reverse, **MASKS[mask])


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@every_case
def test_narrow_dtypes(name: str, implementation: str, dtype: str) -> None:
    check(name, implementation, dtype, **MASKS["both"])


@pytest.mark.first_case
@every_cell
def test_recorded_values_are_those_of_the_equations(name: str) -> None:
    """All that `activations` names, zeros in the padding."""
    cell = VARIANTS[name]
    given = problem(cell, STEPS, BATCH, FEATURES).cast("float32")
    want, inside = trace(cell, *given.exact().inputs, **MASKS["both"])
    state, ys, recorded = record(cell, *given.inputs, names=list(inside), **MASKS["both"])
    assert_close((state, ys), (want, inside["hidden"]), TOLERANCES["float32"])
    assert_close(recorded, inside, TOLERANCES["float32"])


@pytest.mark.first_case
@every_cell
def test_a_network_forecasts_with_its_own_outputs(name: str) -> None:
    cell = VARIANTS[name]
    given = problem(cell, STEPS, BATCH, FEATURES).cast("float32")
    net = network(cell, FEATURES, FEATURES)
    params = net.init(jax.random.key(0))._replace(cell=given.params)
    got = net.forecast(params, given.xs, 4, given.state)
    # The known part, to which each forecast is appended.
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, given.xs, given.state))
    (cell_params, w_out, b_out), known, state = exact
    for _ in range(4):
        _, inside = trace(cell, cell_params, known, state)
        known = np.concatenate([known, inside["hidden"][-1:] @ w_out + b_out])
    assert_close(got, known[STEPS:], TOLERANCES["float32"])


@pytest.mark.slow
@every_cell
def test_one_row_without_a_batch_axis(name: str) -> None:
    """The projection, the state [H] and all that the step computes are the row of the batch."""
    cell = VARIANTS[name]
    params, xs, state = problem(cell).cast("float32").inputs
    gx = cell.project(params, xs)
    now = cell.step(params, state, gx[0]), cell.activations(params, state, gx[0])
    want = jax.tree.map(lambda a: a[1], (gx[0], now))
    one = jax.tree.map(lambda s: s[1], state)
    with unchecked():  # the annotations say [B, H]
        gx = cell.project(params, xs[0, 1])
        now = cell.step(params, one, gx), cell.activations(params, one, gx)
    assert_close((gx, now), want, TOLERANCES["float32"])


# --- what single cells promise ------------------------------------------------------------------


@pytest.mark.first_case
@pytest.mark.parametrize("name", LINEAR)
def test_coefficients_are_those_of_the_step(name: str) -> None:
    """a * h + b with a and b of all steps at once, from the projection [T, B, G]."""
    cell = VARIANTS[name]
    params, xs, state = problem(cell).cast("float32").inputs
    gx = cell.project(params, xs)
    a, b = cell.coefficients(params, gx)
    for t in range(len(xs)):
        want, _ = cell.step(params, state, gx[t])
        assert_close(a[t] * state.hidden + b[t], want.hidden, TOLERANCES["float32"])
        state = want


def test_gates_of_minlstm_share_one_even_where_both_are_shut() -> None:
    """With both gates at sigmoid(-1000) = 0, f = i = 1/2 and no gradient is NaN."""
    cell = VARIANTS["minlstm"]
    given = problem(cell)
    given.params.w_x[:, : 2 * HIDDEN] = 0
    given.params.b[: 2 * HIDDEN] = -OPEN
    given = given.cast("float32")
    gx = cell.project(given.params, given.xs[0])
    now = cell.activations(given.params, given.state, gx)
    assert (now["f"] == 0.5).all() and (now["i"] == 0.5).all()
    slopes = jax.grad(lambda gx: sum(map(jnp.sum, cell.coefficients(given.params, gx))))(gx)
    assert np.isfinite(slopes).all()


def test_positive_candidates_keep_the_state_positive() -> None:
    for make in (mingru, minlstm):
        given = problem(make(HIDDEN)).cast("float32")
        _, ys = unroll(
            make(HIDDEN, candidate="positive"), given.params, given.xs, implementation="scan"
        )
        assert (ys > 0).all()


def test_coupled_gates_hold_the_cell_or_replace_it() -> None:
    """With f = 1 the cell is kept bit for bit; with f = 0 nothing of it is left."""
    cell = VARIANTS["coupled-lstm"]
    for bias in (OPEN, -OPEN):
        given = problem(cell)
        given.params.b[:HIDDEN] = bias
        params, xs, state = given.cast("float32").inputs
        other = state._replace(cell=-state.cell)
        (final, _), (final_other, _) = (
            unroll(cell, params, xs, s, implementation="scan") for s in (state, other)
        )
        if bias == OPEN:
            assert_close((final.cell, final_other.cell), (state.cell, -state.cell), 0)
        else:
            assert_close(final, final_other, 0)


def test_units_of_an_indrnn_do_not_see_each_other() -> None:
    """The Jacobian of the last state in the first one is diagonal, u^T for a chain without kinks."""
    cell = indrnn(HIDDEN)
    given = problem(cell, batch=1)
    given.params.u[:] = [-0.9, -0.3, 0.4, 1.1]
    given.params.b[:] = 100  # no unit is at zero
    params, xs, state = given.cast("float32").inputs

    def last(hidden: Any) -> Any:
        return unroll(cell, params, xs, type(state)(hidden), implementation="scan")[1][-1, 0]

    jacobian = jax.jacrev(last)(state.hidden)[:, 0]
    want = np.diag(given.exact().params.u ** len(xs))
    assert_close(jacobian, want, TOLERANCES["float32"])


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["layer-norm-lstm", "layer-norm-gru"])
def test_layer_norm_hides_the_scale_of_the_weights(name: str) -> None:
    """Weights 1000 times as large give the same outputs, as far as epsilon does not count."""
    cell = VARIANTS[name]
    given = problem(cell)
    large = given.params._replace(w_x=1e3 * given.params.w_x, w_h=1e3 * given.params.w_h)
    larger = large._replace(w_x=1e3 * large.w_x, w_h=1e3 * large.w_h)
    with jax.enable_x64(True):
        one, other = (
            unroll(cell, *given._replace(params=p).cast("float64").inputs, implementation="scan")
            for p in (large, larger)
        )
    assert_close(one, other, 1e-9)


@pytest.mark.slow
def test_projection_by_the_identity_is_an_lstm() -> None:
    cell = projected_lstm(HIDDEN, HIDDEN)
    given = problem(lstm(HIDDEN)).cast("float32")
    w_x, w_h, b, _ = given.params
    params = cell.init(jax.random.key(0), FEATURES)
    params = type(params)(w_x, w_h, b, jnp.eye(HIDDEN))
    state = type(cell.initial_state(1))(*given.state)
    got = unroll(cell, params, given.xs, state, implementation="scan")
    want = unroll(lstm(HIDDEN), *given.inputs, implementation="scan")
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
def test_a_mogrifier_without_rounds_is_an_lstm() -> None:
    """Values and gradients; with rounds that multiply by 2 sigmoid(0) = 1, too."""
    given = problem(lstm(HIDDEN)).cast("float32")
    want = library(lstm(HIDDEN), given, implementation="scan")
    for rounds in (0, 5):
        cell = mogrifier_lstm(HIDDEN, rounds=rounds, rank=2)
        zeros = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), FEATURES))
        w_x, w_h, b, _ = given.params
        own = given._replace(params=zeros._replace(w_x=w_x, w_h=w_h, b=b))
        got, (d_params, *others) = library(cell, own, implementation="scan")
        assert_close((got, (d_params[:3], *others)), want, TOLERANCES["float32"])


@pytest.mark.parametrize("rank", [24, pytest.param(0, marks=pytest.mark.slow)])
def test_modulating_matrices_begin_small_and_different(rank: int) -> None:
    """Entries of Q [H, D] with variance 1 / H, of R [D, H] with variance 1 / D."""
    hidden, features = 256, 128
    params = mogrifier_lstm(hidden, rank=rank).init(jax.random.key(0), features)
    q, r = params.q_left, params.r_left
    if rank:
        q, r = q @ params.q_right, r @ params.r_right
    assert q.shape == (3, hidden, features) and r.shape == (2, features, hidden)
    for matrices in (q, r):
        scaled = matrices.shape[1] * matrices.var((1, 2))
        assert_close(scaled, jnp.ones(len(matrices)), TOLERANCES["variance"])
        assert len({matrix.tobytes() for matrix in np.asarray(matrices)}) == len(matrices)


# --- other libraries ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_minimal_gated_unit_is_linens(seed: int) -> None:
    """Values and gradients of `flax.linen.MGUCell`, with random weights, in float64."""
    cell = mgu(HIDDEN, form="linen")
    given = problem(cell, STEPS, BATCH, FEATURES, seed)
    with jax.enable_x64(True):
        given = given.cast("float64")
        got = library(cell, given, implementation="scan")

        def as_linen(params: Any) -> Any:
            """Return the parameters, or their gradients, in linen's layout."""
            (in_f, in_n), (out_f, out_n), (b_f, b_n) = (
                jnp.split(w, 2, axis=-1) for w in params[:3]
            )
            return {
                "if": {"kernel": in_f, "bias": b_f},
                "in": {"kernel": in_n, "bias": b_n},
                "hf": {"kernel": out_f},
                "hn": {"kernel": out_n, "bias": params.b_h},
            }

        layer = linen.RNN(linen.MGUCell(HIDDEN, param_dtype=jnp.float64), time_major=True)

        def loss(params: Any, xs: Any, hidden: Any) -> Any:
            final, ys = layer.apply(
                {"params": {"cell": params}}, xs, initial_carry=hidden, return_carry=True
            )
            (w_final,), w_ys = given.weights
            return (w_final * final).sum() + (w_ys * ys).sum(), (final, ys)

        # linen's dense layers add a bias of rank 1.
        with jax.numpy_rank_promotion("allow"):
            (_, want), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
                as_linen(given.params), given.xs, given.state.hidden
            )
    results, (d_params, d_xs, d_state) = got
    assert_close(results, want, TOLERANCES["float64"])
    assert_close((as_linen(d_params), d_xs, d_state), gradients, TOLERANCES["float64"])


@pytest.mark.peers
@pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="no torch: pip install jaxrnn[peers]"
)
@pytest.mark.parametrize(("hidden", "memory"), [(2, 5), (4, 7)])
def test_projected_lstm_is_pytorchs(hidden: int, memory: int) -> None:
    """Values and gradients of `nn.LSTM(proj_size=)`, with random weights, in float64."""
    import torch

    cell = projected_lstm(hidden, memory)
    given = problem(cell, STEPS, BATCH, FEATURES)
    with jax.enable_x64(True):
        got = library(cell, given.cast("float64"), implementation="scan")

    module = torch.nn.LSTM(FEATURES, memory, proj_size=hidden).double()
    own = given.params
    theirs = {
        "weight_ih_l0": own.w_x.T,
        "weight_hh_l0": own.w_h.T,
        "weight_hr_l0": own.w_r.T,
        "bias_ih_l0": own.b,
        "bias_hh_l0": np.zeros_like(own.b),
    }
    with torch.no_grad():
        for name, value in theirs.items():
            getattr(module, name).copy_(torch.tensor(value))
    xs, h, c = (torch.tensor(a, requires_grad=True) for a in (given.xs, *given.state))
    ys, final = module(xs, (h[None], c[None]))
    results = (*(s[0] for s in final), ys)
    weights = jax.tree.leaves(given.weights)
    sum((torch.tensor(w) * r).sum() for w, r in zip(weights, results, strict=True)).backward()

    d_weights = {name: getattr(module, name).grad.numpy().T for name in theirs}
    order = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_hr_l0")
    gradients = [d_weights[name] for name in order] + [a.grad.numpy() for a in (xs, h, c)]
    assert_close(got, ([r.detach().numpy() for r in results], gradients), TOLERANCES["torch"])


# --- making a cell ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (mgu, {"hidden_size": 0}, "hidden_size must be at least 1, not 0"),
        (mgu, {"form": "cudnn"}, "form must be one of paper, linen, not 'cudnn'"),
        (mgu, {"forget_bias": "1"}, "forget_bias must be a finite number, not '1'"),
        (coupled_lstm, {"forget_bias": True}, "forget_bias must be a finite number, not True"),
        (indrnn, {"activation": "swish"}, "activation must be one of tanh, relu, sigmoid"),
        (mingru, {"candidate": "tanh"}, "candidate must be one of linear, positive, not 'tanh'"),
        (minlstm, {"candidate": None}, "candidate must be one of linear, positive, not None"),
        (layer_norm_lstm, {"hidden_size": 2.0}, "hidden_size must be a whole number, not 2.0"),
        (layer_norm_gru, {"hidden_size": "4"}, "hidden_size must be a whole number, not '4'"),
        (mogrifier_lstm, {"rounds": -1}, "rounds must be at least 0, not -1"),
        (mogrifier_lstm, {"rank": None}, "rank must be a whole number, not None"),
        (projected_lstm, {"cell_size": 0}, "cell_size must be at least 1, not 0"),
    ],
)
def test_options_are_checked(make: Any, options: dict[str, Any], message: str) -> None:
    sizes = {"cell_size": 7} if make is projected_lstm else {}
    with unchecked(), pytest.raises(ValueError, match=message):
        make(**({"hidden_size": 4} | sizes | options))


@every_cell
def test_input_size_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match="input_size must be at least 1, not 0"):
        VARIANTS[name].init(jax.random.key(0), 0)


def test_parameters_of_another_cell_are_refused() -> None:
    params = mgu(HIDDEN).init(jax.random.key(0), FEATURES)
    xs = jnp.zeros((STEPS, BATCH, FEATURES))
    message = r"params\.b_h must be float32 of shape \(4,\), as .*MGU.* makes it, not None"
    with pytest.raises(ValueError, match=message):
        unroll(mgu(HIDDEN, form="linen"), params, xs)
    other = layer_norm_gru(HIDDEN)
    with unchecked(), pytest.raises(ValueError, match=r"LayerNormGRUParams, .*not MGUParams"):
        other.project(params, xs)
    state, gx = other.initial_state(BATCH), jnp.zeros((BATCH, 3 * HIDDEN))
    with unchecked(), pytest.raises(ValueError, match=r"LayerNormGRUParams, .*not MGUParams"):
        other.step(params, state, gx)


def test_cells_compare_by_value_and_are_not_those_of_the_lecture() -> None:
    assert len(set(VARIANTS.values())) == len(VARIANTS)
    with unchecked():
        of_numpy = mgu(np.int64(4), form="linen")
    assert of_numpy == mgu(4, form="linen") != mgu(4)
    assert hash(projected_lstm(4, 7)) == hash(projected_lstm(4, 7, forget_bias=1.0))
    assert not any(map(is_builtin, VARIANTS.values()))


@pytest.mark.first_case
@every_cell
def test_initial_parameters(name: str) -> None:
    """Biases zero but for the forget gate's, gains one, weights as the docstrings say."""
    cell = VARIANTS[name]
    params = cell.init(jax.random.key(0), FEATURES, jnp.bfloat16)
    assert {leaf.dtype for leaf in params if leaf is not None} == {jnp.dtype(jnp.bfloat16)}
    start = getattr(cell, "forget_bias", 0)
    biases = dict(zip(cell.GATES, np.split(np.asarray(params.b), len(cell.GATES)), strict=True))
    for gate, bias in biases.items():
        assert (bias == (start if gate == "f" else 0)).all()
    for field, value in params._asdict().items():
        if field.startswith("gain"):
            assert (value == 1).all()
        elif field in ("b_h", "b_c") and value is not None:
            assert not value.any()
        elif field == "u":
            assert ((value >= 0) & (value < 1)).all() and len(set(value.tolist())) > 1
        elif field.startswith("w_"):
            width = getattr(cell, "cell_size", HIDDEN) if field != "w_r" else HIDDEN
            blocks = np.split(np.asarray(value), value.shape[1] // width, axis=1)
            assert len({block.tobytes() for block in blocks}) == len(blocks)
    state = cell.initial_state(2)
    assert all(s.dtype == jnp.float32 and s.shape[0] == 2 and not s.any() for s in state)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "make", [mgu, coupled_lstm, layer_norm_lstm, mogrifier_lstm, projected_lstm]
)
def test_forget_bias_is_the_callers(make: Any) -> None:
    sizes = (2, 3) if make is projected_lstm else (2,)
    cell = make(*sizes, forget_bias=-0.5)
    b = cell.init(jax.random.key(0), 3).b.reshape(len(cell.GATES), -1)
    assert (b[cell.GATES.index("f")] == -0.5).all() and (b == 0).sum() == b.size - b.shape[1]
