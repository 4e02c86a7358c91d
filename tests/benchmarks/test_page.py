"""The benchmark of the page: what it records of a small model in a browser."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrnn
from benchmarks.page import chromium
from benchmarks.problems import VOCABULARY

ROOT = Path(__file__).parents[2]


@pytest.mark.browser
@pytest.mark.process
@pytest.mark.skipif(not chromium.COMMAND, reason="no Chromium: apt-get install chromium")
def test_the_command_measures_every_format(tmp_path: Path) -> None:
    config = jaxrnn.ModelConfig(cell="gru", hidden_size=24, embedding_size=8)
    jaxrnn.save(jaxrnn.init(config, VOCABULARY), tmp_path / "model.safetensors")
    output = tmp_path / "page.json"
    flags = ["--length", "40", "--repeats", "2", "--compared", "60"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.page", "--run", tmp_path / "model.safetensors", *flags,
         "--output", output],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert (record["model"]["cell"], record["model"]["hidden_size"]) == ("gru", 24)
    assert list(record["weights"]) == ["float32", "float16", "int8"]
    for kind, row in record["weights"].items():
        assert len(row["page"]) == len(row["network"]) == 2
        assert min(*row["page"], *row["network"], row["first_page"]) > 0
        assert len(row["equal_characters"]) == 5
        assert (row["divergence"] == 0) == (kind == "float32")
    assert record["weights"]["float32"]["equal_characters"] == [60] * 5
    sizes = [row["size"] for row in record["weights"].values()]
    assert sizes == sorted(sizes, reverse=True)
