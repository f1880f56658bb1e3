"""RGB pictures to the vision tower's pixel values, bit for bit as the official code computes them.

CLIP (1.8B, 7B):   one crop: the whole picture squeezed into a square by torch's uint8 bicubic, rebuilt here in numpy
InternViT (3.8B):  1 to 6 tiles in a grid of about the picture's shape, and a thumbnail if several, by Pillow's bicubic

Either way uint8 pixels are normalised in fp32 with the official constants, in the official order of operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from trol_runtime.errors import PictureError
from trol_runtime.model_config import ClipVision, InternVitVision


def _per_channel(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


# CLIP's constants are multiplied by 255 in fp32, InternViT's pixels divided by 255: not the same last bit.
CLIP_MEAN = _per_channel(0.48145466, 0.4578275, 0.40821073) * np.float32(255)
CLIP_STD = _per_channel(0.26862954, 0.26130258, 0.27577711) * np.float32(255)
IMAGENET_MEAN = _per_channel(0.485, 0.456, 0.406)
IMAGENET_STD = _per_channel(0.229, 0.224, 0.225)

# torch's cubic convolution parameter; Pillow's is -0.5.
CUBIC_A = -0.75

# The most pixels of the source that are unpacked at once while it is shrunk (12 MB).
STRIP_PIXELS = 2**22


def preprocess(pictures: Sequence[Image.Image], vision: ClipVision | InternVitVision) -> np.ndarray:
    """Pixel values of all pictures: float32 (crops, 3, image_size, image_size), C-contiguous.

    pictures: mode RGB, as `load_picture` returns them; any other mode raises PictureError
    Crops follow the order of the pictures; a picture's tiles are row-major, its thumbnail last.
    """
    _require_rgb(pictures)
    side = vision.image_size
    crops: Iterator[np.ndarray]
    if isinstance(vision, ClipVision):
        crops = (_clip_values(squeeze(picture, side)) for picture in pictures)
    else:
        crops = (_internvit_values(tile) for picture in pictures for tile in tiles(picture, vision))
    values = np.empty((sum(crops_per_picture(pictures, vision)), 3, side, side), np.float32)
    for crop_values, crop in zip(values, crops, strict=True):
        crop_values[...] = crop
    return values


def crops_per_picture(pictures: Sequence[Image.Image], vision: ClipVision | InternVitVision) -> list[int]:
    """How many crops each picture becomes; times `vision.tokens_per_crop` this is its share of the prompt."""
    if isinstance(vision, ClipVision):
        return [1] * len(pictures)
    grids = [tile_grid(*picture.size, vision) for picture in pictures]
    return [columns * rows + (columns * rows > 1) for columns, rows in grids]


def _require_rgb(pictures: Sequence[Image.Image]) -> None:
    for number, picture in enumerate(pictures, 1):
        if picture.mode != "RGB":
            raise PictureError(
                f"picture {number} has mode {picture.mode}; expected RGB; pass it through load_picture first"
            )


def _clip_values(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to float32 (3, h, w)."""
    return (pixels.transpose(2, 0, 1).astype(np.float32) - CLIP_MEAN) / CLIP_STD


