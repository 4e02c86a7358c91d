"""Test files of RTNeural against a numpy version of its C++, round trips, and bad files."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop.onnx import to_onnx
from jaxrnn.interop.rtneural import from_rtneural, read_rtneural, to_rtneural, write_rtneural
from tests.support.oracle import assert_close, sigmoid

RUNTIME = 1e-5  # largest error in float32, in units of an array's largest entry
NETS = {
    "lstm": jaxrnn.network(jaxrnn.lstm(4), 1, 1),
    "lstm-wide": jaxrnn.network(jaxrnn.lstm(5), 3, 2),
    "gru": jaxrnn.network(jaxrnn.gru(4, reset="after"), 2, 3),
    "stacked-lstm": jaxrnn.layers.stacked(jaxrnn.lstm(4), 3, layers=3),
    "stacked-gru": jaxrnn.layers.stacked(jaxrnn.gru(4, reset="after"), 3, layers=2, dropout=0.5),
}


def drawn(net: Any) -> Any:
    """Random parameters of a network or stack, float32, biases included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), shapes)


class Model:
    """RTNeural's model: `forward` computes one step, and the layers keep their states.

    Weights are read entry by entry as in RTNeural/model_loader.h and the layers' setWVals, setUVals and
    setBVals; the equations are those of the layers' forward.
    """

    def __init__(self, content: Any) -> None:
        self.layers = []
        width = content["in_shape"][-1]
        for layer in content["layers"]:
            size = layer["shape"][-1]
            step = {"lstm": self.lstm, "gru": self.gru, "dense": self.dense}[layer["type"]]
            state = {"h": np.zeros(size), "c": np.zeros(size)}
            self.layers.append((step, layer["weights"], width, size, state))
            width = size

    def forward(self, x: np.ndarray) -> np.ndarray:
        for step, *rest in self.layers:
            x = step(x, *rest)
        return x

    @staticmethod
    def products(weights: Any, width: int, size: int, gate: int, x: Any, h: Any) -> Any:
        """The products of a gate's kernel with x and of its recurrent weights with h, [H] each."""
        w = [[weights[0][i][k + gate * size] for i in range(width)] for k in range(size)]
        u = [[weights[1][i][k + gate * size] for i in range(size)] for k in range(size)]
        return np.array(w) @ x, np.array(u) @ h

    @classmethod
    def lstm(cls, x: Any, weights: Any, width: int, size: int, state: Any) -> np.ndarray:
        a = []
        for gate in range(4):
            bias = [weights[2][k + gate * size] for k in range(size)]
            a.append(sum(cls.products(weights, width, size, gate, x, state["h"])) + bias)
        i, f, c, o = sigmoid(a[0]), sigmoid(a[1]), np.tanh(a[2]), sigmoid(a[3])
        state["c"] = f * state["c"] + i * c
        state["h"] = o * np.tanh(state["c"])
        return state["h"]

    @classmethod
    def gru(cls, x: Any, weights: Any, width: int, size: int, state: Any) -> np.ndarray:
        h = state["h"]
        rows = [
            [np.array([row[k + gate * size] for k in range(size)]) for row in weights[2]]
            for gate in range(3)
        ]
        z = sigmoid(sum(cls.products(weights, width, size, 0, x, h)) + rows[0][0] + rows[0][1])
        r = sigmoid(sum(cls.products(weights, width, size, 1, x, h)) + rows[1][0] + rows[1][1])
        inputs, recurrent = cls.products(weights, width, size, 2, x, h)
        c = np.tanh(inputs + r * (recurrent + rows[2][1]) + rows[2][0])
        state["h"] = (1 - z) * c + z * h
        return state["h"]

    @staticmethod
    def dense(x: Any, weights: Any, width: int, size: int, state: Any) -> np.ndarray:
        w = [[weights[0][i][j] for i in range(width)] for j in range(size)]
        return np.array(w) @ x + (weights[1] if len(weights) > 1 else 0)


def run(content: Any, xs: np.ndarray) -> np.ndarray:
    """The outputs [T, K] of RTNeural's model for inputs [T, D], from states of zeros."""
    model = Model(content)
    return np.stack([model.forward(x) for x in np.float64(xs)])


@pytest.mark.parametrize("name", NETS)
def test_steps_of_rtneural_are_those_of_apply(name: str) -> None:
    net, params = NETS[name], drawn(NETS[name])
    xs = np.random.default_rng(1).standard_normal((12, net.inputs)).astype(np.float32)
    _, ys = net.apply(params, jnp.asarray(xs[:, None]))
    assert_close(run(to_rtneural(net, params), xs), ys[:, 0], RUNTIME)


