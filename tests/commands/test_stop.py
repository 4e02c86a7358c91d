"""Test `generate --stop` and `--stop-at-line` against the same texts without them, cut by hand."""

import os
from pathlib import Path
from typing import Any

import pytest

from jaxrnn import generate, load, sample, sample_bytes, sample_many
from tests.support.runs import KNOWN

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]


def written(capfdbinary: pytest.CaptureFixture[bytes], *arguments: Any) -> bytes:
    capfdbinary.readouterr()
    assert generate.main([str(argument) for argument in arguments]) == 0
    return capfdbinary.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, "endless"])
def test_stop_ends_the_text(
    length: Any, place: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for run, text_of in (("run", sample), ("latin", sample_bytes)):
        whole: Any = text_of(load(place / run), KNOWN, 300)
        raw = whole.encode() if run == "run" else whole
        prime = [place / run, "--prime", KNOWN, "--length", length]
        stop = raw[len(KNOWN) + 40 : len(KNOWN) + 43]
        end = raw.index(stop, len(KNOWN)) + 3
        out = written(capfdbinary, *prime, f"--stop={os.fsdecode(stop)}")
        assert out == raw[:end]
        at_line = raw[: raw.index(b"\n", len(KNOWN)) + 1]
        assert written(capfdbinary, *prime, "--stop-at-line") == at_line
        both = [f"--stop={os.fsdecode(stop)}", "--stop", "\n"]
        assert written(capfdbinary, *prime, *both) == min(out, at_line, key=len)


@pytest.mark.slow
def test_stop_ends_each_of_many_texts(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    texts = sample_many(load(place / "run"), KNOWN, 300, count=3)
    ends = [text.index("\n", len(KNOWN)) + 1 for text in texts]
    expected = [
        f"--- {n} ---\n{t[:e]}\n" for n, (t, e) in enumerate(zip(texts, ends, strict=True), 1)
    ]
    flags = ["--prime", KNOWN, "--length", 300, "--count", 3, "--stop-at-line"]
    assert written(capfdbinary, place / "run", *flags).decode() == "".join(expected)
