"""The claims of the lecture, one experiment per file.

`python -m experiments` lists the experiments and runs them. Every module here whose name does not begin
with an underscore is an experiment. Its docstring begins with the claim that it tests, and it defines:

    # The row of the lecture, which orders the list.
    ROW = 3

    # With quick, few seeds and steps, to see that it runs.
    def run(quick: bool) -> Outcome: ...

    # The result in a few sentences.
    def summary(numbers: dict, seeds: list[int]) -> str: ...

To add an experiment, add such a file. The runner writes the result files from what `run` returns, and
the gallery (README.md) from the result files. Code that several experiments share is in the modules
whose names begin with an underscore; code that is useful elsewhere belongs in `jaxrnn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # Listing the experiments must work without matplotlib.
    from matplotlib.figure import Figure


class Outcome(NamedTuple):
    """The results of one experiment.

    table: rows of cells; the first row is the header.
    numbers: everything that was measured, as JSON can hold it. `summary` reads nothing else, so that the
      wording can be improved without running the experiment again.
    seeds: the random seeds.
    figure: the picture, which can be understood without a caption.
    pages: further files by name, as text: samples, a page for the browser.
    """

    table: list[list[str]]
    numbers: dict[str, Any]
    seeds: list[int]
    figure: Figure
    pages: Mapping[str, str] = MappingProxyType({})


def bullets(items: Iterable[str]) -> str:
    """Return a Markdown list, which may follow a sentence."""
    return "\n\n" + "\n".join(f"- {item}" for item in items)
