"""Test the choice of units against numpy's corrcoef and `jaxrnn.activations`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import InputError
from jaxrnn.formats import inspection as page
from jaxrnn.units import inspecting, recording, search
from jaxrnn.units.features import features, matches
from jaxrnn.units.inspecting import Inspection, inspect_units
from jaxrnn.units.recording import Recorder, Unit
from tests.support.runs import TEXT

pytestmark = pytest.mark.once

LSTM = jaxrnn.ModelConfig("lstm", layers=2, hidden_size=5, embedding_size=3)
VOCABULARY = jaxrnn.Vocabulary.of(TEXT)


def params_of(
    config: jaxrnn.ModelConfig = LSTM, vocabulary: jaxrnn.Vocabulary = VOCABULARY
) -> jaxrnn.Params:
    """Return a model with larger weights than initial ones, so that its units differ."""
    params = jaxrnn.init(config, vocabulary, 1)
    return jax.tree.map(lambda a: jnp.float32(2) * a, params)


@pytest.fixture(scope="module")
def params() -> jaxrnn.Params:
    return params_of()


def by_hand(params: jaxrnn.Params, text: str | bytes, names: list[str]) -> np.ndarray:
    """Return the activations [T, S] by `jaxrnn.activations`."""
    layers = jaxrnn.activations(params, text, names)
    return np.concatenate(
        [
            np.tanh(layer[name]) if name == "cell" else layer[name]
            for name in names
            for layer in layers
        ],
        axis=1,
    )


# --- activations ---


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LSTM, ["cell", "hidden", "i", "f", "g", "o"]),
        (jaxrnn.ModelConfig("gru", hidden_size=4, embedding_size=3), ["hidden", "z", "r", "n"]),
        (jaxrnn.ModelConfig("rnn", hidden_size=4, activation="relu"), ["hidden"]),
        (jaxrnn.ModelConfig("mgu", hidden_size=4), ["hidden", "f", "n"]),
        (jaxrnn.ModelConfig("lstm", hidden_size=4, lines=True), ["cell", "hidden"]),
    ],
    ids=str,
)
def test_windows_are_the_activations(
    config: jaxrnn.ModelConfig, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "WINDOW", 64)
    params = params_of(config)
    assert set(recording.names(config)) == set(names) or config.lines
    assert next(iter(recording.names(config))) in recording.STATES
    recorder = Recorder(params, names)
    text, reached = TEXT[:150], []
    found = np.concatenate([*recorder.windows(text, reached.append)])
    np.testing.assert_allclose(found, by_hand(params, text, names), rtol=1e-5, atol=1e-6)
    assert reached == [64, 128, 150]
    chosen = [recorder.units[n] for n in (7 % len(recorder.units), 0)]
    assert chosen[1] == Unit(names[0], 1, 1)
    np.testing.assert_array_equal(
        recorder.values(text, chosen), found[:, [7 % len(recorder.units), 0]]
    )


def test_the_order_of_units(params: jaxrnn.Params) -> None:
    units = Recorder(params, ["o", "cell"]).units
    assert units[:2] == [Unit("o", 1, 1), Unit("o", 1, 2)]
    assert units[5] == Unit("o", 2, 1) and units[10] == Unit("cell", 1, 1) and len(units) == 20
    assert str(units[5]) == "o of unit 1 in layer 2"
    with pytest.raises(InputError, match=r"`record` must be of cell, hidden, .* not 'z'"):
        Recorder(params, ["z"])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["", "[a-z]+"])
def test_tokens_of_other_lengths(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character has the value after its last byte; the characters of a token share its value."""
    monkeypatch.setattr(recording, "WINDOW", 8)
    text = "aé€ \U0001f600\udcff end 12 ends\n" * 3
    vocabulary = jaxrnn.Vocabulary.of(text, pattern) if pattern else jaxrnn.Vocabulary.of_bytes()
    params = params_of(vocabulary=vocabulary)
    values = by_hand(params, text, ["cell"])
    tokens = vocabulary.encode(text)
    if pattern:
        ends = [n for n, token in enumerate(tokens) for _ in vocabulary.symbols[token]]
    else:
        ends = [len(text[: n + 1].encode(errors="surrogateescape")) - 1 for n in range(len(text))]
    found = np.concatenate([*Recorder(params, ["cell"]).windows(text)])
    np.testing.assert_allclose(found, values[ends], rtol=1e-5, atol=1e-6)


def test_a_model_that_has_diverged() -> None:
    params = jax.tree.map(lambda a: a * jnp.float32(math.nan), params_of())
    with pytest.raises(InputError, match="activations that are not numbers"):
        list(Recorder(params).windows("6 green"))


def test_a_cell_that_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxrnn.ModelConfig, "make_cell", lambda config: object())
    with pytest.raises(InputError, match="the cell object has no method `activations`"):
        recording.names(LSTM)


# --- correlations ---


