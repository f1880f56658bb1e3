"""Draws examples/picture.png: a house in the evening. The picture is ours and free for any use (CC0 1.0)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

PICTURE = Path(__file__).with_name("picture.png")
WIDTH, HEIGHT = 360, 270


def draw_picture() -> Image.Image:
    """The picture, RGB, 360 x 270."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(picture)
    for y in range(HEIGHT):
        draw.line([(0, y), (WIDTH, y)], fill=(60 + y // 2, 70 + y // 3, 140 - y // 4))
    draw.ellipse([270, 30, 320, 80], fill=(250, 240, 200))
    draw.polygon([(0, 200), (90, 150), (200, 205), (300, 160), (360, 190), (360, 270), (0, 270)], fill=(38, 70, 52))
    draw.rectangle([110, 130, 230, 225], fill=(176, 96, 72))
    draw.polygon([(95, 132), (170, 75), (245, 132)], fill=(92, 44, 40))
    draw.rectangle([158, 175, 186, 225], fill=(70, 44, 30))
    for left in (124, 198):
        draw.rectangle([left, 150, left + 20, 170], fill=(252, 214, 104))
    return picture


if __name__ == "__main__":
    draw_picture().save(PICTURE, optimize=True)
