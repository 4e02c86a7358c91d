"""Test that converters reject bad weights and name the first array that is wrong."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.errors import InputError
from jaxrnn.interop import equinox, flax, haiku, keras, keras_layers, torch
from jaxrnn.layers import stacked

D, H = 3, 4
LSTM, GRU = jaxrnn.lstm(H), jaxrnn.gru(H, reset="after")
BEFORE, PEEPHOLE = jaxrnn.gru(H), jaxrnn.lstm(H, peephole=True)
STACK = stacked(LSTM, D, layers=2, bidirectional=True)


def params_of(net: Any) -> Any:
    key = jax.random.key(0)
    return net.init(key) if hasattr(net, "layers") else net.init(key, D)


def without(weights: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in weights.items() if key != name}


class TestTorch:
    weights = torch.to_torch(STACK, params_of(STACK))

    def test_a_missing_array(self) -> None:
        with pytest.raises(ValueError, match=r"^bias_hh_l1_reverse is missing for a stack of LSTM"):
            torch.from_torch(STACK, without(self.weights, "bias_hh_l1_reverse"))

    def test_an_unexpected_array(self) -> None:
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: weight_ih_l2$"):
            torch.from_torch(STACK, self.weights | {"weight_ih_l2": np.zeros((16, 8))})
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: weight_ih_l0_reverse"):
            torch.from_torch(stacked(LSTM, D), self.weights)

    def test_another_shape(self) -> None:
        wrong = self.weights | {"weight_hh_l1": np.zeros((16, 5))}
        with pytest.raises(
            ValueError, match=r"^weight_hh_l1 must have shape \(16, 4\) .*, not \(16, 5\)$"
        ):
            torch.from_torch(STACK, wrong)
        with pytest.raises(ValueError, match=r"^weight_ih_l0 must have shape \(16, 5\)"):
            torch.from_torch(stacked(LSTM, 5, layers=2, bidirectional=True), self.weights)

    def test_parameters_of_another_cell(self) -> None:
        with pytest.raises(ValueError, match=r"^w_x must have shape \(3, 12\) for GRU.*\(3, 16\)$"):
            torch.to_torch(GRU, params_of(LSTM))
        with pytest.raises(ValueError, match=r"2 layers in 2 direction\(s\), 4 in all, not of 1$"):
            torch.to_torch(STACK, params_of(stacked(LSTM, D)))

    def test_a_module_inside_of_a_model(self) -> None:
        model = {f"rnn.{name}": array for name, array in self.weights.items()}
        model["head.weight"] = np.zeros((2, H))
        with pytest.raises(ValueError, match=r"give the prefix of one module: rnn\.$"):
            torch.stacked_from_torch(model)
        net, params = torch.stacked_from_torch(model, prefix="rnn.")
        assert net == STACK
        jax.tree.map(np.testing.assert_array_equal, params, params_of(STACK))
        with pytest.raises(ValueError, match=r"no name begins with 'gru\.'; the names are rnn\."):
            torch.from_torch(STACK, model, prefix="gru.")

    def test_no_recurrent_module(self) -> None:
        with pytest.raises(
            ValueError, match=r"for an nn\.RNN, nn\.LSTM or nn\.GRU; the names are fc\.weight"
        ):
            torch.stacked_from_torch({"fc.weight": np.zeros((2, 3))})
        with pytest.raises(ValueError, match=r"\[H, H\], \[3H, H\] or \[4H, H\].*not \(10, 5\)"):
            torch.stacked_from_torch(
                {"weight_ih_l0": np.zeros((10, 2)), "weight_hh_l0": np.zeros((10, 5))}
            )

    def test_weights_of_other_types(self, unchecked: None) -> None:
        with pytest.raises(ValueError, match=r"a state dict, arrays by name, not str"):
            torch.from_torch(STACK, "model.pt")
        with pytest.raises(
            ValueError, match=r"weight_ih_l0 must be an array of floating-point numbers"
        ):
            torch.from_torch(LSTM, self.weights | {"weight_ih_l0": "text"})

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"residual": True}, "residual=True"),
            ({"learned_state": True}, "learned_state=True"),
            ({"zoneout": 0.1}, r"zoneout=\(0.1, 0.1\)"),
            ({"blocks": 2}, "blocks=2"),
        ],
    )
    def test_options_of_a_stack(self, options: dict[str, Any], named: str) -> None:
        net = stacked(LSTM, H, **options)
        for convert in (torch.to_torch, keras.to_keras):
            with pytest.raises(ValueError, match=rf"does not support {named}"):
                convert(net, net.init(jax.random.key(0)))

    def test_parametrized_modules(self) -> None:
        names = {f"parametrizations.{name}.original0": a for name, a in self.weights.items()}
        with pytest.raises(ValueError, match=r"is parametrized, as by weight_norm; call torch\.nn"):
            torch.stacked_from_torch(names)

    def test_cells_have_one_layer(self, unchecked: None) -> None:
        with pytest.raises(ValueError, match=r"^kind must be 'layer' or 'cell', not 'cells'$"):
            torch.to_torch(LSTM, params_of(LSTM), kind="cells")
        with pytest.raises(ValueError, match=r"one layer in one direction without proj_size"):
            torch.to_torch(STACK, params_of(STACK), kind="cell")

    def test_a_projection_must_be_narrower(self) -> None:
        wide = jaxrnn.projected_lstm(8, 8)
        with pytest.raises(ValueError, match=r"proj_size of nn.LSTM must be smaller"):
            torch.to_torch(wide, params_of(wide))


class TestKeras:
    weights = keras.to_keras(STACK, params_of(STACK))

    def test_missing_and_unexpected_arrays(self) -> None:
        with pytest.raises(ValueError, match=r"layer 2 backward bias is missing for a stack of"):
            keras.from_keras(STACK, self.weights[:-1])
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: array 12"):
            keras.from_keras(STACK, [*self.weights, np.zeros(3)])

    def test_another_shape(self) -> None:
        wrong = [*self.weights]
        wrong[4] = np.zeros((4, 12))
        with pytest.raises(
            ValueError,
            match=r"^layer 1 backward recurrent_kernel must have shape \(4, 16\).*\(4, 12\)",
        ):
            keras.from_keras(STACK, wrong)

    def test_the_other_reset(self) -> None:
        with pytest.raises(ValueError, match=r"^bias must have shape \(2, 12\).* not \(12,\)"):
            keras.from_keras(GRU, keras.to_keras(BEFORE, params_of(BEFORE)))
        with pytest.raises(ValueError, match=r"^bias must have shape \(12,\).* not \(2, 12\)"):
            keras.from_keras(BEFORE, keras.to_keras(GRU, params_of(GRU)))

    def test_a_path_in_place_of_arrays(self) -> None:
        with pytest.raises(ValueError, match=r"stacked_from_keras reads files"):
            keras.from_keras(LSTM, "model.keras")

    def test_other_objects(self) -> None:
        with pytest.raises(
            ValueError, match=r"a recurrent layer of Keras, a Sequential or .*not int$"
        ):
            keras.stacked_from_keras(3)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (("LSTM", {"activation": "relu"}, 16), "activation='relu', not 'tanh'"),
            (("GRU", {"recurrent_activation": "hard_sigmoid"}, 12), "recurrent_activation="),
            (("LSTM", {"go_backwards": True}, 16), "go_backwards=True, not False"),
            (
                ("SimpleRNN", {"activation": "elu"}, 4),
                "activation='elu', which jaxrnn does not have",
            ),
        ],
    )
    def test_options_of_a_layer(self, layer: Any, message: str) -> None:
        kind, options, width = layer
        arrays = [np.zeros((D, width)), np.zeros((H, width)), np.zeros(width)]
        with pytest.raises(ValueError, match=rf"the layer mine has {message}"):
            keras.stack_of([keras_layers.KerasLayer(kind, "mine", options, arrays)])

    def test_layers_of_two_kinds(self) -> None:
        layers = [
            keras_layers.KerasLayer("LSTM", "a", {}, keras.to_keras(LSTM, params_of(LSTM))),
            keras_layers.KerasLayer("GRU", "b", {}, keras.to_keras(GRU, params_of(GRU))),
        ]
        with pytest.raises(ValueError, match=r"must be equal: a is LSTM.*, b GRU.*one by one"):
            keras.stack_of(layers)

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello, this is no model", pickle.dumps({"w": 1}), b"\x93NUMPY" + bytes(99)],
        ids=["empty", "text", "pickle", "numpy"],
    )
    def test_files_of_another_format(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "model.keras"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"is neither a \.keras nor a \.weights\.h5 file; save"
        ):
            keras.stacked_from_keras(path)

    @pytest.mark.parametrize("given", [None, {"kernel": 1}, 3], ids=str)
    def test_weights_that_are_not_a_list_of_arrays(self, given: Any, unchecked: None) -> None:
        with pytest.raises(
            ValueError, match=r"a list of arrays, such as layer\.get_weights\(\), not"
        ):
            keras.from_keras(LSTM, given)
        with pytest.raises(ValueError, match=r"kernel must be an array; its rows differ in length"):
            keras.from_keras(LSTM, [[[1.0, 2.0], [3.0]], *self.weights[1:3]])

    def test_no_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read .*: No such file"):
            keras.stacked_from_keras(tmp_path / "nothing.keras")
        with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
            keras.stacked_from_keras(str(tmp_path))

    def test_an_archive_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({"layers": []}))
        with pytest.raises(
            InputError, match=r"is not a .keras file, or it is damaged: .*weights.h5"
        ):
            keras.stacked_from_keras(path)
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(InputError, match=r"is not a .keras file, or it is damaged: "):
            keras.stacked_from_keras(path)


class TestInJax:
    @pytest.mark.parametrize(
        "given", [None, {"ii": np.zeros(3)}, object()], ids=["None", "flat", "?"]
    )
    def test_weights_that_are_not_a_dict_of_dicts(self, given: Any, unchecked: None) -> None:
        for convert in (flax.from_linen, flax.from_nnx, haiku.from_haiku):
            with pytest.raises(
                ValueError, match=r"the weights must be a dict of layers, each a dict"
            ):
                convert(LSTM, given)

    def test_parameters_of_another_cell(self) -> None:
        for convert in (flax.to_nnx, flax.to_linen, equinox.to_equinox):
            with pytest.raises(ValueError, match=r"^w_x must have shape \(3, 12\) for GRU"):
                convert(GRU, params_of(LSTM))

    def test_haiku(self) -> None:
        weights = haiku.to_haiku(LSTM, params_of(LSTM))
        with pytest.raises(ValueError, match=r"^lstm_1/linear/w is missing.*lstm/linear/b"):
            haiku.from_haiku(LSTM, weights, name="lstm_1")
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: linear/w$"):
            haiku.from_haiku(LSTM, weights | {"linear": {"w": np.zeros(3)}})
        wrong = {"lstm/linear": weights["lstm/linear"] | {"b": np.zeros(12)}}
        with pytest.raises(ValueError, match=r"^lstm/linear/b must have shape \(16,\).*\(12,\)"):
            haiku.from_haiku(LSTM, wrong)
        assert list(haiku.to_haiku(BEFORE, params_of(BEFORE), name="core/~/gru")) == ["core/~/gru"]
        for cell, reason in (
            (GRU, "resets before"),
            (PEEPHOLE, "no peepholes"),
            (jaxrnn.rnn(H), "no tanh, only relu"),
            (jaxrnn.mgu(H), "no core for MinimalGatedUnit|no core for MGU"),
        ):
            with pytest.raises(ValueError, match=reason):
                haiku.to_haiku(cell, params_of(cell))

    def test_equinox(self) -> None:
        weights = equinox.to_equinox(GRU, params_of(GRU))
        with pytest.raises(ValueError, match=r"^bias_n is missing for GRU"):
            equinox.from_equinox(GRU, without(weights, "bias_n"))
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: bias_n"):
            equinox.from_equinox(LSTM, equinox.to_equinox(LSTM, params_of(LSTM)) | {"bias_n": 0})
        with pytest.raises(ValueError, match=r"^weight_hh must have shape \(12, 4\).*\(16, 4\)"):
            equinox.from_equinox(GRU, weights | {"weight_hh": np.zeros((16, 4))})
        plain = {name: weights[name] for name in ("weight_ih", "weight_hh")}
        assert not equinox.from_equinox(GRU, plain).b.any()
        for cell, reason in ((BEFORE, "resets after"), (PEEPHOLE, "no peepholes")):
            with pytest.raises(ValueError, match=reason):
                equinox.to_equinox(cell, params_of(cell))
        with pytest.raises(ValueError, match=r"no cell for RNN"):
            equinox.to_equinox(jaxrnn.rnn(H), params_of(jaxrnn.rnn(H)))

    def test_flax(self) -> None:
        weights = flax.to_linen(LSTM, params_of(LSTM))
        with pytest.raises(ValueError, match=r"^hf/bias is missing for LSTM"):
            flax.from_linen(LSTM, weights | {"hf": {"kernel": weights["hf"]["kernel"]}})
        with pytest.raises(ValueError, match=r"^unexpected weights for .*: other/kernel"):
            flax.from_linen(LSTM, weights | {"other": {"kernel": np.zeros(3)}})
        nnx = flax.to_nnx(GRU, params_of(GRU))
        wrong = nnx | {"dense_h": {"kernel": jnp.zeros((4, 16))}}
        with pytest.raises(
            ValueError, match=r"^dense_h/kernel must have shape \(4, 12\).*\(4, 16\)$"
        ):
            flax.from_nnx(GRU, wrong)
