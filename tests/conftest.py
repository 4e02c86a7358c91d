"""Strict numerics for every test: no silent promotion of dtypes or ranks, warnings are errors."""

import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# threads of XLA's CPU: those that wait inside an interpreted GPU kernel must not take the last one
os.environ.setdefault("NPROC", "16")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the tests recorded, as how often each fault was tried."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
