"""A char-RNN of any cell: the library's by name, and a cell of one's own that was registered."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import charlm, train
from jaxrnn.charlm import registry
from jaxrnn.training.config import TrainingConfig
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import Leaky
from tests.support.runs import CONFIG, TEXT, flags

NAMES = get_args(registry.CellName)[3:]
VOCABULARY = jaxrnn.Vocabulary.of("abcde")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 5, (6, 3)), jnp.int32)


@pytest.fixture
def leaky(unchecked: None) -> Iterator[str]:
    """Register a cell; the annotation of `ModelConfig.cell` has the library's names alone."""
    jaxrnn.register_cell("leaky", Leaky)
    yield "leaky"
    registry._makers.pop("leaky", None)


def model(name: str, **options: Any) -> Any:
    config = jaxrnn.ModelConfig(cell=name, hidden_size=6, embedding_size=4, **options)  # type: ignore[arg-type]
    return config, jaxrnn.init(config, VOCABULARY)


@pytest.mark.first_case
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_forward_pass(name: str, layers: int) -> None:
    config, params = model(name, layers=layers)
    carry = charlm.initial_carry(config, 3)
    _, want = charlm.forward(params, TOKENS, carry)
    weights, got = charlm.step_params(params), []
    for tokens in TOKENS:
        carry, logits = charlm.step(config, weights, carry, tokens)
        got.append(logits)
    assert_close(jnp.stack(got), want, TOLERANCES["float32"])


@pytest.mark.first_case
@pytest.mark.parametrize("name", NAMES)
def test_a_one_hot_character_is_a_row_of_the_identity(name: str) -> None:
    """Without an embedding, the first layer is that of a model whose embedding is the identity."""
    config = jaxrnn.ModelConfig(cell=name, hidden_size=6, embedding_size=0)  # type: ignore[arg-type]
    params = jaxrnn.init(config, VOCABULARY)
    same = dataclasses.replace(
        params, embedding=jnp.eye(5), config=dataclasses.replace(config, embedding_size=5)
    )
    carry = charlm.initial_carry(config, 3)
    got, want = (charlm.forward(p, TOKENS, carry)[1] for p in (params, same))
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("name", ["mingru", "layer_norm_lstm", "mogrifier_lstm"])
def test_the_command_trains_any_cell_of_the_library(name: str, tmp_path: Path) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(TEXT)
    assert train.main(flags(text, run, cell=name)) == 0
    params = jaxrnn.load(run)
    assert params.config.cell == name
    assert jaxrnn.sample(params, "6 green", 10).startswith("6 green")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_cell_of_ones_own_trains_resumes_and_samples(leaky: str, tmp_path: Path) -> None:
    """The run in two parts ends with the parameters of the run in one."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    config = dataclasses.replace(CONFIG.model, cell=leaky)

    def options(run: str, steps: int) -> train.TrainOptions:
        training: TrainingConfig = dataclasses.replace(
            CONFIG, model=config, steps=steps, schedule="constant"
        )
        return train.TrainOptions(data=(str(text),), workdir=tmp_path / run, training=training)

    assert train.run(options("whole", 12)) == 0
    assert train.run(options("parts", 8)) == 0
    assert train.run(options("parts", 12)) == 0
    whole, parts = (jaxrnn.load(tmp_path / run, "latest") for run in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert jaxrnn.sample(whole, "6 green", 10) == jaxrnn.sample(parts, "6 green", 10)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_run_of_an_unknown_cell_names_what_to_do(leaky: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    training = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, cell=leaky))  # type: ignore[arg-type]
    assert (
        train.run(
            train.TrainOptions(data=(str(text),), workdir=tmp_path / "run", training=training)
        )
        == 0
    )
    registry._makers.pop(leaky)
    with pytest.raises(jaxrnn.InputError, match=r"jaxrnn\.register_cell, not 'leaky'"):
        jaxrnn.load(tmp_path / "run")


@pytest.mark.usefixtures("unchecked")
def test_names_are_checked() -> None:
    with pytest.raises(jaxrnn.InputError, match=r"mingru, .*jaxrnn\.register_cell, not 'lstmm'"):
        jaxrnn.ModelConfig(cell="lstmm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the library has a cell 'mgu'"):
        jaxrnn.register_cell("mgu", Leaky)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (3, Leaky, "the name of a cell must be a text such as 'leaky', not 3"),
        ("", Leaky, "must be a text"),
        (["leaky"], Leaky, "must be a text"),
        ("leaky", 5, "make must be a function of the hidden size that returns a cell, not 5"),
    ],
    ids=str,
)
def test_what_is_registered_is_checked(name: Any, make: Any, message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        jaxrnn.register_cell(name, make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda size: 3, "cell must be a jaxrnn.Cell"),
        (lambda size: Leaky(size + 1), "'leaky' was asked for hidden_size 6 and has 7"),
    ],
    ids=["no cell", "another width"],
)
def test_what_a_registered_function_returns_is_checked(make: Any, message: str, leaky: str) -> None:
    jaxrnn.register_cell(leaky, make)
    with pytest.raises(ValueError, match=message):
        model(leaky)
