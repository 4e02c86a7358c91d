"""Functions to build the HTML pages: the common frame with its security policy, and templates.

Each kind of page is a package that contains page.css, scripts, and the template page.html. In a
template, {{name}} is replaced by the part of that name.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any


def template(package: str) -> str:
    """Return frame.html with the page.html of a package as its body."""
    return read(__package__, "frame.html").replace("{{body}}", read(package, "page.html"))


def read(package: str, name: str) -> str:
    """Return the text of a file in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def filled(template: str, parts: dict[str, str]) -> str:
    """Return a template with each {{name}} replaced by the part of that name."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def data(content: Any) -> str:
    """Return content as JSON for a script element, with "<" escaped because it could end the element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def valid(text: str) -> str:
    """Return a text with U+FFFD for what HTML cannot hold: NUL and halves of surrogate pairs."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)
