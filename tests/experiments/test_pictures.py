"""Test that the pictures of the course can be read on light and on dark pages."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments import _course, _drawing

pytestmark = pytest.mark.once

# The backgrounds of GitHub, light and dark.
GROUNDS = ("#FFFFFF", "#0D1117")
# The contrast that WCAG 2.1 asks of large text and of graphics.
CONTRAST = 3.0
PICTURES = sorted(_course.RESULTS.glob("*/picture.png"))


def luminance(colour: str) -> float:
    """Return the relative luminance by the formula of WCAG 2.1."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("colour", [*_drawing.COLOURS, _drawing.INK])
def test_colours_stand_out_from_the_page(colour: str, ground: str) -> None:
    dark, light = sorted([luminance(colour), luminance(ground)])
    assert (light + 0.05) / (dark + 0.05) >= CONTRAST


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.parent.name)
def test_pictures_are_transparent_and_as_wide_as_the_others(picture: Path) -> None:
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[1] == round(_drawing.WIDTH * _drawing.DOTS_PER_INCH)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert pixels.shape[2] == 4 and (corners[:, 3] == 0).all()