def _internvit_values(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to float32 (3, h, w)."""
    return (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD


# --- InternViT: tiles


def tile_grid(width: int, height: int, vision: InternVitVision) -> tuple[int, int]:
    """Columns and rows of tiles, at most `max_tiles` of them, whose shape is nearest to the picture's.

    Among equally near grids a larger one wins only if the picture has more than half of that grid's pixels.
    """
    sides = range(1, vision.max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= vision.max_tiles]
    best, smallest_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        tie = difference == smallest_difference
        if difference < smallest_difference or (tie and width * height > columns * rows * vision.image_size**2 / 2):
            best, smallest_difference = (columns, rows), difference
    return best


def tiles(picture: Image.Image, vision: InternVitVision) -> Iterator[np.ndarray]:
    """The picture's tiles, row-major, then its thumbnail if several: each uint8 (image_size, image_size, 3)."""
    side = vision.image_size
    columns, rows = tile_grid(*picture.size, vision)
    resized = resize_smoothly(picture, columns * side, rows * side)
    for top in range(0, rows * side, side):
        for left in range(0, columns * side, side):
            yield np.asarray(resized.crop((left, top, left + side, top + side)))
    if columns * rows > 1:
        yield np.asarray(resize_smoothly(picture, side, side))


def resize_smoothly(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Pillow 13's antialiased bicubic, from any Pillow.

    Each pass rounds to uint8, so their order shows in the pixels. Pillow 13 chooses it by how much either axis shrinks;
    earlier ones, all that Python 3.10 can have, go horizontally first (https://github.com/python-pillow/Pillow/pull/9549).
    """
    vertical_first = picture.height - height > max(0, 2 * (picture.width - width))
    between = (picture.width, height) if vertical_first else (width, picture.height)
    return picture.resize(between, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


# --- CLIP: torch.nn.functional.interpolate(uint8, mode="bicubic") in integers


class Taps(NamedTuple):
    """Resampling of one axis: output i is sum(weights[i] * inputs[positions[i]]) / 2**shift."""

    positions: np.ndarray  # int64 (outputs, 4)
    weights: np.ndarray  # int32 (outputs, 4), each within 16 bits
    shift: int


def squeeze(picture: Image.Image, side: int) -> np.ndarray:
    """The whole picture resized to a square, aspect ratio not kept, no antialiasing: uint8 (side, side, 3).

    Equal to torch's uint8 bicubic in every bit: horizontal pass, rounded to uint8, then the vertical pass. Only rows
    that the vertical pass reads go through the horizontal one, strip by strip, so that a photograph needs no copy.
    """
    if picture.size == (side, side):
        return np.asarray(picture)  # each tap but one has no weight: the same pixels
    across, down = bicubic_taps(picture.width, side), bicubic_taps(picture.height, side)
    needed = np.unique(down.positions)
    narrow = np.empty((len(needed), side, 3), np.uint8)
    strip_height = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, strip_height):
        bottom = min(top + strip_height, picture.height)
        first, last = np.searchsorted(needed, (top, bottom))
        if first < last:
            strip = np.asarray(picture.crop((0, top, picture.width, bottom)))
            narrow[first:last] = _weigh(strip[needed[first:last] - top], across, axis=1)
    return _weigh(narrow, down._replace(positions=np.searchsorted(needed, down.positions)), axis=0)


def bicubic_taps(inputs: int, outputs: int) -> Taps:
    """Four bicubic taps per output in torch's 16-bit fixed point; taps outside add up on the edge pixel."""
    centre = inputs / outputs * (np.arange(outputs) + 0.5) - 0.5
    # torch takes the floor in fp32: a centre just below a pixel counts as on it, its offset as 0.
    floor = np.minimum(np.floor(centre.astype(np.float32)).astype(np.int64), inputs - 1)
    offset = np.clip(centre - floor, 0, 1)
    exact = np.stack([_cubic_far(1 + offset), _cubic_near(offset), _cubic_near(1 - offset), _cubic_far(2 - offset)], 1)

    position = np.clip(floor[:, None] + np.arange(-1, 3), 0, inputs - 1)
    first = position[:, :1]
    output = np.arange(outputs)
    weight = np.zeros((outputs, 4))
    largest = 0.0
    for tap in range(4):
        slot = position[:, tap] - first[:, 0]
        weight[output, slot] += exact[:, tap]
        largest = max(largest, weight[output, slot].max())  # of partial sums too, as torch does

    shift = 0
    while int(0.5 + largest * 2 ** (shift + 1)) < 2**15:
        shift += 1
    scaled = weight * 2**shift
    rounded = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)  # half away from zero
    return Taps(np.minimum(first + np.arange(4), inputs - 1), rounded, shift)


def _cubic_near(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel between 0 and 1 pixels away."""
    return ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance * distance + 1


def _cubic_far(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel between 1 and 2 pixels away."""
    return ((CUBIC_A * distance - 5 * CUBIC_A) * distance + 8 * CUBIC_A) * distance - 4 * CUBIC_A


def _weigh(pixels: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Resample one axis of uint8 (h, w, 3), rounded and clamped to uint8."""
    shape = [*pixels.shape]
    shape[axis] = len(taps.positions)
    total = np.full(shape, 1 << (taps.shift - 1), np.int32)
    for positions, weights in zip(taps.positions.T, taps.weights.T, strict=True):
        total += pixels.take(positions, axis) * (weights[:, None] if axis == 1 else weights[:, None, None])
    return np.clip(total >> taps.shift, 0, 255).astype(np.uint8)
