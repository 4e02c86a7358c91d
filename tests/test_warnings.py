"""Test that warnings point to the line of the program that called the library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A new process, because the checks of annotations put frames between the library and its caller.
PROGRAM = """
import linecache, sys, warnings
import jaxrnn
from jaxrnn.charlm import lines
run = sys.argv[1]
config = jaxrnn.ModelConfig(hidden_size=3, embedding_size=2, lines=True)
params = jaxrnn.init(config, jaxrnn.Vocabulary.of("ab\\n"))
calls = [
    lambda: jaxrnn.sample_lines(params, 20, length=1),
    lambda: lines.sample_lines(params, 20, length=1),
    lambda: jaxrnn.load(run, "latest"),
    lambda: jaxrnn.sample(run, "1", 1),
    lambda: list(jaxrnn.stream(run, "1", 1)),
    lambda: jaxrnn.Run(run).params,
    lambda: jaxrnn.Run(run).latest,
    lambda: jaxrnn.Run(run).sample("1", 1),
]
for call in calls:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    places = [(w.filename, w.lineno) for w in found if w.category is RuntimeWarning]
    print(*(linecache.getline(*place).strip() for place in places))
"""


@pytest.mark.process
def test_warnings_point_to_the_caller(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "8" / "params" / "d")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = subprocess.run(
        [sys.executable, program, run],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [line.strip() for line in PROGRAM.splitlines() if line.startswith("    lambda:")]
    assert result.stdout.splitlines() == calls
