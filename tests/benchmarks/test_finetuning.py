"""Test the benchmark of fine-tuning: its text, its trainings and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.finetuning import __main__ as command
from jaxrnn import train

pytestmark = pytest.mark.once


def log(name: str, seed: int, *losses: float) -> dict[str, Any]:
    evaluations = [{"step": 25 * (n + 1), "val_loss": loss} for n, loss in enumerate(losses)]
    return {"name": name, "seed": seed, "evaluations": evaluations}


def test_the_table_compares_trainings_of_the_same_seed() -> None:
    """Differences are 0.3 and 0.5 below; the deviation of two numbers is their distance over √2."""
    logs = [log("from scratch", 0, 2.0, 1.5, 1.6), log("from scratch", 1, 2.0, 1.9, 1.7)]
    logs += [log("fine-tuned", 0, 1.5, 1.2, 1.3), log("fine-tuned", 1, 1.8, 1.3, 1.2)]
    logs += [log("fine-tuned, layer frozen", 1, 1.8, 1.8, 1.8), log("fine-tuned", 2, 1.0)]
    lines = command.table(logs).splitlines()[2:]
    scratch, tuned, frozen = [line.strip("| ").split(" | ") for line in lines]
    assert scratch == ["from scratch", "1.6000 ± 0.1414", "", "50, 75", "2"]
    assert tuned == ["fine-tuned", "1.2000 ± 0.0000", "-0.4000 ± 0.1414", "25, 50", "2"]
    assert frozen == [
        "fine-tuned, layer frozen",
        "1.8000",
        "+0.1000",
        "never",
        "1",
    ]


def test_the_page_has_what_the_logs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = command.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(written, encoding="utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    command.write_table()
    assert page.read_text(encoding="utf-8") == written, (
        "run python -m benchmarks.finetuning --seeds"
    )


def test_the_logs_are_of_the_settings_in_the_code() -> None:
    """All trainings on the target text have the same settings, except for what is frozen."""
    settings = []
    for path in command.LOGS.glob("*.json"):
        found = json.loads(path.read_bytes())
        if found["name"] in command.WAYS:
            assert found["flags"] == command.WAYS[found["name"]], path.name
            own = found["settings"]
            unlike = ("seed", "freeze", "output_bias")
            settings.append({name: value for name, value in own.items() if name not in unlike})
    assert len(settings) >= 6
    assert all(one == settings[0] for one in settings)


def test_the_text_has_characters_that_are_new(tmp_path: Path) -> None:
    text = command.python_reference(tmp_path / "new").read_text(encoding="utf-8")
    assert len(text) == command.LENGTH
    assert set("[]()=*_") <= set(text)


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.process
def test_every_way_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the benchmark with a model and texts so small that each training takes a second."""
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(command, "LOGS", tmp_path / "logs")
    source, target = tmp_path / "old.txt", tmp_path / "new.txt"
    source.write_text("to be or not to be, that is the question\n" * 20)
    target.write_text("if (a == b) { return c[0]; }\n" * 20)
    tiny = ["--hidden-size", "8", "--embedding-size", "4", "--batch", "2", "--seq-len", "8"]
    tiny += ["--steps", "4", "--eval-every", "2", "--dtype", "float32"]
    for name in command.WAYS:
        first = command.pretrained(source, tiny)
        command.measure_way(name, 3, first, target, tiny)
    logs = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "logs").iterdir())]
    assert len(logs) == 4
    assert {log["name"] for log in logs} == {*command.WAYS, "pretrained"}
    assert all([e["step"] for e in log["evaluations"]] == [2, 4] for log in logs)
    assert len(command.table(logs).splitlines()) == 5


def test_the_flags_are_those_of_the_train_command() -> None:
    """Fine-tuning with and without frozen parameters uses the settings of the training from scratch."""
    scratch = train.parse(command.TARGET).training
    assert (scratch.steps, scratch.batch, scratch.model.hidden_size) == (300, 16, 256)
    frozen = train.parse([*command.TARGET, "--freeze", "layers"]).training
    assert frozen.freeze == ("layers",)
