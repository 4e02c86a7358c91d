"""JAX's global modes that affect the numbers of a run, fixed whatever the environment sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

# The random number generator of every key.
KEYS = "threefry2x32"


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Fix the modes in which runs are trained, loaded and sampled. Also works as a decorator.

    A run then has the same numbers and dtypes under any JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL and
    jax_threefry_partitionable. Transfers between host and device are intended inside of it, so
    JAX_TRANSFER_GUARD does not refuse them.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(KEYS),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
    ):
        yield
