"""Test the runner of the experiments: it lists them, runs them and replaces results as a whole.

What the experiments show is in their results; here they run with few steps."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from matplotlib.figure import Figure

from experiments import Holds, Outcome, Verdict, _course, _drawing, _text
from experiments import __main__ as runner
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

pytestmark = pytest.mark.once

NAMES = runner.names()
FORMER = "of an earlier run"
# A course of one experiment, whose verdict is not filled in.
PAGE = "# Title\n\n<!-- verdict hello -->\n<!-- end -->\n"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put earlier results, trained models and the course in a temporary folder."""
    monkeypatch.setattr(_text, "MODELS", tmp_path / "models")
    monkeypatch.setattr(_course, "HERE", tmp_path)
    monkeypatch.setattr(_course, "RESULTS", tmp_path / "results")
    for page in _course.PAGES:
        (tmp_path / page).write_text(PAGE)
    for place in "results", "quick":
        monkeypatch.setattr(runner, "RESULTS" if place == "results" else "QUICK", tmp_path / place)
        for name in NAMES:
            (tmp_path / place / name).mkdir(parents=True)
            (tmp_path / place / name / "table.md").write_text(FORMER)


def pretend(monkeypatch: pytest.MonkeyPatch, run: Any, holds: Holds = Holds.YES) -> None:
    """Replace `hello` by an experiment that runs this."""

    def verdict(numbers: Any, seeds: Any) -> Verdict:
        return Verdict(holds, f"a is {numbers['a']}.", f"a는 {numbers['a']}입니다.")

    module = SimpleNamespace(
        run=run,
        table=lambda numbers, seeds: [["a", "|b|"], [str(numbers["a"]), str(len(seeds))]],
        draw=lambda numbers, seeds: _drawing.figure(1)[0],
        verdict=verdict,
    )
    monkeypatch.setitem(sys.modules, "experiments.hello", module)


def pages(folder: Path) -> list[str]:
    """Return the course in both languages."""
    return [(folder / page).read_text(encoding="utf-8") for page in _course.PAGES]


@contextmanager
def as_people_run_it() -> Iterator[None]:
    """Use the defaults of JAX in all threads; its own context managers change only the current one."""
    usual = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    strict = {name: getattr(jax.config, name) for name in usual}
    for name, value in usual.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in strict.items():
            jax.config.update(name, value)


def outcome(quick: bool) -> Outcome:
    return Outcome({"a": 1.5}, [0, 1, 2], {"samples.md": "What it wrote.\n"})


def test_the_list_names_every_experiment_with_its_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith(runner.claim(name)) for line, name in zip(lines, NAMES, strict=True))


def test_the_list_on_a_screen_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "claim", lambda name: "Wärme – 열")
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert runner.main([]) == 0
    screen.seek(0)
    assert len(screen.read().splitlines()) == len(NAMES)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_writes_its_files_and_leaves_the_full_results(
    name: str, tmp_path: Path
) -> None:
    with as_people_run_it():
        assert runner.main([name, "--quick"]) == 0
    folder = tmp_path / "quick" / name
    assert {"picture.png", "result.json", "table.md"} <= {path.name for path in folder.iterdir()}
    record = json.loads((folder / "result.json").read_text())
    assert record["quick"] and record["numbers"] and record["versions"]["jax"] and record["seeds"]
    assert {"device", "commit", "date"} <= record.keys()
    verdict = _course.verdict(name, record)
    assert len(verdict.english) > 40 and len(verdict.korean) > 20
    assert verdict.english.endswith(".") and verdict.korean.endswith(".")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    head, *body = (folder / "table.md").read_text().splitlines()
    # A "|" after a backslash is text.
    columns = {line.replace("\\|", "").count("|") for line in [head, *body]}
    assert body and len(columns) == 1
    assert (tmp_path / "results" / name / "table.md").read_text() == FORMER
    assert pages(tmp_path) == [PAGE, PAGE]


