"""A picture without its colours: grey, the same outlines, and a colour now light, now dark."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trol_benchmarks.world.scene import COLOURS
from trol_export.tiny.colourless import OF_COLOURS, without_colours
from trol_export.tiny.patch_labels import LABELS


def grey_levels(*colours: tuple[int, int, int], seed: int = 0) -> list[int]:
    """Of a picture of one pixel per colour."""
    picture = Image.new("RGB", (len(colours), 1))
    picture.putdata(colours)
    pixels = np.asarray(without_colours(picture, np.random.default_rng(seed)))[0]
    assert (pixels == pixels[:, :1]).all()
    return pixels[:, 0].tolist()


def test_black_grey_and_white_stay_what_they_are() -> None:
    levels = grey_levels((0, 0, 0), (90, 90, 90), (255, 255, 255))
    assert levels == pytest.approx([0, 90, 255], abs=1)  # of rounding


def test_every_pixel_is_weighted_alike() -> None:
    red, green, both = grey_levels((200, 0, 0), (0, 200, 0), (200, 200, 0))
    assert both == pytest.approx(red + green, abs=2)


def test_of_two_colours_each_is_the_lighter_one_in_some_picture() -> None:
    lighter = [red > blue for red, blue in (grey_levels((255, 0, 0), (0, 0, 255), seed=seed) for seed in range(40))]
    assert 10 < sum(lighter) < 30


def test_the_labels_that_it_does_not_show_are_those_of_colours() -> None:
    hidden = {label for label, is_hidden in zip(LABELS, OF_COLOURS.tolist(), strict=True) if is_hidden}
    assert hidden >= set(COLOURS)
    assert hidden - set(COLOURS) == {label for label in LABELS if label.endswith("of its colour")}
