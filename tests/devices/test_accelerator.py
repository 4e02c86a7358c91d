"""Tests of selecting a device by name, its description, and the error if it is missing."""

import os
import subprocess
import sys
from typing import Any

import jax
import pytest

from jaxrnn.devices import accelerator
from jaxrnn.errors import InputError
from tests.support.fakes import fake

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="JAX computes elsewhere here")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, since the setup of JAX cannot be undone."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@on_cpu
def test_auto_uses_the_default_device() -> None:
    accelerator.use("auto")
    assert jax.numpy.zeros(1).devices() == {jax.devices("cpu")[0]}


@on_cpu
@pytest.mark.parametrize("wanted, extra", [("gpu", "cuda"), ("tpu", "tpu")])
def test_the_error_for_a_missing_accelerator_says_what_to_install(wanted: Any, extra: str) -> None:
    with pytest.raises(InputError) as caught:
        accelerator.use(wanted)
    message = str(caught.value)
    assert f"no {wanted} found: JAX sees cpu" in message
    assert f'pip install "jaxrnn[{extra}]"' in message and 'accelerator="auto"' in message
    assert "\n" not in message


@on_cpu
def test_the_error_names_a_platform_forced_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(InputError, match="JAX_PLATFORMS=cpu"):
        accelerator.use("gpu")
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(InputError) as caught:
        accelerator.use("gpu")
    assert "JAX_PLATFORMS" not in str(caught.value)


@on_cpu
def test_description_of_a_cpu() -> None:
    assert accelerator.describe() == f"cpu, {os.cpu_count()} cores"
    assert accelerator.memory_limit() is None


def test_description_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake("gpu", device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 123})
    monkeypatch.setattr(accelerator, "device", lambda: device)
    assert accelerator.describe() == "NVIDIA H200"
    assert accelerator.memory_limit() == 123
    monkeypatch.setattr(device, "memory_stats", lambda: {})
    assert accelerator.memory_limit() is None


@pytest.mark.parametrize(
    "device, dtype",
    [
        (fake("tpu"), "bfloat16"),
        (fake("gpu", compute_capability="9.0"), "bfloat16"),
        (fake("gpu", compute_capability="8.0"), "bfloat16"),
        (fake("gpu", compute_capability="10.0"), "bfloat16"),
        (fake("gpu", compute_capability="7.5"), "float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.platform,
)
def test_fast_dtype(device: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "device", lambda: device)
    assert accelerator.fast_dtype() == dtype


@pytest.mark.parametrize(
    "flags, by_native, dtype",
    [
        ({"avx512_bf16", "amx_bf16"}, False, "bfloat16"),
        ({"avx512_bf16"}, True, "bfloat16"),
        ({"avx512_bf16"}, False, "float32"),
        ({"avx512f"}, True, "float32"),
        (set(), True, "float32"),
    ],
    ids=["amx", "avx512_bf16", "only by XLA", "avx512", "unknown"],
)
def test_fast_dtype_of_a_cpu(
    flags: set[str], by_native: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "processor_flags", lambda: frozenset(flags))
    assert accelerator.fast_dtype(by_native) == dtype


@pytest.mark.process
def test_cpu_is_used_in_a_new_process() -> None:
    done = python(
        "from jaxrnn.devices import accelerator\n"
        "accelerator.use('cpu')\n"
        "import jax\n"
        "print(jax.numpy.zeros(1).devices(), jax.default_backend(), accelerator.describe())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1].startswith("cpu cpu, ")


@pytest.mark.process
@pytest.mark.parametrize("platform", ["tpu", "cuda", "no-such-platform"])
@pytest.mark.parametrize("wanted", ["auto", "gpu"])
def test_a_platform_unknown_to_jax(platform: str, wanted: str) -> None:
    """JAX_PLATFORMS names it; JAX itself raises a RuntimeError or an AssertionError."""
    done = python(
        f"""
import jax, sys
from jaxrnn import errors
from jaxrnn.devices import accelerator
try:
    accelerator.use({wanted!r})
except errors.InputError as error:
    print(error)
""",
        JAX_PLATFORMS=platform,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("JAX finds no device: ")
    assert line.endswith(f"; JAX_PLATFORMS={platform} is set: unset it to use any device")
