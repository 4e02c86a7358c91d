"""Stand-ins for devices that are not there."""

from types import SimpleNamespace
from typing import Any


def fake(platform: str, **attributes: Any) -> SimpleNamespace:
    """A device that is not here."""
    return SimpleNamespace(
        **{"platform": platform, "device_kind": f"a {platform}", "memory_stats": lambda: None}
        | attributes
    )
