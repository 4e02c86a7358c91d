"""The CUDA toolkit that JAX needs to compile the Hopper kernels: NVIDIA's assembler and device library.

Without them JAX crashes with a segmentation fault while it compiles, so the implementation looks for
them first. JAX decides where it looks when it is imported:

    python -m jaxrnn.recurrence.kernels.hopper.toolkit    # prints the folder of a toolkit, for CUDA_ROOT
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Files of a toolkit.
NEEDED = "bin/ptxas", "nvvm/libdevice/libdevice.10.bc"


def missing() -> str | None:
    """Return what to do before this process can compile the kernels, or None if nothing is missing."""
    if any(_complete(folder) for folder in _where_jax_looks()):
        return None
    elsewhere = next(filter(_complete, _elsewhere()), None)
    if elsewhere is not None:
        return (
            f"JAX does not look for the CUDA toolkit in {elsewhere}; "
            f"set CUDA_ROOT={elsewhere} before Python is started"
        )
    return (
        f"there is no CUDA toolkit with {' and '.join(NEEDED)}; pip install nvidia-cuda-nvcc, or set "
        "CUDA_ROOT to the folder of one before Python is started"
    )


def found() -> Path | None:
    """Return the folder of a toolkit, or None where there is none."""
    return next(filter(_complete, [*_where_jax_looks(), *_elsewhere()]), None)


def _where_jax_looks() -> Iterator[Path]:
    """Yield CUDA_ROOT, the folders of the package nvidia-cuda-nvcc, and those where XLA looks."""
    if root := os.environ.get("CUDA_ROOT"):
        yield Path(root)
    yield from _default_places()


def _default_places() -> Iterator[Path]:
    for package in ("nvidia.cu13", "nvidia.cuda_nvcc"):
        spec = find_spec(package) if find_spec("nvidia") else None
        yield from map(Path, (spec and spec.submodule_search_locations) or ())
    yield Path("/usr/local/cuda")
    assembler = shutil.which("ptxas")
    if assembler:
        yield Path(assembler).resolve().parents[1]


def _elsewhere() -> Iterator[Path]:
    yield from sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    yield Path("/opt/cuda")


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in NEEDED)


def main() -> int:
    """Print the folder of a toolkit and return the exit status: 0 where one was found, otherwise 1."""
    folder = found()
    if folder is None:
        print(f"error: {missing()}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
