"""The fonts of printed text: those that come with matplotlib, sized by the height of their capitals."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

from trol_benchmarks.world.scene import FONTS, require_known
from trol_runtime.errors import MissingExtraError

_MEASURED_AT = 200  # pixels: large enough that rounding to pixels is half a percent of a capital


@lru_cache(maxsize=256)
def font(name: str, pixels: float) -> ImageFont.FreeTypeFont:
    """The font `name`, a key of scene.FONTS, its capitals `pixels` tall.

    Raises UsageError for an unknown name, MissingExtraError without matplotlib or where it lacks the file.
    """
    return _face(name, pixels * _size_per_capital(name))


@lru_cache(maxsize=4096)
def extent(name: str, text: str) -> tuple[float, float]:
    """Width and height of `text`, in heights of a capital, with the little space beside its first and last letter.

    Raises as `font` does.
    """
    left, top, right, bottom = font(name, _MEASURED_AT).getbbox(text)
    return (right - left) / _MEASURED_AT, (bottom - top) / _MEASURED_AT


@cache
def _size_per_capital(name: str) -> float:
    """What a font's size is measured in, its em, over the height of its capitals."""
    size = 1000
    _, top, _, bottom = _face(name, size).getbbox("H")
    return size / (bottom - top)


def _face(name: str, size: float) -> ImageFont.FreeTypeFont:
    require_known("font", name, FONTS)
    path = _font_folder() / FONTS[name]
    try:
        # Every Pillow has the basic layout; the other needs a library that only some have, and pictures must be equal.
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise MissingExtraError(
            f"cannot read the font file {path}, which comes with matplotlib: "
            "pip install --force-reinstall --no-deps matplotlib"
        ) from error


@cache
def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "the drawn world prints with fonts of matplotlib, which is not installed: pip install 'trol-export[bench]'"
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
