"""The best units for the features of a text, and the page that shows them.

    inspection = Inspection(params, text, find=["[0-9]+"])
    inspection.found                               # the best units of each feature
    inspection.write(Path("page.html"), "A title")

`inspect_units` does the same in one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn import charlm
from jaxrnn.errors import InputError
from jaxrnn.formats import inspection as page
from jaxrnn.units import features, search
from jaxrnn.units.recording import Recorder, Unit
from jaxrnn.units.search import Found

# Units that are listed for each feature.
BEST = 3
# Layer and unit, both counted from 1.
Chosen = tuple[int, int]


class Written(NamedTuple):
    """A page that was written.

    size: bytes of the file.
    shown: number of activations in it.
    """

    size: int
    shown: int


class Inspection:
    """The units of a model that follow features of a text.

    Args:
      params: the model.
      text: T characters; for a model of bytes any bytes.
      find: regular expressions; each is a feature that is 1 inside of its matches and 0 outside.
      record: names of the activations among which units are chosen, as for `jaxrnn.activations`; empty
        for all that the cell has.
      chosen: units that the page shows in any case, and first.
      reach: called with the number of characters that have been read.

    Attributes:
      text: the text as characters.
      units: all units.
      found: the BEST units of each feature, the largest |r| on the first half first.
      not_found: the built-in features that do not vary on both halves of the text.

    Raises:
      InputError: for a text that is too short or has characters that the model has never seen, for a
        regular expression that is not valid or whose matches are not in both halves, for a name that
        the cell cannot record, and for a layer or a unit that the model does not have.
    """

    def __init__(
        self,
        params: charlm.Params,
        text: str | bytes,
        find: Sequence[str] = (),
        record: Sequence[str] = (),
        chosen: Sequence[Chosen] = (),
        reach: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.text = as_characters(params, text)
        search.check_length(self.text)
        self._recorder = Recorder(params, record)
        self.units = self._recorder.units
        self._chosen = [unit for pair in chosen for unit in self._units_of(pair)]
        # The user's features come first, also where one has the name of another feature.
        wanted = features.matches(self.text, find)
        known = {n: f for n, f in features.features(self.text).items() if n not in wanted}
        self._correlations = search.correlations(self._recorder, self.text, wanted | known, reach)
        self.found = self._correlations.best(BEST)
        for pattern in wanted:
            if pattern not in self.found:
                raise InputError(
                    f"`find` {pattern!r} must match a part of each half of the text: units are chosen "
                    "on the first half and judged on the second; give another regular expression, or "
                    "read a longer text"
                )
        self.not_found = [name for name in known if name not in self.found]

    def _units_of(self, pair: Chosen) -> list[Unit]:
        """Return the activations of a unit that the user chose."""
        layer, unit = pair
        known = set(self.units)
        records = dict.fromkeys(u.record for u in self.units)
        found = [one for record in records if (one := Unit(record, layer, unit)) in known]
        if not found:
            last = max(self.units, key=lambda u: (u.layer, u.unit))
            raise InputError(
                f"there is no unit {unit} in layer {layer}: the model has layers 1 to {last.layer} and "
                f"units 1 to {last.unit}"
            )
        return found

    def shown(self) -> list[Unit]:
        """Return the units that a page of limited size shows.

        These are the chosen ones and the best ones of each feature, and as many of the others as there
        is room for: the cell's states first, then the gates; within each kind, those that follow a
        feature best.
        """
        wanted = [*self._chosen, *(each.unit for best in self.found.values() for each in best)]
        strength = np.abs(self._correlations.chosen).max(0, initial=0.0)
        kinds = {record: n for n, record in enumerate(dict.fromkeys(u.record for u in self.units))}
        order = np.lexsort((-strength, [kinds[u.record] for u in self.units]))
        shown = dict.fromkeys([*wanted, *(self.units[n] for n in order)])
        return [*shown][: max(page.most_units(len(self.text)), len(set(wanted)))]

    def write(
        self,
        path: Path,
        title: str,
        note: str = "",
        reach: Callable[[int], None] = lambda done: None,
    ) -> Written:
        """Write the page and return what is in it.

        Args:
          path: the file, which is replaced as a whole or not at all.
          title: the title of the page.
          note: a sentence about the text.
          reach: called with the number of characters that have been read again.

        Raises:
          InputError: for a text that is too long for a page.
          OSError: if the file cannot be written.
        """
        page.check_length(len(self.text))
        shown = self.shown()
        content = page.Content(
            self.text,
            shown,
            self._recorder.values(self.text, shown, reach),
            {name: [(each.unit, *each[1:]) for each in best] for name, best in self.found.items()},
            self._chosen[0] if self._chosen else None,
        )
        if len(shown) < len(self.units):
            left_out = (
                f"The page shows {len(shown):,} of {len(self.units):,} activations, those that follow a "
                "feature best; a shorter text leaves room for more."
            )
            note = f"{note} {left_out}".strip()
        return Written(page.write(path, content, title, note), len(shown))


def as_characters(params: charlm.Params, text: str | bytes) -> str:
    """Return a text as characters; bytes that are not UTF-8 become halves of surrogate pairs.

    Raises:
      InputError: for bytes that are not UTF-8, if the model is of characters.
    """
    if isinstance(text, str):
        return text
    if params.vocabulary.by_bytes:
        return text.decode(errors="surrogateescape")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8: byte 0x{text[error.start]:02x} at offset {error.start}"
        ) from None


def inspect_units(
    params: charlm.Params,
    text: str | bytes,
    path: str | os.PathLike[str] | None = None,
    *,
    find: Sequence[str] = (),
    record: Sequence[str] = (),
    units: Sequence[Chosen] = (),
    title: str = "The units of a network",
) -> dict[str, list[Found]]:
    """Return the units that follow each feature of a text best, and write a page that shows all units.

    The features are the position in the line and in the word, the indentation, quotes, brackets and
    capital letters, and the given regular expressions. Units are chosen by their correlation r with the
    feature on the first half of the text, and r is measured again on the second half.

    Args:
      params: the model, as for `jaxrnn.sample`.
      text: at least 100 characters; for a model of bytes any bytes.
      path: file to which an HTML page is written; None for no page.
      find: regular expressions in the syntax of Python's `re`, with MULTILINE: each is a feature that is
        1 inside of its matches and 0 outside.
      record: names of the activations to search and to show, as for `jaxrnn.activations`; empty for all
        that the cell has. "cell" stands for tanh of the cell.
      units: pairs (layer, unit), counted from 1, which the page shows in any case.
      title: the title of the page.

    Returns:
      For each feature that occurs in both halves of the text three units, the largest |r| on the first
      half first: (unit, r_chosen, r), where the unit is (record, layer, unit), counted from 1.

    Raises:
      InputError: for a text that is too short, or too long for a page, or has characters that the model
        has never seen; for a regular expression that is not valid or does not match in both halves; for
        a name that the cell cannot record, and for a unit that the model does not have.
      OSError: if the page cannot be written.
    """
    _check_sequences(find=find, record=record)
    if path is not None:
        page.check_length(len(text))
    inspection = Inspection(params, text, find, record, units)
    if path is not None:
        inspection.write(Path(path), title)
    return inspection.found


def _check_sequences(**given: Sequence[str]) -> None:
    """Raise InputError for a string where a list of strings is expected."""
    for name, value in given.items():
        if isinstance(value, str):
            raise InputError(f"`{name}` must be a list, as in [{value!r}], not a string")
