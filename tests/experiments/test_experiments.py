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

from experiments import Outcome, _drawing, _text
from experiments import __main__ as runner
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

pytestmark = pytest.mark.once

NAMES = runner.names()
FORMER = "of an earlier run"
PLACES = {name: getattr(runner, name) for name in ("RESULTS", "QUICK", "GALLERY")}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put earlier results and trained models in a temporary folder."""
    monkeypatch.setattr(_text, "MODELS", tmp_path / "models")
    for place in "results", "quick":
        monkeypatch.setattr(runner, "RESULTS" if place == "results" else "QUICK", tmp_path / place)
        for name in NAMES:
            (tmp_path / place / name).mkdir(parents=True)
            (tmp_path / place / name / "table.md").write_text(FORMER)
    monkeypatch.setattr(runner, "GALLERY", tmp_path / "README.md")


def pretend(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Replace `hello` by an experiment that runs this."""
    summary = lambda numbers, seeds: f"a = {numbers['a']}, {len(seeds)} seeds"  # noqa: E731
    module = SimpleNamespace(run=run, summary=summary)
    monkeypatch.setitem(sys.modules, "experiments.hello", module)


@contextmanager
def as_people_run_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def outcome(quick: bool) -> Outcome:
    figure, _ = _drawing.figure(1)
    pages = {"samples.md": "What it wrote.\n"}
    return Outcome([["a", "|b|"], ["1", "2"]], {"a": [1.5]}, [0, 1, 2], figure, pages)


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
    assert len(runner.read(folder)["summary"]) > 40
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    head, *body = (folder / "table.md").read_text().splitlines()
    assert body and {line.count("|") for line in [head, *body]} == {head.count("|")}
    assert (tmp_path / "results" / name / "table.md").read_text() == FORMER
    assert not (tmp_path / "README.md").exists()


def test_a_full_run_replaces_the_folder_and_writes_the_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, outcome)
    assert runner.main(["hello"]) == 0
    folder = tmp_path / "results" / "hello"
    assert (folder / "table.md").read_text() == "| a | \\|b\\| |\n|---|---|\n| 1 | 2 |\n"
    assert json.loads((folder / "result.json").read_text())["numbers"] == {"a": [1.5]}
    assert (folder / "samples.md").read_text() == "What it wrote.\n"
    gallery = (tmp_path / "README.md").read_text()
    assert "a = [1.5], 3 seeds" in gallery and runner.claim("hello") in gallery
    assert "[samples](results/hello/samples.md)" in gallery
    assert (tmp_path / "quick" / "hello" / "table.md").read_text() == FORMER
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(NAMES)


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


def test_the_gallery_is_made_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in PLACES.items():
        monkeypatch.setattr(runner, name, path)
    assert PLACES["GALLERY"].read_text(encoding="utf-8") == runner.gallery()


def test_every_experiment_is_in_the_table_of_the_lecture() -> None:
    introduction = runner.INTRODUCTION.read_text(encoding="utf-8")
    assert all(f"[{name}](#{name})" in introduction for name in NAMES)
