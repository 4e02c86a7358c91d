"""The units that follow a feature: chosen on the first half of a text, judged on the second.

    r(unit, feature) = correlation of the unit's activation with the feature, over the characters

Among thousands of units, some follow any feature by chance on the text on which they were chosen. So r
is measured again on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxrnn.errors import InputError
from jaxrnn.shapes import Float
from jaxrnn.units.recording import Recorder, Unit

# Fewest characters of a text: half to choose units, half to judge them.
SHORTEST = 100
# Variances below this share of the mean square are rounding errors of float32.
ROUNDING = 1e-12


class Found(NamedTuple):
    """A unit that was chosen for a feature.

    unit: the unit.
    r_chosen: its correlation with the feature on the first half of the text, on which it was chosen.
    r: the same on the second half.
    """

    unit: Unit
    r_chosen: float
    r: float


class Correlations(NamedTuple):
    """Pearson's r of every unit with every feature; 0 where one of the two is constant.

    units: S units.
    features: F names.
    chosen: on the first half of the text.
    judged: on the second half.
    varies: whether a feature takes more than one value on both halves; otherwise it cannot be judged.
    """

    units: list[Unit]
    features: list[str]
    chosen: Float[np.ndarray, "F S"]
    judged: Float[np.ndarray, "F S"]
    varies: list[bool]

    def best(self, count: int) -> dict[str, list[Found]]:
        """Return the units with the largest |r| on the first half for each feature that varies."""
        found = {}
        for row, (feature, varies) in enumerate(zip(self.features, self.varies, strict=True)):
            if varies:
                order = np.argsort(-np.abs(self.chosen[row]), kind="stable")[:count]
                found[feature] = [
                    Found(self.units[s], float(self.chosen[row, s]), float(self.judged[row, s]))
                    for s in order
                ]
        return found


def correlations(
    recorder: Recorder,
    text: str,
    features: Mapping[str, Float[np.ndarray, "T"]],
    reach: Callable[[int], None] = lambda done: None,
) -> Correlations:
    """Return the correlations of all units with features of a text.

    Args:
      recorder: reads the text.
      text: T characters.
      features: the value of each feature at each character, by name.
      reach: as for `Recorder.windows`.

    Raises:
      InputError: for a text that is too short, and those of `Recorder.windows`.
    """
    check_length(text)
    table = np.array([*features.values()], np.float64).reshape(len(features), len(text))
    half = len(text) // 2
    sums = [_Sums(len(features), len(recorder.units)) for _ in range(2)]
    begin = 0
    for window in recorder.windows(text, reach):
        end = begin + len(window)
        middle = min(max(half, begin), end)
        sums[0].add(table[:, begin:middle], window[: middle - begin])
        sums[1].add(table[:, middle:end], window[middle - begin :])
        begin = end
    varies = [
        bool(first.min() < first.max() and second.min() < second.max())
        for first, second in zip(table[:, :half], table[:, half:], strict=True)
    ]
    return Correlations(recorder.units, [*features], sums[0].r(), sums[1].r(), varies)


def check_length(text: str) -> None:
    """Raise InputError for a text that is too short to choose units and to judge them."""
    if len(text) < SHORTEST:
        raise InputError(
            f"the text is too short: it has {len(text)} characters; give at least {SHORTEST}, of which "
            "half are to choose units and half to judge them"
        )


class _Sums:
    """The sums over characters that Pearson's r needs, in float64."""

    def __init__(self, features: int, units: int) -> None:
        self._count = 0
        self._f, self._ff = np.zeros((2, features, 1))
        self._v, self._vv = np.zeros((2, 1, units))
        self._fv = np.zeros((features, units))

    def add(self, features: Float[np.ndarray, "F T"], window: Float[np.ndarray, "T S"]) -> None:
        """Add characters."""
        values = window.astype(np.float64)
        self._count += len(values)
        self._f += features.sum(1, keepdims=True)
        self._ff += (features**2).sum(1, keepdims=True)
        self._v += values.sum(0)
        self._vv += (values**2).sum(0)
        self._fv += features @ values

    def r(self) -> Float[np.ndarray, "F S"]:
        """Return Pearson's r."""
        count = max(self._count, 1)
        variance_f = self._ff / count - (self._f / count) ** 2
        variance_v = self._vv / count - (self._v / count) ** 2
        covariance = self._fv / count - self._f * self._v / count**2
        constant_f = variance_f <= ROUNDING * self._ff / count
        constant_v = variance_v <= ROUNDING * self._vv / count
        constant = constant_f | constant_v
        r = covariance / np.sqrt(np.where(constant, 1.0, variance_f * variance_v))
        return np.where(constant, 0.0, r.clip(-1, 1))