@pytest.mark.parametrize("name", NETS)
def test_there_and_back_is_the_same(name: str, tmp_path: Path) -> None:
    params = drawn(NETS[name])
    path = tmp_path / "net.json"
    write_rtneural(NETS[name], params, path)
    net, got = read_rtneural(path)
    assert (type(net), net.cell) == (type(NETS[name]), NETS[name].cell)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert to_rtneural(net, got) == json.loads(path.read_text())


@pytest.mark.parametrize("name", ["lstm-wide", "gru"])
def test_a_network_that_another_program_wrote(name: str) -> None:
    """A GRU of Keras has two whole rows of biases; a dense layer may have no biases."""
    content = to_rtneural(NETS[name], drawn(NETS[name]))
    rng = np.random.default_rng(2)
    bias = content["layers"][0]["weights"][2]
    content["layers"][0]["weights"][2] = rng.standard_normal(np.shape(bias)).tolist()
    content["layers"][0]["shape"] = [None, *content["layers"][0]["shape"][-1:]]
    del content["layers"][1]["weights"][1], content["layers"][1]["activation"]
    net, params = from_rtneural(content)
    xs = rng.standard_normal((9, net.inputs)).astype(np.float32)
    _, ys = net.apply(params, jnp.asarray(xs[:, None]))
    assert_close(run(content, xs), ys[:, 0], RUNTIME)


def test_the_types_in_a_file_are_json_s_own() -> None:
    content = to_rtneural(NETS["gru"], jax.tree.map(jnp.bfloat16, drawn(NETS["gru"])))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["in_shape"] == [None, None, 2]
    assert [(layer["type"], layer["shape"]) for layer in content["layers"]] == [
        ("gru", [None, None, 4]),
        ("dense", [None, None, 3]),
    ]


