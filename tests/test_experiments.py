"""The experiments: that the runner lists and runs what is there, and keeps results whole. What the
experiments show is in their results; here they run small."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from matplotlib.figure import Figure

from experiments import Outcome, _drawing
from experiments import __main__ as runner

NAMES = runner.names()
FORMER = "of a former run"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of former runs, away from the repository's."""
    for place in "results", "quick":
        monkeypatch.setattr(runner, "RESULTS" if place == "results" else "QUICK", tmp_path / place)
        for name in NAMES:
            (tmp_path / place / name).mkdir(parents=True)
            (tmp_path / place / name / "table.md").write_text(FORMER)
    monkeypatch.setattr(runner, "GALLERY", tmp_path / "README.md")


def pretend(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Have `hello` do this instead."""
    module = type("module", (), {"run": staticmethod(run)})
    monkeypatch.setitem(sys.modules, "experiments.hello", module)


def outcome(quick: bool) -> Outcome:
    figure, _ = _drawing.figure(1)
    return Outcome("It came out.", [["a", "b"], ["1", "2"]], {"a": [1.5]}, [0, 1, 2], figure)


def test_the_list_is_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert {"unfolding", "vanishing_gradient", "hello", "embedding", "clipping"} <= set(NAMES)
    assert all(line.endswith(runner.claim(name)) for line, name in zip(lines, NAMES, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_writes_its_files_and_leaves_the_full_results(
    name: str, tmp_path: Path
) -> None:
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):  # as people run it
        assert runner.main([name, "--quick"]) == 0
    folder = tmp_path / "quick" / name
    assert sorted(path.name for path in folder.iterdir()) == [
        "picture.png",
        "result.json",
        "table.md",
    ]
    record = json.loads((folder / "result.json").read_text())
    assert record["quick"] and record["numbers"] and record["versions"]["jax"] and record["seeds"]
    assert {"device", "commit", "date", "sentence"} <= record.keys()
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
    assert (folder / "table.md").read_text() == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert json.loads((folder / "result.json").read_text())["numbers"] == {"a": [1.5]}
    gallery = (tmp_path / "README.md").read_text()
    assert "It came out." in gallery and runner.claim("hello") in gallery
    assert (tmp_path / "quick" / "hello" / "table.md").read_text() == FORMER
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(NAMES)


@pytest.mark.parametrize("moment", ["running", "drawing"])
def test_a_run_that_is_stopped_leaves_the_former_results(
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


def test_a_name_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        runner.main(["helo"])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: there is no experiment 'helo'; there are all, unfolding")


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as exit:
        runner.main(["hello"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith('matplotlib: pip install "jaxrnn[plot]"\n')
