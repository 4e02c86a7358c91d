"""Test Keras models, live and in files, whose layers are nested, branched, shared or customised."""

import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn.errors import InputError
from jaxrnn.formats import keras_model
from jaxrnn.interop import keras

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not importlib.util.find_spec("keras"), reason="no keras: pip install jaxrnn[peers]"
    ),
    # Keras on PyTorch uses what numpy calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
H = 4


def library() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


def lstm(name: str = "lstm", **options: Any) -> Any:
    return library().layers.LSTM(H, return_sequences=True, name=name, **options)


def branches() -> Any:
    given = library().Input((None, H))
    return library().Model(given, [lstm("a")(given), lstm("b")(given)])


def summed() -> Any:
    given = library().Input((None, H))
    first = lstm("a")(given)
    return library().Model(given, library().layers.Add()([first, lstm("b")(first)]))


def shared() -> Any:
    layer, given = lstm(), library().Input((None, H))
    return library().Model(given, layer(layer(given)))


def encoder_and_decoder() -> Any:
    given, other = library().Input((None, H)), library().Input((None, H))
    _, *state = lstm("a", return_state=True)(given)
    return library().Model([given, other], lstm("b")(other, initial_state=state))


def inner_output() -> Any:
    given = library().Input((None, H))
    first = lstm("a")(given)
    return library().Model(given, [first, lstm("b")(first)])


def nested() -> Any:
    inner = library().Sequential([library().Input((None, H)), lstm("a")])
    return library().Sequential([library().Input((None, H)), inner, lstm("b")])


NOT_CHAINS = {
    branches: "the layer b must have exactly one input, the output of the previous layer",
    summed: "the layer add.* must have exactly one input",
    shared: "the layer lstm must have exactly one input",
    encoder_and_decoder: "must have exactly one input",
    inner_output: "must have exactly one output, that of its last layer",
    nested: "has the type Sequential; supported types are SimpleRNN, LSTM, GRU",
}


