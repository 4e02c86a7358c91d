"""The wheel that carries compiled C++: built by its command, and used without a compiler."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels import cplusplus, prebuilt

ROOT = Path(__file__).parent.parent
# What a clean clone has of these: a `build` folder may hold modules that no longer exist.
PARTS = ("jaxrnn", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# Of the commands that build and install: with PYTHONPATH, pip would find this checkout installed.
OUTER = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
LEVELS = prebuilt.LEVELS.get(platform.machine(), ())

pytestmark = [
    pytest.mark.wheel,
    pytest.mark.skipif(
        platform.system() not in ("Linux", "Darwin") or not LEVELS or not cplusplus.find_compiler(),
        reason="waits for a C++ compiler on a machine that has wheels",
    ),
]

# Imports the library as on a processor with some of this processor's instructions.
USE = """
import os, sys
os.environ["CXX"] = "none"  # The import registers no library.
import jax, jaxrnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels.native.build import LIBRARY
if len(sys.argv) > 1:
    accelerator.processor_flags = lambda: frozenset(sys.argv[1].split())
del os.environ["CXX"]
cell = jaxrnn.lstm(200, peephole=True)
params = cell.init(jax.random.key(0), 20)
xs = jax.random.normal(jax.random.key(1), (30, 33, 20))

def loss(params, xs, implementation):
    _, ys = jaxrnn.unroll(cell, params, xs, implementation=implementation)
    return (ys**2).sum()

print(jaxrnn.explain(cell, xs.shape))
print(LIBRARY.path())
compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
for ours, expected in zip(*(jax.tree.leaves(compute(params, xs, i)) for i in ("native", "scan"))):
    assert abs(ours - expected).max() <= 1e-5 * abs(expected).max()
params, xs = jax.tree.map(lambda a: a.astype("bfloat16"), (params, xs))
for ours, expected in zip(*(jax.tree.leaves(compute(params, xs, i)) for i in ("native", "scan"))):
    assert abs(ours - expected).max() <= 4e-2 * abs(expected).max()
"""


def run(*command: str | Path, **environment: str) -> str:
    """Run a command that must succeed, and return what it wrote to standard output."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def build(source: Path, folder: Path, **environment: str) -> Path:
    """Build the wheel of a source folder, and return its path."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder)
    run(*pip, source, **OUTER, **environment)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in which the wheels are built."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with compiled C++."""
    return build(source, tmp_path_factory.mktemp("dist"), JAXRNN_PRECOMPILE="1")


def use(python: Path, place: Path, *arguments: str, **environment: str) -> Path:
    """Run `USE` without a compiler, and return the path of the library that it has used."""
    cache = place / "cache"
    cache.mkdir(exist_ok=True)
    own = {"PATH": "/nowhere", "HOME": str(place), "TMPDIR": str(place), "JAXRNN_CACHE": str(cache)}
    said, path = run(python, "-P", "-c", USE, *arguments, **own, **environment).splitlines()
    assert said.startswith("native: ")
    assert not list(place.rglob("*.so"))
    return Path(path)


@pytest.mark.once
def test_the_wheel(wheel: Path, tmp_path: Path) -> None:
    assert re.fullmatch(
        r"jaxrnn-[^-]+-py3-none-(manylinux_2_\d\d|macosx_11_0)_\w+\.whl", wheel.name
    )
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path, names)
        assert archive.testzip() is None
    carried = tmp_path / "jaxrnn/recurrence/kernels/native/prebuilt"
    assert len(names) == len(LEVELS)
    for level in LEVELS:
        assert prebuilt.find(carried, "recurrence", level, (0, 3))
    if (readelf := shutil.which("readelf")) and platform.system() == "Linux":
        shown = run(readelf, "-d", *carried.iterdir(), **OUTER)
        needed = set(re.findall(r"NEEDED.*\[(.+)\]", shown))
        assert {name.partition(".")[0] for name in needed} <= {"libc", "libm", "ld-linux-x86-64"}


@pytest.mark.once
def test_by_default_a_wheel_has_no_compiled_code(source: Path, wheel: Path, tmp_path: Path) -> None:
    """Even if the other wheel was built in the same folder before."""
    assert wheel.exists()
    plain = build(source, tmp_path / "plain")
    assert plain.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(plain) as archive:
        names = archive.namelist()
    assert "jaxrnn/recurrence/kernels/native/recurrence.cc" in names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.once
def test_every_level_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", **OUTER)
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", wheel, **OUTER)
    (tmp_path / "home").mkdir()
    flags = accelerator.processor_flags()
    best, *others = (level for level in LEVELS if level.needs <= flags)
    path = use(python, tmp_path / "home")
    assert path.is_relative_to(tmp_path / "venv")
    assert path.name.startswith(f"recurrence-{best.name}-ffi")
    for level in others:
        path = use(python, tmp_path / "home", " ".join(level.needs))
        assert path.name.startswith(f"recurrence-{level.name}-ffi")


def test_with_the_installed_jax(wheel: Path, tmp_path: Path) -> None:
    """The libraries are compiled for the oldest supported JAX, and run with this one."""
    folder = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder)
    run(*pip, wheel, **OUTER)
    (tmp_path / "home").mkdir()
    path = use(Path(sys.executable), tmp_path / "home", PYTHONPATH=str(folder))
    assert path.is_relative_to(folder)
