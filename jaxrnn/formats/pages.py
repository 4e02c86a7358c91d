"""What all pages for a browser share: their frame, their security policy, and how they are filled.

A page is a package with page.html, in which {{name}} stands for a part, page.css and scripts.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any


def template(package: str) -> str:
    """Return the template of the page in a package, in the frame."""
    return read(__package__, "frame.html").replace("{{body}}", read(package, "page.html"))


def read(package: str, name: str) -> str:
    """Return the text of a file in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def filled(template: str, parts: dict[str, str]) -> str:
    """Return a template with its parts."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def data(content: Any) -> str:
    """Return JSON for a script element, which a "<" could end."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def valid(text: str) -> str:
    """Return a text with U+FFFD for what HTML cannot hold: NUL and halves of surrogate pairs."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)
