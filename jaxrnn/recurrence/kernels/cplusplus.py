"""Load libraries in C++, compiling them at first use, and register their handlers with XLA.

A library is looked up in this order:
  1. in the wheel, if that carries one for this processor and this jaxlib (`prebuilt.py`), unless CXX is
     set;
  2. in the cache folder;
  3. otherwise it is compiled into the cache folder.

Environment variables:
  CXX: the compiler command, split as by a shell, for example "clang++" or "ccache g++". The default is
    the first of c++, g++ and clang++ that is installed. If it is set, the wheel's library is not used.
  JAXRNN_CACHE: the folder in which compiled libraries are kept (`jaxrnn.devices.storage`).

A library in the wheel or in the cache needs no compiler. Its file name ends with a digest of its
content, so that a file damaged by a full disk or a power failure is detected and compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from jaxrnn.devices import accelerator, storage
from jaxrnn.recurrence.kernels import Missing, prebuilt
from jaxrnn.recurrence.kernels.prebuilt import FLAGS, digest

# The folder of the headers that several libraries include.
HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# Seconds that a compiler may take.
PATIENCE = 300


class NotBuilt(Exception):
    """The C++ cannot be compiled or loaded; the message says why."""


class Library:
    """A shared library that is compiled from one C++ file, here or for a wheel.

    Attributes:
      name: the start of the library's file name.
      source: the C++ file.
      handlers: the names of the exported XLA handlers, under which they are also registered.
      platform: XLA's name of the platform whose programs call the handlers.
      systems: the supported operating systems, as `platform.system()` names them.
      flags: additional compiler flags.
      includes: folders of headers, besides the folder of the C++ file.
      carried: the folder in which a wheel carries the library. It does not exist in other installations.
    """

    def __init__(
        self,
        name: str,
        source: Path,
        handlers: tuple[str, ...],
        platform: str,
        systems: tuple[str, ...],
        flags: tuple[str, ...] = (),
        includes: tuple[Path, ...] = (HERE,),
    ) -> None:
        self.name, self.source, self.handlers = name, source, handlers
        self.platform, self.systems, self.flags = platform, systems, (*FLAGS, *flags)
        self.includes, self.carried = includes, source.with_name("prebuilt")
        # XLA takes one library per process.
        self._registered: tuple[Path, ctypes.CDLL] | None = None

    @functools.cached_property
    def unavailable_reason(self) -> Missing | None:
        """The reason why the library cannot be used on this machine, or None if it can.

        If no wheel carries the library, the first access on a machine compiles it, which takes several
        seconds.
        """
        if platform.system() not in self.systems:
            names = " and ".join({"Darwin": "macOS"}.get(name, name) for name in self.systems)
            return Missing(f"its C++ is for {names}, not {platform.system()}")
        try:
            self.load()
        except (NotBuilt, OSError) as reason:
            return Missing(reason)
        return None

    def register_built(self) -> None:
        """Register the library with XLA if it is in the wheel or in the cache.

        An executable that was serialized by another process calls the handlers without a preceding call
        of `jaxrnn.unroll`.
        """
        if platform.system() in self.systems:
            with contextlib.suppress(NotBuilt, OSError):
                self._find()

    def load(self) -> ctypes.CDLL:
        """Return the library. Compile and register it first if necessary.

        Raises:
          NotBuilt: if there is no compiler, or if it fails.
          OSError: if the library cannot be loaded.
        """
        return self._loaded()[1]

    def path(self) -> Path:
        """Return the path of the library's file. Compile the library first if necessary."""
        return self._loaded()[0]

    def _loaded(self) -> tuple[Path, ctypes.CDLL]:
        if self._registered is None and not self._find():
            self._build()
        assert self._registered is not None
        return self._registered

    def _find(self) -> bool:
        """Register the library from the wheel or from the cache. Return whether it was found."""
        if self._registered or self._loads_carried():
            return True
        compiler = find_compiler()
        for folder in storage.cache_folders():
            for path in folder.glob(f"{self.prefix(compiler)}*.so"):
                if self._loads(path, folder):
                    return True
        return False

    def _loads_carried(self) -> bool:
        """Register the library that the wheel carries. Return whether there is one that is usable."""
        if os.environ.get("CXX", "").strip() or not self.carried.is_dir():
            return False
        level = prebuilt.best_level(platform.machine(), accelerator.processor_flags())
        if level is None:
            return False
        # The errors mean that the file is for another system, or that XLA has refused it.
        with contextlib.suppress(OSError, jax.errors.JaxRuntimeError):
            version = prebuilt.ffi_version(Path(jax.ffi.include_dir()))
            path = prebuilt.find(self.carried, self.name, level, version)
            if path is not None:
                self._register(path)
                return True
        return False

    def _build(self) -> None:
        """Compile the library into the first cache folder that can be written, and register it."""
        compiler = find_compiler()
        if compiler is None:
            tried = os.environ.get("CXX", "").strip() or ", ".join(COMPILERS)
            raise NotBuilt(f"no C++ compiler is here ({tried}); install one, or name one in CXX")
        problems = []
        for folder in storage.cache_folders():
            try:
                storage.make_cache_folder(folder)
                self._register(self.compile(compiler, folder))
                return
            except OSError as problem:
                # The folder is not writable, full, or mounted so that nothing in it may run.
                problems.append(f"its C++ could not be compiled: {problem}")
        raise NotBuilt(problems[0])

    def _loads(self, path: Path, folder: Path) -> bool:
        """Register a file from the cache, or delete a damaged file. Return whether it was usable."""
        try:
            storage.make_cache_folder(folder)
            if digest(path.read_bytes()) == path.stem.rpartition("-")[2]:
                self._register(path)
                return True
            path.unlink()
        except OSError:
            pass
        return False

    def _register(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name in self.handlers:
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, handler, platform=self.platform)
        self._registered = path, library

    def compile(self, compiler: list[str], folder: Path) -> Path:
        """Compile the library into a folder and return its path.

        Raises:
          NotBuilt: if the compiler fails.
        """
        with tempfile.TemporaryDirectory(dir=folder) as place:
            partial = Path(place) / "library.so"
            includes = [f"-I{folder}" for folder in (*self.includes, jax.ffi.include_dir())]
            command = [*compiler, *self.flags, *includes, str(self.source)]
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
            # Another process may compile the same library at the same time, so the rename is atomic.
            return partial.replace(folder / f"{self.prefix(compiler)}{digest(content)}.so")

    def prefix(self, compiler: list[str] | None) -> str:
        """Return the start of the file name, with a digest of everything that the library depends on.

        That includes the processor, because of -march=native. If no compiler is installed, the prefix
        matches the libraries of all compilers.
        """
        info = Path("/proc/cpuinfo")
        lines = [platform.processor()]
        if info.exists():
            lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        parts = [*self.flags, jaxlib.__version__, platform.machine(), *lines[:1]]
        named = "flags", "Features", "model name"
        parts += [line for line in lines if line.startswith(named)][:2]
        folders = (self.source.parent, *self.includes)
        headers = [path for folder in folders for path in sorted(folder.glob("*.h"))]
        parts += [path.read_text(encoding="utf-8") for path in (self.source, *headers)]
        made_by = f"{digest(shlex.join(compiler).encode())}-" if compiler else ""
        return f"{self.name}-{digest(chr(10).join(parts).encode())}-{made_by}"


def find_compiler() -> list[str] | None:
    """Return the compiler command as a list of words, or None if no compiler is installed."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as problem:
        raise NotBuilt(f"CXX cannot be read as a shell command: {problem}") from None
    for first, *rest in [chosen] if chosen else [[name] for name in COMPILERS]:
        if found := shutil.which(first):
            return [found, *rest]
    return None
