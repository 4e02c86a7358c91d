"""The modes of JAX that decide the numbers of a run, fixed whatever the program or environment sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

KEYS = "threefry2x32"  # the random number generator of every key


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Compute in the modes that every run is trained, read and sampled in; also a decorator.

    A run is then the same under JAX_ENABLE_X64, another JAX_DEFAULT_PRNG_IMPL or
    jax_threefry_partitionable, and its arrays have the same dtypes. Transfers between host and
    device inside are meant, so JAX_TRANSFER_GUARD does not refuse them.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(KEYS),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
    ):
        yield
