"""Test ONNX graphs: array layouts against ONNX's equations, and results in onnxruntime."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop import onnx_graph
from jaxrnn.interop.onnx import to_onnx, unsupported_reason
from jaxrnn.layers import Stacked
from tests.support.onnx_runtime import Session, following, names, states
from tests.support.oracle import TOLERANCES, assert_close, reference, sigmoid
from tests.support.problems import CELLS

RUNTIME = 1e-5  # largest error in float32, in units of an array's largest entry
F = {"Tanh": np.tanh, "Relu": lambda a: np.maximum(a, 0), "Sigmoid": sigmoid}


def drawn(net: Any, seed: int) -> Any:
    """Random parameters of a network or stack, float32, biases and peepholes included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    return jax.tree.map(lambda a: (0.5 * rng.standard_normal(a.shape)).astype(a.dtype), shapes)


def random_inputs(net: Any, seed: int, batch_first: bool = False) -> tuple[Any, Any]:
    """Inputs of a random length and batch, and random states of every pseudo-layer."""
    rng = np.random.default_rng(seed)
    steps, batch = rng.integers(2, 9, 2)
    shape = (batch, steps) if batch_first else (steps, batch)
    xs = rng.standard_normal((*shape, net.inputs)).astype(np.float32)
    count = getattr(net, "pseudo_layers", 1)
    zeros = tuple(net.cell.initial_state(int(batch)) for _ in range(count))
    state = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), zeros)
    return xs, state


# --- layouts, without onnx ----------------------------------------------------------------------


def operator_layer(kind: str, attributes: Any, arrays: Any, xs: Any, initial: Any) -> Any:
    """Compute one direction of an operator as ONNX documents it; return ys and the final states."""
    w, r, b = (np.float64(arrays[name][0]) for name in "WRB")
    size = attributes["hidden_size"]
    gates = len(w) // size
    w, r = w.reshape(gates, size, -1), r.reshape(gates, size, size)
    w_b, r_b = b.reshape(2, gates, size)
    h, *rest = (np.float64(s) for s in initial)
    ys = []
    for x in xs:
        a = [x @ w[k].T + h @ r[k].T + w_b[k] + r_b[k] for k in range(gates)]
        if kind == "LSTM":
            p_i, p_o, p_f = np.float64(arrays.get("P", np.zeros((1, 3 * size)))).reshape(3, size)
            (c,) = rest
            i, f = sigmoid(a[0] + p_i * c), sigmoid(a[2] + p_f * c)
            c = f * c + i * np.tanh(a[3])
            h, rest = sigmoid(a[1] + p_o * c) * np.tanh(c), [c]
        elif kind == "GRU":
            z, reset = sigmoid(a[0]), sigmoid(a[1])
            if attributes["linear_before_reset"]:
                n = np.tanh(x @ w[2].T + reset * (h @ r[2].T + r_b[2]) + w_b[2])
            else:
                n = np.tanh(x @ w[2].T + (reset * h) @ r[2].T + r_b[2] + w_b[2])
            h = (1 - z) * n + z * h
        else:
            h = F[attributes["activations"][0]](a[0])
        ys.append(h)
    return np.stack(ys), (h, *rest)


@pytest.mark.parametrize("name", CELLS)
def test_the_arrays_are_in_the_documented_order(name: str) -> None:
    cell = CELLS[name]
    net = jaxrnn.layers.stacked(cell, 3)
    layer = drawn(net, 0).cells[0]
    xs, (state,) = random_inputs(net, 1)
    kind, attributes = onnx_graph.operator(cell, 1)
    arrays = onnx_graph.operator_arrays(cell, [layer])
    ys, finals = operator_layer(kind, attributes, arrays, np.float64(xs), state)
    wide = jax.tree.map(np.float64, (layer, xs, state))
    want_state, want = reference(cell, *wide)
    assert_close((ys, finals), (want, tuple(want_state)), TOLERANCES["float64"])


