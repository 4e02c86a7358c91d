"""Lazy imports: a package imports its public names when the first one is used (PEP 562)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def names(package: str, module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package that offers the public names of a module.

    The module is imported when one of its names is first used. The submodules of the package are
    attributes as well, whether they were imported before or not. Type checkers need the names
    themselves:

        if TYPE_CHECKING:
            from package.module import *
        else:
            __getattr__, __dir__ = lazy.names("package", "package.module")

    Args:
      package: the package, which calls this.
      module: the module with the names; its `__all__` becomes that of the package.
    """

    def get(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        submodule = f"{package}.{name}"
        if importlib.util.find_spec(submodule) is not None:
            return importlib.import_module(submodule)
        public = importlib.import_module(module)
        if name not in ("__all__", *public.__all__):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(public, name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *importlib.import_module(module).__all__})

    return get, list_names
