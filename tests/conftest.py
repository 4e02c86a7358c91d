"""Strict numerics for every test: no silent promotion of dtypes or ranks, warnings are errors."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# threads of XLA's CPU: those that wait inside an interpreted GPU kernel must not take the last one
os.environ.setdefault("NPROC", "16")

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

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine may take any time for an example.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

# What these files test does not change with JAX's version: CI runs them on the oldest alone.
ONCE = {
    "benchmarks",
    "commands",
    "console",
    "distributed",
    "faults",
    "folder",
    "hopper_bench",
    "hopper_toolkit",
    "memory",
    "play",
    "prepare",
    "report",
    "resume",
}
ONCE |= {"scaling", "sources", "storage", "text"}
# Whole programs, each of which takes a minute or more on two cores: `pytest -m slow` runs them alone.
SLOW = {"benchmarks", "experiments", "faults"}


# Their processes are killed at any moment or start together: each compiles on its own.
UNCACHED = {"distributed", "faults", "resume"}


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
        if request.path.stem.removeprefix("test_") not in UNCACHED:
            patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


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
    words = "run the first case of each parametrized test and every N-th case after it"
    parser.addoption("--every", type=int, default=1, metavar="N", help=words)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cases: Counter[str] = Counter()
    chosen, left_out = [], []
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in ONCE or name.startswith("experiment"):
            item.add_marker("once")
        if name in SLOW:
            item.add_marker("slow")
        test = item.nodeid.partition("[")[0]
        (left_out if cases[test] % config.getoption("every") else chosen).append(item)
        cases[test] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the tests recorded, as how often each fault was tried."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
