"""Test `inside_the_network`: its features of C code and its verdict, on numbers made by hand."""

from typing import Any

import numpy as np
import pytest

import jaxrnn
from experiments import Holds
from experiments import inside_the_network as inside
from jaxrnn.units.recording import Recorder

pytestmark = pytest.mark.once


def numbers(trained: list[float], untrained: list[float]) -> dict[str, Any]:
    """Return numbers in which each feature has these r in the trained and untrained networks."""
    kinds = {
        kind: [
            {name: {"layer": 1, "unit": 7, "r_chosen": r, "r": r} for name in inside.FEATURES}
            for r in values
        ]
        for kind, values in (("trained", trained), ("untrained", untrained))
    }
    return {**kinds, "shown": 1}


def test_the_features_of_code() -> None:
    code = 'f(x); /* "a" */\n\tg("b"); // (c)\n'
    found = inside.features_of(code)
    assert list(found) == list(inside.FEATURES)
    assert found["in a comment"].nonzero()[0].tolist() == [*range(6, 15), *range(25, 31)]
    assert found["in quotes"].nonzero()[0].tolist() == [9, 10, 11, 19, 20, 21]
    assert found["indentation"].tolist() == [0] * 16 + [8] * (len(code) - 16)


@pytest.mark.parametrize(
    ("trained", "untrained", "holds"),
    [
        ([-0.9, 0.6, 0.5], [0.2, -0.3, 0.3], Holds.YES),
        # One untrained network has a better unit than a trained one.
        ([-0.9, 0.6, 0.5], [0.2, -0.55, 0.3], Holds.NO),
        ([0.49, 0.49, 0.6], [0.2, 0.3, 0.3], Holds.NO),
    ],
)
def test_the_verdict(trained: list[float], untrained: list[float], holds: Holds) -> None:
    made = numbers(trained, untrained)
    found = inside.verdict(made, [0, 1, 2])
    assert found.holds is holds
    assert f"{np.median(np.abs(trained)):.2f}" in found.english
    assert f"{np.median(np.abs(trained)):.2f}" in found.korean
    rows = inside.table(made, [4, 5, 6])
    assert rows[0][-1] == "unit of seed 5, with r" and len(rows) == 1 + len(inside.FEATURES)


def test_a_part_of_the_claim() -> None:
    made = numbers([0.9, 0.8], [0.1, 0.2])
    made["trained"][0]["indentation"]["r"] = 0.1
    found = inside.verdict(made, [0, 1])
    assert found.holds is Holds.PARTLY
    assert (
        "the units for “indentation” fall short of 0.5" in found.english
        and "들여쓰기의" in found.korean
    )


@pytest.mark.slow
def test_the_values_of_the_excerpt() -> None:
    config = jaxrnn.ModelConfig(layers=2, hidden_size=8, embedding_size=4)
    params = jaxrnn.init(config, jaxrnn.Vocabulary.of_bytes(), 3)
    recorder = Recorder(params, ["cell"])
    values = recorder.values(inside.CODE, recorder.units)
    found = inside.find(params, inside.CODE, inside.features_of(inside.CODE))
    shown = inside.excerpt_values(values, recorder, found)
    best = found["in a comment"][0].unit
    cells = jaxrnn.activations(params, inside.CODE, ["cell"])[best.layer - 1]["cell"]
    start = inside.CODE.index(inside.EXCERPT)
    want = np.tanh(cells[start : start + len(inside.EXCERPT), best.unit - 1])
    np.testing.assert_allclose(shown["in a comment"], want, atol=0.00501)
