"""The page of Tiny Shakespeare's records is what its logs say."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.shakespeare import __main__ as command
from benchmarks.shakespeare import adaptation, report
from benchmarks.shakespeare.recipes import BASE, COMBINED, LEVERS, NANOGPT, RECORDS
from jaxrnn import charlm, train
from jaxrnn.data.vocabulary import Vocabulary

pytestmark = pytest.mark.once


def log(name: str, seed: int, loss: float, seconds: float, kind: str = "lever") -> dict[str, Any]:
    evaluations = [
        {"step": 5, "training_seconds": seconds / 2, "seconds": seconds, "val_loss": 2.0},
        {"step": 10, "training_seconds": seconds, "seconds": seconds + 3, "val_loss": loss},
    ]
    return {
        "kind": kind,
        "name": name,
        "seed": seed,
        "evaluations": evaluations,
        "training_loss": 1.25,
        "start_seconds": 7.0,
        "gflops_of_products": [100.0, 200.0],
        "settings": {"model": {"dtype": "float32"}},
        "cores": 2,
        "cpu": "a processor",
        "date": "2026-11-28T10:00:00+00:00",
        "commit": "0123456789abcdef",
    }


def rows(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_a_record_has_its_seconds_on_a_reference_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 200 GFLOP/s, half the reference speed, 40 seconds are 20 comparable ones."""
    monkeypatch.setattr(report, "REFERENCE_SPEED", 400.0)
    [row] = rows(report.record_table([log("sprint", 0, 1.46, 40.0, "record")]))
    assert row[:8] == ["sprint", "0", "1.4600", "40.0", "20.0", "3.0", "7.0", "10"]
    assert row[8:] == ["2 cores, a processor", "float32", "2026-11-28", "`01234567`"]


def test_a_lever_is_compared_with_the_base_of_its_seed() -> None:
    logs = [log("base", 0, 1.5, 10.0), log("base", 1, 1.6, 10.0)]
    logs += [log("Muon", 1, 1.57, 20.0), log("Muon", 0, 1.49, 30.0)]
    base, muon = rows(report.lever_table(logs))
    assert base[:3] == ["base", "1.5500", "+0.0000 ± 0.0000"]
    assert muon[:3] == ["Muon", "1.5300", "-0.0200 ± 0.0100"]
    assert muon[3:] == ["1.250", "2000.0", "2.00", "20", "2"]


def test_adapted_and_combined_models_have_columns_of_their_own() -> None:
    losses = {"plain": 1.5, "temperature": 1.49, "ensemble of two": 1.45, "dynamic evaluation": 1.4}
    chosen = {"temperature": 1.02, "rate": 3e-5, "back": 0.001}
    [row] = rows(report.adapted_table([{"name": "best", "chosen": chosen, "official": losses}]))
    assert row[:3] == ["best", "1.5000", "1.4900 (temperature 1.02)"]
    assert row[3:] == ["1.4500", "1.4000 (rate 3e-05, back 0.001)"]


def test_the_page_has_what_the_logs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = report.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(written, encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "_draw_records", lambda *_: None)
    monkeypatch.setattr(report, "_draw_levers", lambda *_: None)
    report.write()
    assert page.read_text(encoding="utf-8") == written, (
        "run python -m benchmarks.shakespeare report"
    )


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path: Path) -> None:
    records = [log("sprint", seed, 1.46, 40.0 + seed, "record") for seed in range(2)]
    levers = [log("base", 0, 1.5, 10.0), log("Muon", 0, 1.49, 20.0), log("tie", 0, 1.6, 9.0)]
    report._draw_records(records, tmp_path / "records.png")
    report._draw_levers(levers, tmp_path / "levers.png")
    assert all((tmp_path / name).stat().st_size > 9000 for name in ("records.png", "levers.png"))


@pytest.mark.parametrize("name", LEVERS)
def test_levers_are_flags_of_the_command(name: str) -> None:
    base = train.parse(BASE).training
    assert (train.parse([*BASE, *LEVERS[name]]).training == base) == (name == "base")


def test_combinations_are_of_known_levers() -> None:
    assert {lever for name in COMBINED for lever in name.split(" + ")} <= LEVERS.keys()


def test_the_logs_of_records_are_of_their_presets_and_commits() -> None:
    for path in report.LOGS.glob("record-*.json"):
        found = json.loads(path.read_bytes())
        assert found["flags"] == RECORDS[found["name"]], path.name
        assert "dirty" not in found["commit"], path.name
        assert found["validation"] == "official", path.name
        if found["name"] == "sprint":
            assert found["evaluations"][-1]["val_loss"] <= NANOGPT, path.name


# --- adapted and combined models ---

VOCABULARY = Vocabulary.of("abcdefgh")
TEXT = np.random.default_rng(0).integers(8, size=150).astype(np.uint8)
# float32 against float32, read in other parts
SAME = 1e-5


def small_model(seed: int) -> charlm.Params:
    config = charlm.ModelConfig(hidden_size=8, embedding_size=4)
    return charlm.init(config, VOCABULARY, seed)


def plain_loss(params: charlm.Params, text: np.ndarray) -> float:
    tokens = jnp.asarray(text, jnp.int32)[:, None]
    return float(charlm.loss(params, tokens, charlm.initial_carry(params.config, 1))[0])


@pytest.mark.slow
def test_losses_without_any_adaptation_are_the_plain_loss() -> None:
    params = small_model(0)
    want = plain_loss(params, TEXT)
    logs = adaptation.log_probabilities(params, TEXT)
    assert adaptation.loss(logs, TEXT) == pytest.approx(want, rel=SAME)
    scale = jax.tree.map(jnp.ones_like, params)
    # Of 149 predictions the last 9 are no whole segment.
    assert adaptation.dynamic(params, scale, TEXT, 0.0, 0.0) == pytest.approx(want, rel=SAME)
    assert adaptation.ensemble([params, params], TEXT) == pytest.approx(want, rel=SAME)


@pytest.mark.slow
def test_an_ensemble_averages_probabilities() -> None:
    models = [small_model(0), small_model(1)]
    probabilities = np.mean(
        [np.exp(adaptation.log_probabilities(params, TEXT)) for params in models], axis=0
    )
    want = -np.log(probabilities[np.arange(149), TEXT[1:]])[5:].mean()
    assert adaptation.ensemble(models, TEXT, skip=5) == pytest.approx(want, rel=SAME)


@pytest.mark.slow
def test_a_high_temperature_makes_all_characters_alike() -> None:
    logs = adaptation.log_probabilities(small_model(0), TEXT)
    assert adaptation.loss(logs, TEXT, 1e6) == pytest.approx(np.log(8), rel=SAME)


@pytest.mark.slow
def test_dynamic_evaluation_learns_a_text_that_repeats() -> None:
    params = small_model(0)
    text = np.tile(TEXT[:15], 40)
    scale = adaptation.gradient_scale(params, text, segments=5)
    learned = adaptation.dynamic(params, scale, text, 3e-3, 0.0)
    assert learned < plain_loss(params, text) - 0.2
    held_back = adaptation.dynamic(params, scale, text, 3e-3, 1.0)
    assert held_back > learned + 0.1, "all the way back after each step"


# --- bad input ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["record", "marathon"], "argument name: invalid choice: 'marathon'"),
        (["lever", "Nuon"], "argument name: must be all or of base, half the peak rate"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit):
        command.main()
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_adapt_says_which_trainings_it_needs(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "adapt", "sprint"])
    with pytest.raises(SystemExit, match=r"error: there is no .*choosing-sprint-seed-0; first run"):
        command.main()
