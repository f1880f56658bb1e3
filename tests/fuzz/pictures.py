"""Pictures in every format that Pillow can write, and some written by hand: read as Pillow reads them, or refused.

The official code opens a picture with `Image.open(...).convert("RGB")`. So a changed file that Pillow still opens must
give the same pixels here, and one it cannot open must be refused; then the pixels go through both pre-processings.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.mutations import damaged_bytes
from trol_runtime.errors import PictureError
from trol_runtime.model_config import ClipVision, InternVitVision
from trol_runtime.picture import MAX_PIXELS, load_picture
from trol_runtime.preprocess import preprocess

PICTURE = "picture"
CLIP = ClipVision(hidden_size=8, intermediate_size=8, layers=1, heads=1, patch_size=14, grid=4, layer_norm_eps=1e-5)
INTERNVIT = InternVitVision(
    hidden_size=8, intermediate_size=8, layers=1, heads=1, patch_size=14, grid=4, layer_norm_eps=1e-5,
    norm_type="layer_norm", qkv_bias=True, qk_normalization=False,
)  # fmt: skip
# A raw file's first bytes decide almost everything.
_HEADER_BYTES = 128
# A decoded picture in its own mode and in RGB, which Pillow keeps in four bytes each; then its bytes, to compare them.
_BYTES_PER_PIXEL = 4 + 4 + 3 + 3
_UPSIDE_DOWN = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)
_WRITE_OPTIONS: dict[str, list[dict[str, object]]] = {
    "PNG": [{}, {"optimize": True}, {"exif": _UPSIDE_DOWN}],
    "JPEG": [{}, {"progressive": True}, {"quality": 30, "comment": b"x" * 50, "icc_profile": b"icc" * 20}],
    "GIF": [{}, {"save_all": True, "append_images": "second"}],
    "WEBP": [{}, {"lossless": True}, {"save_all": True, "append_images": "second"}],
    "TIFF": [{"compression": kind} for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")],
    "ICO": [{}, {"bitmap_format": "bmp"}],
}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


class Pictures:
    """Changed bytes, mostly near the beginning, and cuts."""

    name = "pictures"

    def __init__(self, seeds: Path) -> None:
        Image.init()
        self._pictures = {**_written_by_pillow(), **_written_by_hand()}
        self.seeds = tuple(self._pictures)

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {PICTURE: self._pictures[seed]})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        data = self._pictures[seed]
        damaged = damaged_bytes(data, rng, [range(16), range(_HEADER_BYTES), range(len(data))])
        return Case(number, seed, damaged.change, Rule.OWN, {PICTURE: damaged.data})

    def read(self, folder: Path, case: Case) -> bool:
        path = folder / PICTURE
        official = _official_digest(path)
        try:
            picture = load_picture(path)
        except PictureError:
            if official is not None:
                raise WrongAnswerError("refused, but Pillow opens it") from None
            raise
        if official != _digest(picture):
            raise WrongAnswerError("read otherwise than by Pillow" if official else "read, but Pillow does not open it")
        for vision in (CLIP, INTERNVIT):
            values = preprocess([picture], vision)
            if values.dtype != np.float32 or values.shape[1:] != (3, 56, 56) or not np.isfinite(values).all():
                raise WrongAnswerError(f"{vision.kind}: {values.dtype} {values.shape}")
        return case.files[PICTURE] == self._pictures[case.seed]

    def extra_memory(self, case: Case) -> int:
        """A few bytes can rightly be a large picture; the limit is on its pixels."""
        try:
            with Image.open(BytesIO(case.files[PICTURE])) as image:
                return _BYTES_PER_PIXEL * min(image.width * image.height, MAX_PIXELS)
        except Exception:
            return 0


def _official_digest(path: Path) -> bytes | None:
    """Of the pixels that Pillow reads, None where it reads none; two pictures at once would be twice the memory.

    From an open file, as the runtime does. By its path Pillow would map a raw file, and not notice a tile that reaches
    out of the picture; in memory it could seek in front of the first byte.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return None if image.width * image.height > MAX_PIXELS else _digest(image.convert("RGB"))
    except Exception:
        return None


def _digest(picture: Image.Image) -> bytes:
    return hashlib.sha256(b"%d %d " % picture.size + picture.tobytes()).digest()


def _written_by_pillow() -> dict[str, bytes]:
    """A small picture in every mode of every format that Pillow writes here and reads again."""
    written: dict[str, bytes] = {}
    for kind in sorted(Image.SAVE):
        for mode in _MODES:
            for number, options in enumerate(_WRITE_OPTIONS.get(kind, [{}])):
                data = _encoded(kind, mode, options)
                if data is not None:
                    written[f"{kind} {mode} {number}"] = data
    return written


