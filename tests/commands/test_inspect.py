"""Test the inspect command: its table, its page, and its one-line errors."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn import activations, export, inspect, load, train
from jaxrnn.formats import inspection
from tests.formats.test_inspection import data_of, decoded
from tests.support.runs import KNOWN, TEXT, flags, lose_the_reader

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Return the standard output of the command."""
    capsys.readouterr()
    assert inspect.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_and_the_page(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page holds what `jaxrnn.activations` returns."""
    page = tmp_path / "page.html"
    page.write_text("before")
    words = ["--find", "[0-9]+", "--find=^[0-9]+", "--unit", "1:4", "--length", "500"]
    out = written(capsys, place / "run", place / "text.txt", "--output", page, *words)
    heading, *lines = out.splitlines()
    assert heading.startswith("feature")
    assert [re.split(r"  +", line)[0] for line in lines[:9:3]] == [
        "[0-9]+", "^[0-9]+", "position in the line"
    ]  # fmt: skip
    assert re.fullmatch(r"\[0-9]\+ +hidden of unit \d in layer 1 +-?\d\.\d\d +-?\d\.\d\d", lines[0])
    assert "not in both halves of the text: indentation, in quotes, " in out
    last = lines[-1]
    assert f"page.html: The first 500 of {len(TEXT):,} characters of the text." in last
    assert "6 of 6 activations" in last
    data = data_of(page.read_text())
    assert data["text"] == TEXT[:500]
    assert data["first"] == {"record": "hidden", "layer": 1, "unit": 4}
    assert [feature["name"] for feature in data["features"]][:2] == ["[0-9]+", "^[0-9]+"]
    found = decoded(data)
    want = activations(load(place / "run"), TEXT[:500])[0]["hidden"]
    for unit, values in enumerate(want.T, 1):
        np.testing.assert_allclose(found["hidden", 1, unit], values, atol=0.51 / 127)
    assert [*tmp_path.iterdir()] == [page]


def test_the_validation_text(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a text; the page is then in the working folder."""
    monkeypatch.chdir(tmp_path)
    out = written(capsys, place / "run", "--record", "hidden")
    held_out = TEXT[len(TEXT) * 9 // 10 :]
    assert f"inspection.html: {len(held_out)} characters. 6 of 6 activations" in out
    page = (tmp_path / "inspection.html").read_text()
    assert data_of(page)["text"] == held_out
    assert "<title>The units of run on validation text of text</title>" in page


@pytest.mark.slow
def test_a_model_of_lines_and_one_of_bytes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, text = tmp_path / "page.html", tmp_path / "text.txt"
    text.write_text("6 green bottles\n\n" * 20)
    assert train.main(flags(text, tmp_path / "lines", "--lines")) == 0
    written(capsys, tmp_path / "lines", text, "--output", page)
    # A model of lines does not read empty lines.
    assert data_of(page.read_text())["text"] == "6 green bottles\n" * 20
    written(capsys, place / "latin", place / "latin.txt", "--output", page, "--length", "150")
    data = data_of(page.read_text())
    assert data["text"].startswith("0 caf\ufffd bottles") and len(data["text"]) == 150


@pytest.mark.slow
def test_standard_input_and_a_file_of_a_model(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    model, page = tmp_path / "model.safetensors", tmp_path / "page.html"
    assert export.main([str(place / "run"), "--safetensors", str(model)]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"Z{TEXT}".encode())))
    out = written(capsys, model, "-", "--output", page, "--length=200", "--unknown=skip")
    assert "page.html: 200 characters. 6 of 6 activations" in out
    assert data_of(page.read_text())["text"] == TEXT[:200]
    message = refusal(inspect.main, [str(model), "--output", str(page)])
    assert "holds a model without its text; name a text" in message


@pytest.mark.slow
def test_a_page_that_leaves_units_out(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inspection, "most_units", lambda characters: 1)
    page = tmp_path / "page.html"
    text = tmp_path / "text.txt"
    text.write_text("6 green bottles" * 20)
    out = written(capsys, place / "run", text, "--output", page)
    match = re.search(r"300 characters\. (\d) of 6 activations", out)
    assert match
    shown = int(match[1])
    assert len(decoded(data_of(page.read_text()))) == shown
    if shown < 6:
        assert f"The page shows {shown} of 6 activations" in page.read_text()


@pytest.mark.slow
def test_a_reader_that_has_gone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    """The page is written all the same."""
    page = tmp_path / "page.html"
    lose_the_reader(monkeypatch, ends)
    words = [str(place / "run"), str(place / "text.txt"), "--output", str(page)]
    assert inspect.main(words) == 141
    assert page.exists()


def test_refusals(
    place: Path, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, text = str(place / "run"), str(place / "text.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(KNOWN)
    (tmp_path / "unknown.txt").write_text(f"{KNOWN}\u20ac" * 20)
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())

    def refused(*arguments: Any) -> str:
        return refusal(inspect.main, [str(argument) for argument in arguments])

    assert "is empty; give another text" in refused(run, "empty.txt")
    assert "the text is too short: it has 15 characters" in refused(run, "short.txt")
    message = refused(run, "unknown.txt")
    assert "never seen: '\u20ac'" in message and "--unknown skip leaves them out" in message
    assert "; name play, shakespeare, -" in refused(run, "missing.txt")
    assert "is not a folder" in refused("missing", text)
    assert "--find '(' is not a regular expression" in refused(run, text, "--find", "(")
    assert "--find 'zz' matches nothing" in refused(run, text, "--find", "zz")
    message = refused(run, text, "--find", "^0 green")
    assert "--find '^0 green' must match a part of each half" in message
    assert "there is no unit 7 in layer 1" in refused(run, text, "--unit", "1:7")
    assert "there is no unit 1 in layer 2" in refused(run, text, "--unit", "2:1")
    assert "--unit must be LAYER:UNIT, for example 1:12" in refused(run, text, "--unit", "7")
    message = refused(run, text, "--record", "cell")
    assert message == "--record must be of hidden, which the cell rnn has, not 'cell'"
    assert "--length must be from 100 to 200,000, not 99" in refused(run, text, "--length", "99")
    assert "--length must be" in refused(run, text, "--length", "200001")
    assert "--output" in refused(run, text, "--output", "folder")
    assert "does not exist" in refused(run, text, "--output", "no/page.html")
    config = place / "run" / "config.json"
    assert "is a file of the run" in refused(run, text, "--output", config)
    assert "--output short.txt is part of the text" in refused(
        run, "short.txt", "--output", "short.txt"
    )
    assert "--glob needs a TEXT" in refused(run, "--glob", "*.c")
    assert "--encoding needs a TEXT" in refused(run, "--encoding", "utf-8")
    assert "--unknown skip needs a TEXT" in refused(run, "--unknown", "skip")
    assert sorted(tmp_path.iterdir()) == before
