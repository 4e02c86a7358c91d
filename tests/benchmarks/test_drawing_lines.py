"""Test the benchmark of drawing lines with a tiny model."""

import json
import sys
from pathlib import Path

import pytest

import jaxrnn
from benchmarks import drawing_lines

pytestmark = [pytest.mark.once, pytest.mark.slow]


def test_the_record_holds_what_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "record.json"
    flags = ["--hidden-size", "8", "--count", "200", "--calls", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["drawing_lines", *flags])
    drawing_lines.main()
    record = json.loads(output.read_text())
    lines = jaxrnn.sample_lines(drawing_lines.model(8), 200, seed=1)
    assert record["calls"][0]["characters"] == sum(len(line) + 1 for line in lines)
    assert len(record["characters_per_second"]) == 2
    # The mean of 200 geometric lengths is within four standard errors.
    mean = sum(len(line) + 1 for line in lines) / 200
    assert mean == pytest.approx(drawing_lines.LENGTH, abs=4 * drawing_lines.LENGTH / 200**0.5)
