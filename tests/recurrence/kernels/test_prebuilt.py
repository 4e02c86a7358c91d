"""The libraries that a wheel carries: which one a processor takes, and when C++ is compiled instead."""

import itertools
import platform
from pathlib import Path

import jax
import pytest

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.kernels import prebuilt
from jaxrnn.recurrence.kernels.cplusplus import Library
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.kernels.prebuilt import LEVELS, Level

# Instructions that /proc/cpuinfo lists, beside others that no level needs.
NEHALEM = "fpu sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
SANDY_BRIDGE = f"{NEHALEM} xsave avx"
HASWELL = f"{SANDY_BRIDGE} f16c rdrand abm movbe bmi1 avx2 bmi2 fma"
SKYLAKE = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"
SAPPHIRE_RAPIDS = f"{SKYLAKE} avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"
ZEN_5 = f"{SKYLAKE} avx_vnni avx512_bf16"


@pytest.mark.parametrize(
    ("machine", "flags", "level"),
    [
        ("x86_64", "", "x86-64"),
        ("x86_64", "no flag that is known", "x86-64"),
        ("x86_64", NEHALEM, "x86-64"),
        ("x86_64", SANDY_BRIDGE, "x86-64"),
        ("x86_64", HASWELL, "x86-64-v3"),
        ("x86_64", HASWELL.replace("fma", ""), "x86-64"),
        ("x86_64", f"{HASWELL} avx512f avx512cd avx512er avx512pf", "x86-64-v3"),
        ("x86_64", SKYLAKE, "x86-64-v4"),
        ("x86_64", SAPPHIRE_RAPIDS, "x86-64-v4-bf16"),
        ("x86_64", ZEN_5, "x86-64-v4-bf16"),
        ("x86_64", ZEN_5.replace("avx512vl", ""), "x86-64-v3"),
        ("aarch64", "fp asimd sve2 bf16", "armv8-a"),
        ("arm64", "", "armv8-a"),
        ("riscv64", "", None),
        ("AMD64", ZEN_5, None),
    ],
)
def test_the_level_of_a_processor(machine: str, flags: str, level: str | None) -> None:
    best = prebuilt.best_level(machine, frozenset(flags.split()))
    assert (best and best.name) == level


@pytest.mark.parametrize("machine", LEVELS)
def test_a_better_level_needs_all_that_a_lesser_one_needs(machine: str) -> None:
    levels = LEVELS[machine]
    assert all(better.needs > lesser.needs for better, lesser in itertools.pairwise(levels))
    assert not levels[-1].needs


@pytest.mark.skipif(platform.system() != "Linux", reason="waits for a system with /proc/cpuinfo")
def test_the_flags_of_this_processor() -> None:
    expected = {"x86_64": "sse2", "aarch64": "asimd"}.get(platform.machine())
    assert expected is None or expected in accelerator.processor_flags()


def test_a_system_without_a_list_of_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "open", missing)
    assert accelerator.processor_flags() == frozenset()


OLDER, BETTER = LEVELS["x86_64"][-1], LEVELS["x86_64"][-2]
INSTALLED = prebuilt.ffi_version(Path(jax.ffi.include_dir()))


def carry(
    folder: Path,
    level: Level = BETTER,
    version: tuple[int, ...] = INSTALLED,
    content: bytes = b"code",
) -> Path:
    """Put a library into a wheel's folder."""
    folder.mkdir(exist_ok=True)
    path = folder / prebuilt.file_name("library", level, version, content)
    path.write_bytes(content)
    return path


def test_the_version_of_the_interface_is_two_numbers() -> None:
    assert len(INSTALLED) == 2 and INSTALLED >= (0, 3)


@pytest.mark.parametrize(
    ("version", "taken"),
    [((0, 3), True), ((0, 5), True), ((0, 6), False), ((0, 10), False), ((1, 0), False)],
)
def test_a_library_for_a_later_interface_is_not_taken(
    tmp_path: Path, version: tuple[int, int], taken: bool
) -> None:
    older, better = carry(tmp_path, OLDER, version), carry(tmp_path, BETTER, version)
    assert prebuilt.find(tmp_path, "library", OLDER, (0, 5)) == (older if taken else None)
    assert prebuilt.find(tmp_path, "library", BETTER, (0, 5)) == (better if taken else None)
    assert prebuilt.find(tmp_path, "other", OLDER, (0, 5)) is None


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library on a processor with AVX2, without a compiler and with an empty cache.

    It has no handlers, because XLA takes those of one library per process.
    """
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(accelerator, "processor_flags", lambda: frozenset(HASWELL.split()))
    source = tmp_path / "library.cc"
    source.write_text("// not compiled", encoding="utf-8")
    return Library("library", source, (), LIBRARY.platform, LIBRARY.systems)


@pytest.fixture
def code() -> bytes:
    """The content of a library that this machine can load."""
    if LIBRARY.unavailable_reason is not None:
        pytest.skip(f"waits for a C++ compiler: {LIBRARY.unavailable_reason}")
    return LIBRARY.path().read_bytes()


def test_the_carried_library_needs_no_compiler_and_no_cache(
    tmp_path: Path, library: Library, code: bytes
) -> None:
    carry(library.carried, OLDER, content=code)
    better = carry(library.carried, BETTER, content=code)
    assert library.unavailable_reason is None and library.path() == better
    assert not (tmp_path / "cache").exists()


def test_register_built_registers_the_carried_library(library: Library, code: bytes) -> None:
    path = carry(library.carried, content=code)
    library.register_built()
    path.unlink()
    assert library.path() == path


def test_a_lesser_processor_takes_a_lesser_level(
    library: Library, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = carry(library.carried, OLDER, content=code)
    carry(library.carried, BETTER, content=code)
    monkeypatch.setattr(accelerator, "processor_flags", lambda: frozenset(NEHALEM.split()))
    assert library.path() == older


def compiles(library: Library) -> bool:
    """Return whether the library asks for a compiler, of which there is none."""
    library.register_built()
    return str(library.unavailable_reason).startswith("no C++ compiler is here")


def test_without_a_carried_library_it_is_compiled(library: Library) -> None:
    assert compiles(library)


def test_a_missing_level_is_compiled(library: Library, code: bytes) -> None:
    """A slower one does not silently take its place."""
    carry(library.carried, OLDER, content=code)
    assert compiles(library)


def test_for_an_unknown_machine_it_is_compiled(
    library: Library, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(library.carried, content=code)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert compiles(library)


@pytest.mark.parametrize("left", [0, 1000, -1], ids=["empty", "short", "one byte less"])
def test_a_damaged_library_is_not_loaded(library: Library, code: bytes, left: int) -> None:
    path = carry(library.carried, content=code)
    path.write_bytes(code[:left])
    assert compiles(library)
    # The cache deletes damaged files. What pip has installed is left as it is.
    assert path.exists()


def test_a_library_for_another_system_is_not_loaded(library: Library) -> None:
    carry(library.carried, content=b"whole, but no library at all")
    assert compiles(library)


def test_a_library_for_a_later_jaxlib_is_compiled(library: Library, code: bytes) -> None:
    carry(library.carried, version=(INSTALLED[0], INSTALLED[1] + 1), content=code)
    assert compiles(library)


def test_a_library_that_xla_refuses_is_compiled(
    library: Library, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("the handler's API version (0.1) is incompatible")

    carry(library.carried, content=code)
    library.handlers = LIBRARY.handlers
    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    assert compiles(library)


def test_cxx_asks_for_compiling(
    library: Library, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = carry(library.carried, content=code)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiles(library)
    monkeypatch.setenv("CXX", " ")
    assert library.path() == path
