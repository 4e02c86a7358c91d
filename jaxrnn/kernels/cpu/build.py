"""Compiles the C++ of this folder on the machine that runs it, once, and gives it to XLA."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-DNDEBUG", "-w")
CALLS = tuple(f"jaxrnn_{name}" for name in ("forward", "backward", "outer", "back", "sum_equal"))
PATIENCE = 300  # seconds that a compiler may take


class NotBuilt(Exception):
    """The C++ cannot run here: why, in a few words."""


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot run the C++; None where it can. Compiles it the first time: seconds."""
    if platform.system() not in ("Linux", "Darwin"):
        return f"its C++ is for Linux and macOS, not {platform.system()}"
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (NotBuilt, OSError) as reason:
        return str(reason)
    for name in CALLS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return None


def _compiled() -> Path:
    """The shared library, from the cache where this machine has made it before."""
    wanted = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [wanted] if wanted else COMPILERS)), None)
    if compiler is None:
        raise NotBuilt(f"no C++ compiler is here ({wanted or ', '.join(COMPILERS)})")
    command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(HERE / "recurrence.cc")]
    made = _cache() / f"recurrence-{_fingerprint(command)}.so"
    if made.exists():
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            partial = Path(folder) / made.name
            run = subprocess.run(
                [*command, "-o", str(partial)], capture_output=True, text=True, timeout=PATIENCE
            )
            if run.returncode:
                told = [line for line in run.stderr.splitlines() if "error" in line]
                raise NotBuilt(f"{compiler} failed: {(told or [run.stderr.strip()])[0][:200]}")
            partial.replace(made)  # whole or not at all, whoever else does the same
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NotBuilt(f"its C++ could not be compiled: {problem}") from None
    return made


def _cache() -> Path:
    """The user's cache folder, where `jaxrnn.sources` keeps its texts too."""
    chosen, users = os.environ.get("JAXRNN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(chosen or Path(users or "~/.cache") / "jaxrnn").expanduser()


def _fingerprint(command: list[str]) -> str:
    """Of all that the library depends on; -march=native is the processor's own set of instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    parts = [*command, jaxlib.__version__, platform.machine(), lines[0]]
    parts += [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    parts += [path.read_text() for path in sorted([*HERE.glob("*.h"), *HERE.glob("*.cc")])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
