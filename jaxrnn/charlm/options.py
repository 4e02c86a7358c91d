"""The options of sampling and of dynamic evaluation, declared once and checked on construction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypedDict, cast

from jaxrnn.errors import InputError, one_of, whole_number

Mode = Literal["categorical", "argmax", "after-space"]


# Default of the most characters that are drawn of a line.
LINE_LENGTH = 10_000


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keyword arguments, which may be of any type of number.

    Type checkers and editors read here what `sample` and the other functions accept.
    """

    temperature: SupportsFloat
    mode: Mode
    top_k: SupportsIndex | None
    top_p: SupportsFloat | None
    seed: SupportsIndex


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options for drawing characters."""

    temperature: float = 1.0
    """Softmax temperature: below 1 more conservative, above 1 more random."""
    mode: Mode = "categorical"
    """Draw every character (categorical), take the most likely one (argmax), or draw the first
    character of each word and take the most likely ones inside it (after-space)."""
    top_k: int | None = None
    """Draw from the k most likely characters only."""
    top_p: float | None = None
    """Draw from the fewest characters whose probabilities add up to at least p (Holtzman et al.
    2020)."""
    seed: int = 0
    """Random seed, from 0 to 2^32 - 1."""

    def __post_init__(self) -> None:
        """Convert numbers of any type to Python's. Raises InputError for a value out of its range."""
        for name, value in _checked(vars(self)).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, keywords: SamplingKeywords) -> SamplingOptions:
        """Return the options that keyword arguments give. Raises InputError as the constructor does."""
        return cls(**_checked(cast(dict[str, Any], keywords)))

    @property
    def truncates(self) -> bool:
        """Whether top_k or top_p leave some characters out of the draw."""
        return self.top_k is not None or self.top_p is not None


@dataclasses.dataclass(frozen=True)
class DynamicOptions:
    """Options of dynamic evaluation.

    Raises:
      InputError: for a value out of its range.
    """

    segment: int = 20
    """Tokens per gradient step of the dynamic evaluation."""
    learning_rate: float = 0.3
    """Learning rate of the dynamic evaluation, for gradients of the mean loss of a segment."""
    decay: float = 0.001
    """Fraction of the way back to the trained parameters in each step of the dynamic evaluation."""

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise InputError(f"segment must be at least 1, not {self.segment}")
        if not 0 <= self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be from 0 upwards, not {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must be from 0 to 1, not {self.decay}")


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return options as Python's own types. Raises InputError for a value out of its range."""
    try:
        # The constructor reports names that are no options.
        return {n: _CHECKS[n](n, value) if n in _CHECKS else value for n, value in given.items()}
    except ValueError as error:
        raise InputError(str(error)) from None


def _temperature(name: str, value: object) -> float:
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"{name} must be a number above 0, not {number}; "
            'mode="argmax" always takes the most likely character'
        )
    return number


def _top_k(name: str, value: object) -> int | None:
    return None if value is None else whole_number(name, value, 1)


def _top_p(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = _number(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {number}")
    return number


def _seed(name: str, value: object) -> int:
    number = whole_number(name, value)
    if not 0 <= number < 2**32:
        raise ValueError(f"{name} must be from 0 to 2^32 - 1, not {number}")
    return number


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _temperature,
    "mode": one_of(Mode),
    "top_k": _top_k,
    "top_p": _top_p,
    "seed": _seed,
}
