"""The outlines of shapes, in the circle of radius 1 around each; y points down."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trol_benchmarks.world.scene import SHAPES, require_known

_Points = NDArray[np.float64]  # (points, 2)

_RING_HOLE = 0.55  # radius
_MOON_SHADOW = (0.8, 0.5)  # radius of the disc that a moon lacks, and how far aside its centre lies


def draw_shape(mask: Image.Image, shape: str, centre: tuple[float, float], radius: float, angle: float) -> None:
    """Fill a shape with 255 on a mask (L); `centre` and `radius` in pixels, of the circle around it.

    Raises UsageError for an unknown shape.
    """
    require_known("shape", shape, SHAPES)
    pen = ImageDraw.Draw(mask)
    if shape in _OUTLINES:
        points = np.asarray(centre) + radius * (_OUTLINES[shape] @ _turn(angle))
        pen.polygon(points.ravel().tolist(), fill=255)
        return
    pen.circle(centre, radius, fill=255)
    if shape == "ring":
        pen.circle(centre, radius * _RING_HOLE, fill=0)
    if shape == "moon":
        shadow, aside = _MOON_SHADOW
        x, y = np.asarray(centre) + radius * (np.array([aside, 0.0]) @ _turn(angle))
        pen.circle((x, y), radius * shadow, fill=0)


def _turn(angle: float) -> NDArray[np.float64]:
    """Rows of points times this are turned anticlockwise, as one sees it with y down."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cosine, -sine], [sine, cosine]])


def _on_circles(count: int, *radii: float, start: float = -90.0) -> _Points:
    """`count` points at equal angles from `start`, on each of `radii` in turn."""
    angles = np.radians(start + 360 / count * np.arange(count))
    return np.resize(radii, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(half_width: float = 0.3) -> _Points:
    end = math.sqrt(1 - half_width**2)
    corner = [(-half_width, -end), (half_width, -end), (half_width, -half_width)]
    turns = [np.array(corner) @ _turn(-90 * quarter) for quarter in range(4)]
    return np.concatenate(turns)


def _heart(count: int = 48) -> _Points:
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y - (y.min() + y.max()) / 2], axis=1)
    return points / np.linalg.norm(points, axis=1).max()


_OUTLINES = {
    "square": _on_circles(4, 1.0, start=-135.0),
    "triangle": _on_circles(3, 1.0),
    "star": _on_circles(10, 1.0, 0.45),
    "cross": _cross(),
    "heart": _heart(),
}
