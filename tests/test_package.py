"""The package as a whole: what it needs to be imported, which module may import which, and what its
files say about it."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

# Imports run downwards, from a floor to one below it. On one floor, only as WITHIN says.
FLOORS = [
    {"train", "prepare", "generate"},
    {"training", "evaluation", "report", "checkpoint", "sampling", "inspection", "preparation"}
    | {"run_description", "stepping", "training_config"}
    | {"folder", "stopping", "arguments", "serialization"},
    {"decoding"},
    {"charlm", "network", "text", "sources", "files", "tokens", "play", "feed"},
    {"mesh"},
    {"unroll", "checks", "remat"},
    {"dispatch"},
    {"kernels"},
    {"cells", "accelerator", "distributed", "curves", "shapes", "errors"}
    | {"console", "memory", "modes", "storage", "cache", "orbax_errors", "initializers"}
    | {"parameters"},
]
WITHIN = {
    "training": {"evaluation", "report", "checkpoint", "stepping", "training_config"},
    "stepping": {"training_config"},
    "report": {"sampling"},
    "charlm": {"text"},
    "sources": {"play", "files"},
    "files": {"play"},
    "tokens": {"text"},
    "unroll": {"checks", "remat"},
    "kernels": {"kernels"},
    "cells": {"shapes", "errors", "initializers", "parameters"},
    "initializers": {"shapes"},
    "accelerator": {"errors"},
    "distributed": {"errors"},
    "folder": {"checkpoint", "report", "run_description"},
    "run_description": {"checkpoint"},
    "orbax_errors": {"distributed", "errors"},
    "memory": {"accelerator", "errors"},
}
OPTIONAL = ["tyro", "rich", "pooch", "filelock", "jaxtyping", "beartype", "matplotlib"]
OPTIONAL += ["tensorboardX", "torch", "keras", "tensorflow"]


def test_the_library_needs_six_packages_alone() -> None:
    """With these six imported (they may use what they like) nothing else is to be had."""
    program = f"""
import sys
import flax.struct, jax, numpy, optax, orbax.checkpoint, platformdirs
sys.modules.update(dict.fromkeys({OPTIONAL}))  # None: an import of it fails
import jaxrnn
params = jaxrnn.init(jaxrnn.Config(hidden=5, embed=3), jaxrnn.Vocabulary.of("ab"))
assert len(jaxrnn.sample(params, "a", 9)) == 10
cell = jaxrnn.lstm(5)
xs = jax.numpy.ones((4, 2, 3))
_, ys = jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3), xs)
assert ys.shape == (4, 2, 5)
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "done\n", result.stderr


def imports_of(path: Path) -> set[str]:
    """The modules of jaxrnn that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("jaxrnn.")}


def test_imports_run_downwards() -> None:
    floor = {module: number for number, modules in enumerate(FLOORS) for module in modules}
    graph: dict[str, set[str]] = {}
    for path in sorted((ROOT / "jaxrnn").rglob("*.py")):
        module = path.relative_to(ROOT / "jaxrnn").parts[0].removesuffix(".py")
        if module != "__init__":
            graph[module] = graph.get(module, set()) | imports_of(path)
    assert set(graph) == set(floor), "every module has its floor"
    for module, imported in graph.items():
        below = {other for other in floor if floor[other] > floor[module]}
        assert imported <= below | WITHIN.get(module, set()), module
    graph["kernels"].discard("kernels")
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a cycle


def test_pyproject_names_one_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert project["tool"]["mypy"]["python_version"] == oldest


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_readme_names_the_same_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    named = re.findall(r"Python\s*(?:≥|>=)?\s*(\d\.\d+)", README.read_text(encoding="utf-8"))
    assert set(named) == {oldest}


@pytest.mark.parametrize("name", jaxrnn.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    doc = getattr(jaxrnn, name).__doc__
    assert doc and not doc.startswith(f"{name}("), "a sentence, not what dataclasses make up"


def test_public_names_are_sorted() -> None:
    assert sorted(jaxrnn.__all__) == jaxrnn.__all__
