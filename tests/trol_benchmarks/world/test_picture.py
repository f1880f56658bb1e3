from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trol_benchmarks.world.fonts import FONTS
from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.placing import MARGIN, print_box
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import COLOURS, SHAPES, TEXTURES, Bar, Chart, Look, Print, Rgb, Scene, Texture, Thing

BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
DARK = Look(side=200, background=(BLACK, BLACK))
PLAIN = Look(side=200, background=(GREY, GREY))


def thing(shape: str, **changes: Any) -> Thing:
    return replace(Thing(shape, "white", WHITE, x=0.5, y=0.5, size=0.5), **changes)


def printed(text: str, **changes: Any) -> Print:
    return replace(Print(text, "white", WHITE, "dejavu-sans-bold", x=0.5, y=0.5, height=0.15), **changes)


def pixels(scene: Scene) -> NDArray[np.float64]:
    return np.asarray(draw(scene), np.float64)


def ink(*parts: Thing | Print, look: Look = DARK) -> NDArray[np.bool_]:
    """(side, side): where white parts cover more than half of a pixel."""
    things = tuple(part for part in parts if isinstance(part, Thing))
    prints = tuple(part for part in parts if isinstance(part, Print))
    return pixels(Scene(look, things, prints))[:, :, 0] > 127


def places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of what is set, at the middles of pixels, in fractions of the side."""
    y, x = np.nonzero(mask)
    return (x + 0.5) / len(mask), (y + 0.5) / len(mask)


# Things


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [-20.0, 0.0, 13.0])
@pytest.mark.parametrize(("x", "y", "size"), [(0.3, 0.6, 0.2), (0.513, 0.487, 0.32)])
def test_a_thing_fills_the_circle_around_it_and_stays_inside(
    shape: str, angle: float, x: float, y: float, size: float
) -> None:
    xs, ys = places(ink(thing(shape, x=x, y=y, size=size, angle=angle)))
    radii = np.hypot(xs - x, ys - y)
    assert radii.max() <= size / 2 + 0.005  # one pixel
    assert radii.max() >= 0.94 * size / 2
    assert len(xs) / 200**2 > 0.15 * size**2


def test_no_two_shapes_look_alike_however_they_are_turned() -> None:
    for one, other in combinations(SHAPES, 2):
        first = ink(thing(one))
        for angle in range(-40, 41, 10):
            second = ink(thing(other, angle=float(angle)))
            assert (first & second).sum() / (first | second).sum() < 0.85, (one, other, angle)


def test_things_turn_anticlockwise() -> None:
    tip_x = [xs[ys.argmin()] for xs, ys in (places(ink(thing("triangle", angle=angle))) for angle in (20.0, -20.0))]
    assert tip_x[0] < 0.45
    assert tip_x[1] > 0.55


def test_a_thing_has_the_colour_it_is_drawn_in_and_soft_edges() -> None:
    picture = pixels(Scene(DARK, (thing("circle", rgb=(200, 100, 50)),)))
    assert picture[100, 100].tolist() == [200, 100, 50]
    assert len(np.unique(picture[:, :, 0])) > 5


def test_rings_have_a_hole_and_moons_lack_one_side() -> None:
    assert not ink(thing("ring"))[100, 100]
    xs, _ = places(ink(thing("moon")))
    assert xs.mean() < 0.45


def test_later_things_lie_on_earlier_ones() -> None:
    red, blue = (thing("circle", rgb=COLOURS[name]) for name in ("red", "blue"))
    assert tuple(pixels(Scene(DARK, (red, blue)))[100, 100]) == COLOURS["blue"]


# Print


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("side", [140, 168, 336])
@pytest.mark.parametrize("angle", [-10.0, 0.0, 10.0])
def test_print_stays_in_the_box_that_is_reckoned_for_it(font: str, side: int, angle: float) -> None:
    text = printed("QUAIL", font=font, angle=angle, x=0.45, y=0.55)
    xs, ys = places(ink(text, look=replace(DARK, side=side)))
    left, top, right, bottom = print_box(text)
    # Small fonts are rounded to pixels, letter by letter; that much is kept free around print.
    assert left - MARGIN < xs.min() < xs.max() < right + MARGIN
    assert top - MARGIN < ys.min() < ys.max() < bottom + MARGIN


@pytest.mark.parametrize("font", FONTS)
def test_print_fills_its_box_around_its_centre(font: str) -> None:
    text = printed("HOUSE", font=font, x=0.45, y=0.55)
    xs, ys = places(ink(text))
    left, top, right, bottom = print_box(text)
    # There is a little space before the first and behind the last letter.
    assert (xs.min(), xs.max()) == pytest.approx((left, right), abs=0.03)
    assert (ys.min(), ys.max()) == pytest.approx((top, bottom), abs=0.01)


def test_positive_angles_let_print_rise() -> None:
    xs, ys = places(ink(printed("HHHHH", angle=10.0)))
    assert ys[xs < 0.35].mean() > ys[xs > 0.65].mean() + 0.03


def test_print_has_the_colour_it_is_drawn_in() -> None:
    picture = pixels(Scene(DARK, prints=(printed("HHH", rgb=(40, 160, 80)),)))
    assert [40, 160, 80] in picture.reshape(-1, 3).tolist()


# Charts


def bars_as_drawn(picture: NDArray[np.float64], rgb: Rgb) -> tuple[float, float, float]:
    """Left, right and height of what has a colour, in fractions of the side."""
    xs, ys = places((picture == rgb).all(axis=2))
    return xs.min(), xs.max(), ys.max() - ys.min()


def test_bars_stand_from_left_to_right_as_tall_as_they_are() -> None:
    heights = {"red": 0.25, "blue": 1.0, "green": 0.5}
    bars = tuple(Bar(name, COLOURS[name], height) for name, height in heights.items())
    picture = pixels(Scene(PLAIN, chart=Chart(bars, (0.1, 0.2, 0.9, 0.9), BLACK)))
    drawn = {name: bars_as_drawn(picture, COLOURS[name]) for name in heights}
    assert drawn["red"][1] < drawn["blue"][0] < drawn["blue"][1] < drawn["green"][0]
    for name, height in heights.items():
        assert drawn[name][2] == pytest.approx(0.7 * height, abs=0.015)  # the axis covers a bar's foot


def test_axes_run_down_the_left_and_along_the_bottom() -> None:
    chart = Chart((Bar("red", COLOURS["red"], 0.5),), (0.1, 0.2, 0.9, 0.8), BLACK)
    picture = pixels(Scene(PLAIN, chart=chart))
    assert (picture[45:155, 20] == BLACK).all()
    assert (picture[160, 25:175] == BLACK).all()


# Background, noise and JPEG


def test_pictures_have_the_side_of_the_look_and_three_channels() -> None:
    picture = draw(Scene(replace(PLAIN, side=321)))
    assert (picture.mode, picture.size) == ("RGB", (321, 321))


def test_a_gradient_runs_from_the_upper_left_to_the_lower_right_corner() -> None:
    picture = pixels(Scene(replace(PLAIN, background=((200, 210, 220), (100, 90, 80)))))
    assert picture[0, 0].tolist() == [200, 210, 220]
    assert picture[-1, -1].tolist() == [100, 90, 80]
    assert picture[0, -1] == pytest.approx([150, 150, 150], abs=1)


@pytest.mark.parametrize("pattern", TEXTURES)
def test_a_texture_is_lighter_and_darker_by_its_depth_at_most(pattern: str) -> None:
    texture = Texture(pattern, period=0.1, depth=8.0, angle=30.0)
    departures = pixels(Scene(replace(PLAIN, texture=texture))) - 128
    assert 5 < departures.max() <= 8
    assert -8 <= departures.min() < -5
    assert departures.mean() == pytest.approx(0, abs=1)


def test_stripes_are_a_period_apart() -> None:
    texture = Texture("stripes", period=0.1, depth=8.0)
    row = pixels(Scene(replace(PLAIN, texture=texture)))[100, :, 0] - 128
    assert np.abs(np.fft.rfft(row)).argmax() == 10


@pytest.mark.parametrize("deviation", [3.0, 10.0])
def test_noise_deviates_as_the_look_says_on_every_channel_apart(deviation: float) -> None:
    noise = pixels(Scene(replace(PLAIN, noise=deviation))) - 128
    # 40,000 values per channel: a standard deviation is estimated to 0.4 %; rounding to whole steps adds 0.5 % to 3.
    assert noise.std(axis=(0, 1)) == pytest.approx([deviation] * 3, rel=0.02)
    assert np.corrcoef(noise[:, :, 0].ravel(), noise[:, :, 1].ravel())[0, 1] == pytest.approx(0, abs=0.03)


def test_jpeg_takes_more_of_the_picture_at_lower_quality() -> None:
    scene = Scene(PLAIN, (thing("star", rgb=COLOURS["red"]),), (printed("BOAT", y=0.85),))
    before = pixels(scene)
    losses = [
        np.abs(pixels(replace(scene, look=replace(PLAIN, quality=quality))) - before).mean() for quality in (95, 55)
    ]
    assert 0 < losses[0] < losses[1] < 5


# The call


def test_a_scene_is_always_the_same_picture() -> None:
    rng = np.random.default_rng(0)
    for scene in [sample_scene(rng, "train") for _ in range(30)]:
        assert draw(scene).tobytes() == draw(scene).tobytes()


def test_another_seed_changes_the_noise_and_nothing_else() -> None:
    scene = Scene(PLAIN, (thing("heart"),))
    assert draw(scene) == draw(replace(scene, look=replace(PLAIN, seed=1)))
    noisy = replace(PLAIN, noise=5.0)
    assert draw(replace(scene, look=noisy)) != draw(replace(scene, look=replace(noisy, seed=1)))


def test_what_is_drawn_can_be_changed_and_saved(tmp_path: Any) -> None:
    picture = draw(Scene(replace(PLAIN, quality=70)))
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").getpixel((0, 0)) == (1, 2, 3)
