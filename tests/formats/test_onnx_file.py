"""Test char-RNNs as ONNX files: logits in onnxruntime, metadata, and the documented program."""

import dataclasses
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import charlm
from jaxrnn.formats import onnx_file
from tests.support.onnx_runtime import Session, following, states
from tests.support.oracle import assert_close

TEXT = "ROMEO: a\nquick Ünïcode ☃ 𝄞 test"
VOCABULARY = jaxrnn.Vocabulary.of(TEXT)
RUNTIME = 1e-5  # largest error in float32, in units of an array's largest entry
CELLS: dict[str, dict[str, Any]] = {
    "rnn-tanh": {"cell": "rnn"},
    "rnn-relu": {"cell": "rnn", "activation": "relu"},
    "rnn-sigmoid": {"cell": "rnn", "activation": "sigmoid"},
    "lstm": {"cell": "lstm"},
    "lstm-peephole": {"cell": "lstm", "peephole": True},
    "gru-before": {"cell": "gru", "reset": "before"},
    "gru-after": {"cell": "gru", "reset": "after"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "embedding": {"embedding_size": 5},
    "one-hot": {"embedding_size": 0},
    "tied": {"embedding_size": 6, "tie": True},
}


def drawn(vocabulary: jaxrnn.Vocabulary = VOCABULARY, **options: Any) -> charlm.Params:
    """A char-RNN with random parameters, biases and peepholes included."""
    params = jaxrnn.init(jaxrnn.ModelConfig(hidden_size=6, **options), vocabulary)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype) / 2, params)


def random_tokens(params: charlm.Params, steps: int, batch: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, len(params.vocabulary), (steps, batch))


def written(params: charlm.Params, folder: Path) -> Path:
    path = folder / "model.onnx"
    # A path may be a text, as in `jaxrnn.save`.
    onnx_file.write(params, str(path))
    return path


def assert_same_logits(params: charlm.Params, path: Path) -> None:
    """The file computes the logits and final states of `charlm.forward`, from non-zero states."""
    tokens = random_tokens(params, 7, 3)
    rng = np.random.default_rng(2)
    zeros = charlm.initial_carry(params.config, 3)
    carry = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), zeros)
    got = Session(path)(tokens=tokens, **states(carry))
    final, logits = charlm.forward(params, jnp.asarray(tokens, jnp.int32), carry)
    assert_close(got, {"logits": logits} | states(final, prefix="final_"), RUNTIME)


@pytest.mark.peers
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_final_states(cell: str, inputs: str, layers: int, tmp_path: Path) -> None:
    params = drawn(layers=layers, **CELLS[cell], **INPUTS[inputs])
    assert_same_logits(params, written(params, tmp_path))


@pytest.mark.peers
def test_what_only_training_drops_has_no_effect(tmp_path: Path) -> None:
    params = drawn(dropout=0.5, embedding_dropout=0.3, weight_dropout=0.2, embedding_size=5)
    assert_same_logits(params, written(params, tmp_path))


@pytest.mark.peers
def test_a_model_of_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    params = drawn(dtype="bfloat16", embedding_size=5)
    wide = params.replace(config=dataclasses.replace(params.config, dtype="float32"))
    assert_same_logits(wide, written(params, tmp_path))


@pytest.mark.peers
def test_tokens_one_by_one_equal_the_whole(tmp_path: Path) -> None:
    params = drawn(layers=2, embedding_size=5)
    session = Session(written(params, tmp_path))
    tokens = random_tokens(params, 9, 2)
    state = states(charlm.initial_carry(params.config, 2))
    whole, logits = session(tokens=tokens, **state), []
    for now in tokens:
        outputs = session(tokens=now[None], **state)
        logits.append(outputs["logits"])
        state = following(outputs)
    assert_close(np.concatenate(logits), whole["logits"], RUNTIME)
    assert_close(state, following(whole), RUNTIME)


