"""Where the computation runs: chosen before any device is touched, described in a line."""

from __future__ import annotations

import os
from pathlib import Path
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
    there = ", ".join(sorted({device.platform for device in _devices()}))
    try:
        wanted = jax.devices(accelerator)
    except RuntimeError:
        forced = os.environ.get("JAX_PLATFORMS")
        why = f" (JAX_PLATFORMS={forced} is set)" if forced else ""
        raise InputError(
            f"no {accelerator} here: JAX sees {there}{why}; use --accelerator auto, "
            f"or install support for it with {_INSTALL[accelerator]}"
        ) from None
    jax.config.update("jax_platform_name", wanted[0].platform)


def describe(count: int = 1) -> str:
    """The device in use, or `count` of them, as in "cpu, 2 cores" or "8 x TPU v5e"."""
    here = device()
    one = f"cpu, {os.cpu_count()} cores" if here.platform == "cpu" else here.device_kind
    return one if count == 1 else f"{count} x {one}"


def memory_limit() -> int | None:
    """Bytes that arrays may take on the device; None where it does not say (a CPU)."""
    return (device().memory_stats() or {}).get("bytes_limit")


def device() -> jax.Device:
    """The device that new arrays go to; inside `jax.default_device(...)`, the one named there."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(chosen, jax.Device):
        return chosen
    return jax.local_devices(backend=chosen)[0]  # of several processes, this one's


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """The dtype in which this device multiplies matrices fastest: bfloat16 where its hardware does.

    TPUs, GPUs from NVIDIA's Ampere on (compute capability 8) and CPUs with AMX do; on other CPUs
    bfloat16 is emulated and slow.
    """
    here = device()
    if here.platform == "tpu":
        return "bfloat16"
    if here.platform == "cpu":
        flags = Path("/proc/cpuinfo")
        return (
            "bfloat16"
            if flags.exists() and "amx_bf16" in flags.read_text(encoding="utf-8")
            else "float32"
        )
    capability = str(getattr(here, "compute_capability", "0")).split(".")[0]
    return "bfloat16" if not capability.isdigit() or int(capability) >= 8 else "float32"


def _devices() -> list[jax.Device]:
    """Return all devices that JAX finds. Raises InputError where it finds none."""
    try:
        return jax.devices()
    # JAX raises a RuntimeError or, for CUDA, an AssertionError without a message; a platform's plugin
    # raises what it likes.
    except Exception as error:
        why = next(iter(str(error).splitlines()), "") or "the platform asked for is not here"
        forced = os.environ.get("JAX_PLATFORMS")
        hint = f"; JAX_PLATFORMS={forced} is set: unset it to take what is here" if forced else ""
        raise InputError(f"JAX finds no device: {why}{hint}") from None