def test_both_directions_lie_side_by_side() -> None:
    cell = CELLS["lstm-peephole"]
    forward, backward = drawn(jaxrnn.layers.stacked(cell, 3, bidirectional=True), 0).cells
    both = onnx_graph.operator_arrays(cell, [forward, backward])
    assert {name: array.shape for name, array in both.items()} == {
        "W": (2, 16, 3),
        "R": (2, 16, 4),
        "B": (2, 32),
        "P": (2, 12),
    }
    for number, layer in enumerate((forward, backward)):
        for name, array in onnx_graph.operator_arrays(cell, [layer]).items():
            np.testing.assert_array_equal(both[name][number], array[0])
    _, attributes = onnx_graph.operator(CELLS["rnn-relu"], 2)
    assert attributes["activations"] == ["Relu", "Relu"]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (jaxrnn.layers.stacked(jaxrnn.mgu(4), 3), "no operator for MGU"),
        (jaxrnn.network(jaxrnn.indrnn(4), 3, 2), "no operator for IndRNN"),
        (jaxrnn.layers.stacked(jaxrnn.gru(4), 3, blocks=2), "does not support blocks=2"),
        (jaxrnn.layers.stacked(jaxrnn.gru(4), 3, zoneout=0.1), r"does not support zoneout"),
        (
            jaxrnn.layers.stacked(jaxrnn.gru(4), 3, learned_state=True),
            "does not support learned_state",
        ),
    ],
    ids=str,
)
def test_what_onnx_lacks_is_refused_with_the_reason(net: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_onnx(net, net.init(jax.random.key(0)))


def test_lengths_are_refused_with_residual() -> None:
    net = jaxrnn.layers.stacked(jaxrnn.gru(3), 3, residual=True)
    assert unsupported_reason(net) is None
    with pytest.raises(ValueError, match="lengths are not supported with residual"):
        to_onnx(net, drawn(net, 0), lengths=True)


def test_parameters_of_another_net_are_refused() -> None:
    net, other = jaxrnn.layers.stacked(jaxrnn.gru(4), 3), jaxrnn.layers.stacked(jaxrnn.gru(5), 3)
    with pytest.raises(ValueError, match=r"w_x must have shape \(3, 12\) for GRU"):
        to_onnx(net, drawn(other, 0))
    with pytest.raises(ValueError, match="params must be StackedParams, not GRUParams"):
        to_onnx(net, drawn(net, 0).cells[0])
    with pytest.raises(ValueError, match="params must be StackedParams of 1 layers"):
        to_onnx(net, jaxrnn.layers.StackedParams(()))
    with pytest.raises(ValueError, match="params must be NetworkParams, not StackedParams"):
        to_onnx(jaxrnn.network(jaxrnn.gru(4), 3, 2), drawn(net, 0))


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    net = jaxrnn.layers.stacked(jaxrnn.gru(4), 3)
    with pytest.raises(jaxrnn.InputError, match=r'pip install "jaxrnn\[onnx\]"$'):
        to_onnx(net, drawn(net, 0))


# --- graphs, in onnxruntime ---------------------------------------------------------------------


def compare(net: Stacked, seed: int, lengths: Any = None) -> Any:
    """The graph of a stack computes the outputs and the final states of `apply`; return the model."""
    params = drawn(net, seed)
    xs, state = random_inputs(net, seed + 1, net.batch_first)
    batch = xs.shape[0 if net.batch_first else 1]
    masks, given = {}, {}
    if lengths is not None:
        steps = xs.shape[1 if net.batch_first else 0]
        masks["lengths"] = np.random.default_rng(seed).integers(1, steps + 1, batch)
        given["lengths"] = masks["lengths"].astype(np.int32)
    model = to_onnx(net, params, lengths=lengths is not None)
    got = Session(model)(xs=xs, **given, **states(state, net.directions))
    want_state, want = net.apply(params, xs, state, **masks)
    assert_close(got, {"ys": want} | states(want_state, net.directions, "final_"), RUNTIME)
    return model


@pytest.mark.peers
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_outputs_and_final_states(name: str, bidirectional: bool, layers: int) -> None:
    net = jaxrnn.layers.stacked(CELLS[name], 3, layers=layers, bidirectional=bidirectional)
    for seed in range(2):
        model = compare(net, seed)
        kinds = [node.op_type for node in model.graph.node]
        assert not {"Loop", "Scan", "If"} & set(kinds)
        assert sum(kind in ("LSTM", "GRU", "RNN") for kind in kinds) == layers
        compare(net, seed, lengths=True)


@pytest.mark.peers
@pytest.mark.parametrize(
    "options",
    [
        {"residual": True},
        {"residual": True, "bidirectional": True},
        {"batch_first": True},
        {"batch_first": True, "bidirectional": True},
        {"dropout": 0.5, "weight_dropout": 0.5, "drop_last": True},
    ],
    ids=str,
)
def test_options_of_stacks(options: Any) -> None:
    for cell, inputs in ((jaxrnn.lstm(4), 4), (jaxrnn.gru(4), 8), (jaxrnn.lstm(4), 3)):
        net = jaxrnn.layers.stacked(cell, inputs, layers=3, **options)
        compare(net, 5)
        if not net.residual:
            compare(net, 6, lengths=True)


@pytest.mark.peers
@pytest.mark.parametrize("name", CELLS)
def test_networks(name: str) -> None:
    net = jaxrnn.network(CELLS[name], 3, 2)
    params = jax.tree.map(jnp.asarray, drawn(net, 0))
    xs, (state,) = random_inputs(net, 1)
    some = np.arange(1, xs.shape[1] + 1, dtype=np.int32).clip(max=len(xs))
    for masks in ({}, {"lengths": some}):
        session = Session(to_onnx(net, params, lengths=bool(masks)))
        got = session(xs=xs, **masks, **states([state]))
        want_state, want = net.apply(params, xs, state, **masks)
        assert_close(got, {"ys": want} | states([want_state], prefix="final_"), RUNTIME)


@pytest.mark.peers
@pytest.mark.parametrize("name", CELLS)
def test_pieces_of_a_sequence_equal_the_whole(name: str) -> None:
    net = jaxrnn.layers.stacked(CELLS[name], 3, layers=2)
    xs = np.random.default_rng(0).standard_normal((11, 2, 3)).astype(np.float32)
    session = Session(to_onnx(net, drawn(net, 0)))
    state = states(net.initial_state(drawn(net, 0), 2))
    whole = session(xs=xs, **state)
    ys = []
    for piece in np.split(xs, [1, 2, 7]):
        outputs = session(xs=piece, **state)
        ys.append(outputs["ys"])
        state = following(outputs)
    assert_close(np.concatenate(ys), whole["ys"], RUNTIME)
    assert_close(state, following(whole), RUNTIME)


@pytest.mark.peers
def test_padding_of_nan_has_no_effect() -> None:
    net = jaxrnn.layers.stacked(jaxrnn.lstm(4), 3, layers=2, bidirectional=True)
    session = Session(to_onnx(net, drawn(net, 0), lengths=True))
    xs, state = random_inputs(net, 2)
    lengths = np.full(xs.shape[1], 2, np.int32)
    given = {"lengths": lengths, **states(state, 2)}
    clean = session(xs=xs, **given)
    xs[2:] = np.nan
    assert_close(session(xs=xs, **given), clean, 0)
    assert not clean["ys"][2:].any()


@pytest.mark.peers
def test_bfloat16_parameters_are_computed_in_float32() -> None:
    net = jaxrnn.layers.stacked(jaxrnn.gru(4, reset="after"), 3)
    params = jax.tree.map(jnp.bfloat16, drawn(net, 0))
    xs, state = random_inputs(net, 1)
    got = Session(to_onnx(net, params))(xs=xs, **states(state))
    _, want = net.apply(jax.tree.map(jnp.float32, params), xs, state)
    assert_close(got["ys"], want, RUNTIME)


@pytest.mark.peers
def test_the_names_and_versions_of_a_graph() -> None:
    net = jaxrnn.layers.stacked(jaxrnn.lstm(4), 3, layers=2)
    model = to_onnx(net, drawn(net, 0), lengths=True)
    state = ["hidden_0", "cell_0", "hidden_1", "cell_1"]
    assert names(model) == (["xs", "lengths", *state], ["ys", *(f"final_{s}" for s in state)])
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input[:3], model.graph.output[0])
    ]
    assert shapes == [["T", "B", 3], ["B"], [1, "B", 4], ["T", "B", 4]]


@pytest.mark.peers
def test_a_graph_larger_than_protobuf_allows_is_refused(monkeypatch: Any) -> None:
    net = jaxrnn.layers.stacked(jaxrnn.lstm(4), 3)
    monkeypatch.setattr(onnx_graph, "LARGEST", 100)
    with pytest.raises(ValueError, match="at most 2 GiB"):
        to_onnx(net, drawn(net, 0))
