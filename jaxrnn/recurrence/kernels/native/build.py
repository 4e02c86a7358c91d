"""Compile the C++ of this folder on the machine that runs it, once, and register it with XLA.

Environment variables:
  CXX: the compiler, as a shell would read it, for example "clang++" or "ccache g++"; without it the
    first of c++, g++ and clang++ that is installed.
  JAXRNN_CACHE: the folder in which the compiled library is kept (`jaxrnn.devices.storage`).

A library that this machine compiled before needs no compiler. Its file name ends with the digest of its
content, so that one which a full disk or a power cut has damaged is not loaded, but compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from jaxrnn.devices import storage
from jaxrnn.recurrence.kernels import Missing

HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-DNDEBUG", "-w")
CALLS = tuple(f"jaxrnn_{name}" for name in ("forward", "backward", "outer", "back", "sum_equal"))
# Seconds that a compiler may take.
PATIENCE = 300

# XLA takes one library per process.
_registered: list[Path] = []


class NotBuilt(Exception):
    """The C++ cannot run here, for the reason in the message."""


@functools.cache
def why_not() -> Missing | None:
    """Return why this machine cannot run the C++, or None where it can.

    The first call on a machine compiles it, which takes some seconds.
    """
    if platform.system() not in ("Linux", "Darwin"):
        return Missing(f"its C++ is for Linux and macOS, not {platform.system()}")
    try:
        _library()
    except (NotBuilt, OSError) as reason:
        return Missing(reason)
    return None


def register_built() -> None:
    """Register the library with XLA where this machine has compiled it before.

    An executable that another process serialized calls the library without a call of `jaxrnn.unroll`.
    """
    with contextlib.suppress(NotBuilt, OSError):
        _cached()


def _library() -> Path:
    """Register the library if it is not registered yet, and return its path."""
    return next(iter(_registered), None) or _cached() or _build()


def _cached() -> Path | None:
    """Register the library in the cache and return its path, or None where there is none."""
    compiler = _compiler()
    for folder in storage.cache_folders():
        for path in folder.glob(f"{_prefix(compiler)}*.so"):
            if _loads(path, folder):
                return path
    return None


def _build() -> Path:
    """Compile the library into the first cache folder that can be written, and register it."""
    compiler = _compiler()
    if compiler is None:
        tried = os.environ.get("CXX", "").strip() or ", ".join(COMPILERS)
        raise NotBuilt(f"no C++ compiler is here ({tried}); install one, or name one in CXX")
    problems = []
    for folder in storage.cache_folders():
        try:
            storage.make_cache_folder(folder)
            path = _compile(compiler, folder)
            _register(path)
            return path
        except OSError as problem:
            # The folder is not writable, full, or mounted so that nothing in it may run.
            problems.append(f"its C++ could not be compiled: {problem}")
    raise NotBuilt(problems[0])


def _compiler() -> list[str] | None:
    """Return the words of the compiler's command, or None where it is not installed."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as problem:
        raise NotBuilt(f"CXX cannot be read as a shell command: {problem}") from None
    for first, *rest in [chosen] if chosen else [[name] for name in COMPILERS]:
        if found := shutil.which(first):
            return [found, *rest]
    return None


def _loads(path: Path, folder: Path) -> bool:
    """Register a library in the cache, or remove a damaged one. Return whether it was registered."""
    try:
        storage.make_cache_folder(folder)
        if _digest(path.read_bytes()) == path.stem.rpartition("-")[2]:
            _register(path)
            return True
        path.unlink()
    except OSError:
        pass
    return False


def _register(path: Path) -> None:
    library = ctypes.CDLL(str(path))
    for name in CALLS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    _registered.append(path)


def _compile(compiler: list[str], folder: Path) -> Path:
    """Compile the library into a folder. Raises NotBuilt where the compiler fails."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        partial = Path(place) / "recurrence.so"
        command = [*compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(HERE / "recurrence.cc")]
        try:
            run = subprocess.run(
                [*command, "-o", str(partial)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as problem:
            raise NotBuilt(f"its C++ could not be compiled: {problem}") from None
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if "error" in line]
            reason = (lines or [run.stderr.strip() or f"status {run.returncode}"])[0]
            raise NotBuilt(f"{shlex.join(compiler)} failed: {reason[:200]}")
        with partial.open("rb") as file:
            content = file.read()
            os.fsync(file.fileno())
        # Another process may do the same at the same time: the file is replaced whole or not at all.
        return partial.replace(folder / f"{_prefix(compiler)}{_digest(content)}.so")


def _prefix(compiler: list[str] | None) -> str:
    """Return the first part of the library's name, from all that it depends on.

    -march=native stands for the processor's own instructions. Without a compiler, the library of any
    compiler serves.
    """
    info = Path("/proc/cpuinfo")
    lines = [platform.processor()]
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [*FLAGS, jaxlib.__version__, platform.machine(), *lines[:1]]
    parts += [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    sources = sorted([*HERE.glob("*.h"), *HERE.glob("*.cc")])
    parts += [path.read_text(encoding="utf-8") for path in sources]
    made_by = f"{_digest(shlex.join(compiler).encode())}-" if compiler else ""
    return f"recurrence-{_digest(chr(10).join(parts).encode())}-{made_by}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
