"""Sampling options: their range, the types they accept, and their two declarations, which agree."""

import dataclasses
import typing
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError, SamplingOptions
from jaxrnn.charlm import options
from tests.support.oracle import unchecked


def test_keywords_are_the_fields() -> None:
    """`SamplingKeywords`, which type checkers read, names what `SamplingOptions` has."""
    names = [field.name for field in dataclasses.fields(SamplingOptions)]
    assert list(typing.get_type_hints(options.SamplingKeywords)) == names
    assert not options.SamplingKeywords.__required_keys__


def test_numbers_become_those_of_python() -> None:
    given = {"temperature": np.float32(0.5), "top_k": jnp.int32(3), "top_p": 1, "seed": np.uint8(7)}
    made = SamplingOptions.of(given)  # type: ignore[arg-type]
    with unchecked():
        assert SamplingOptions(**given) == made  # type: ignore[arg-type]
    assert made == SamplingOptions(temperature=0.5, top_k=3, top_p=1.0, seed=7)
    kinds = {name: type(value) for name, value in vars(made).items() if name in given}
    assert kinds == {"temperature": float, "top_k": int, "top_p": float, "seed": int}
    assert hash(made) == hash(dataclasses.replace(made))


def test_truncates() -> None:
    assert not SamplingOptions().truncates
    assert SamplingOptions(top_k=3).truncates and SamplingOptions(top_p=1.0).truncates


def test_unknown_names_are_refused() -> None:
    with unchecked(), pytest.raises(TypeError, match="temprature"):
        SamplingOptions.of({"temprature": 1.0})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, not 0.0"),
        ({"temperature": 10**400}, "temperature must be a number, not 1000"),
        ({"mode": "beam"}, "mode must be one of categorical, argmax, after-space, not 'beam'"),
        ({"mode": None}, "mode must be one of categorical, argmax, after-space, not None"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"seed": 2**32}, r"seed must be from 0 to 2\^32 - 1, not 4294967296"),
        ({"seed": None}, "seed must be a whole number, not None"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(InputError, match=message):
        SamplingOptions(**wrong)
