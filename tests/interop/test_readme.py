"""Run the examples of the README, one after another in an empty folder."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrnn import interop

README = Path(interop.__file__).with_name("README.md")
missing = [
    name for name in ("torch", "onnxruntime", "equinox") if not importlib.util.find_spec(name)
]


@pytest.mark.peers
@pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: pip install jaxrnn[peers]")
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, README, "exec"), names)
    assert np.shape(names["ys"]) == (10, 8, 128)
    assert (tmp_path / "amplifier.json").stat().st_size > 10_000