@pytest.mark.parametrize("make", NOT_CHAINS)
def test_models_that_are_not_a_chain_are_rejected(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras"):
        with pytest.raises(ValueError, match=NOT_CHAINS[make]):
            keras.stacked_from_keras(given)


def test_a_functional_chain_is_converted(tmp_path: Path) -> None:
    given = library().Input((None, 3))
    model = library().Model(given, lstm("b")(library().layers.Dropout(0.1)(lstm("a")(given))))
    net, params = keras.stacked_from_keras(model)
    xs = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    ys = net.apply(params, xs)[1]
    np.testing.assert_allclose(ys, np.asarray(model.predict_on_batch(xs)), atol=1e-5)
    model.save(tmp_path / "model.keras")
    assert keras.stacked_from_keras(tmp_path / "model.keras")[0] == net


def subclassed() -> Any:
    class Model(library().Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = lstm("b"), lstm("a")

        def call(self, xs: Any) -> Any:
            return self.second(self.first(xs))

    model = Model()
    model(np.zeros((1, 2, H), np.float32))
    return model


def test_subclassed_models_are_refused(tmp_path: Path) -> None:
    model = subclassed()
    with pytest.raises(ValueError, match=r"not Model; make the same layers as a Sequential model"):
        keras.stacked_from_keras(model)
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"how that layer is connected is unknown"):
        keras.stacked_from_keras(tmp_path / "model.weights.h5")
    # The way that the message names.
    plain = library().Sequential([library().Input((None, H)), lstm("a"), lstm("b")])
    plain.set_weights([*model.first.get_weights(), *model.second.get_weights()])
    net, params = keras.stacked_from_keras(plain)
    xs = np.random.default_rng(0).standard_normal((2, 5, H)).astype(np.float32)
    ys = net.apply(params, xs)[1]
    np.testing.assert_allclose(ys, np.asarray(model.predict_on_batch(xs)), atol=1e-5)


def test_nested_weights_are_refused(tmp_path: Path) -> None:
    nested().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(
        ValueError, match=r"weights of layers/sequential.*how that layer is connected is unknown"
    ):
        keras.stacked_from_keras(tmp_path / "model.weights.h5")


def test_directions_must_agree(tmp_path: Path) -> None:
    layers = library().layers
    backward = layers.LSTM(H, go_backwards=True, return_sequences=True, activation="relu")
    both = layers.Bidirectional(lstm(), backward_layer=backward)
    model = library().Sequential([library().Input((None, H)), both])
    model.save(tmp_path / "model.keras")
    for given in (model, both, tmp_path / "model.keras"):
        with pytest.raises(ValueError, match=r"have activation='tanh' and 'relu'"):
            keras.stacked_from_keras(given)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_weights_without_biases(kind: str, both: bool, tmp_path: Path) -> None:
    layer = getattr(library().layers, kind)(H, use_bias=False, return_sequences=True)
    layer = library().layers.Bidirectional(layer) if both else layer
    model = library().Sequential([library().Input((None, 3)), layer])
    model.save_weights(tmp_path / "model.weights.h5")
    net, params = keras.stacked_from_keras(tmp_path / "model.weights.h5")
    xs = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    ys = net.apply(params, xs)[1]
    np.testing.assert_allclose(ys, np.asarray(model.predict_on_batch(xs)), atol=1e-5)


def test_other_layers_and_options() -> None:
    layers = library().layers
    with pytest.raises(ValueError, match=r"not Dense; make the same layers"):
        keras.stacked_from_keras(layers.Dense(3))

    class Own(layers.LSTM):  # type: ignore[misc, name-defined]
        pass

    with pytest.raises(ValueError, match=r"a recurrent layer of Keras, .*not Own"):
        keras.stacked_from_keras(Own(H))
    model = library().Sequential([library().Input((None, H)), Own(H, return_sequences=True)])
    with pytest.raises(
        ValueError, match=r"the layer own.* is a custom layer, which cannot be converted"
    ):
        keras.stacked_from_keras(model)
    with pytest.raises(
        ValueError, match=r"the layer lstm has no weights yet; build the model first"
    ):
        keras.stacked_from_keras(lstm())


def changed(folder: Path, change: Any) -> Path:
    """Return a .keras file whose config.json was changed."""
    model = library().Sequential([library().Input((None, H)), lstm()])
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    change(config)
    with zipfile.ZipFile(folder / "changed.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return folder / "changed.keras"


CHANGES = {
    "no layers": lambda config: config["config"].update(layers=None),
    "no class": lambda config: config["config"]["layers"][1].pop("class_name"),
    "no options": lambda config: config["config"]["layers"][1].update(config=None),
    "a number as class": lambda config: config["config"]["layers"][1].update(class_name=5),
    "text as a layer": lambda config: config["config"]["layers"].append("text"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_description_of_the_layers(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"changed\.keras has a damaged config\.json"):
        keras.stacked_from_keras(changed(tmp_path, CHANGES[name]))


def test_external_and_oversized_data_is_rejected(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "secret").write_bytes(np.arange(48, dtype=np.float32).tobytes())
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        external = [(str(tmp_path / "secret"), 0, 192)]
        group.create_dataset("0", (3, 16), "f4", external=external)
    with pytest.raises(InputError, match=r"layers/lstm/cell/vars/0 is stored in another file"):
        keras.stacked_from_keras(path)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        group.create_dataset("0", (1_000_000, 1_000_000), "f4", chunks=(64, 64))
    with pytest.raises(InputError, match=r"needs about 4000.0 GB of memory"):
        keras.stacked_from_keras(path)


def test_a_char_rnn_must_be_a_chain() -> None:
    """The sum of two layers would have other logits than the chain of them."""
    layers = library().layers
    given = library().Input((None,))
    first = lstm("a")(layers.Embedding(8, H)(given))
    output = layers.Dense(8)(layers.Add()([first, lstm("b")(first)]))
    with pytest.raises(ValueError, match=r"the layer add.* must have exactly one input"):
        keras_model.from_keras(library().Model(given, output), "abcdefgh")
    quantized = library().Sequential([library().Input((None,)), layers.Embedding(8, H), lstm()])
    quantized.add(layers.Dense(8))
    quantized.quantize("int8")
    with pytest.raises(ValueError, match=r"quantized|floating-point numbers, not of int8"):
        keras_model.from_keras(quantized, "abcdefgh")
