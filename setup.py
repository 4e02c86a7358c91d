"""Build a wheel that carries the compiled C++ of `native`, if JAXRNN_PRECOMPILE is set.

    JAXRNN_PRECOMPILE=1 pip wheel --no-deps --wheel-dir dist .

CXX names the compiler, by default c++. Without JAXRNN_PRECOMPILE this file changes nothing: the package
has no compiled C++, and the user's machine compiles it at first use.
"""

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("jaxrnn/recurrence/kernels")
SOURCE = KERNELS / "native/recurrence.cc"
PREBUILT = KERNELS / "native/prebuilt"
LINUX = platform.system() == "Linux"
# The library then needs only glibc at run time, and keeps no unused code of libstdc++.
LINK = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s")

# Run, not imported: `import jaxrnn` needs all that jaxrnn depends on.
prebuilt = SimpleNamespace(**runpy.run_path(str(KERNELS / "prebuilt.py")))


class Compile(build_ext):
    """Compile one library for each level of this machine."""

    def run(self):
        # Installed for the build, see `setup_requires` below.
        import jaxlib

        include = Path(jaxlib.__file__).parent / "include"
        folder = Path(self.build_lib, PREBUILT)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def compile_level(level):
            partial = folder / f"{level.name}.partial"
            command = [*shlex.split(os.environ.get("CXX", "c++")), *prebuilt.FLAGS, *level.flags]
            command += [f"-I{KERNELS}", f"-I{include}", str(SOURCE), "-o", str(partial)]
            subprocess.run([*command, *(LINK if LINUX else ())], check=True)
            version = prebuilt.ffi_version(include)
            name = prebuilt.file_name("recurrence", level, version, partial.read_bytes())
            partial.rename(folder / name)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_level, prebuilt.LEVELS[platform.machine()]))


class Wheel(bdist_wheel):
    """Name the wheel for any Python 3, and for every system that the libraries run on."""

    def get_tag(self):
        if not LINUX:
            return "py3", "none", f"macosx_11_0_{platform.machine()}"
        folder = Path(self.get_finalized_command("build_ext").build_lib, PREBUILT)
        needed = b"".join(path.read_bytes() for path in folder.glob("*.so"))
        # The symbols of glibc that a library needs name the version that they came with.
        minor = max([17, *map(int, re.findall(rb"GLIBC_2\.(\d+)", needed))])
        return "py3", "none", f"manylinux_2_{minor}_{platform.machine()}"


if os.environ.get("JAXRNN_PRECOMPILE"):
    # XLA takes libraries that were compiled with older headers than its own, not with newer ones.
    oldest = re.search(r'"jax>=([\d.]+)', Path("pyproject.toml").read_text(encoding="utf-8"))[1]
    os.environ["MACOSX_DEPLOYMENT_TARGET"] = "11.0"
    setup(
        cmdclass={"build_ext": Compile, "bdist_wheel": Wheel},
        # Compiled by `Compile`. With an extension, setuptools makes a wheel of one platform.
        ext_modules=[Extension("jaxrnn.recurrence.kernels.native.recurrence", [str(SOURCE)])],
        setup_requires=[f"jaxlib=={oldest}"],
    )
else:
    setup()
