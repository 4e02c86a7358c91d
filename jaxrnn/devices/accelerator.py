"""The platform that computations run on: select it, describe it, ask for its fast dtype."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import jax

from jaxrnn.errors import InputError
from jaxrnn.literals import Accelerator

_INSTALL = {"gpu": 'pip install "jaxrnn[cuda]"', "tpu": 'pip install "jaxrnn[tpu]"'}


def use(accelerator: Accelerator) -> None:
    """Run all later computations on a platform; "auto" leaves the choice to JAX.

    Call it before anything else touches a device.

    Raises:
      InputError: if there is no such device; the message names the devices that there are and the
        package to install.
    """
    if accelerator == "auto":
        _devices()
        return
    if accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    platforms = ", ".join(sorted({device.platform for device in _devices()}))
    try:
        wanted = jax.devices(accelerator)
    except RuntimeError:
        forced = os.environ.get("JAX_PLATFORMS")
        why = f" (JAX_PLATFORMS={forced} is set)" if forced else ""
        raise InputError(
            f'no {accelerator} found: JAX sees {platforms}{why}; use accelerator="auto", '
            f"or install support for it with {_INSTALL[accelerator]}"
        ) from None
    jax.config.update("jax_platform_name", wanted[0].platform)


def describe(count: int = 1) -> str:
    """Return a description of `count` devices in use, as in "cpu, 2 cores" or "8 x TPU v5e"."""
    current = device()
    is_cpu = current.platform == "cpu"
    name = f"cpu, {os.cpu_count()} cores" if is_cpu else current.device_kind
    return name if count == 1 else f"{count} x {name}"


def memory_limit() -> int | None:
    """Return the bytes that arrays may take on the device in use, or None if it does not say.

    CPUs do not say; `jaxrnn.devices.memory` reads the operating system for those.
    """
    return (device().memory_stats() or {}).get("bytes_limit")


def device() -> jax.Device:
    """Return the device that new arrays are placed on.

    Inside `jax.default_device(...)` that is the device named there; with several processes it is a
    device of this process.
    """
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(default, jax.Device):
        return default
    return jax.local_devices(backend=default)[0]


def fast_dtype(compiled: bool = False) -> Literal["float32", "bfloat16"]:
    """Return the dtype in which the device in use trains a recurrent network fastest.

    That is bfloat16 on TPUs, on NVIDIA GPUs since Ampere (compute capability 8), and on CPUs with AMX or
    AVX512-BF16, which have hardware for it. Other CPUs emulate bfloat16, which is slow.

    Args:
      compiled: whether the recurrence on a CPU is the C++ of "native". XLA gains from bfloat16 with AMX
        alone (benchmarks/README.md).
    """
    current = device()
    if current.platform == "tpu":
        return "bfloat16"
    if current.platform == "cpu":
        flags = processor_flags()
        fast = "amx_bf16" in flags or (compiled and "avx512_bf16" in flags)
        return "bfloat16" if fast else "float32"
    capability = str(getattr(current, "compute_capability", "0")).split(".")[0]
    return "bfloat16" if not capability.isdigit() or int(capability) >= 8 else "float32"


def processor_flags() -> frozenset[str]:
    """Return the instructions that this processor reports, or none if the system does not list them."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def _devices() -> list[jax.Device]:
    """Return all devices that JAX finds.

    Raises:
      InputError: if JAX finds none.
    """
    try:
        return jax.devices()
    # JAX raises a RuntimeError or, for CUDA, an AssertionError without a message; the plugin of a
    # platform may raise anything.
    except Exception as error:
        why = next(iter(str(error).splitlines()), "") or "the requested platform is missing"
        forced = os.environ.get("JAX_PLATFORMS")
        hint = f"; JAX_PLATFORMS={forced} is set: unset it to use any device" if forced else ""
        raise InputError(f"JAX finds no device: {why}{hint}") from None
