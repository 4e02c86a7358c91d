"""Test the evaluate command: its figures, its outputs, and its one-line errors."""

import bz2
import gzip
import io
import json
import lzma
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrnn import evaluate, export, load, prepare, score, train
from jaxrnn.charlm.dynamic import DynamicOptions, DynamicScorer
from jaxrnn.scores import texts
from jaxrnn.training.metrics import read_metrics
from tests.support.runs import KNOWN, LATIN, TEXT, environment, flags, lose_the_reader

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]

# The table rounds to four decimals.
ROUNDED = 0.6e-4


def written(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    """Return the standard output and the standard error of the command."""
    capsys.readouterr()
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    found = capsys.readouterr()
    return found.out, found.err


def rows(table: str) -> dict[str, list[float]]:
    """Return the figures of each row of the table: nats/char, bits/char, bits/byte and bytes."""
    found = {}
    for line in table.splitlines():
        match = re.fullmatch(r"(\S.*?)((?:\s+[\d.,]+){4})\s*", line)
        if match:
            found[match[1]] = [float(word.replace(",", "")) for word in match[2].split()]
    return found


# --- the table ---


def test_the_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT[:700]
    file = tmp_path / "some.txt"
    file.write_text(text)
    out, err = written(capsys, place / "run", file)
    assert err == ""
    assert out.startswith("some: 700 characters, 700 bytes; the model knows all of them\n")
    table = rows(out)
    assert list(table) == ["model", "gzip -9", "xz -9", "bzip2 -9"]
    nats = score(load(place / "run"), text).sum(dtype=np.float64)
    want = [nats / 700, nats / 700 / math.log(2), nats / 700 / math.log(2)]
    np.testing.assert_allclose(table["model"][:3], want, atol=ROUNDED)
    assert table["model"][3] == math.ceil(nats / math.log(2) / 8)
    raw = text.encode()
    sizes = {
        "gzip -9": len(gzip.compress(raw, 9, mtime=0)),
        "xz -9": len(lzma.compress(raw, preset=9)),
        "bzip2 -9": len(bz2.compress(raw, 9)),
    }
    for name, size in sizes.items():
        figures = [8 * size * math.log(2) / 700, 8 * size / 700, 8 * size / 700]
        np.testing.assert_allclose(table[name], [*figures, size], atol=ROUNDED)


@pytest.mark.slow
def test_several_texts_are_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A line break is inserted after a file that does not end with one.
    end = TEXT.index("\n", 500)
    (tmp_path / "a.txt").write_text(TEXT[:end])
    (tmp_path / "b.txt").write_text(TEXT[end + 1 : 900])
    (tmp_path / "ab.md").write_text(TEXT[:900])
    parts = rows(written(capsys, place / "run", tmp_path, "--glob", "*.txt")[0])
    assert parts == rows(written(capsys, place / "run", tmp_path / "ab.md")[0])
    both = rows(written(capsys, place / "run", tmp_path / "a.txt", tmp_path / "b.txt")[0])
    assert parts == both


@pytest.mark.slow
def test_standard_input(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "stdin.txt").write_text(TEXT)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    found = written(capsys, place / "run", "-")
    assert found == written(capsys, place / "run", tmp_path / "stdin.txt")


@pytest.mark.slow
def test_bytes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits per byte count bytes, and bits per character characters."""
    text = "caf\xe9 \U0001f600 \u20ac\n" * 9
    (tmp_path / "text.txt").write_text(text)
    out, _ = written(capsys, place / "latin", tmp_path / "text.txt", "--per-line", "json")
    nats = score(load(place / "latin"), text).sum(dtype=np.float64)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["text"] for line in lines] == text.splitlines()
    np.testing.assert_allclose(sum(line["nats"] for line in lines), nats, rtol=1e-6)
    out, _ = written(capsys, place / "latin", tmp_path / "text.txt")
    assert f"text: {len(text)} characters, {len(text.encode())} bytes" in out
    figures = rows(out)["model"]
    want = [nats / len(text), nats / len(text.encode()) / math.log(2)]
    np.testing.assert_allclose([figures[0], figures[2]], want, atol=ROUNDED)
    assert f"{len(text.encode())} tokens, {nats / len(text.encode()):.4f} nats per token" in out
    (tmp_path / "latin.txt").write_bytes(LATIN)
    out, _ = written(capsys, place / "latin", tmp_path / "latin.txt", "--per-line", "json")
    assert json.loads(out.splitlines()[0])["text"] == "0 caf\ufffd bottles hanging on the wall, 0"


# --- the validation text of the run ---


@pytest.mark.first_case
@pytest.mark.parametrize("which", ["latest", "best"])
@pytest.mark.parametrize("name", ["run", "latin"])
def test_the_validation_loss_of_the_training(
    which: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [
        m["val_loss"] for m in read_metrics(place / name / "metrics.jsonl") if "val_loss" in m
    ]
    want = losses[-1] if which == "latest" else min(losses)
    text = texts.of_run(place / name)
    assert text.loss is not None
    assert text.loss(load(place / name, which)) == pytest.approx(want, rel=2e-6)
    out, _ = written(capsys, place / name, "--which", which)
    whole = len(TEXT) if name == "run" else len(LATIN)
    size = whole - whole * 9 // 10
    assert f"{size} characters, {size} bytes" in out
    assert rows(out)["model"][0] == pytest.approx(want, abs=ROUNDED)


@pytest.mark.slow
def test_the_lines_of_the_validation_text(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model reads the text before the validation part first."""
    page = tmp_path / "page.html"
    out, err = written(capsys, place / "run", "--per-line=json", "--surprisal", page)
    lines = [json.loads(line) for line in out.splitlines()]
    split = len(TEXT) * 9 // 10
    nats = score(load(place / "run"), TEXT[split:], TEXT[split - 257 : split])
    np.testing.assert_allclose(sum(line["nats"] for line in lines), nats.sum(), rtol=1e-5)
    assert "\n".join(line["text"] for line in lines) + "\n" == TEXT[split:]
    assert rows(err)["model"][0] == pytest.approx(nats.mean(), abs=2e-3)
    assert page.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("text", "more"), [("text.txt", []), ("latin.txt", ["--bytes"])])
