"""Libraries that a wheel carries already compiled, one for each level of processor.

Levels are sets of instructions that many processors share. The compiler's names of them are x86-64,
x86-64-v3 (AVX2) and x86-64-v4 (AVX-512). The setup.py of this project also runs this file, so it imports
the standard library only.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

# Compiler flags for every library, whether a wheel carries it or not.
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility-inlines-hidden", "-DNDEBUG", "-w")


class Level(NamedTuple):
    """A set of instructions that a library is compiled for.

    Attributes:
      name: the level's part of the library's file name.
      needs: the instructions, as /proc/cpuinfo names them.
      flags: the compiler flags.
    """

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]


_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
# The compiler may use AVX512-BF16 anywhere, but AMX only where the C++ asks for it.
_BF16 = ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
_ARM = (Level("armv8-a", frozenset(), ("-march=armv8-a",)),)

# The levels by `platform.machine()`, the best first. The last one needs nothing.
LEVELS = {
    "x86_64": (
        Level("x86-64-v4-bf16", _V4 | {"avx512_bf16"}, _BF16),
        Level("x86-64-v4", _V4, ("-march=x86-64-v4",)),
        Level("x86-64-v3", _V3, ("-march=x86-64-v3",)),
        Level("x86-64", frozenset(), ("-march=x86-64",)),
    ),
    # What Linux and macOS call the same processors.
    "aarch64": _ARM,
    "arm64": _ARM,
}


def best_level(machine: str, flags: frozenset[str]) -> Level | None:
    """Return the best level that a processor has, or None if wheels have no library for the machine."""
    for level in LEVELS.get(machine, ()):
        if level.needs <= flags:
            return level
    return None


def ffi_version(include: Path) -> tuple[int, ...]:
    """Return the version (major, minor) of XLA's foreign function interface from jaxlib's headers.

    Raises:
      OSError: if the header cannot be read.
    """
    header = (include / "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    return tuple(map(int, re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header)))


def file_name(name: str, level: Level, version: tuple[int, ...], content: bytes) -> str:
    """Return the file name of a carried library."""
    return f"{name}-{level.name}-ffi{'.'.join(map(str, version))}-{digest(content)}.so"


def find(folder: Path, name: str, level: Level, installed: tuple[int, ...]) -> Path | None:
    """Return the library of a level in a folder, or None if there is none or it is damaged.

    XLA refuses a library that was compiled with a later version of its interface than `installed`, and
    takes one of an earlier version.

    Raises:
      OSError: if a file cannot be read.
    """
    for path in folder.glob(f"{name}-{level.name}-ffi*.so"):
        *_, version, checksum = path.stem.split("-")
        built = tuple(map(int, version.removeprefix("ffi").split(".")))
        compatible = built[:1] == installed[:1] and built <= installed
        if compatible and digest(path.read_bytes()) == checksum:
            return path
    return None


def digest(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the content."""
    return hashlib.sha256(content).hexdigest()[:16]
