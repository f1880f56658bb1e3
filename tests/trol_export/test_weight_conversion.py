"""Stored floats to fp32 and fp16: every bit pattern, every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trol_export.weight_conversion import FloatType, convert
from trol_export.weight_files import TensorInfo
from trol_runtime.errors import CheckpointError, NumericError

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def converted(tensor: torch.Tensor, stored: str, wanted: FloatType, chunk_values: int = 1000) -> bytes:
    data = tensor.to(STORED[stored]).contiguous().reshape(-1).view(torch.uint8).numpy()
    step = chunk_values * STORED[stored].itemsize
    info = TensorInfo("some.weight", stored, tuple(tensor.shape))
    return b"".join(convert([data[i : i + step] for i in range(0, data.size, step)], info, wanted, "model.safetensors"))


def every_finite(stored: str) -> torch.Tensor:
    """Every finite 16-bit float; for F32, those of fp16 nudged by a bit, so that rounding has ties and both sides."""
    if stored == "F32":
        halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
        bits = halves[halves.isfinite()].view(torch.int32)
        ties = torch.cat([bits + nudge for nudge in (-1, 0, 1, 0xFFF, 0x1000, 0x1001)]).view(torch.float32)
        return ties[ties.isfinite() & (ties.abs() < 65520)]
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(STORED[stored])
    return values[values.isfinite()]


@pytest.mark.parametrize("stored", STORED)
def test_fp32_of_every_stored_value_is_exact(stored: str) -> None:
    values = every_finite(stored)
    assert converted(values, stored, "F32") == values.to(torch.float32).numpy().tobytes()


@pytest.mark.parametrize("stored", STORED)
def test_fp16_is_the_nearest_even_as_numpy_rounds_it(stored: str) -> None:
    values = every_finite(stored)
    values = values[values.float().abs() < 65520]
    assert converted(values, stored, "F16") == values.float().numpy().astype(np.float16).tobytes()


def test_an_empty_tensor_has_no_bytes() -> None:
    assert converted(torch.zeros(0, 3), "F32", "F16") == b""


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("wanted", ["F32", "F16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(stored: str, wanted: FloatType, bad: float) -> None:
    tensor = torch.zeros(40, 100)
    tensor[23, 45] = bad
    with pytest.raises(NumericError) as error:
        converted(tensor, stored, wanted)
    assert str(error.value) == (
        f"model.safetensors: tensor 'some.weight' holds {bad} at [23, 45], "
        "expected finite weights: the checkpoint is broken"
    )


def test_a_negative_nan_is_seen_too() -> None:
    tensor = torch.tensor([0x7FC00000 - 2**31], dtype=torch.int32).view(torch.float32)
    assert tensor.isnan().all()
    with pytest.raises(NumericError, match=r"holds nan at \[0\]"):
        converted(tensor, "F32", "F32")


@pytest.mark.parametrize(("stored", "value"), [("F32", 65520.0), ("F32", -1e9), ("BF16", 65536.0)])
def test_what_fp16_cannot_hold_is_refused_and_fp32_offered(stored: str, value: float) -> None:
    tensor = torch.zeros(3, 2000)
    tensor[2, 1999] = value
    with pytest.raises(NumericError) as error:
        converted(tensor, stored, "F16")
    assert str(error.value) == (
        f"model.safetensors: tensor 'some.weight' holds {value:g} at [2, 1999], beyond fp16's 65504: "
        "export with --precision fp32"
    )
    assert converted(tensor, stored, "F32") == tensor.numpy().tobytes()


def test_infinity_is_named_even_behind_values_beyond_fp16() -> None:
    tensor = torch.tensor([1e6, float("inf")])
    with pytest.raises(NumericError, match=r"holds inf at \[1\]"):
        converted(tensor, "F32", "F32")


def test_integers_are_refused() -> None:
    info = TensorInfo("some.weight", "I8", (4,))
    with pytest.raises(CheckpointError, match=r"w: tensor 'some.weight' is I8, expected F32, F16 or BF16"):
        list(convert([np.zeros(4, np.uint8)], info, "F16", "w"))