def test_units_are_chosen_on_one_half_and_judged_on_the_other(
    params: jaxrnn.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "WINDOW", 64)
    text = TEXT[:301]
    recorder = Recorder(params)
    wanted = {**features(text), **matches(text, ["on the"])}
    found = search.correlations(recorder, text, wanted)
    values = by_hand(params, text, ["cell", "hidden", "i", "f", "g", "o"]).astype(float)
    assert found.features == list(wanted) and found.units == recorder.units
    for row, (name, feature) in enumerate(wanted.items()):
        varies = np.ptp(feature[:150]) > 0 and np.ptp(feature[150:]) > 0
        assert found.varies[row] == varies == (name in found.best(3))
        if not varies:
            continue
        for part, r in ((slice(None, 150), found.chosen), (slice(150, None), found.judged)):
            want = [np.corrcoef(column, feature[part])[0, 1] for column in values[part].T]
            np.testing.assert_allclose(r[row], want, atol=2e-4)
        order = np.argsort(-np.abs(found.chosen[row]))[:3]
        best = found.best(3)[name]
        assert [each.unit for each in best] == [recorder.units[n] for n in order]
        assert [each.r for each in best] == found.judged[row, order].tolist()
        assert [each.r_chosen for each in best] == found.chosen[row, order].tolist()


def test_constant_values_correlate_with_nothing() -> None:
    sums = search._Sums(2, 3)
    values = np.stack([np.full(9, 0.1), np.arange(9), -np.arange(9)], 1).astype(np.float32)
    table = np.stack([np.ones(9), np.arange(9)])
    for part in (slice(0, 4), slice(4, 4), slice(4, 9)):
        sums.add(table[:, part], values[part])
    np.testing.assert_allclose(sums.r(), [[0, 0, 0], [0, 1, -1]], atol=1e-9)


# --- the whole ---


def test_inspect_units(params: jaxrnn.Params, tmp_path: Any) -> None:
    text = TEXT[:400]
    found = inspect_units(params, text, find=["[0-9]+"], record=["cell"])
    assert next(iter(found)) == "[0-9]+" and len(found["[0-9]+"]) == inspecting.BEST
    assert "in quotes" not in found and "position in the line" in found
    assert {each.unit.record for best in found.values() for each in best} == {"cell"}
    (unit, r_chosen, r) = found["[0-9]+"][0]
    values = by_hand(params, text, ["cell"])[:, 5 * (unit.layer - 1) + unit.unit - 1].astype(float)
    digits = [c.isdigit() for c in text]
    assert np.corrcoef(values[:200], digits[:200])[0, 1] == pytest.approx(r_chosen, abs=1e-4)
    assert np.corrcoef(values[200:], digits[200:])[0, 1] == pytest.approx(r, abs=1e-4)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "page.html"
    again = jaxrnn.inspect_units(params, text, path, find=["[0-9]+"], record=["cell"])
    assert again == found and path.stat().st_size > 10_000


def test_a_page_of_limited_size(params: jaxrnn.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen units, the best ones, then the states, the strongest first."""
    inspection = Inspection(params, TEXT[:400], record=["f", "cell"], chosen=[(2, 3)])
    best = [each.unit for found in inspection.found.values() for each in found]
    wanted = [Unit("f", 2, 3), Unit("cell", 2, 3), *best]
    monkeypatch.setattr(page, "most_units", lambda characters: 3)
    assert inspection.shown() == list(dict.fromkeys(wanted))
    monkeypatch.setattr(page, "most_units", lambda characters: 18)
    shown = inspection.shown()
    assert len(shown) == 18
    rest = shown[len(set(wanted)) :]
    r = dict(zip(inspection.units, np.abs(inspection._correlations.chosen).max(0), strict=True))
    kinds = [unit.record for unit in rest]
    # The names are in the order that was asked for.
    assert kinds == sorted(kinds, key=["f", "cell"].index)
    for kind in ("f", "cell"):
        strengths = [r[unit] for unit in rest if unit.record == kind]
        assert strengths == sorted(strengths, reverse=True)
    monkeypatch.undo()
    assert set(inspection.shown()) == set(inspection.units)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ""}, "the text is too short: it has 0 characters; give at least 100"),
        ({"text": TEXT[:99]}, "it has 99 characters"),
        ({"text": "Z" * 100}, "never seen: 'Z'"),
        ({"text": b"\xff" * 100}, "not UTF-8: byte 0xff at offset 0"),
        ({"find": "[0-9]"}, r"`find` must be a list, as in \['\[0-9\]'\]"),
        ({"find": ["("]}, "is not a regular expression"),
        ({"find": ["zz"]}, "matches nothing"),
        ({"find": ["^0 green"]}, "must match a part of each half of the text"),
        ({"record": ["z"]}, "`record` must be of cell, hidden"),
        ({"units": [(3, 1)]}, "no unit 1 in layer 3: the model has layers 1 to 2 and units 1 to 5"),
        ({"units": [(1, 6)]}, "no unit 6 in layer 1"),
        ({"units": [(0, 1)]}, "no unit 1 in layer 0"),
        ({"path": "page.html", "text": TEXT * 90}, "too long for a page: it has"),
    ],
)
def test_refusals(given: dict[str, Any], message: str, params: jaxrnn.Params) -> None:
    given = {"text": TEXT[:400], **given}
    with pytest.raises(InputError, match=message):
        inspect_units(params, given.pop("text"), **given)