def _encoded(kind: str, mode: str, options: dict[str, object]) -> bytes | None:
    picture = _drawn(mode)
    if options.get("append_images") == "second":
        options = {**options, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
    file = BytesIO()
    try:
        picture.save(file, kind, **options)
        with Image.open(BytesIO(file.getvalue())) as again:
            again.convert("RGB")
    except Exception:  # not every format takes every mode, and some are written only
        return None
    return file.getvalue()


def _drawn(mode: str) -> Image.Image:
    across = np.arange(24, dtype=np.uint8)[None, :] * 10
    down = np.arange(16, dtype=np.uint8)[:, None] * 15
    rgb = Image.fromarray(np.stack(np.broadcast_arrays(across, down, across ^ down), 2).astype(np.uint8), "RGB")
    if mode in ("I;16", "I", "F"):
        return Image.fromarray(np.asarray(rgb.convert("L")).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]) * 100)
    return rgb.convert(mode)


def _written_by_hand() -> dict[str, bytes]:
    """Formats that Pillow only reads, or writes in one way only."""
    pixels = bytes(range(3 * 8 * 4))
    grey = bytes(range(32))
    by_hand = {
        "PGM plain": b"P2 8 4 255\n" + b" ".join(b"%d" % value for value in grey),
        "PPM raw": b"P6\n# comment\n8 4\n255\n" + pixels,
        "PPM 16 bits": b"P6 8 4 65535\n" + pixels * 2,
        "PBM plain": b"P1 8 4 " + b"10" * 16,
        "PAM": b"P7\nWIDTH 8\nHEIGHT 4\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + pixels,
        "PFM": b"Pf\n8 4\n-1.0\n" + struct.pack("<32f", *grey),
        "QOI": b"qoif" + struct.pack(">IIBB", 8, 4, 3, 0) + b"\xfe" + pixels[:3] + b"\xdd" + bytes(7) + b"\1",
        "PNG 16 bits": _png(16, 2, pixels * 2, 8 * 3 * 2),
        "PNG palette": _png(8, 3, grey, 8, (b"PLTE", pixels), (b"tRNS", b"\0\x80\xff")),
        "PNG text": _png(8, 2, pixels, 24, (b"tEXt", b"key\0value"), (b"zTXt", b"k\0\0" + zlib.compress(b"x" * 9999))),
        "PNG interlaced size 1": _png_chunks(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1), zlib.compress(b"\0abc")),
        "SUN": struct.pack(">8I", 0x59A66A95, 8, 4, 24, 96, 1, 0, 0) + pixels,
        "FITS": b"".join(
            line.ljust(80)
            for line in (b"SIMPLE  =                    T", b"BITPIX  =                    8",
                         b"NAXIS   =                    2", b"NAXIS1  =                    8",
                         b"NAXIS2  =                    4", b"END")
        ).ljust(2880) + grey.ljust(2880, b"\0"),
        "XPM": b'/* XPM */\nstatic char *x[] = {\n"4 2 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"abab",\n"baba"};\n',
        "XBM": b"#define x_width 8\n#define x_height 2\nstatic char x_bits[] = {\n0x55, 0xaa};\n",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 8, 8, 3) + bytes(12) + b"\0\0" + pixels,
        "PCX": _pcx(grey),
    }  # fmt: skip
    readable = {}
    for name, data in by_hand.items():
        try:
            with Image.open(BytesIO(data)) as image:
                image.convert("RGB")
            readable[name] = data
        except Exception:  # an older Pillow
            continue
    return readable


def _png(depth: int, colour: int, pixels: bytes, row_bytes: int, *chunks: tuple[bytes, bytes]) -> bytes:
    rows = b"".join(b"\0" + pixels[start : start + row_bytes] for start in range(0, len(pixels), row_bytes))
    header = struct.pack(">IIBBBBB", 8, 4, depth, colour, 0, 0, 0)
    return _png_chunks(header, zlib.compress(rows), *chunks)


def _png_chunks(header: bytes, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    framed = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        framed += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return framed


def _pcx(grey: bytes) -> bytes:
    header = struct.pack("<4B6H48sBBHHHH", 10, 5, 1, 8, 0, 0, 7, 3, 72, 72, bytes(48), 0, 1, 8, 1, 0, 0)
    runs = b"".join(b"\xc1" + bytes([value]) for value in grey)
    return header.ljust(128, b"\0") + runs + b"\x0c" + bytes(768)
