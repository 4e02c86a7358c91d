"""How characters are drawn: the options of sampling, declared once and checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypedDict, cast

from jaxrnn.errors import InputError, one_of, whole_number

Mode = Literal["categorical", "argmax", "after-space"]
SamplingImplementation = Literal["xla", "hopper"]


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keyword arguments, which may be of any type of number.

    Type checkers and editors read here what `sample` and the other functions accept.
    """

    temperature: SupportsFloat
    mode: Mode
    top_k: SupportsIndex | None
    top_p: SupportsFloat | None
    seed: SupportsIndex
    implementation: SamplingImplementation | None


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How each character is drawn."""

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
    implementation: SamplingImplementation | None = None
    """Implementation: xla runs everywhere; hopper draws all characters in one kernel on a Hopper GPU,
    without top-k and top-p. None takes xla."""

    def __post_init__(self) -> None:
        """Convert numbers of any type to Python's. Raises InputError for a value out of its range."""
        try:
            checked = self._checked()
        except ValueError as error:
            raise InputError(str(error)) from None
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _checked(self) -> dict[str, Any]:
        temperature = _number("temperature", self.temperature)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(
                f"temperature must be a number above 0, not {temperature}; "
                'mode="argmax" always takes the most likely character'
            )
        top_p = None if self.top_p is None else _number("top_p", self.top_p)
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        seed = whole_number("seed", self.seed)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2^32 - 1, not {seed}")
        implementation = self.implementation
        if implementation not in (None, "xla", "hopper"):
            raise ValueError(
                f"implementation must be one of xla, hopper or None, not {implementation!r}"
            )
        return {
            "temperature": temperature,
            "mode": one_of(Mode)("mode", self.mode),
            "top_k": None if self.top_k is None else whole_number("top_k", self.top_k, 1),
            "top_p": top_p,
            "seed": seed,
        }

    @classmethod
    def of(cls, keywords: SamplingKeywords) -> SamplingOptions:
        """Return the options that keyword arguments give. Raises InputError as the constructor does."""
        return cls(**cast(dict[str, Any], keywords))

    @property
    def truncates(self) -> bool:
        """Whether top_k or top_p leave some characters out of the draw."""
        return self.top_k is not None or self.top_p is not None


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
