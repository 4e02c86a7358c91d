"""Presets for a text of any kind depend on its length, and the sprint learns as fast as it says."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import jax
import pytest

from jaxrnn import presets, train
from jaxrnn.charlm.registry import CellName
from jaxrnn.data import play
from jaxrnn.data.corpus import Batches, make_corpus
from jaxrnn.presets import PRESETS, SHAKESPEARE_LENGTH, for_minutes
from tests.support.runs import fit

pytestmark = pytest.mark.once

# Nats per character that the sprint reaches on the play in 100 steps. The entropy of the play is 0.50.
AFTER_100_STEPS = 0.85


@pytest.mark.parametrize("name", ["small", "shakespeare"])
@pytest.mark.parametrize("length", [18, 100, 5_000, 90_000, 1_000_000, 50_000_000, 10**10])
def test_a_text_of_any_length_can_be_trained_on(name: str, length: int) -> None:
    config = PRESETS[name].for_length(length)
    batches = Batches(length, config.batch, config.seq_len)
    assert batches.per_epoch >= 1
    minutes = {"small": 2, "shakespeare": 11.5}[name]
    characters = config.total_steps(batches) * config.batch * config.seq_len
    assert characters <= 1.3 * minutes * presets.PER_MINUTE


def test_what_is_read_more_often_needs_more_dropout() -> None:
    lengths = [100_000, 1_000_000, 10_000_000, 100_000_000]
    configs = [for_minutes(2.0, length) for length in lengths]
    passes = [config.epochs for config in configs]
    assert passes == sorted(passes, reverse=True)
    for rates in (
        [config.model.dropout for config in configs],
        [config.model.weight_dropout for config in configs],
    ):
        assert rates == sorted(rates, reverse=True) and rates[0] > 0 and rates[-1] == 0
    # A text of 100 kB is not read many times without anything dropped.
    assert for_minutes(2.0, 90_000).model.dropout == 0.5


def test_short_texts_are_not_learned_by_heart() -> None:
    short, longer = for_minutes(2.0, 13_600), for_minutes(2.0, 100_000)
    assert short.model.hidden_size < longer.model.hidden_size
    assert short.epochs < longer.epochs and short.eval_every < longer.eval_every


@pytest.mark.parametrize("cell", get_args(CellName))
def test_every_cell_has_settings_that_it_takes(cell: Any) -> None:
    for arguments in (["--cell", cell], [f"--cell={cell}"]):
        model = train.parse(arguments, 10_000).training.model
        assert model.cell == cell
        params = jax.eval_shape(lambda: model.make_cell().init(jax.random.key(0), 3))  # noqa: B023
        has_weights = getattr(params, "w_h", None) is not None
        assert (model.weight_dropout > 0) == has_weights


def test_presets_are_those_of_tiny_shakespeare_without_a_length() -> None:
    for name, settings in PRESETS.items():
        assert train.parse(["--preset", name]).training == settings.training
        assert settings.for_length(SHAKESPEARE_LENGTH) == settings.training
    short = train.parse(["--dropout", "0.11", "--epochs", "3"], 50_000).training
    assert (short.model.dropout, short.epochs) == (0.11, 3)
    assert short.model.weight_dropout == for_minutes(2.0, 50_000).model.weight_dropout


@pytest.mark.slow
def test_the_sprint_reaches_a_loss_in_100_steps(tmp_path: Path) -> None:
    corpus = make_corpus(play.write(200_000).text)
    config = dataclasses.replace(
        PRESETS["sprint"].training, stop_at=None, epochs=1.0, steps=100, schedule="constant"
    )
    _, _, lines = fit(config, tmp_path, corpus)
    assert lines[-1]["step"] == 100 and lines[-1]["loss"] < AFTER_100_STEPS
