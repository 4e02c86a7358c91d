"""Dropped outputs, dropped weights and zoneout's masks: their rates, and what shares a mask."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import lstm
from jaxrnn.layers import dropping

STANDARD_ERRORS = 5  # largest distance of a rate from what it should be
STEPS, BATCH, WIDTH = 40, 20, 50

KEY = jax.random.key(0)


def spread(rate: float, size: int) -> float:
    """The standard error of a rate that is measured with `size` draws."""
    return math.sqrt(rate * (1 - rate) / size)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("rate", "dtype"),
    [(0.1, "float32"), (0.001, "float32"), (0.999, "float32"), (0.03, "bfloat16")],
)
def test_dropout_drops_the_given_fraction_and_keeps_the_mean(rate: float, dtype: str) -> None:
    """Within five standard errors of a million draws, closer than 256ths or bfloat16 would come."""
    x = jax.random.uniform(jax.random.key(1), (1_000_000,), jnp.float32, 0.5, 1.5).astype(dtype)
    dropped = jax.jit(dropping.dropout, static_argnums=1)(x, rate, jax.random.key(2))
    assert dropped.dtype == dtype
    before, after = np.asarray(x, np.float64), np.asarray(dropped, np.float64)
    error = STANDARD_ERRORS * spread(rate, x.size)
    assert (after == 0).mean() == pytest.approx(rate, abs=error)
    scale = math.sqrt((before**2).mean()) / (1 - rate)
    assert after.mean() == pytest.approx(before.mean(), abs=error * scale)


def test_dropout_in_float64_is_not_rounded_to_float32() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([1 + 1e-12] * 20)
        dropped = np.asarray(dropping.dropout(x, 0.5, KEY))
    np.testing.assert_array_equal(dropped[dropped != 0], 2 * (1 + 1e-12))


def test_a_variational_mask_is_drawn_once_for_all_steps() -> None:
    x = jnp.ones((STEPS, BATCH, WIDTH))
    once, every = (
        np.asarray(dropping.dropout(x, 0.3, KEY, variational=variational))
        for variational in (True, False)
    )
    assert (once == once[:1]).all() and (every != every[:1]).any()
    # Rows and units differ.
    assert (once[0] != once[0, :1]).any() and (once[0] != once[0, :, :1]).any()
    error = STANDARD_ERRORS * spread(0.3, BATCH * WIDTH)
    assert (once[0] == 0).mean() == pytest.approx(0.3, abs=error)


def test_recurrent_weights_are_dropped_and_nothing_else() -> None:
    params = lstm(WIDTH).init(jax.random.key(1), 3)
    dropped = dropping.dropout_weights(params, 0.25, KEY)
    zero = np.asarray(dropped.w_h == 0)
    error = STANDARD_ERRORS * spread(0.25, zero.size)
    assert zero.mean() == pytest.approx(0.25, abs=error)
    kept = np.where(zero, 0, params.w_h / np.float32(0.75))
    np.testing.assert_allclose(dropped.w_h, kept, rtol=1e-6)
    for name in ("w_x", "b"):
        np.testing.assert_array_equal(getattr(dropped, name), getattr(params, name))


class Bare(NamedTuple):
    """Parameters of a cell without recurrent weights."""

    w_x: Any


def test_a_cell_without_recurrent_weights_has_none_to_drop() -> None:
    with pytest.raises(ValueError, match="drops recurrent weights w_h, and Bare has none"):
        dropping.dropout_weights(Bare(jnp.ones((2, 2))), 0.5, KEY)


def test_zoneout_keeps_the_given_fraction_of_each_array() -> None:
    state = lstm(WIDTH).initial_state(BATCH)
    hidden, cell = map(np.asarray, dropping.zoneout_masks((0.1, 0.4), state, STEPS, KEY))
    for mask, rate in ((hidden, 0.1), (cell, 0.4)):
        assert mask.shape == (STEPS, BATCH, WIDTH) and set(np.unique(mask)) == {0, 1}
        error = STANDARD_ERRORS * spread(rate, mask.size)
        assert mask.mean() == pytest.approx(rate, abs=error)
        assert (mask != mask[:1]).any()
    # Those of both arrays are independent.
    error = STANDARD_ERRORS * spread(0.04, hidden.size)
    assert (hidden * cell).mean() == pytest.approx(0.04, abs=error)


def test_zoneout_at_rate_zero_keeps_nothing() -> None:
    hidden, cell = dropping.zoneout_masks((0.0, 0.4), lstm(3).initial_state(2), STEPS, KEY)
    assert not hidden.any() and cell.any()
