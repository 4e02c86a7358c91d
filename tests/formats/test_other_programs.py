"""Test the conversion of char-RNNs of Keras (the lecture's program), PyTorch and min-char-rnn."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import charlm, train
from jaxrnn.formats import keras_model, min_char_rnn, torch_model
from jaxrnn.training.metrics import read_metrics
from tests.support.runs import quicken

VOCABULARY = jaxrnn.Vocabulary.of("helo wrd")
V, E, H = len(VOCABULARY), 5, 6
TEXT = "hello world"
TOLERANCE = 1e-5

peers = pytest.mark.peers
needs_keras = pytest.mark.skipif(
    not importlib.util.find_spec("keras"), reason="no keras: pip install jaxrnn[peers]"
)
needs_torch = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="no torch: pip install jaxrnn[peers]"
)


def logits_of(params: charlm.Params) -> np.ndarray:
    """Return the logits [T, V] of the text, by the library."""
    tokens = jnp.asarray(VOCABULARY.encode(TEXT), jnp.int32)[:, None]
    return np.asarray(charlm.forward(params, tokens, charlm.initial_carry(params.config, 1))[1])[
        :, 0
    ]


def model(**options: Any) -> charlm.Params:
    """Return a char-RNN with random parameters, biases included."""
    config = jaxrnn.ModelConfig(**{"hidden_size": H, "embedding_size": E, **options})
    params = jaxrnn.init(config, VOCABULARY)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.5 * rng.standard_normal(a.shape, np.float32), params)


def assert_same(got: charlm.Params, want: charlm.Params) -> None:
    assert got.vocabulary == want.vocabulary
    assert jax.tree.leaves(got) and len(jax.tree.leaves(got)) == len(jax.tree.leaves(want))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


# --- min-char-rnn ---


def test_min_char_rnn_computes_what_the_program_does() -> None:
    """Compare with the program's own loop in numpy, which uses column vectors."""
    rng = np.random.default_rng(1)
    shapes = {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H, 1), "by": (V, 1)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    hidden, want = np.zeros((H, 1)), []
    for token in VOCABULARY.encode(TEXT):
        one_hot = np.zeros((V, 1))
        one_hot[token] = 1
        hidden = np.tanh(weights["Wxh"] @ one_hot + weights["Whh"] @ hidden + weights["bh"])
        want.append((weights["Why"] @ hidden + weights["by"])[:, 0])
    params = min_char_rnn.from_min_char_rnn(weights, VOCABULARY)
    np.testing.assert_allclose(logits_of(params), want, atol=TOLERANCE)
    back = min_char_rnn.to_min_char_rnn(params)
    assert back.keys() == weights.keys()
    for name in weights:
        np.testing.assert_array_equal(back[name], weights[name])
    assert jaxrnn.sample(params, "he", 9, mode="argmax").startswith("he")


def test_bad_weights_of_min_char_rnn() -> None:
    with pytest.raises(
        ValueError, match=r"^Why is missing for min-char-rnn; the remaining names are bh, by$"
    ):
        weights = {"Wxh": np.zeros((H, V)), "Whh": np.zeros((H, H)), "bh": np.zeros((H, 1))}
        min_char_rnn.from_min_char_rnn(weights | {"by": np.zeros((V, 1))}, VOCABULARY)
    with pytest.raises(ValueError, match=r"^Wxh must have shape \(6, 3\) .*, not \(6, 8\)$"):
        min_char_rnn.from_min_char_rnn(weights | {"by": np.zeros((V, 1))}, "abc")
    with pytest.raises(ValueError, match="one plain RNN with tanh over one-hot"):
        min_char_rnn.to_min_char_rnn(model())


# --- PyTorch ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "gru", "reset": "after", "layers": 2},
        {"cell": "rnn", "layers": 3},
        {"embedding_size": 0},
        {"embedding_size": H, "cell": "gru", "reset": "after"},
    ],
    ids=["lstm", "gru", "rnn", "one-hot", "equal widths"],
)
def test_a_state_dict_there_and_back(options: dict[str, Any]) -> None:
    params = model(**options)
    state_dict = torch_model.to_torch(params, encoder="embed", decoder="fc")
    assert_same(torch_model.from_torch(state_dict, VOCABULARY), params)


