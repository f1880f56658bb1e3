"""Draws how a scene looks: background, shades of colours, size, noise and JPEG quality."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trol_benchmarks.world.chance import between, one_of, whole_between
from trol_benchmarks.world.contrast import Background, brightness
from trol_benchmarks.world.scene import COLOURS, TEXTURES, Look, Rgb, Texture

COMMON_SIDE, SMALLEST_SIDE, LARGEST_SIDE = 168, 140, 336  # pixels
MOST_NOISE = 10.0
LOWEST_QUALITY, HIGHEST_QUALITY = 55, 95

_LEVELS = ((185, 245), (185, 245), (95, 170), (10, 65))  # pale as often as the others together
_TINT = 9  # how far a channel may lie from the grey: backgrounds have no colour a question could ask for
_MOST_DEPTH = 10.0  # of a texture
_LIGHTS = (0.9, 1.08)  # a shade over the colour
_OFF = 9.0  # and every channel beside that


def draw_background(rng: np.random.Generator) -> Background:
    """Two unsaturated colours, both pale, both mid or both dark; mostly the same."""
    low, high = one_of(rng, _LEVELS)
    start = _near_grey(rng, between(rng, low, high))
    return start, (_near_grey(rng, between(rng, low, high)) if rng.random() < 0.4 else start)


def draw_look(rng: np.random.Generator, background: Background) -> Look:
    """Everything else about the look."""
    side = COMMON_SIDE if rng.random() < 0.6 else whole_between(rng, SMALLEST_SIDE, LARGEST_SIDE)
    return Look(
        side=side,
        background=background,
        texture=_texture(rng) if rng.random() < 0.3 else None,
        noise=between(rng, 0, MOST_NOISE) if rng.random() < 0.6 else 0.0,
        quality=whole_between(rng, LOWEST_QUALITY, HIGHEST_QUALITY) if rng.random() < 0.5 else None,
        seed=int(rng.integers(2**31)),
    )


def draw_shade(rng: np.random.Generator, colour: str, suits: Callable[[Rgb], bool]) -> Rgb:
    """A shade of a colour, little enough off that the name stays true; `suits` must accept the colour itself."""
    while True:
        light = between(rng, *_LIGHTS)
        red, green, blue = (_channel(light * value + between(rng, -_OFF, _OFF)) for value in COLOURS[colour])
        if suits((red, green, blue)):
            return red, green, blue


def draw_axes(rng: np.random.Generator, background: Background) -> Rgb:
    """A near grey for the axes of a chart: dark on light, light on dark."""
    is_light = sum(brightness(end) for end in background) > 255
    return _near_grey(rng, between(rng, 10, 50) if is_light else between(rng, 200, 240))


def _texture(rng: np.random.Generator) -> Texture:
    return Texture(
        pattern=one_of(rng, TEXTURES),
        period=between(rng, 0.04, 0.15),
        depth=between(rng, 3, _MOST_DEPTH),
        angle=between(rng, 0, 180),
    )


def _near_grey(rng: np.random.Generator, level: float) -> Rgb:
    red, green, blue = (_channel(level + between(rng, -_TINT, _TINT)) for _ in range(3))
    return red, green, blue


def _channel(value: float) -> int:
    return min(max(round(value), 0), 255)