stacked = jaxrnn.layers.stacked


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (jaxrnn.network(jaxrnn.lstm(4, peephole=True), 1, 1), "no peepholes"),
        (jaxrnn.network(jaxrnn.gru(4), 1, 1), "resets after the product"),
        (jaxrnn.network(jaxrnn.rnn(4), 1, 1), "no layer for RNN"),
        (jaxrnn.network(jaxrnn.mgu(4), 1, 1), "no layer for MGU"),
        (
            stacked(jaxrnn.lstm(4), 1, bidirectional=True),
            "does not support bidirectional",
        ),
        (stacked(jaxrnn.lstm(4), 4, residual=True), "does not support residual"),
        (stacked(jaxrnn.lstm(4), 1, zoneout=0.1), "does not support zoneout"),
        (stacked(jaxrnn.lstm(4), 1, learned_state=True), "does not support learned_state"),
        (stacked(jaxrnn.lstm(4), 1, blocks=2), "does not support blocks=2"),
    ],
    ids=str,
)
def test_what_rtneural_lacks_is_refused_with_the_reason(net: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_rtneural(net, net.init(jax.random.key(0)))


def test_skip_connections_are_refused() -> None:
    content = to_rtneural(NETS["lstm"], drawn(NETS["lstm"])) | {"in_skip": 1}
    with pytest.raises(ValueError, match="in_skip must be 0"):
        from_rtneural(content)


def test_a_cell_is_no_network(unchecked: None) -> None:
    for convert in (to_rtneural, to_onnx):
        with pytest.raises(
            ValueError, match=r"jaxrnn\.network or jaxrnn\.layers\.stacked, not LSTM"
        ):
            convert(jaxrnn.lstm(2), None)


def test_parameters_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    net = NETS["lstm"]
    params = drawn(net)
    with pytest.raises(ValueError, match="params must be NetworkParams, not LSTMParams"):
        to_rtneural(net, params.cell)
    with pytest.raises(ValueError, match=r"w_out and b_out must be of shape \(4, 1\)"):
        to_rtneural(net, params._replace(w_out=params.w_out.T))
    with pytest.raises(ValueError, match="params must be finite"):
        write_rtneural(net, params._replace(b_out=params.b_out / 0), tmp_path / "net.json")
    assert not os.listdir(tmp_path)


# --- wrong files --------------------------------------------------------------------------------


def set_at(*path: Any) -> Callable[[Any], Any]:
    """A change of a content: the last of `path` is put where the others lead."""
    *keys, last, value = path

    def change(content: Any) -> Any:
        content = copy.deepcopy(content)
        place = content
        for key in keys:
            place = place[key]
        place[last] = value
        return content

    return change


def without(number: int, key: str) -> Callable[[Any], Any]:
    """A change of a content: layer `number` without a key."""

    def change(content: Any) -> Any:
        layers = [dict(layer) for layer in content["layers"]]
        del layers[number][key]
        return content | {"layers": layers}

    return change


ROWS = [[0.0] * 16] * 3
WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda content: [content], "the content must be an object, not list"),
    (lambda content: {"layers": []}, "the content has no 'in_shape'"),
    (set_at("in_shape", 3), r"in_shape must be a list \[null, null, width\], not 3"),
    (set_at("in_shape", [None, 2, 3, 4]), "in_shape must be a list"),
    (set_at("in_shape", [None, True]), "in_shape must end with a positive whole number, not True"),
    (set_at("in_shape", [None, None, 2]), r"layers\[0\].weights\[0\] .* \(2, 16\), not \(3, 16\)"),
    (set_at("layers", []), "layers must be a list with at least one layer"),
    (set_at("layers", 0, 7), r"layers\[0\] must be an object, not int"),
    (without(0, "type"), r"layers\[0\] has no 'type'"),
    (without(1, "weights"), r"layers\[1\] has no 'weights'"),
    (set_at("layers", 0, "type", "conv1d"), r"layers\[0\] of type 'conv1d' cannot be read"),
    (set_at("layers", 0, "type", "gru"), r"weights\[0\] .* \(3, 12\), not \(3, 16\)"),
    (set_at("layers", 1, "type", "prelu"), r"layers\[1\] of type 'prelu' cannot be read"),
    (set_at("layers", 1, "type", ["dense"]), r"layers\[1\] of type \['dense'\] cannot be read"),
    (
        set_at("layers", 1, "activation", "tanh"),
        r"layers\[1\].activation must be empty, not 'tanh'",
    ),
    (set_at("layers", 0, "shape", [None, 5]), r"weights\[0\] .* \(3, 20\), not \(3, 16\)"),
    (set_at("layers", 0, "weights", ROWS), r"weights\[0\] .* \(3, 16\), not \(16,\)"),
    (set_at("layers", 0, "weights", []), r"layers\[0\].weights must be a list of 3 arrays, not 0"),
    (set_at("layers", 0, "weights", 0, [[1.0], [1.0, 2.0]]), "its rows differ in length"),
    (set_at("layers", 0, "weights", 0, 1, 2, None), "must hold finite float32 numbers alone"),
    (set_at("layers", 0, "weights", 0, 1, 2, "1.5"), "must hold finite float32 numbers alone"),
    (set_at("layers", 0, "weights", 0, 1, 2, 1e39), "must hold finite float32 numbers alone"),
    (set_at("layers", 0, "weights", 0, 1, 2, 10**400), "must hold finite float32 numbers alone"),
    (set_at("layers", 0, "weights", 2, [float("nan")] * 16), "must hold finite float32 numbers"),
    (set_at("layers", 1, "weights", 1, [0.0]), r"layers\[1\].weights\[1\] .* \(2,\), not \(1,\)"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_the_first_wrong_part_is_named(number: int, tmp_path: Path) -> None:
    change, message = WRONG[number]
    net = jaxrnn.network(jaxrnn.lstm(4), 3, 2)
    content = change(to_rtneural(net, drawn(net)))
    with pytest.raises(ValueError, match=message):
        from_rtneural(content)
    path = tmp_path / "net.json"
    path.write_text(json.dumps(content))
    with pytest.raises(jaxrnn.InputError, match=message) as caught:
        read_rtneural(path)
    assert str(caught.value).startswith(f"{path} has no network that jaxrnn can run: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 250


def test_layers_that_no_network_of_jaxrnn_has() -> None:
    content = to_rtneural(NETS["stacked-lstm"], drawn(NETS["stacked-lstm"]))
    dense = to_rtneural(NETS["lstm"], drawn(NETS["lstm"]))["layers"][1]
    for layers, number in (
        ([*content["layers"], dense], 3),
        ([content["layers"][0], dense, dense], 2),
        ([dense, content["layers"][0]], 0),
    ):
        with pytest.raises(ValueError, match=rf"layers\[{number}\] of type 'dense' cannot be read"):
            from_rtneural({"in_shape": [None, None, 3], "layers": layers})
    content["layers"][2]["shape"] = [None, None, 5]
    with pytest.raises(ValueError, match=r"layers\[2\].shape must end with 4 .*, not 5"):
        from_rtneural(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"{",
        pickle.dumps({"in_shape": [1]}),
        b"[" * 100_000,
        "{}".encode("utf-16")[:-1],
    ],
    ids=["empty", "zero", "truncated", "pickle", "deep", "cut"],
)
def test_a_file_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(jaxrnn.InputError, match="is not a JSON file of RTNeural") as caught:
        read_rtneural(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    write_rtneural(NETS["lstm"], drawn(NETS["lstm"]), path)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 17):
        path.write_bytes(whole[:size])
        with pytest.raises(jaxrnn.InputError, match="is not a JSON file of RTNeural"):
            read_rtneural(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(jaxrnn.InputError, match=r"^cannot read "):
            read_rtneural(path)
