"""Any picture source to one decoded RGB picture, or one line that says why not.

Decoding is Pillow's `Image.open(...).convert("RGB")`, the expression the official code uses, so that grey, palette,
alpha, CMYK and 16-bit pictures become the same bytes; alpha is dropped, not blended. Resizing belongs to `preprocess`.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, NoReturn

from PIL import Image, ImageOps, UnidentifiedImageError

from trol_runtime.errors import PictureError, UsageError
from trol_runtime.one_line import one_line

# Where Pillow itself stops by default, hence the official code too; decoded, such a picture takes 0.7 GB.
MAX_PIXELS = 178_956_970

# What is read from a pipe before giving up: an uncompressed 8-bit picture of MAX_PIXELS fits.
MAX_PIPE_BYTES = 2**30


def load_picture(source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image, exif: bool = False) -> Image.Image:
    """Decode one picture to mode RGB, at its own size.

    source: the path of a regular file, the bytes of an image file, a binary stream (pipes too), or a Pillow image,
            which is never changed and comes back as it is when it is RGB already
    exif:   turn the picture upright as its EXIF orientation says; off by default, since the official code ignores it

    Of an animation (GIF, WebP, APNG) or a multi-page TIFF the first frame is taken; of a Pillow image the current one.
    Raises PictureError when the source is missing, the path of something else, empty, not an image, damaged or above
    MAX_PIXELS; UsageError when it is none of these types.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "picture", exif)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "picture", exif)
    if isinstance(source, (str, os.PathLike)):
        # repr: a file name may hold line breaks, a message may not.
        name = f"picture {os.fspath(source)!r}"
        if _may_never_end(source):
            _refuse(name, "a pipe or a device", "give the path of an image file; a pipe goes into trol-run --image -")
        try:
            with open(source, "rb") as file:
                return _read(file, name, exif)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            _refuse(name, _reason(getattr(error, "strerror", None) or error), "give the path of an image file", error)
    if hasattr(source, "read"):
        label = getattr(source, "name", None)  # a path or '<stdin>'; a pipe's is its number
        return _read(source, f"picture {label!r}" if isinstance(label, str) else "picture", exif)
    raise UsageError(
        f"a picture cannot be a {type(source).__name__}; expected a path, bytes, a binary stream or a Pillow image"
    )


def _may_never_end(path: str | os.PathLike[str]) -> bool:
    """Whether opening or reading `path` could wait for ever: where it leads is neither a file nor a folder."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _read(file: BinaryIO, name: str, exif: bool) -> Image.Image:
    if not file.seekable():
        data = file.read(MAX_PIPE_BYTES + 1)
        if len(data) > MAX_PIPE_BYTES:
            _refuse(name, f"more than {MAX_PIPE_BYTES} bytes came through the pipe", "send one image file")
        file = io.BytesIO(data)
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        found = "not in an image format that Pillow reads" if file.seek(0, os.SEEK_END) else "empty (0 bytes)"
        _refuse(name, found, "expected an image file such as PNG or JPEG", error)
    except Exception as error:
        _refuse_undecodable(name, error)
    image.info.pop("transparency", None)  # changes no RGB value; Pillow would warn that the conversion drops it
    return _decode(image, name, exif)


def _decode(image: Image.Image, name: str, exif: bool) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:  # Pillow's own check may be off, and spares images made in memory
        _refuse(name, f"{image.width} x {image.height} pixels exceed the limit of {MAX_PIXELS}", "scale it down first")
    try:
        image.load()
        if exif:
            image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        _refuse_undecodable(name, error)


def _refuse_undecodable(name: str, error: Exception) -> NoReturn:
    """Any exception: Pillow's decoders answer damage with OSError, SyntaxError, ValueError, struct.error and more."""
    if isinstance(error, Image.DecompressionBombError):
        _refuse(name, _reason(error).partition(", could be")[0], "scale it down first", error)
    _refuse(name, f"damaged or of an unsupported kind ({_reason(error)})", "save it again as PNG or JPEG", error)


def _refuse(name: str, found: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise PictureError(f"{name}: {found}; {remedy}") from cause


def _reason(error: object) -> str:
    return one_line(error) or type(error).__name__