def test_a_prepared_text(
    text: str, more: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(place / text), "--output", str(tmp_path / "tokens"), *more]
    assert prepare.main(arguments) == 0
    assert train.main(flags(tmp_path / "tokens", tmp_path / "run")) == 0
    out, _ = written(capsys, tmp_path / "run")
    want = min(m.get("val_loss", 9.0) for m in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert rows(out)["model"][0] == pytest.approx(want, abs=ROUNDED)


@pytest.mark.slow
def test_a_validation_text_that_is_not_there(
    place: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    run = tmp_path / "run"
    assert train.main(flags(tmp_path / "text.txt", run)) == 0
    (tmp_path / "text.txt").write_text(TEXT + "9")
    assert re.search(
        r"has changed since \(sha256 \w{12}\.\.\. then .*; name a text",
        refusal(evaluate.main, [str(run)]),
    )
    (tmp_path / "text.txt").unlink()
    message = refusal(evaluate.main, [str(run)])
    assert "cannot be read from here (no file or folder" in message and "name a text" in message
    model = str(tmp_path / "model.safetensors")
    assert export.main([str(run), "--safetensors", model]) == 0
    assert "holds a model without its text" in refusal(evaluate.main, [model])


# --- unknown characters ---


def test_unknown_characters(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    file, plain = tmp_path / "a.txt", tmp_path / "plain" / "a.txt"
    plain.parent.mkdir()
    plain.write_text(KNOWN * 9)
    file.write_text(f"\u20ac{KNOWN * 4}ZZ{KNOWN * 5}\n".removesuffix("\n"))
    page = tmp_path / "page.html"
    message = refusal(evaluate.main, [str(place / "run"), str(file), "--surprisal", str(page)])
    assert "never seen: 'Z' '\u20ac'" in message and "--unknown skip leaves them out" in message
    assert not page.exists()
    out, _ = written(capsys, place / "run", file, "--unknown", "skip")
    assert "; 3 more that the model has never seen are left out" in out
    assert rows(out) == rows(written(capsys, place / "run", plain)[0])
    file.write_text("ZZ")
    message = refusal(evaluate.main, [str(place / "run"), str(file), "--unknown=skip"])
    assert "nothing is left of the text" in message
    assert "leaves them out" not in message


# --- the lines ---


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_lines_as_json(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{KNOWN}\n\n6 green\nbottles {KNOWN}"
    (tmp_path / "a.txt").write_text(text)
    out, err = written(capsys, place / "run", tmp_path / "a.txt", "--per-line", "json")
    lines = lines_of(out)
    assert [line["line"] for line in lines] == [1, 2, 3, 4]
    assert [line["text"] for line in lines] == text.split("\n")
    nats, at = score(load(place / "run"), text), 0
    for line, part in zip(lines, text.splitlines(keepends=True), strict=True):
        want = nats[at : at + len(part)].sum()
        at += len(part)
        assert line["nats"] == pytest.approx(want, rel=1e-5)
        assert line["nats_per_character"] == pytest.approx(want / len(part), rel=1e-5)
    assert rows(err)["model"][0] == pytest.approx(nats.mean(), abs=ROUNDED)
    out, _ = written(capsys, place / "run", tmp_path / "a.txt", "--per-line=json", "--sort")
    assert lines_of(out) == sorted(lines, key=lambda line: -line["nats_per_character"])


@pytest.mark.slow
def test_lines_as_a_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(f"{KNOWN}\n6 g\n")
    out, _ = written(capsys, place / "run", tmp_path / "a.txt", "--per-line", "table", "--sort")
    heading, *lines = out.splitlines()
    assert heading.split() == ["line", "nats", "nats/char", "text"]
    assert {lines[0].split(maxsplit=3)[3], lines[1].split(maxsplit=3)[3]} == {KNOWN, "6 g"}
    per_character = [float(line.split()[2]) for line in lines[:2]]
    assert per_character == sorted(per_character, reverse=True)
    assert "model" in rows(out)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--per-line", "json"]])
def test_a_reader_that_has_gone(
    more: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[..., None]
) -> None:
    lose_the_reader(monkeypatch, ends)
    assert evaluate.main([str(place / "run"), str(place / "text.txt"), *more]) == 141


# --- parts and dynamic evaluation ---


@pytest.mark.slow
def test_parts(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 3)
    exact = rows(written(capsys, place / "run", tmp_path / "a.txt")[0])
    parts = rows(written(capsys, place / "run", tmp_path / "a.txt", "--parts", "3")[0])
    assert parts["model"][0] == pytest.approx(exact["model"][0], abs=1e-3)
    assert parts["gzip -9"] == exact["gzip -9"]


@pytest.mark.slow
def test_dynamic_evaluation(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    settings = ["--segment", "10", "--learning-rate", "0.2", "--decay", "0.01"]
    out, _ = written(capsys, place / "run", tmp_path / "a.txt", "--dynamic", *settings)
    table = rows(out)
    assert list(table)[:2] == ["model", "model, dynamic"]
    params = load(place / "run")
    scorer = DynamicScorer(params, "\n", DynamicOptions(10, 0.2, 0.01))
    found = [scorer.score(params.vocabulary.encode(TEXT)), scorer.finish()]
    want = np.concatenate(found).mean()
    assert table["model, dynamic"][0] == pytest.approx(want, abs=2 * ROUNDED)
    # The model was trained for 8 steps only, so it has much to learn.
    assert table["model, dynamic"][0] < table["model"][0] - 0.2


# --- refusals ---


def test_refusals(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    run, text = str(place / "run"), str(place / "text.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())

    def refused(*arguments: Any) -> str:
        return refusal(evaluate.main, [str(argument) for argument in arguments])

    assert "--sort needs --per-line" in refused(run, text, "--sort")
    assert "; name play, shakespeare, -" in refused(run, tmp_path / "missing.txt")
    assert "is empty; give another text" in refused(run, tmp_path / "empty.txt")
    assert "is part of the text" in refused(run, text, "--surprisal", text)
    assert "is not a folder" in refused(tmp_path / "missing", text)
    assert "is not a run of jaxrnn" in refused(tmp_path / "folder", text)
    assert "--surprisal" in refused(run, text, "--surprisal", tmp_path / "folder")
    assert "does not exist" in refused(run, text, "--surprisal", tmp_path / "no" / "page.html")
    config = place / "run" / "config.json"
    assert "is a file of the run" in refused(run, text, "--surprisal", config)
    assert "--parts must be at least 1" in refused(run, text, "--parts", "0")
    assert "--segment, --learning-rate, --decay need" in refused(run, text, "--segment", "9")
    assert "--learning-rate must be" in refused(run, text, "--dynamic", "--learning-rate=nan")
    assert "no TEXT is given" in refused(run, "--glob", "*.c")
    assert "--unknown skip needs a TEXT" in refused(run, "--unknown", "skip")
    (tmp_path / "latin.txt").write_bytes(LATIN)
    message = refused(run, tmp_path / "latin.txt", "--encoding", "utf-8")
    assert "is not UTF-8" in message or "is not utf-8" in message
    assert "--bytes" not in message
    assert "--encoding needs a TEXT" in refused(run, "--encoding", "utf-8")
    (tmp_path / "latin.txt").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_text_too_long_for_a_page(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    from jaxrnn.formats import surprisal

    monkeypatch.setattr(surprisal, "LONGEST", 1000)
    page = tmp_path / "page.html"
    arguments = [str(place / "run"), str(place / "text.txt"), "--surprisal", str(page)]
    assert "the text is too long for a page" in refusal(evaluate.main, arguments)
    # The length of a stream is not known before it ends.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    arguments[1] = "-"
    assert "the text is too long for a page" in refusal(evaluate.main, arguments)
    assert list(tmp_path.iterdir()) == []


# --- as a process ---


@pytest.mark.process
@pytest.mark.slow
def test_as_a_process(place: Path, tmp_path: Path) -> None:
    """The table is readable in a pipe, and works from another folder."""
    shutil.copytree(place / "run", tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-m", "jaxrnn.evaluate", "run", str(place / "text.txt")],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout and len(rows(result.stdout)) == 4


CHILD = """
import resource, sys
from jaxrnn import evaluate
from jaxrnn.scores.compressors import COMPRESSORS
# xz -9 itself takes memory in proportion to the text, up to 674 MiB.
del COMPRESSORS["xz -9"]
assert evaluate.main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.process
@pytest.mark.long
def test_constant_memory(place: Path, tmp_path: Path) -> None:
    """Scoring 30 MB takes at most 40 MB more memory than scoring 3 MB."""
    peaks = []
    for size in (3, 30):
        text = tmp_path / f"{size}.txt"
        text.write_text(TEXT * (size * 1_000_000 // len(TEXT)))
        arguments = [str(place / "run"), str(text), "--parts", "64", "--per-line", "table"]
        result = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments],
            env=environment() | {"PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks
