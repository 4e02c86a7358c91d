"""Memory of a process, as Linux reports it."""

from __future__ import annotations

from pathlib import Path

# The peak of both (the kernel's own), memory of the process itself, and pages of mapped files.
FIELDS = ("VmHWM", "RssAnon", "RssFile")


def memory_of(process: int | str) -> dict[str, int]:
    """Return the bytes of FIELDS of a process ("self" for this one); empty if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    sizes = {
        line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "Vm"))
    }
    return {name: int(sizes[name]) << 10 for name in FIELDS if name in sizes}
