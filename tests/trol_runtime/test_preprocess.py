"""Pixel values: equal in every bit to the official code's, for both vision towers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from golden.golden import Golden, digest
from trol_runtime import preprocess as module
from trol_runtime.errors import PictureError
from trol_runtime.model_config import ClipVision, InternVitVision
from trol_runtime.picture import load_picture
from trol_runtime.preprocess import (
    bicubic_taps,
    crops_per_picture,
    preprocess,
    resize_smoothly,
    squeeze,
    tile_grid,
    tiles,
)

CLIP = ClipVision(
    hidden_size=1024, intermediate_size=4096, layers=24, heads=16, patch_size=14, grid=35, layer_norm_eps=1e-5
)
INTERNVIT = InternVitVision(
    hidden_size=1024,
    intermediate_size=4096,
    layers=24,
    heads=16,
    patch_size=14,
    grid=32,
    layer_norm_eps=1e-6,
    norm_type="layer_norm",
    qkv_bias=True,
    qk_normalization=False,
)
needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 resizes with another order of passes"
)
PICTURE_NAMES = ["a", "b"]
SIDES = st.integers(1, 1500)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Half of it only black and white, so that rounding and clamping are met everywhere."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:, ::2] = np.where(pixels[:, ::2] > 127, 255, 0)
    return Image.fromarray(pixels)


def source(golden: Golden, name: str) -> Image.Image:
    return Image.fromarray(golden[f"image/{name}/source"])


def stride7(values: np.ndarray) -> np.ndarray:
    return values[..., ::7, ::7]


# --- golden: what the official code made of two pictures


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_clip_resizing_equals_the_official_pixels(golden_internlm2: Golden, name: str) -> None:
    planes = squeeze(source(golden_internlm2, name), CLIP.image_size).transpose(2, 0, 1)
    assert digest(planes) == golden_internlm2.digests[f"image/{name}/resized_u8"]


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_clip_values_equal_the_official_ones(golden_internlm2: Golden, name: str) -> None:
    values = preprocess([source(golden_internlm2, name)], CLIP)
    np.testing.assert_array_equal(stride7(values), golden_internlm2[f"image/{name}/pixel_values_stride7"])


def test_every_clip_value_of_a_whole_picture_equals_the_official_one(golden_internlm2: Golden) -> None:
    values = preprocess([source(golden_internlm2, "a")], CLIP)
    assert digest(values) == golden_internlm2.digests["image/a/pixel_values"]


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_internvit_tiles_equal_the_official_pixels(golden_phi3: Golden, name: str) -> None:
    planes = np.stack([tile.transpose(2, 0, 1) for tile in tiles(source(golden_phi3, name), INTERNVIT)])
    assert digest(planes) == golden_phi3.digests[f"image/{name}/tiles_u8"]


@pytest.mark.parametrize("name", PICTURE_NAMES)
def test_internvit_values_equal_the_official_ones(golden_phi3: Golden, name: str) -> None:
    values = preprocess([source(golden_phi3, name)], INTERNVIT)
    np.testing.assert_array_equal(stride7(values), golden_phi3[f"image/{name}/pixel_values_stride7"])


def test_every_internvit_value_of_a_whole_tile_equals_the_official_one(golden_phi3: Golden) -> None:
    values = preprocess([source(golden_phi3, "a")], INTERNVIT)
    assert digest(values[:1]) == golden_phi3.digests["image/a/pixel_values_tile0"]


# --- against torch and Pillow themselves: the expressions of the official code, on many sizes


def torch_squeeze(picture: Image.Image, side: int) -> np.ndarray:
    """uint8 (3, side, side)"""
    torch = pytest.importorskip("torch")
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return torch.nn.functional.interpolate(planes[None], size=(side, side), mode="bicubic")[0].numpy()


def torch_clip_values(picture: Image.Image, side: int) -> np.ndarray:
    torch = pytest.importorskip("torch")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1) * 255
    return ((torch.from_numpy(torch_squeeze(picture, side))[None] - mean) / std).numpy()


def torch_internvit_values(picture: Image.Image, vision: InternVitVision) -> np.ndarray:
    torch = pytest.importorskip("torch")
    side = vision.image_size
    columns, rows = tile_grid(*picture.size, vision)
    resized = np.array(picture.resize((columns * side, rows * side)))
    crops = resized.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    if len(crops) > 1:
        crops = np.concatenate([crops, np.array(picture.resize((side, side)))[None]])
    values = torch.from_numpy(crops).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return values.sub(mean.view(3, 1, 1)).div(std.view(3, 1, 1)).numpy()


@given(width=SIDES, height=SIDES)
@settings(deadline=None, max_examples=30)
def test_squeezing_equals_torch_for_any_size(width: int, height: int) -> None:
    picture = noise(width, height)
    np.testing.assert_array_equal(squeeze(picture, 490).transpose(2, 0, 1), torch_squeeze(picture, 490))


@given(inputs=st.integers(1, 3000), side=st.integers(1, 700), upright=st.booleans())
@settings(deadline=None, max_examples=60)
def test_squeezing_equals_torch_for_any_target(inputs: int, side: int, upright: bool) -> None:
    picture = noise(3, inputs) if upright else noise(inputs, 3)
    np.testing.assert_array_equal(squeeze(picture, side).transpose(2, 0, 1), torch_squeeze(picture, side))


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(1, 1, id="one pixel"),
        pytest.param(490, 490, id="nothing to do"),
        pytest.param(490, 123, id="one axis keeps its size"),
        pytest.param(491, 124, id="a partial sum on the edge pixel decides the weights' precision"),
        pytest.param(2, 3, id="all four taps on the edge"),
        pytest.param(700, 100, id="7:1"),
        pytest.param(65_535, 2, id="centres that fp32 cannot tell from the next pixel"),
        pytest.param(2, 100_003, id="a hundred thousand rows"),
    ],
)
def test_squeezing_equals_torch_at_the_corners(width: int, height: int) -> None:
    picture = noise(width, height)
    np.testing.assert_array_equal(squeeze(picture, 490).transpose(2, 0, 1), torch_squeeze(picture, 490))


def test_squeezing_equals_torch_on_every_real_picture(shared_data: Path) -> None:
    for path in pictures_in(shared_data):
        with Image.open(path) as file:
            reference = torch_clip_values(file.convert("RGB"), CLIP.image_size)
        np.testing.assert_array_equal(preprocess([load_picture(path)], CLIP), reference, err_msg=path.name)


@needs_pillow_13
def test_tiles_equal_the_official_expressions_on_every_real_picture(shared_data: Path) -> None:
    for path in pictures_in(shared_data):
        with Image.open(path) as file:
            reference = torch_internvit_values(file.convert("RGB"), INTERNVIT)
        np.testing.assert_array_equal(preprocess([load_picture(path)], INTERNVIT), reference, err_msg=path.name)


@needs_pillow_13
@given(width=SIDES, height=SIDES)
@settings(deadline=None, max_examples=15)
def test_tiles_equal_the_official_expressions_for_any_size(width: int, height: int) -> None:
    picture = noise(width, height)
    small = InternVitVision(64, 128, 2, 2, 14, 4, 1e-6, "layer_norm", True, False)
    np.testing.assert_array_equal(preprocess([picture], small), torch_internvit_values(picture, small))


@needs_pillow_13
@given(width=SIDES, height=SIDES, new_width=st.integers(1, 900), new_height=st.integers(1, 900))
@settings(deadline=None, max_examples=50)
def test_smooth_resizing_is_that_of_pillow_13(width: int, height: int, new_width: int, new_height: int) -> None:
    picture = noise(width, height)
    expected = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
    assert resize_smoothly(picture, new_width, new_height).tobytes() == expected.tobytes()


def pictures_in(shared_data: Path) -> list[Path]:
    found = sorted(path for path in (shared_data / "images").iterdir() if path.suffix not in {".json", ".jsonl"})
    assert len(found) >= 20
    return found


# --- the bicubic kernel, without torch


@given(size=SIDES)
def test_an_axis_that_keeps_its_size_is_read_as_it_is(size: int) -> None:
    taps = bicubic_taps(size, size)
    row = np.arange(size)
    np.testing.assert_array_equal((taps.weights * row[taps.positions]).sum(1) >> taps.shift, row)


@given(inputs=SIDES, outputs=SIDES)
def test_weights_of_a_pixel_add_up_to_one_and_fit_16_bits(inputs: int, outputs: int) -> None:
    taps = bicubic_taps(inputs, outputs)
    assert np.abs(taps.weights).max() < 2**15
    # Four weights, each rounded to the nearest 1 / 2**shift.
    assert np.abs(taps.weights.sum(1) - 2**taps.shift).max() <= 2


def test_weights_halfway_between_two_pixels() -> None:
    taps = bicubic_taps(4, 2)
    assert taps.shift == 15
    np.testing.assert_array_equal(taps.positions[0], [0, 1, 2, 3])
    # -0.09375, 0.59375, 0.59375, -0.09375; the tap outside is added to the edge pixel's.
    np.testing.assert_array_equal(taps.weights[0] / 2**15, [0.5, 0.59375, -0.09375, 0])


def test_a_picture_taken_in_strips_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(301, 977)
    whole = squeeze(picture, 70)
    monkeypatch.setattr(module, "STRIP_PIXELS", 5 * 301)
    np.testing.assert_array_equal(squeeze(picture, 70), whole)


def test_a_12_megapixel_photograph_is_squeezed_within_64_mib() -> None:
    picture = Image.new("RGB", (4000, 3000))
    tracemalloc.start()
    squeeze(picture, CLIP.image_size)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * 2**20


# --- tiles


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        pytest.param(1, 1, (1, 1), id="one pixel"),
        pytest.param(600, 600, (1, 1), id="square with less than half the pixels of 2 x 2"),
        pytest.param(640, 640, (2, 2), id="square with more than half the pixels of 2 x 2"),
        pytest.param(700, 400, (2, 1), id="tie between 2 x 1 and 3 x 2, small picture"),
        pytest.param(1050, 600, (3, 2), id="tie between 2 x 1 and 3 x 2, large picture"),
        pytest.param(448, 634, (2, 3), id="an A4 page"),
        pytest.param(1000, 140, (6, 1), id="7:1 strip"),
        pytest.param(150, 600, (1, 4), id="1:4 strip"),
        pytest.param(1, 5000, (1, 6), id="thinner than any grid"),
    ],
)
def test_tile_grid_is_the_one_nearest_in_shape(width: int, height: int, grid: tuple[int, int]) -> None:
    assert tile_grid(width, height, INTERNVIT) == grid


def test_a_tie_is_judged_by_the_tile_size_of_the_engine() -> None:
    small = InternVitVision(64, 128, 2, 2, 14, 4, 1e-6, "layer_norm", True, False)
    assert tile_grid(100, 100, INTERNVIT) == (1, 1)
    assert tile_grid(100, 100, small) == (2, 2)


def test_tiles_are_row_major_with_the_thumbnail_last() -> None:
    side = INTERNVIT.image_size
    colours = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    pixels = colours.repeat(side, 0).repeat(side, 1)
    found = list(tiles(Image.fromarray(pixels).convert("RGB"), INTERNVIT))
    assert [int(np.median(tile)) for tile in found[:6]] == [0, 40, 80, 120, 160, 200]
    assert len(found) == 7
    assert len(np.unique(found[6])) > 5


# --- several pictures


@pytest.mark.parametrize("vision", [CLIP, INTERNVIT], ids=["clip", "internvit"])
def test_crops_of_several_pictures_follow_each_other(vision: ClipVision | InternVitVision) -> None:
    pictures = [noise(640, 480, seed=1), noise(90, 30, seed=2), noise(20, 20, seed=3)]
    together = preprocess(pictures, vision)
    np.testing.assert_array_equal(together, np.concatenate([preprocess([picture], vision) for picture in pictures]))
    assert together.dtype == np.float32
    assert together.flags.c_contiguous


def test_crops_per_picture_counts_tiles_and_thumbnail() -> None:
    pictures = [noise(640, 480), noise(90, 30), noise(20, 20)]
    assert crops_per_picture(pictures, CLIP) == [1, 1, 1]
    assert crops_per_picture(pictures, INTERNVIT) == [7, 4, 1]


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
@settings(deadline=None, max_examples=30)
def test_crops_per_picture_agrees_with_the_tiles(width: int, height: int) -> None:
    small = InternVitVision(64, 128, 2, 2, 2, 2, 1e-6, "layer_norm", True, False)
    picture = Image.new("RGB", (width, height))
    assert crops_per_picture([picture], small) == [len(list(tiles(picture, small)))]


def test_no_pictures_are_no_crops() -> None:
    assert preprocess([], CLIP).shape == (0, 3, 490, 490)
    assert preprocess([], INTERNVIT).shape == (0, 3, 448, 448)
    assert crops_per_picture([], CLIP) == []


def test_crop_size_comes_from_the_position_table() -> None:
    clip = ClipVision(64, 128, 2, 1, patch_size=7, grid=5, layer_norm_eps=1e-5)
    internvit = InternVitVision(64, 128, 2, 2, 3, 6, 1e-6, "rms_norm", qkv_bias=True, qk_normalization=True)
    assert preprocess([noise(20, 20)], clip).shape == (1, 3, 35, 35)
    assert preprocess([noise(20, 10)], internvit).shape == (3, 3, 18, 18)


def test_a_picture_that_is_not_rgb_is_refused_by_number() -> None:
    with pytest.raises(PictureError) as caught:
        preprocess([noise(4, 4), Image.new("LA", (4, 4))], CLIP)
    assert str(caught.value) == "picture 2 has mode LA; expected RGB; pass it through load_picture first"