@peers
@needs_torch
@pytest.mark.parametrize(
    "names", [("encoder", "rnn", "decoder"), ("embedding", "lstm", "fc"), ("a", "b", "c")]
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_models_of_pytorch(kind: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    import torch

    encoder, rnn, decoder = names
    torch.manual_seed(0)
    parts = {
        encoder: torch.nn.Embedding(V, E),
        rnn: getattr(torch.nn, kind)(E, H, num_layers=2, batch_first=True),
        decoder: torch.nn.Linear(H, V),
    }
    module = torch.nn.ModuleDict(parts)
    tokens = torch.tensor(VOCABULARY.encode(TEXT).astype(np.int64))[None]
    want = parts[decoder](parts[rnn](parts[encoder](tokens))[0])[0].detach().numpy()
    torch.save(module.state_dict(), tmp_path / "model.pt")
    state_dict = torch.load(tmp_path / "model.pt", weights_only=True)
    params = torch_model.from_torch(state_dict, VOCABULARY.characters)
    np.testing.assert_allclose(logits_of(params), want, atol=TOLERANCE)
    assert len(jaxrnn.sample(params, "he", 20)) == 22
    again = torch_model.to_torch(params, encoder=encoder, rnn=rnn, decoder=decoder)
    module.load_state_dict({name: torch.tensor(array) for name, array in again.items()})


def test_bad_state_dicts(unchecked: None) -> None:
    state_dict = torch_model.to_torch(model())
    wrong = [
        (
            "model.pt",
            r"a state dict, such as torch.load\(path, weights_only=True\) returns, not str",
        ),
        (
            {"fc.weight": np.zeros((V, H))},
            r"exactly one nn\.RNN, nn\.LSTM or nn\.GRU, .*found none among fc",
        ),
        (
            state_dict | {f"second.{n[4:]}": a for n, a in state_dict.items() if "rnn." in n},
            r"found rnn\.weight_ih_l0, second\.weight_ih_l0",
        ),
        (
            state_dict | {"norm.weight": np.zeros(H)},
            r"unexpected weights for a char-RNN: norm\.weight",
        ),
        (state_dict | {"encoder.weight": np.zeros((V, 9))}, r"\[V, E\] = \(8, 5\), not \(8, 9\)"),
        (state_dict | {"decoder.weight": np.zeros((9, H))}, r"\[V, H\] = \(8, 6\).*\(9, 6\)"),
        (
            {n: a for n, a in state_dict.items() if n != "encoder.weight"},
            "there is no embedding, so the recurrent module must have 8 inputs.*not 5",
        ),
        (state_dict | {"rnn.weight_hh_l0_reverse": np.zeros((24, 6))}, "weight_ih_l0_reverse"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            torch_model.from_torch(given, VOCABULARY)
    with pytest.raises(ValueError, match=r"^decoder\.bias must have shape \(8,\), not \(8, 1\)$"):
        bias = state_dict["decoder.bias"][:, None]
        torch_model.from_torch(state_dict | {"decoder.bias": bias}, VOCABULARY)
    for vocabulary in (None, list("abc")):
        with pytest.raises(ValueError, match=r"vocabulary must be a jaxrnn.Vocabulary, or a str"):
            torch_model.from_torch(state_dict, vocabulary)
    one = torch_model.to_torch(model(hidden_size=V, embedding_size=V))
    with pytest.raises(
        ValueError, match=r"encoder.weight could be the embedding or the output layer"
    ):
        torch_model.from_torch({n: a for n, a in one.items() if "decoder" not in n}, VOCABULARY)
    square = torch_model.to_torch(model(embedding_size=H))
    del square["decoder.bias"]
    with pytest.raises(ValueError, match=r"could be any of encoder, decoder; add a bias of zeros"):
        torch_model.from_torch(square, VOCABULARY)
    tied = square | {"encoder.weight": square["decoder.weight"]}
    np.testing.assert_array_equal(
        torch_model.from_torch(tied, VOCABULARY).w_out, tied["decoder.weight"].T
    )
    with pytest.raises(ValueError, match=r"\[V, H\] = \(3, 6\), with V the size of the vocabulary"):
        torch_model.from_torch(state_dict, "abc")
    with pytest.raises(ValueError, match=r"nn.LSTM has no peepholes"):
        torch_model.to_torch(model(peephole=True))


# --- Keras ---


def keras_char_rnn(kind: str, layers: int = 1, **options: Any) -> Any:
    """Return the lecture's model in small, with biases that are not zero."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    recurrent = [
        getattr(keras.layers, kind)(
            H,
            return_sequences=True,
            recurrent_initializer="glorot_uniform",
            bias_initializer="uniform",
            **options,
        )
        for _ in range(layers)
    ]
    return keras.Sequential(
        [
            keras.Input((None,)),
            keras.layers.Embedding(V, E),
            *recurrent,
            keras.layers.Dropout(0.2),
            keras.layers.Dense(V, bias_initializer="uniform"),
        ]
    )


@peers
@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "layers", "options"),
    [("LSTM", 1, {}), ("LSTM", 2, {"dropout": 0.1, "recurrent_dropout": 0.1}), ("GRU", 1, {}),
     ("GRU", 2, {"reset_after": False}), ("SimpleRNN", 1, {})],
)  # fmt: skip
def test_the_lectures_program(
    kind: str, layers: int, options: dict[str, Any], tmp_path: Path
) -> None:
    net = keras_char_rnn(kind, layers, **options)
    import keras

    tokens = VOCABULARY.encode(TEXT)[None].astype(np.int32)
    # A file of a trained model also holds the state of its optimizer.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile("adam", loss, metrics=["accuracy"])
    net.fit(tokens[:, :-1], tokens[:, 1:], verbose=0)
    want = np.asarray(net.predict_on_batch(tokens))[0]
    params = keras_model.from_keras(net, VOCABULARY)
    np.testing.assert_allclose(logits_of(params), want, atol=TOLERANCE)
    for name in ("model.keras", "model.weights.h5"):
        path = tmp_path / name
        net.save_weights(path) if "weights" in name else net.save(path)
        assert_same(keras_model.from_keras(path, VOCABULARY.characters), params)
    changed = [array + 0.1 for array in net.get_weights()]
    net.set_weights(changed)
    net.set_weights(keras_model.to_keras(params))
    np.testing.assert_allclose(np.asarray(net.predict_on_batch(tokens))[0], want, atol=TOLERANCE)
    assert_same(keras_model.from_keras(net, VOCABULARY), params)
    assert jaxrnn.sample(params, "he", 9, mode="argmax").startswith("he")


@peers
@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_continues_from_the_lectures_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run begins with the loss that Keras computes, and lowers it."""
    net, text = keras_char_rnn("LSTM"), TEXT * 40
    params = keras_model.from_keras(net, VOCABULARY)
    jaxrnn.save(params, tmp_path / "lecture.safetensors")
    assert_same(jaxrnn.load(tmp_path / "lecture.safetensors"), params)
    (tmp_path / "text.txt").write_text(text)
    quicken(monkeypatch)
    settings = "--batch 1 --seq-len 8 --steps 60 --log-every 1 --sample-every 0 --no-shuffle"
    regularized = "--dropout 0 --weight-dropout 0 --label-smoothing 0 --learning-rate 0.02"
    command = f"--init-from lecture.safetensors --data text.txt --workdir run {settings}"
    monkeypatch.chdir(tmp_path)
    assert train.main([*command.split(), *regularized.split()]) == 0
    logged = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    # The text repeats, and the first window may begin at any of its characters.
    windows = VOCABULARY.encode(text)[np.arange(len(TEXT))[:, None] + np.arange(9)].astype(np.int32)
    logits = np.asarray(net.predict_on_batch(windows[:, :-1]), np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logits, windows[:, 1:, None], -1).mean((1, 2))
    assert np.ptp(losses) > 100 * TOLERANCE
    assert np.abs(losses - logged[0]["loss"]).min() < TOLERANCE
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.2
    assert len(jaxrnn.sample(jaxrnn.load(tmp_path / "run"), "he", 9)) == 11


@peers
@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_keras_models(tmp_path: Path) -> None:
    net = keras_char_rnn("LSTM")
    import keras

    with pytest.raises(
        ValueError, match=r"^embedding.*/embeddings must have shape \(3, 5\).*\(8, 5\)"
    ):
        keras_model.from_keras(net, "abc")
    masked = keras.layers.Embedding(V, E, mask_zero=True)
    with pytest.raises(
        ValueError, match="has mask_zero=True, and char-RNNs do not support masking"
    ):
        keras_model.from_keras(
            keras.Sequential([keras.Input((None,)), masked, *net.layers[1:]]), VOCABULARY
        )
    other = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(V, E)])
    with pytest.raises(ValueError, match=r"in this order, not Embedding$"):
        keras_model.from_keras(other, VOCABULARY)
    attention = keras.Sequential([*net.layers, keras.layers.LayerNormalization()])
    with pytest.raises(
        ValueError,
        match="has the type LayerNormalization; supported types are Embedding, SimpleRNN",
    ):
        keras_model.from_keras(attention, VOCABULARY)
    net.layers[-1].activation = keras.activations.relu
    with pytest.raises(ValueError, match="activation='relu', not 'linear' or 'softmax'"):
        keras_model.from_keras(net, VOCABULARY)
    path = tmp_path / "model.weights.h5"
    net.save_weights(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(jaxrnn.InputError, match="is a damaged HDF5 file"):
        keras_model.from_keras(path, VOCABULARY)
    with pytest.raises(ValueError, match="has no peepholes"):
        keras_model.to_keras(model(peephole=True))
