"""One HTML page that shows a text coloured by the activation of a unit, without a network connection.

The page holds a text, activations of some units at each character, rounded to 127 steps on each side of
zero, and the units that follow a feature of the text best. `page.js` draws them.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.formats import pages
from jaxrnn.shapes import Float

# Most bytes of a page with a text that is not very long, and the bytes around the activations.
LARGEST, AROUND = 20_000_000, 500_000
# Bytes of a page for each activation of a character, in base64.
BYTES = 4 / 3
# Most characters of a page.
LONGEST = 200_000
# Steps of an activation on each side of zero, and colours of these.
STEPS, COLOURS = 127, 20
# Names of activations for readers.
LABELS = {
    "cell": "cell (tanh)",
    "hidden": "hidden state",
    "i": "input gate",
    "f": "forget gate",
    "o": "output gate",
    "g": "block input",
    "z": "update gate",
    "r": "reset gate",
    "n": "candidate",
}

# The name of an activation, its layer and its unit, counted from 1.
Unit = tuple[str, int, int]


class Content(NamedTuple):
    """The content of a page.

    text: T characters.
    units: N units.
    values: their activations.
    found: for each feature its best units with their r on the half of the text on which they were
      chosen, and on the other half.
    first: the unit that the page shows first; None for the best one of the first feature.
    """

    text: str
    units: Sequence[Unit]
    values: Float[np.ndarray, "T N"]
    found: Mapping[str, Sequence[tuple[Unit, float, float]]]
    first: Unit | None = None


def check_length(characters: int) -> None:
    """Raise InputError for a text that is too long for a page."""
    if characters > LONGEST:
        raise InputError(
            f"the text is too long for a page: it has {characters:,} characters, and browsers are slow "
            f"beyond {LONGEST:,}; give a part of it"
        )


def most_units(characters: int) -> int:
    """Return the number of units whose activations fit into a page of LARGEST bytes."""
    return int((LARGEST - AROUND) / (BYTES * max(characters, 1)))


def write(path: Path, content: Content, title: str, note: str = "") -> int:
    """Write a page and return its size in bytes.

    Args:
      path: the file, which is replaced as a whole or not at all.
      content: what it shows.
      title: its title.
      note: a sentence below the text.

    Raises:
      OSError: if the file cannot be written; it then keeps its old content.
    """
    written = page(content, title, note).encode()
    try:
        atomic_write(path, written)
    except OSError as error:
        raise OSError(f"could not write to {path}: {error.strerror or error}") from error
    return len(written)


def page(content: Content, title: str, note: str = "") -> str:
    """Return a page; the arguments are those of `write`."""
    parts = {
        "title": html.escape(pages.valid(title)),
        "note": html.escape(pages.valid(note)),
        "style": pages.read(__package__, "page.css") + _colours(),
        "data": pages.data(_data(content)),
        "script": pages.read(__package__, "page.js"),
    }
    return pages.filled(pages.template(__package__), parts)


def _data(content: Content) -> dict[str, Any]:
    """Return what the script of the page reads."""
    places: dict[tuple[str, int], list[int]] = {}
    for place, (record, layer, _) in enumerate(content.units):
        places.setdefault((record, layer), []).append(place)
    first = content.first
    if first is None:
        best = [units[0][0] for units in content.found.values() if units]
        first = (best or content.units)[0]
    return {
        "text": pages.valid(content.text),
        "labels": {record: LABELS.get(record, record) for record, _ in places},
        "groups": [_group(content, *key, places[key]) for key in places],
        "features": [
            {"name": pages.valid(name), "units": [_found(*each) for each in units]}
            for name, units in content.found.items()
        ],
        "first": _named(first),
    }


def _group(content: Content, record: str, layer: int, places: list[int]) -> dict[str, Any]:
    """Return the units of one activation and layer, with their values as int8 in base64."""
    places = sorted(places, key=lambda place: content.units[place][2])
    values = content.values[:, places].T
    # Gates, hidden states and tanh of cells are within -1 and 1; others may not be.
    scale = max(1.0, float(np.abs(values).max(initial=0.0)))
    steps = np.rint(STEPS / scale * values).astype(np.int8)
    return {
        "record": record,
        "layer": layer,
        "units": [content.units[place][2] for place in places],
        "scale": scale,
        "values": base64.b64encode(steps.tobytes()).decode(),
    }


def _named(unit: Unit) -> dict[str, Any]:
    return dict(zip(("record", "layer", "unit"), unit, strict=True))


def _found(unit: Unit, r_chosen: float, r: float) -> dict[str, Any]:
    return {**_named(unit), "r_chosen": round(r_chosen, 4), "r": round(r, 4)}


def _colours() -> str:
    """Return the style of each colour: of p1 to p20 above zero, and of m1 to m20 below."""
    return "".join(
        f".{name[0]}{n} {{ background: color-mix(in srgb, var(--{name}) {100 * n // COLOURS}%, "
        f"var(--card)); }}\n"
        for name in ("plus", "minus")
        for n in range(1, COLOURS + 1)
    )
