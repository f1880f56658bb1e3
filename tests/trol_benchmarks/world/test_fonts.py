from __future__ import annotations

import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from trol_benchmarks.world import fonts
from trol_benchmarks.world.fonts import FONTS, extent, font
from trol_runtime.errors import MissingExtraError, UsageError


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    """Fonts are looked up anew, and what a test makes of them is forgotten."""
    caches = (fonts.font, fonts.extent, fonts._size_per_capital, fonts._font_folder)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def ink(name: str, text: str, pixels: float) -> tuple[int, int]:
    """Width and height of what is drawn."""
    picture = Image.new("L", (400, 200))
    ImageDraw.Draw(picture).text((200, 100), text, fill=255, font=font(name, pixels), anchor="mm")
    box = picture.getbbox()
    assert box is not None
    return box[2] - box[0], box[3] - box[1]


@pytest.mark.parametrize("name", FONTS)
@pytest.mark.parametrize("pixels", [16, 24.5, 60])
def test_capitals_are_as_tall_as_asked(name: str, pixels: float) -> None:
    _, height = ink(name, "H", pixels)
    assert height == pytest.approx(pixels, abs=1.5)  # hinting moves both edges to whole pixels


@pytest.mark.parametrize("name", FONTS)
def test_every_capital_and_digit_is_a_picture_of_its_own(name: str) -> None:
    characters = string.ascii_uppercase + string.digits
    masks = {bytes(font(name, 40).getmask(character)) for character in characters}
    assert len(masks) == len(characters)
    assert all(any(mask) for mask in masks)


@pytest.mark.parametrize("name", FONTS)
def test_an_extent_says_how_large_text_becomes(name: str) -> None:
    width, height = extent(name, "QUAIL")
    drawn_width, drawn_height = ink(name, "QUAIL", 50)
    assert drawn_height == pytest.approx(50 * height, abs=1.5)  # hinting, as above
    # Up to a sixth of a capital is space before the first and behind the last letter.
    assert 50 * (width - 0.17) <= drawn_width <= 50 * width + 1.5


def test_an_unknown_font_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(UsageError) as error:
        font("comic-sans", 20)
    assert str(error.value) == (
        "there is no font 'comic-sans' in the drawn world; known are dejavu-sans, dejavu-sans-bold, dejavu-sans-mono, "
        "dejavu-serif, dejavu-serif-bold, stix, stix-bold, computer-modern-sans, computer-modern-bold"
    )


@pytest.mark.usefixtures("nothing_cached")
def test_without_matplotlib_the_error_is_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as error:
        font("stix", 20)
    assert str(error.value) == (
        "the drawn world prints with fonts of matplotlib, which is not installed: pip install 'trol-export[bench]'"
    )


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.parametrize("content", [None, b"", b"no font"], ids=["missing", "empty", "damaged"])
def test_a_font_file_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    path = tmp_path / "fonts" / "ttf" / "STIXGeneral.ttf"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingExtraError) as error:
        font("stix", 20)
    assert str(error.value) == (
        f"cannot read the font file {path}, which comes with matplotlib: "
        "pip install --force-reinstall --no-deps matplotlib"
    )
