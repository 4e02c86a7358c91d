"""The package as a whole: what it needs to be imported, which module may import which, and what its
files say about it."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

# Imports run downwards, from one of these packages and modules to those in a line below it.
FLOORS = (
    ("__main__",),
    ("train", "generate", "prepare", "export", "evaluate", "inspect", "completion"),
    ("api", "commands"),
    ("models", "scores"),
    ("runs",),
    ("presets",),
    ("training", "serialization", "arguments", "units"),
    ("formats",),
    ("charlm", "interop"),
    ("layers",),
    ("recurrence",),
    ("data",),
    ("devices",),
    ("console", "errors", "lazy", "literals", "progress", "settings", "shapes", "stopping"),
)
OPTIONAL = ["tyro", "rich", "pooch", "filelock", "jaxtyping", "beartype", "matplotlib"]
OPTIONAL += ["docstring_parser", "tensorboardX", "torch", "keras", "tensorflow", "safetensors"]
OPTIONAL += ["onnx", "h5py", "zstandard"]


@pytest.mark.process
def test_the_library_needs_six_packages_alone() -> None:
    """Only these six packages and what they import themselves are available."""
    program = f"""
import sys
import flax.struct, jax, numpy, optax, orbax.checkpoint, platformdirs
sys.modules.update(dict.fromkeys({OPTIONAL}))  # None: an import of it fails
import jaxrnn
params = jaxrnn.init(jaxrnn.ModelConfig(hidden_size=5, embedding_size=3), jaxrnn.Vocabulary.of("ab"))
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


LAZY = """
import sys
import jaxrnn, jaxrnn.charlm, jaxrnn.runs.train_options
assert jaxrnn.__version__ and "jax" not in sys.modules
try:
    jaxrnn.__wrapped__
except AttributeError as error:
    assert str(error) == "module 'jaxrnn' has no attribute '__wrapped__'"
from jaxrnn import data, presets
assert "jax" not in sys.modules
from jaxrnn import *
assert "jax" in sys.modules and lstm is jaxrnn.lstm is jaxrnn.recurrence.cells.lstm
assert set(jaxrnn.__all__) < set(dir(jaxrnn)) and set(jaxrnn.__all__) < set(globals())
assert jaxrnn.charlm.Params is Params and "forward" in dir(jaxrnn.charlm)
for name in "lsmt", "numpy":
    try:
        getattr(jaxrnn, name)
    except AttributeError as error:
        assert str(error) == f"module 'jaxrnn' has no attribute {name!r}"
    else:
        raise AssertionError(name)
print("done")
"""


@pytest.mark.process
def test_jax_is_imported_with_the_first_name_that_is_used() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LAZY],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "done\n", result.stderr


def modules() -> dict[str, Path]:
    """Return the modules of the library by their dotted names."""
    found = {}
    for path in sorted((ROOT / "jaxrnn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: Collection[str]) -> set[str]:
    """Return the modules of the library that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from package import name` imports the module `package.name`, where there is one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parent = name.rpartition(".")[0]
            found |= {name} & set(known) or {parent} & set(known)
    return found


@pytest.mark.slow
def test_imports_run_downwards() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    known = modules()
    graph = {name: imports_of(path, known) for name, path in known.items() if name != "jaxrnn"}
    for name, imported in graph.items():
        package = name.split(".")[1]
        # The program imports only the version from the package itself.
        for other in imported - ({"jaxrnn"} if name == "jaxrnn.__main__" else set()):
            below = other.split(".")[1]
            assert package == below or floor[package] < floor[below], f"{name} imports {other}"
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


def test_no_module_has_the_name_of_a_public_function() -> None:
    assert not set(jaxrnn.__all__) & {name.rpartition(".")[2] for name in modules()}