@pytest.mark.peers
@pytest.mark.parametrize(
    "vocabulary",
    [VOCABULARY, jaxrnn.Vocabulary.of_bytes(), jaxrnn.Vocabulary.of("CCl\n", "Cl|Br")],
    ids=len,
)
def test_the_metadata_describes_the_model(vocabulary: Any, tmp_path: Path) -> None:
    import onnx

    params = drawn(vocabulary, layers=2)
    model = onnx.load(written(params, tmp_path))
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert set(metadata) == {"vocabulary", "config"}
    assert jaxrnn.Vocabulary(**metadata["vocabulary"]) == vocabulary
    assert jaxrnn.ModelConfig(**metadata["config"]) == params.config
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Gather", "LSTM", "Squeeze", "LSTM", "Squeeze", "MatMul", "Add"]


@pytest.mark.peers
@pytest.mark.parametrize("inputs", INPUTS)
def test_each_parameter_is_in_the_file_once(inputs: str, tmp_path: Path) -> None:
    import onnx

    params = drawn(jaxrnn.Vocabulary.of_bytes(), **INPUTS[inputs])
    path = written(params, tmp_path)
    stored = sum(
        onnx.numpy_helper.to_array(constant).size for constant in onnx.load(path).graph.initializer
    )
    # The recurrent biases, which are zeros, and small constants as the number of tokens.
    zeros = 4 * 6
    assert zeros <= stored - charlm.count(params) <= zeros + 4
    assert os.path.getsize(path) < 4 * stored + 4000


@pytest.mark.peers
def test_the_documented_program_writes_the_model_s_text(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The program, which knows onnxruntime alone, draws as a loop of `charlm.step` does."""
    documentation = inspect.getdoc(onnx_file) or ""
    found = re.search(r"    import json\n.*\n    print\(text\)", documentation, re.DOTALL)
    assert found
    params = drawn(layers=2, embedding_size=5)
    onnx_file.write(params, tmp_path / "play.onnx")
    monkeypatch.chdir(tmp_path)
    exec(inspect.cleandoc("\n" + found[0]), {})
    got = capsys.readouterr().out.removesuffix("\n")

    weights, carry = charlm.step_params(params), charlm.initial_carry(params.config, 1)
    random = np.random.default_rng(0)
    tokens = [VOCABULARY.characters.index(c) for c in "ROMEO:"]
    logits = np.zeros((1, len(VOCABULARY)))
    for t in range(len(tokens) + 500):
        if t == len(tokens):
            p = np.exp(np.asarray(logits[0], np.float64) / 0.8)
            tokens.append(int(random.choice(len(p), p=p / p.sum())))
        now = jnp.asarray(tokens[t : t + 1], jnp.int32)
        carry, logits = charlm.step(params.config, weights, carry, now)
    assert got == VOCABULARY.decode(tokens)


def test_a_cell_without_an_operator_is_refused(tmp_path: Path) -> None:
    config = jaxrnn.ModelConfig(cell="mgu", hidden_size=4)
    assert onnx_file.unsupported_reason(config) == "ONNX has no operator for MGU"
    reason = onnx_file.unsupported_reason(jaxrnn.ModelConfig(lines=True))
    assert "reset the state at the start of each line" in str(reason)
    with pytest.raises(jaxrnn.InputError, match="ONNX has no operator for MGU"):
        written(jaxrnn.init(config, VOCABULARY), tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("cell", CELLS)
def test_the_other_cells_are_supported(cell: str) -> None:
    assert onnx_file.unsupported_reason(jaxrnn.ModelConfig(**CELLS[cell])) is None


def test_without_the_package_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(jaxrnn.InputError, match=r'pip install "jaxrnn\[onnx\]"$'):
        written(drawn(), tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.peers
def test_a_model_too_large_for_protobuf_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("jaxrnn.interop.onnx_graph.LARGEST", 100)
    with pytest.raises(jaxrnn.InputError, match="at most 2 GiB"):
        written(drawn(), tmp_path)
    assert not os.listdir(tmp_path)
