"""Pictures: every readable source gives Pillow's RGB bytes, every other one line that says what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trol_runtime import picture as module
from trol_runtime.errors import PictureError, UsageError
from trol_runtime.picture import MAX_PIXELS, load_picture


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 255 - red], 2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def official(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def refusal(source: object) -> str:
    with pytest.raises(PictureError) as caught:
        load_picture(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("I;16", "PNG"),
        ("F", "TIFF"),
    ],
)
def test_every_mode_becomes_the_rgb_of_pillow(mode: str, kind: str) -> None:
    image = gradient().convert("L").convert("I").convert("I;16") if mode == "I;16" else gradient().convert(mode)
    data = encoded(image, kind)
    picture = load_picture(data)
    assert picture.mode == "RGB"
    assert picture.tobytes() == official(data).tobytes()


def test_palette_with_alpha_per_entry_is_read_without_a_warning() -> None:
    data = encoded(gradient().convert("P"), "PNG", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = load_picture(data)
    with pytest.warns(UserWarning, match="Palette images"):
        assert picture.tobytes() == official(data).tobytes()


def test_every_real_picture_equals_the_official_expression(shared_data: Path) -> None:
    for entry in json.loads((shared_data / "images" / "manifest.json").read_text())["images"]:
        path = shared_data / "images" / entry["file"]
        picture = load_picture(path)
        assert picture.tobytes() == official(path.read_bytes()).tobytes(), path.name
        # 16-bit pictures convert as Pillow 13 does it; older versions may differ.
        if "rgb_sha256" in entry and (entry["mode"] != "I;16" or int(PIL.__version__.split(".")[0]) >= 13):
            assert hashlib.sha256(picture.tobytes()).hexdigest() == entry["rgb_sha256"], path.name


def test_a_path_a_string_bytes_a_stream_and_a_pillow_image_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    gradient().save(path)
    expected = gradient().tobytes()
    with path.open("rb") as stream, Image.open(path) as image:
        for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), stream, image):
            assert load_picture(source).tobytes() == expected


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()

    def send() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(encoded(gradient(), "PNG"))

    sender = threading.Thread(target=send)
    sender.start()
    with open(reading, "rb") as pipe:
        assert load_picture(pipe).tobytes() == gradient().tobytes()
    sender.join()


def test_a_pillow_image_is_left_as_it_was() -> None:
    grey = gradient().convert("L")
    assert load_picture(grey).mode == "RGB"
    assert grey.mode == "L"
    rgb = gradient()
    assert load_picture(rgb) is rgb


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")
    data = encoded(first, kind, save_all=True, append_images=[second])
    picture = load_picture(data)
    assert picture.tobytes() == first.tobytes()
    assert picture.resize((2, 2)).getpixel((0, 0)) == (255, 255, 255)  # usable after its file is gone


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_unless_asked_for(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), "PNG", exif=exif)
    assert load_picture(data).tobytes() == gradient().tobytes()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = gradient().transpose(turn[orientation]) if orientation > 1 else gradient()
    picture = load_picture(data, exif=True)
    assert picture.size == upright.size
    assert picture.tobytes() == upright.tobytes()


# --- what is refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.png"
    assert refusal(path) == f"picture {str(path)!r}: No such file or directory; give the path of an image file"


def test_a_directory_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"picture {str(tmp_path)!r}: Is a directory; give the path of an image file"


PIPE = "a pipe or a device; give the path of an image file; a pipe goes into trol-run --image -"


def test_a_pipe_that_nobody_writes_to_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.png", tmp_path / "link.png"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        assert refusal(path) == f"picture {str(path)!r}: {PIPE}"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_refused_rather_than_read_for_ever() -> None:
    assert refusal("/dev/zero") == f"picture '/dev/zero': {PIPE}"


def test_a_link_to_a_picture_is_followed(tmp_path: Path) -> None:
    gradient().save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to("x.png")
    assert load_picture(tmp_path / "link.png").tobytes() == gradient().tobytes()


def test_an_impossible_path_is_one_line() -> None:
    assert refusal("a\0b.png") == "picture 'a\\x00b.png': embedded null byte; give the path of an image file"
    assert "picture 'line\\nbreak.png': No such file" in refusal("line\nbreak.png")


def test_an_open_file_is_named_as_its_path_is(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with path.open("rb") as stream:
        assert refusal(stream) == refusal(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    assert refusal(path) == f"picture {str(path)!r}: empty (0 bytes); expected an image file such as PNG or JPEG"
    assert refusal(b"") == "picture: empty (0 bytes); expected an image file such as PNG or JPEG"


def test_a_text_file_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture\n")
    assert refusal(path) == (
        f"picture {str(path)!r}: not in an image format that Pillow reads; expected an image file such as PNG or JPEG"
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(gradient(200, 150), kind)
    message = refusal(data[: len(data) // 2])
    assert message.startswith("picture: damaged or of an unsupported kind (")
    assert message.endswith("); save it again as PNG or JPEG")


def test_a_truncated_jpeg_says_so() -> None:
    data = encoded(gradient(200, 150), "JPEG")
    assert "(image file is truncated" in refusal(data[:-500])


def png_bomb(side: int) -> bytes:
    """A file of some bytes that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    assert refusal(png_bomb(60_000)) == (
        f"picture: Image size (3600000000 pixels) exceeds limit of {MAX_PIXELS} pixels; scale it down first"
    )


def test_a_bomb_is_refused_even_where_pillow_would_unpack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert refusal(png_bomb(60_000)) == (
        f"picture: 60000 x 60000 pixels exceed the limit of {MAX_PIXELS}; scale it down first"
    )


def test_an_endless_pipe_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPE_BYTES", 1000)
    reading, writing = os.pipe()
    os.write(writing, bytes(2000))
    os.close(writing)
    with open(reading, "rb") as pipe:
        message = refusal(pipe)
    assert message == "picture: more than 1000 bytes came through the pipe; send one image file"


def test_a_source_of_another_type_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        load_picture(np.zeros((4, 4, 3), np.uint8))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "a picture cannot be a ndarray; expected a path, bytes, a binary stream or a Pillow image"
    )


DAMAGEABLE = {
    "png": encoded(gradient(), "PNG"),
    "palette png": encoded(gradient().convert("P"), "PNG", transparency=bytes([0, 128])),
    "jpeg": encoded(gradient(), "JPEG"),
    "progressive jpeg": encoded(gradient(), "JPEG", progressive=True),
    "gif": encoded(gradient(), "GIF", save_all=True, append_images=[gradient().rotate(180)]),
    "webp": encoded(gradient(), "WEBP"),
    "tiff": encoded(gradient(), "TIFF", compression="tiff_lzw"),
    "bmp": encoded(gradient(), "BMP"),
}


@pytest.mark.parametrize("name", DAMAGEABLE)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
@pytest.mark.filterwarnings("ignore")  # Pillow may warn about damage that it can read past
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, data: st.DataObject) -> None:
    file = bytearray(DAMAGEABLE[name])
    for _ in range(data.draw(st.integers(0, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(file[: data.draw(st.integers(0, len(file)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_PIXELS", 10_000)  # a damaged size must not cost the test a gigabyte
        for exif in (False, True):
            picture = read_or_refused(damaged, exif)
            if isinstance(picture, str):
                assert "\n" not in picture
            else:
                assert picture.mode == "RGB"
                assert picture.crop((0, 0, 1, 1)).size == (1, 1)


def read_or_refused(data: bytes, exif: bool) -> Image.Image | str:
    try:
        return load_picture(data, exif=exif)
    except PictureError as error:
        return str(error)
