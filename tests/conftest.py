"""Strict numerics for every test: no silent promotion of dtypes or ranks, warnings are errors."""

import contextlib
import importlib.metadata
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA's CPU wait inside of interpreted GPU kernels. They must not take the last one, and a
# product inside of such a kernel must not wait for another thread. JAX 0.10 interprets none.
os.environ.setdefault("NPROC", "16")
if not importlib.metadata.version("jax").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
# Most of the tests' time is compilation, which takes half as long without LLVM's optimizations, and in
# JAX 0.10 a fifth with XLA's older emitters. Child processes inherit both settings. With
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 the programs are those that users run.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    flags = os.environ.get("XLA_FLAGS", "")
    if "fusion_emitters" not in flags and importlib.metadata.version("jax").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import jaxtyping
import pytest

# A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP. The commands keep
# ignoring a signal that was ignored when they started, but the tests send them both signals.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

DISABLE = jax.config.read("jax_disable_most_optimizations")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine may take any time for an example.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Do not check annotations: for loops of plain Python, which the checks make seven times slower."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder that holds what the child processes of these tests have compiled."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def compile_once(request: pytest.FixtureRequest, compiled: str) -> Iterator[None]:
    """Let child processes take what earlier ones compiled. JAX in this process does not."""
    with pytest.MonkeyPatch.context() as patch:
        # Processes that are killed at any moment or start together each compile on their own.
        if request.node.get_closest_marker("uncached") is None:
            patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(scope="class", autouse=True)
def optimize(request: pytest.FixtureRequest) -> Iterator[None]:
    """Optimize what is compiled for a TPU or GPU: its instructions, registers and memory are tested."""
    if request.node.get_closest_marker("tpu_aot") or request.node.get_closest_marker("gpu_aot"):
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", DISABLE)
    else:
        yield


# These fixtures import the library when they run: pytest must first hook its imports.


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without drawing curves."""
    from tests.support.runs import quicken

    quicken(monkeypatch)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and finished runs of them, none to be changed: `run`, and `latin` of bytes."""
    from jaxrnn import train
    from tests.support.runs import LATIN, TEXT, flags, quicken

    place = tmp_path_factory.mktemp("commands")
    (place / "text.txt").write_text(TEXT)
    (place / "latin.txt").write_bytes(LATIN)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        assert train.main(flags(place / "text.txt", place / "run")) == 0
        assert train.main(flags(place / "latin.txt", place / "latin", "--bytes")) == 0
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(place / "run", tmp_path / "run")


@pytest.fixture
def ends() -> Iterator[Callable[..., None]]:
    """Call functions at the end of a test, as `ends(file.close)`."""
    with contextlib.ExitStack() as stack:
        yield stack.callback


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail: the one line that it says."""

    def call(main: Callable[[list[str]], int], arguments: list[str], status: int = 2) -> str:
        capsys.readouterr()
        assert main(arguments) == status
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ") and len(lines[0]) > 20
        assert "Traceback" not in out
        return lines[0].removeprefix("error: ")

    return call


# Linux allows a process 65,530 memory mappings; each compiled program takes about a hundred.
MANY_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop what JAX has compiled before the process has no memory mappings left and crashes."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    words = (
        "run one in N of the cases that are slow or start processes, beginning with case K modulo N"
    )
    parser.addoption("--every", type=fraction, default=(0, 1), metavar="K/N", help=words)
    words = (
        "run one in N of each test's costly cases, but at least one, beginning with case K modulo N"
    )
    parser.addoption("--share", type=fraction, default=(0, 1), metavar="K/N", help=words)
    words = "like --share, but for the cases that are not costly"
    parser.addoption("--fast-share", type=fraction, default=(0, 1), metavar="K/N", help=words)


def fraction(words: str) -> tuple[int, int]:
    """Return K and N of "K/N"."""
    first, _, parts = words.partition("/")
    return int(first) % int(parts), int(parts)


# Fixtures that take long, once in each process that needs them.
COSTLY = {"place", "trained", "on_meshes", "plain", "workplace"}
# Cases of which --share chooses; --fast-share chooses of the others.
COSTLY_MARKS = ("slow", "process", "peers", "tpu_aot", "gpu_aot")


# Before pytest chooses tests by their marks, and before pytest-xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the cases after the first of `first_case` tests as slow, and apply the options that choose.

    The tests marked `rare` count together as the cases of one test. All tests that share a costly
    fixture run in the same process.
    """
    for item in items:
        for name in COSTLY.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))
    seen: set[str] = set()
    slow: list[pytest.Item] = []
    shared: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in seen and item.get_closest_marker("first_case"):
            item.add_marker("slow")
        seen.add(test)
        if any(map(item.get_closest_marker, ("slow", "process"))):
            slow.append(item)
        option = "share" if any(map(item.get_closest_marker, COSTLY_MARKS)) else "fast_share"
        test = "rare" if item.get_closest_marker("rare") else test
        shared.setdefault((option, test), []).append(item)
    first, parts = config.getoption("every")
    left_out = set(slow) - set(slow[first::parts])
    for (option, _), cases in shared.items():
        first, parts = config.getoption(option)
        left_out.update(set(cases) - set(cases[first % len(cases) :: parts]))
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the tests recorded, as how often each fault was tried."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
