"""Test the counts of `cells_compared` against the equations in its docstring."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cells_compared as compared
from jaxrnn import Vocabulary, charlm
from jaxrnn.data.corpus import make_corpus

pytestmark = pytest.mark.once

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
BYTES = Vocabulary.of_bytes()
EMBED = 64


def parameters(cell: str, hidden: int) -> int:
    return (GATES[cell] * hidden + len(BYTES)) * (EMBED + hidden + 1)


@pytest.mark.parametrize("cell", compared.CELLS)
def test_parameters_and_operations_are_those_of_the_equations(cell: str) -> None:
    shapes = compared.model(cell, 48, BYTES)
    assert charlm.count(shapes) == parameters(cell, 48)
    products = 2 * 48 * (GATES[cell] * 48 + len(BYTES))
    others = compared.operations(shapes) - products
    # Each unit adds its projected input and passes through a few gates; each logit has a bias.
    assert len(BYTES) <= others <= len(BYTES) + 20 * 48


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_the_width_at_equal_parameters_is_the_closest(cell: str) -> None:
    target = parameters("lstm", 48)
    nearest = min(range(1, 400), key=lambda hidden: abs(parameters(cell, hidden) - target))
    assert compared.width(cell, target, BYTES) == nearest
    assert compared.width(cell, 1, BYTES) == 1


@pytest.mark.parametrize(
    ("losses", "held"),
    [
        ((2.0, 1.5, 1.6), [True, True, True]),
        ((2.0, 1.5, 1.4), [False, True, True]),
        ((2.0, 1.5, 1.9), [True, False, True]),
        ((1.5, 1.6, 1.65), [False, True, False]),
    ],
)
def test_the_claims_are_compared_with_the_losses(losses: Any, held: list[bool]) -> None:
    # The median of each record counts.
    records = {
        cell: {"losses": [9.0, loss, 0.0]}
        for cell, loss in zip(compared.CELLS, losses, strict=True)
    }
    assert list(compared.claims(records).values()) == held


def test_the_cost_of_a_record_counts_all_seeds_and_trials() -> None:
    budget = compared.Budget(
        hidden=8, steps=100, scan_steps=50, rates=[0.1, 0.2, 0.3], seeds=[0, 1]
    )
    assert (
        compared.trained_steps({"steps": 100, "scan": [3.0, 1.0, 2.0]}, budget) == 2 * 100 + 3 * 50
    )
    # In equal time, the learning rate was chosen by an earlier record.
    assert compared.trained_steps({"steps": 225}, budget) == 2 * 225


def test_the_loss_of_the_trial_is_that_of_the_chosen_rate() -> None:
    assert compared.half({"term": compared.WIDTH, "scan": [1.8, 1.7512, float("nan")]}) == "1.751"
    assert compared.half({"term": compared.TIME}) == "-"


def test_a_unit_is_saturated_if_its_cell_has_grown() -> None:
    """The forget gates of three units of eight stay open, and their cells grow at each character."""
    corpus = make_corpus("to be or not to be " * 100)
    params = charlm.init(charlm.ModelConfig("lstm", hidden_size=8), corpus.vocabulary)
    assert compared.saturated(params, corpus) == 0
    [layer] = params.layers
    i, f, g, o = np.split(np.array(layer.b), 4)
    f[:3], i[:3], g[:3] = 20, 20, [20, -20, 20]
    grown = layer._replace(b=jnp.concatenate([i, f, g, o]))
    changed = dataclasses.replace(params, layers=(grown,))
    assert compared.saturated(changed, corpus) == 3 / 8
    assert compared.share({"saturated": [0.25, 0.5, 0.375]}) == "38% (25 to 50)"
    assert compared.share({}) == "-"


def test_the_checks_are_no_comparisons() -> None:
    """The verdict counts Muon on its own, and the other terms take the LSTM of equal width."""

    def record(term: str, cell: str, loss: float) -> dict[str, Any]:
        return {"term": term, "cell": cell, "losses": [loss, loss + 1, loss - 1]}

    records = [record(compared.WIDTH, "rnn", 2.0), record(compared.WIDTH, "lstm", 1.6)]
    records += [record(compared.WIDTH, "gru", 1.5)]
    for term in (compared.PARAMETERS, compared.TIME):
        records += [record(term, "rnn", 1.9), record(term, "gru", 1.5)]
    records += [record(compared.BIAS, "lstm", 1.0)]
    records += [record(compared.MUON, "lstm", 1.3), record(compared.MUON, "gru", 1.4)]
    found = compared.verdict({"models": {"shakespeare": records}}, [0, 1, 2])
    assert "of 3 comparisons, the RNN is last in 3 and the LSTM first in 0" in found.english
    assert "the LSTM is ahead of the GRU on 1 of 1 texts" in found.english
    assert compared.trio(records, compared.TIME)["lstm"]["term"] == compared.WIDTH
    assert set(compared.of(records, compared.BIAS)) == {"lstm"}
    assert compared.of(records, compared.MUON)["lstm"]["term"] == compared.MUON


def test_the_table_has_no_time_where_none_was_measured() -> None:
    each = {"term": compared.MUON, "cell": "gru", "hidden": 8, "learning_rate": 0.01, "steps": 50}
    each |= {"losses": [1.5], "training_losses": [1.4], "parameters": 100, "operations": 200.0}
    timed = each | {"term": compared.WIDTH, "milliseconds": 2.0}
    numbers = {"models": {"play": [timed, each]}, "rates": [0.01], "scan_steps": 25}
    head, first, second = compared.table(numbers, [0])
    assert len(head) == len(first) == len(second)
    assert first[-2:] == ["2.0", "0"] and second[-2:] == ["-", "-"]
