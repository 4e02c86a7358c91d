"""Where the computation runs: chosen before any device is touched, described in a line."""

from __future__ import annotations

import os
from typing import Literal

import jax

from jaxrnn.errors import InputError

Accelerator = Literal["auto", "cpu", "gpu", "tpu"]

_INSTALL = {"gpu": 'pip install "jaxrnn[cuda]"', "tpu": 'pip install "jaxrnn[tpu]"'}


def use(accelerator: Accelerator) -> None:
    """Run everything that follows on this platform; "auto" leaves the choice to JAX.

    Raises:
      InputError: where there is none of it; it says what is there and what to install.
    """
    if accelerator == "auto":
        _devices()
        return
    if accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    try:
        wanted = jax.devices(accelerator)
    except RuntimeError:
        there = ", ".join(sorted({device.platform for device in _devices()}))
        forced = os.environ.get("JAX_PLATFORMS")
        why = f" (JAX_PLATFORMS={forced} is set)" if forced else ""
        raise InputError(
            f"no {accelerator} here: JAX sees {there}{why}; use --accelerator auto, "
            f"or install support for it with {_INSTALL[accelerator]}"
        ) from None
    if jax.default_backend() != wanted[0].platform:
        jax.config.update("jax_default_device", wanted[0])


def describe() -> str:
    """The device in use, as in "cpu, 2 cores" or "NVIDIA H200"."""
    device = jax.config.jax_default_device or jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu, {os.cpu_count()} cores"
    return device.device_kind


def memory() -> int | None:
    """Bytes that arrays may take on the device; None where it does not say (a CPU)."""
    device = jax.config.jax_default_device or jax.devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit")


def _devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except RuntimeError as error:
        raise InputError(f"JAX finds no device: {str(error).splitlines()[0]}") from None
