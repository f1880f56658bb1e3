"""Draws a scene: background, chart, things, print, then noise and JPEG, as the scene's look says."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trol_benchmarks.world.fonts import font
from trol_benchmarks.world.outlines import draw_shape
from trol_benchmarks.world.scene import Chart, Look, Print, Scene, Texture, Thing

_SUPERSAMPLING = 3  # a mask is drawn this many times larger, then averaged: smooth edges
_BAR_SHARE = 0.7  # of a bar's slot; the rest is gap
_AXIS_WIDTH = 0.012


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, (side, side); the same picture for the same scene.

    Raises MissingExtraError where matplotlib's fonts are missing.
    """
    look = scene.look
    rng = np.random.default_rng(look.seed)
    canvas = _background(look, rng)
    if scene.chart:
        _draw_chart(canvas, scene.chart)
    for thing in scene.things:
        _draw_thing(canvas, thing)
    for printed in scene.prints:
        _draw_print(canvas, printed)
    if look.noise:
        canvas = _with_noise(canvas, look.noise, rng)
    return canvas if look.quality is None else _through_jpeg(canvas, look.quality)


def _background(look: Look, rng: np.random.Generator) -> Image.Image:
    start, end = look.background
    if look.texture is None and start == end:
        return Image.new("RGB", (look.side, look.side), start)
    along = np.linspace(0, 0.5, look.side, dtype=np.float32)  # half of the way per axis: 1 in the far corner
    share = along[:, None] + along
    step = np.subtract(end, start, dtype=np.float32)
    pixels = np.asarray(start, np.float32) + share[:, :, None] * step
    if look.texture is not None:
        pixels += look.texture.depth * _pattern(look.texture, look.side, rng)[:, :, None]
    return Image.fromarray(_as_bytes(pixels))


def _pattern(texture: Texture, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(side, side), -1..1."""
    if texture.pattern == "speckle":
        cells = max(2, round(1 / texture.period))
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))
    turn = math.radians(texture.angle)
    phase = np.linspace(0, 2 * math.pi / texture.period, side, dtype=np.float32)
    # sin(across + down) by the angle sums: sines of rows and columns instead of one per pixel.
    across, down = phase * math.cos(turn), phase * math.sin(turn)
    stripes = np.outer(np.cos(down), np.sin(across)) + np.outer(np.sin(down), np.cos(across))
    if texture.pattern == "stripes":
        return stripes
    crossing = np.outer(np.cos(across), np.cos(down)) - np.outer(np.sin(across), np.sin(down))
    return stripes * crossing


def _draw_thing(canvas: Image.Image, thing: Thing) -> None:
    diameter, x, y = (canvas.width * length for length in (thing.size, thing.x, thing.y))
    box = math.ceil(diameter) + 2
    left, top = math.floor(x - box / 2), math.floor(y - box / 2)
    mask = Image.new("L", (box * _SUPERSAMPLING, box * _SUPERSAMPLING))
    centre = ((x - left) * _SUPERSAMPLING, (y - top) * _SUPERSAMPLING)
    draw_shape(mask, thing.shape, centre, diameter / 2 * _SUPERSAMPLING, thing.angle)
    canvas.paste(thing.rgb, (left, top), mask.reduce(_SUPERSAMPLING))


def _draw_print(canvas: Image.Image, printed: Print) -> None:
    face = font(printed.font, round(printed.height * canvas.width, 1))
    left, top, right, bottom = face.getbbox(printed.text)
    mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), printed.text, fill=255, font=face)
    mask = mask.rotate(printed.angle, Image.Resampling.BICUBIC, expand=True)
    x, y = printed.x * canvas.width, printed.y * canvas.width
    canvas.paste(printed.rgb, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


def _draw_chart(canvas: Image.Image, chart: Chart) -> None:
    side = canvas.width
    pen = ImageDraw.Draw(canvas)
    for bar, box in zip(chart.bars, bar_boxes(chart), strict=True):
        pen.rectangle([side * edge for edge in box], fill=bar.rgb)
    left, top, right, bottom = (side * edge for edge in chart.box)
    pen.line((left, top, left, bottom, right, bottom), fill=chart.rgb, width=max(1, round(side * _AXIS_WIDTH)))


def bar_boxes(chart: Chart) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every bar, in fractions of the picture's side."""
    left, top, right, bottom = chart.box
    slot = (right - left) / len(chart.bars)
    middles = [left + (number + 0.5) * slot for number in range(len(chart.bars))]
    half = slot * _BAR_SHARE / 2
    tops = [bottom - bar.height * (bottom - top) for bar in chart.bars]
    return [(middle - half, above, middle + half, bottom) for middle, above in zip(middles, tops, strict=True)]


def _with_noise(canvas: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = rng.standard_normal((canvas.height, canvas.width, 3), dtype=np.float32)
    pixels *= deviation
    pixels += np.asarray(canvas)
    return Image.fromarray(_as_bytes(pixels))


def _through_jpeg(canvas: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    canvas.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _as_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    return pixels.astype(np.uint8)