def test_a_full_run_replaces_the_folder_and_writes_its_verdict_into_the_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, outcome)
    assert runner.main(["hello"]) == 0
    folder = tmp_path / "results" / "hello"
    assert (folder / "table.md").read_text() == "| a | \\|b\\| |\n|---|---|\n| 1.5 | 3 |\n"
    assert json.loads((folder / "result.json").read_text())["numbers"] == {"a": 1.5}
    assert (folder / "samples.md").read_text() == "What it wrote.\n"
    english, korean = pages(tmp_path)
    assert "**Holds: a is 1.5.**" in english and "**성립합니다: a는 1.5입니다.**" in korean
    assert "[code](hello.py), [table](results/hello/table.md), [numbers](" in english
    assert "[생성 예](results/hello/samples.md)" in korean
    assert (tmp_path / "quick" / "hello" / "table.md").read_text() == FORMER
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(NAMES)


def test_presenting_writes_from_the_recorded_numbers_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(quick: bool) -> Outcome:
        raise AssertionError("it measures")

    pretend(monkeypatch, outcome)
    assert runner.main(["hello"]) == 0
    folder = tmp_path / "results" / "hello"
    record = json.loads((folder / "result.json").read_text())
    record["numbers"]["a"] = 2.5
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "picture.png").unlink()
    pretend(monkeypatch, refuse, Holds.NO)
    capsys.readouterr()
    assert runner.main(["hello", "--present"]) == 0
    assert json.loads((folder / "result.json").read_text()) == record
    assert "| 2.5 | 3 |" in (folder / "table.md").read_text()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (folder / "samples.md").read_text() == "What it wrote.\n"
    assert "**Does not hold here: a is 2.5.**" in pages(tmp_path)[0]
    assert "  Does not hold here: a is 2.5.\n" in capsys.readouterr().out


def test_presenting_and_a_quick_run_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        runner.main(["hello", "--quick", "--present"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: --quick measures and --present does not")


@pytest.mark.parametrize("moment", ["running", "drawing"])
def test_a_run_that_is_stopped_leaves_the_earlier_results(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    pretend(monkeypatch, stop if moment == "running" else outcome)
    monkeypatch.setattr(Figure, "savefig", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.main(["hello"])
    folder = tmp_path / "results" / "hello"
    assert [path.name for path in folder.iterdir()] == ["table.md"]
    assert (folder / "table.md").read_text() == FORMER
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(NAMES)


def test_a_missing_text_is_reported_in_one_line_and_stops_no_other_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(quick: bool) -> Outcome:
        _text.find("linux", quick)
        raise AssertionError("there is no such text")

    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "names", lambda: ["linux", "hello"])
    monkeypatch.setitem(sys.modules, "experiments.linux", SimpleNamespace(run=lacking))
    pretend(monkeypatch, outcome)
    assert runner.main(["all"]) == 2
    printed = capsys.readouterr().err
    missing = tmp_path / "cache" / "linux-kernel.txt"
    assert printed.startswith(f"error: {missing} is missing: ") and printed.count("\n") == 1
    assert "curl -L https://" in printed
    assert (tmp_path / "results" / "linux" / "table.md").read_text() == FORMER
    assert (tmp_path / "results" / "hello" / "table.md").read_text() != FORMER


@pytest.mark.slow
def test_a_model_is_trained_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The second time, it is loaded from its folder and is the same."""
    model = charlm.ModelConfig(hidden_size=4, embedding_size=2)
    settings = TrainingConfig(model, 64, 64, 4, log_every=2, eval_every=2, sample_every=0)
    text = _text.find("shakespeare", quick=True)
    with as_people_run_it():
        first, again = _text.learn(text, settings), _text.learn(text, settings)
        other = _text.learn(text, dataclasses.replace(settings, seed=1))
    # One training for each seed.
    assert capsys.readouterr().out.count("step 4/4") == 2
    assert list(first.steps) == list(again.steps) == [2, 4]
    assert list(first.val_losses) == list(again.val_losses) and len(first.val_losses) == 2
    for a, b in zip(*map(jax.tree.leaves, (first.params, again.params)), strict=True):
        assert (a == b).all()
    assert other.val_losses[-1] != first.val_losses[-1]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        runner.main(["helo"])
    printed = capsys.readouterr().err
    assert exit.value.code == 2 and printed.count("\n") == 1
    assert printed.startswith("error: no experiment 'helo'; choose all or one of unfolding")


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as exit:
        runner.main(["hello"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith('matplotlib: pip install "jaxrnn[plot]"\n')
